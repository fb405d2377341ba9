//! Routing: one hand-written match over the path's segments. No allocation, no pattern to compile.

use hyper::Method;

use super::problem::{Help, Kind, Problem};

/// Which listener a request came in by, and so what it may call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Surface {
    /// Members, through a gateway that has authenticated them.
    Public,
    /// A gateway's own listener: as public, and trusted with batches.
    Gateway,
    /// Operators; loopback by default.
    Admin,
}

/// What an operator does to a sale's phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SaleStep {
    Open,
    Pause,
    Resume,
    Close,
}

/// A call, with what its path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route<'a> {
    Redeem {
        sale: &'a str,
    },
    Confirm {
        id: &'a str,
    },
    Cancel {
        id: &'a str,
    },
    Redemption {
        id: &'a str,
    },
    Batch,
    MyRedemptions,
    MyPoints,
    MyStatement,
    Sales,
    Sale {
        sale: &'a str,
    },
    SaleEvents {
        sale: &'a str,
    },
    DefineSale,
    StepSale {
        sale: &'a str,
        step: SaleStep,
    },
    ChangeStock {
        sale: &'a str,
        sku: &'a str,
    },
    ItemRedemptions {
        sale: &'a str,
        sku: &'a str,
    },
    ChangePoints {
        member: &'a str,
    },
    Member {
        member: &'a str,
    },
    ImportMembers,
    Reverse {
        id: &'a str,
    },
    Audit,
    Cluster,
    Livez,
    Readyz,
    Metrics,
    Version,
    OpenApi,
    /// No call: counted under one label.
    Unknown,
}

impl Route<'_> {
    /// The metrics' `call`, in the order of [`Route::index`].
    pub const CALLS: [&'static str; 27] = [
        "redeem",
        "confirm",
        "cancel",
        "redemption",
        "batch",
        "my-redemptions",
        "my-points",
        "sales",
        "sale",
        "sale-events",
        "define-sale",
        "step-sale",
        "change-stock",
        "change-points",
        "member",
        "import-members",
        "reverse",
        "audit",
        "livez",
        "readyz",
        "metrics",
        "version",
        "openapi",
        "my-statement",
        "item-redemptions",
        "cluster",
        "unknown",
    ];

    pub const fn index(self) -> usize {
        match self {
            Self::Redeem { .. } => 0,
            Self::Confirm { .. } => 1,
            Self::Cancel { .. } => 2,
            Self::Redemption { .. } => 3,
            Self::Batch => 4,
            Self::MyRedemptions => 5,
            Self::MyPoints => 6,
            Self::Sales => 7,
            Self::Sale { .. } => 8,
            Self::SaleEvents { .. } => 9,
            Self::DefineSale => 10,
            Self::StepSale { .. } => 11,
            Self::ChangeStock { .. } => 12,
            Self::ChangePoints { .. } => 13,
            Self::Member { .. } => 14,
            Self::ImportMembers => 15,
            Self::Reverse { .. } => 16,
            Self::Audit => 17,
            Self::Livez => 18,
            Self::Readyz => 19,
            Self::Metrics => 20,
            Self::Version => 21,
            Self::OpenApi => 22,
            Self::MyStatement => 23,
            Self::ItemRedemptions { .. } => 24,
            Self::Cluster => 25,
            Self::Unknown => 26,
        }
    }
}

/// Segments of the longest path.
const SEGMENTS_MAX: usize = 6;
const GET: &str = "GET, HEAD";
const POST: &str = "POST";

/// Finds the call.
///
/// Errors: `route-not-found`, or `method-not-allowed` with the methods that the path takes.
pub fn route<'a>(surface: Surface, method: &Method, path: &'a str) -> Result<Route<'a>, Problem> {
    let mut segments = [""; SEGMENTS_MAX];
    let mut count = 0;
    for segment in path.strip_prefix('/').ok_or(Kind::RouteNotFound)?.split('/') {
        *segments.get_mut(count).ok_or(Kind::RouteNotFound)? = segment;
        count += 1;
    }
    let is_get = method == Method::GET || method == Method::HEAD;
    let is_post = method == Method::POST;
    let get = |route| if is_get { Ok(route) } else { Err(not_allowed(GET)) };
    let post = |route| if is_post { Ok(route) } else { Err(not_allowed(POST)) };
    let is_admin = surface == Surface::Admin;
    match segments[..count] {
        ["v1", "sales", sale, "redemptions"] if !is_admin => post(Route::Redeem { sale }),
        ["v1", "redemptions", id, "confirm"] if !is_admin => post(Route::Confirm { id }),
        ["v1", "redemptions", id, "cancel"] if !is_admin => post(Route::Cancel { id }),
        ["v1", "redemptions:batch"] if !is_admin => post(Route::Batch),
        ["v1", "members", "me", "redemptions"] if !is_admin => get(Route::MyRedemptions),
        ["v1", "members", "me", "points"] if !is_admin => get(Route::MyPoints),
        ["v1", "members", "me", "statement"] if !is_admin => get(Route::MyStatement),
        ["v1", "sales", sale, "events"] if !is_admin => get(Route::SaleEvents { sale }),

        ["v1", "sales"] if is_admin && is_post => Ok(Route::DefineSale),
        ["v1", "sales"] if is_admin && !is_get => Err(not_allowed("GET, HEAD, POST")),
        ["v1", "sales", sale, "open"] if is_admin => {
            post(Route::StepSale { sale, step: SaleStep::Open })
        }
        ["v1", "sales", sale, "pause"] if is_admin => {
            post(Route::StepSale { sale, step: SaleStep::Pause })
        }
        ["v1", "sales", sale, "resume"] if is_admin => {
            post(Route::StepSale { sale, step: SaleStep::Resume })
        }
        ["v1", "sales", sale, "close"] if is_admin => {
            post(Route::StepSale { sale, step: SaleStep::Close })
        }
        ["v1", "sales", sale, "items", sku, "redemptions"] if is_admin => {
            get(Route::ItemRedemptions { sale, sku })
        }
        ["v1", "sales", sale, "items", sku, "stock"] if is_admin => {
            post(Route::ChangeStock { sale, sku })
        }
        ["v1", "members:import"] if is_admin => post(Route::ImportMembers),
        ["v1", "members", member, "points"] if is_admin => post(Route::ChangePoints { member }),
        ["v1", "members", member] if is_admin => get(Route::Member { member }),
        ["v1", "redemptions", id, "reverse"] if is_admin => post(Route::Reverse { id }),
        ["v1", "audit"] if is_admin => get(Route::Audit),
        ["v1", "cluster"] if is_admin => get(Route::Cluster),

        ["v1", "redemptions", id] => get(Route::Redemption { id }),
        ["v1", "sales"] => get(Route::Sales),
        ["v1", "sales", sale] => get(Route::Sale { sale }),
        ["livez"] => get(Route::Livez),
        ["readyz"] => get(Route::Readyz),
        ["metrics"] => get(Route::Metrics),
        ["version"] => get(Route::Version),
        ["openapi.json"] => get(Route::OpenApi),
        _ => Err(Kind::RouteNotFound.into()),
    }
}

fn not_allowed(allow: &'static str) -> Problem {
    Problem::with(Kind::MethodNotAllowed, Help::Allow(allow))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(surface: Surface, method: &Method, path: &'static str) -> Result<Route<'static>, Kind> {
        route(surface, method, path).map_err(|p| p.kind)
    }

    #[test]
    fn each_call_is_found_on_its_own_listener_only() {
        use Surface::{Admin, Gateway, Public};
        for (surface, method, path, expected) in [
            (Public, Method::POST, "/v1/sales/s/redemptions", Ok(Route::Redeem { sale: "s" })),
            (Gateway, Method::POST, "/v1/sales/s/redemptions", Ok(Route::Redeem { sale: "s" })),
            (Admin, Method::POST, "/v1/sales/s/redemptions", Err(Kind::RouteNotFound)),
            (Public, Method::GET, "/v1/sales/s/redemptions", Err(Kind::MethodNotAllowed)),
            (Public, Method::POST, "/v1/redemptions:batch", Ok(Route::Batch)),
            (Public, Method::GET, "/v1/redemptions/x", Ok(Route::Redemption { id: "x" })),
            (Public, Method::HEAD, "/v1/redemptions/x", Ok(Route::Redemption { id: "x" })),
            (Admin, Method::GET, "/v1/redemptions/x", Ok(Route::Redemption { id: "x" })),
            (Public, Method::POST, "/v1/redemptions/x/reverse", Err(Kind::RouteNotFound)),
            (Admin, Method::POST, "/v1/redemptions/x/reverse", Ok(Route::Reverse { id: "x" })),
            (Public, Method::POST, "/v1/sales", Err(Kind::MethodNotAllowed)),
            (Admin, Method::POST, "/v1/sales", Ok(Route::DefineSale)),
            (Admin, Method::GET, "/v1/sales", Ok(Route::Sales)),
            (Admin, Method::DELETE, "/v1/sales", Err(Kind::MethodNotAllowed)),
            (
                Admin,
                Method::POST,
                "/v1/sales/s/items/k/stock",
                Ok(Route::ChangeStock { sale: "s", sku: "k" }),
            ),
            (Public, Method::POST, "/v1/sales/s/items/k/stock", Err(Kind::RouteNotFound)),
            (Public, Method::GET, "/v1/members/7", Err(Kind::RouteNotFound)),
            (Admin, Method::GET, "/v1/members/7", Ok(Route::Member { member: "7" })),
            (Public, Method::GET, "/livez", Ok(Route::Livez)),
            (Public, Method::GET, "/livez/", Err(Kind::RouteNotFound)),
            (Public, Method::GET, "/", Err(Kind::RouteNotFound)),
            (Public, Method::GET, "*", Err(Kind::RouteNotFound)),
            (Public, Method::GET, "/v1/a/b/c/d/e/f/g", Err(Kind::RouteNotFound)),
        ] {
            assert_eq!(find(surface, &method, path), expected, "{surface:?} {method} {path}");
        }
    }

    #[test]
    fn calls_have_one_label_each() {
        let mut labels = Route::CALLS.to_vec();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Route::CALLS.len());
        assert_eq!(Route::CALLS[Route::Unknown.index()], "unknown");
        assert_eq!(Route::CALLS[Route::Reverse { id: "" }.index()], "reverse");
    }
}
