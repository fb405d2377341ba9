//! Problems: every answer that is not what was asked for, as RFC 9457 `application/problem+json`.
//!
//! One table names each problem once: its stable `code`, its status, its words. Bodies without a
//! figure of their own are built at compile time, because in a flash sale they are most answers.

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;

use super::json;
use crate::kernel::code::Code;
use crate::shard::gate::Unavailable;
use crate::units::NodeTime;

macro_rules! problems {
    ($($name:ident $code:literal $status:literal $title:literal $detail:literal)*) => {
        /// What went wrong; the stable `code` of the answer and the metrics' `outcome`.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Kind { $($name),* }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status),* }
            }
            /// The body up to the place of `detail`'s text.
            const fn opening(self) -> &'static str {
                match self { $(Self::$name => concat!(
                    r#"{"type":"urn:onrush:problem:"#, $code, r#"","title":""#, $title,
                    r#"","status":"#, $status, r#","code":""#, $code, r#"","detail":"#
                )),* }
            }
            const fn detail(self) -> &'static str {
                match self { $(Self::$name => concat!('"', $detail, '"')),* }
            }
            /// The body of a problem that has no figure of its own.
            const fn body(self) -> &'static str {
                match self { $(Self::$name => concat!(
                    r#"{"type":"urn:onrush:problem:"#, $code, r#"","title":""#, $title,
                    r#"","status":"#, $status, r#","code":""#, $code, r#"","detail":""#, $detail,
                    r#""}"#
                )),* }
            }
        }
    };
}

problems! {
    Malformed "malformed" 400 "Malformed request"
        "The request does not have the form that this call takes."
    KeyMissing "key-missing" 400 "Idempotency-Key missing"
        "This call needs one Idempotency-Key header, so that a retry has no second effect."
    KeyMalformed "key-malformed" 400 "Idempotency-Key malformed"
        "A key is one header of 1 to 255 visible ASCII characters."
    QuantityInvalid "quantity-invalid" 400 "Quantity invalid"
        "The quantity is zero, or more than one redemption may ask for."
    Invalid "invalid" 400 "Value not accepted"
        "A value lies outside what this call accepts in any state."
    RowsInvalid "rows-invalid" 400 "Rows invalid"
        "Some lines cannot be imported. Nothing of this file was applied."
    IdentityMissing "identity-missing" 401 "Member unknown"
        "This call acts for a member: the gateway names it in X-Member-Id."
    IdentityMalformed "identity-malformed" 400 "Member id malformed"
        "X-Member-Id is one header with one decimal number."
    NotTrusted "not-trusted" 403 "Caller not trusted"
        "This call is for gateways that this node trusts."
    NotEligible "not-eligible" 403 "Not eligible"
        "This item is not offered to this member."
    InsufficientPoints "insufficient-points" 403 "Not enough points"
        "The member's free points do not cover the price."
    RouteNotFound "route-not-found" 404 "No such call"
        "There is no call at this path."
    SaleNotFound "sale-not-found" 404 "No such sale"
        "There is no sale with this id."
    ItemNotFound "item-not-found" 404 "No such item"
        "The sale has no item with this SKU."
    RedemptionNotFound "redemption-not-found" 404 "No such redemption"
        "This member has no redemption with this id."
    MemberNotFound "member-not-found" 404 "No such member"
        "There is no account with this member id."
    MethodNotAllowed "method-not-allowed" 405 "Method not allowed"
        "The call at this path takes the methods that Allow names."
    RequestTimeout "request-timeout" 408 "Request incomplete"
        "The rest of the body did not arrive in time. Nothing was done."
    SaleNotOpen "sale-not-open" 409 "Sale not open yet"
        "The sale has not opened yet."
    SaleEnded "sale-ended" 409 "Sale ended"
        "The sale has ended."
    SalePaused "sale-paused" 409 "Sale paused"
        "The sale is paused; it may go on."
    LimitReached "limit-reached" 409 "Limit reached"
        "With this quantity the member would pass the item's limit per member."
    HoldAllowanceSpent "hold-allowance-spent" 409 "Too many holds given up"
        "This member gave up too many holds of this item; it can still be redeemed in one step."
    SoldOut "sold-out" 409 "Sold out"
        "No unit can be had now."
    WrongState "wrong-state" 409 "Wrong state"
        "The redemption's state does not allow this step."
    BalanceTooLarge "balance-too-large" 409 "Balance too large"
        "The balance would pass the largest one that an account holds."
    SaleExists "sale-exists" 409 "Sale exists"
        "Another sale, with another definition, has this id."
    KeyExpired "key-expired" 410 "Key expired"
        "The sale's keys were dropped after its end. See GET /v1/members/me/redemptions."
    BodyTooLarge "body-too-large" 413 "Body too large"
        "The body is larger than this call takes."
    MediaTypeUnsupported "media-type-unsupported" 415 "Media type unsupported"
        "This call does not take a body of this Content-Type."
    KeyReused "key-reused" 422 "Key used before"
        "This Idempotency-Key was used for another request."
    Internal "internal" 500 "Internal error"
        "The node could not do this; its log says why."
    HistoryUnavailable "history-unavailable" 503 "History unavailable"
        "The databases do not answer, or do not have the latest yet. The sale is not affected."
    NodeDown "node-down" 503 "Node down"
        "The node that owns this does not answer; a retry with the same key is safe."
    WrongNode "wrong-node" 503 "Wrong node"
        "Another node sent this here, and owns no more of it than this one. Nothing was done."
    NodesNotReached "nodes-not-reached" 503 "Nodes not reached"
        "Some nodes did not do this; it is safe to repeat it until all have."
    Overloaded "overloaded" 503 "Overloaded"
        "The node has more requests than it can take. Nothing was done."
    Starting "starting" 503 "Starting"
        "The node is recovering its state; /readyz shows how far it is. Nothing was done."
    Draining "draining" 503 "Draining"
        "The node is shutting down. Nothing was done."
    JournalFull "journal-full" 503 "Journal full"
        "The node's journal has reached its bound on disk. Nothing was done."
    StockUnreachable "stock-unreachable" 503 "Stock unreachable"
        "The pool of units does not answer. Send the same key again to hear what was done."
}

impl Kind {
    pub const COUNT: usize = Self::ALL.len();

    /// The spread of Retry-After, in seconds; `None` where a retry is the caller's own matter.
    const fn retry_after_range(self) -> Option<(u32, u32)> {
        match self {
            Self::Overloaded | Self::Starting | Self::HistoryUnavailable => Some((1, 3)),
            Self::Draining | Self::NodeDown | Self::WrongNode | Self::NodesNotReached => {
                Some((1, 5))
            }
            Self::SalePaused | Self::StockUnreachable => Some((2, 6)),
            Self::JournalFull => Some((5, 15)),
            _ => None,
        }
    }
}

impl From<Code> for Kind {
    fn from(code: Code) -> Self {
        match code {
            Code::KeyReused => Self::KeyReused,
            Code::KeyExpired => Self::KeyExpired,
            Code::SaleNotFound => Self::SaleNotFound,
            Code::ItemNotFound => Self::ItemNotFound,
            Code::SaleNotOpen => Self::SaleNotOpen,
            Code::SaleEnded => Self::SaleEnded,
            Code::SalePaused => Self::SalePaused,
            Code::NotEligible => Self::NotEligible,
            Code::QuantityInvalid => Self::QuantityInvalid,
            Code::LimitReached => Self::LimitReached,
            Code::HoldAllowanceSpent => Self::HoldAllowanceSpent,
            Code::InsufficientPoints => Self::InsufficientPoints,
            Code::SoldOut => Self::SoldOut,
            Code::RedemptionNotFound => Self::RedemptionNotFound,
            Code::WrongState => Self::WrongState,
            Code::MemberNotFound => Self::MemberNotFound,
            Code::BalanceTooLarge => Self::BalanceTooLarge,
            Code::SaleExists => Self::SaleExists,
            Code::Invalid => Self::Invalid,
        }
    }
}

impl From<Unavailable> for Kind {
    fn from(unavailable: Unavailable) -> Self {
        match unavailable {
            Unavailable::Overloaded => Self::Overloaded,
            Unavailable::Draining => Self::Draining,
            Unavailable::JournalFull => Self::JournalFull,
            Unavailable::StockUnreachable => Self::StockUnreachable,
        }
    }
}

/// The one thing beyond the code that helps the caller.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Help {
    #[default]
    None,
    /// Sold out: whether no unit can come back.
    Final(bool),
    /// The member's free points.
    Balance(u64),
    Limit(u64),
    OpensAt(NodeTime),
    /// The redemption's state.
    State(&'static str),
    /// 405: the methods that the path takes; a header only.
    Allow(&'static str),
    /// What exactly is wrong, in place of the table's words.
    Detail(String),
    /// How many lines of an import cannot be applied. The answer goes on with their names.
    BadRows(u64),
    /// Which nodes did not do it, and why.
    Nodes(Vec<NodeMissed>),
}

/// A node that did not do what all were asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeMissed {
    pub node: String,
    /// Of the problem it answered with, or `node-down`.
    pub code: String,
}

/// A line of an import that cannot be applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadRow {
    /// Counted from 1, the header line.
    pub line: u64,
    pub message: String,
}

/// A problem on its way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub kind: Kind,
    pub help: Help,
    /// Units: seconds. Already spread.
    pub retry_after: Option<u32>,
}

impl From<Kind> for Problem {
    fn from(kind: Kind) -> Self {
        let retry_after = kind.retry_after_range().map(|(low, high)| spread(low, high));
        let help = if kind == Kind::SoldOut { Help::Final(false) } else { Help::None };
        Self { kind, help, retry_after }
    }
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Self {
        Kind::from(unavailable).into()
    }
}

impl Problem {
    pub fn with(kind: Kind, help: Help) -> Self {
        Self { help, ..Self::from(kind) }
    }

    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::with(Kind::Malformed, Help::Detail(detail.into()))
    }

    /// Not open yet: when it will, and a Retry-After a little behind that.
    pub fn not_open(opens_at: NodeTime, now: NodeTime) -> Self {
        let wait_s = opens_at.get().saturating_sub(now.get()).div_ceil(1000).min(86_400);
        let wait_s = u32::try_from(wait_s).unwrap_or(86_400);
        Self {
            kind: Kind::SaleNotOpen,
            help: Help::OpensAt(opens_at),
            retry_after: Some(spread(wait_s.max(1), wait_s.max(1) + 2)),
        }
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.kind.status()).expect("the table holds valid statuses")
    }

    /// The body; without an allocation where nothing but the kind is said.
    pub fn body(&self) -> Bytes {
        const FINAL: &str = r#","final":true}"#;
        match &self.help {
            Help::None | Help::Allow(_) => Bytes::from_static(self.kind.body().as_bytes()),
            Help::Final(true) if self.kind == Kind::SoldOut => {
                Bytes::from_static(SOLD_OUT_FINALLY.as_bytes())
            }
            Help::Final(false) if self.kind == Kind::SoldOut => {
                Bytes::from_static(SOLD_OUT_NOW.as_bytes())
            }
            _ => {
                let mut out = BytesMut::with_capacity(self.kind.body().len() + FINAL.len() + 64);
                self.write(&mut out);
                out.freeze()
            }
        }
    }

    /// Writes the body, as the single call has it.
    pub fn write(&self, out: &mut BytesMut) {
        self.write_open(out);
        json::raw(out, "}");
    }

    /// Writes the body as one result of a batch, whose Retry-After has no header to stand in.
    pub fn write_in_batch(&self, out: &mut BytesMut) {
        self.write_open(out);
        if let Some(seconds) = self.retry_after {
            json::raw(out, r#","retry_after":"#);
            json::number(out, u64::from(seconds));
        }
        json::raw(out, "}");
    }

    /// Writes the body but for its last brace: more fields may follow.
    pub fn write_open(&self, out: &mut BytesMut) {
        json::raw(out, self.kind.opening());
        match &self.help {
            Help::Detail(text) => json::string(out, text),
            Help::Nodes(nodes) => {
                let names: Vec<_> = nodes.iter().map(|missed| missed.node.as_str()).collect();
                let names = names.join(", ");
                json::string(
                    out,
                    &format!("Not done by {names}. It is safe to repeat until it is."),
                );
            }
            _ => json::raw(out, self.kind.detail()),
        }
        match &self.help {
            Help::None | Help::Allow(_) | Help::Detail(_) => {}
            Help::Final(is_final) => {
                json::raw(out, if *is_final { r#","final":true"# } else { r#","final":false"# });
            }
            Help::Balance(points) => {
                json::raw(out, r#","balance":"#);
                json::number(out, *points);
            }
            Help::Limit(limit) => {
                json::raw(out, r#","limit":"#);
                json::number(out, *limit);
            }
            Help::OpensAt(at) => {
                json::raw(out, r#","opens_at":"#);
                json::time(out, *at);
            }
            Help::State(state) => {
                json::raw(out, r#","state":""#);
                json::raw(out, state);
                json::raw(out, "\"");
            }
            Help::BadRows(count) => {
                json::raw(out, r#","bad_rows":"#);
                json::number(out, *count);
            }
            Help::Nodes(nodes) => {
                json::raw(out, ",");
                write_missed(out, "nodes", nodes);
            }
        }
    }
}

/// Writes a field with the nodes that were missed.
pub fn write_missed(out: &mut BytesMut, field: &str, nodes: &[NodeMissed]) {
    json::raw(out, "\"");
    json::raw(out, field);
    json::raw(out, "\":[");
    for (at, missed) in nodes.iter().enumerate() {
        json::raw(out, if at > 0 { r#",{"node":"# } else { r#"{"node":"# });
        json::string(out, &missed.node);
        json::raw(out, r#","code":"#);
        json::string(out, &missed.code);
        json::raw(out, "}");
    }
    json::raw(out, "]");
}

impl BadRow {
    pub fn write(&self, out: &mut BytesMut) {
        json::raw(out, r#"{"line":"#);
        json::number(out, self.line);
        json::raw(out, r#","message":"#);
        json::string(out, &self.message);
        json::raw(out, "}");
    }
}

const SOLD_OUT_FINALLY: &str = concat!(
    r#"{"type":"urn:onrush:problem:sold-out","title":"Sold out","status":409,"code":"sold-out","#,
    r#""detail":"No unit can be had now.","final":true}"#
);
const SOLD_OUT_NOW: &str = concat!(
    r#"{"type":"urn:onrush:problem:sold-out","title":"Sold out","status":409,"code":"sold-out","#,
    r#""detail":"No unit can be had now.","final":false}"#
);

/// A number between the two, so that retries do not come back in step.
fn spread(low: u32, high: u32) -> u32 {
    rand::random_range(low..=high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_is_json_that_says_its_own_status_and_code() {
        for &kind in Kind::ALL {
            for help in [Help::None, Help::Detail("a \"quoted\" word".into()), Help::Final(true)] {
                let problem = Problem { kind, help, retry_after: None };
                let body: serde_json::Value = serde_json::from_slice(&problem.body()).unwrap();
                assert_eq!(body["status"], kind.status());
                assert_eq!(body["code"], kind.code());
                assert_eq!(body["type"], format!("urn:onrush:problem:{}", kind.code()));
                let mut written = BytesMut::new();
                problem.write(&mut written);
                assert_eq!(written, problem.body(), "{kind:?}: prebuilt and written must agree");
            }
        }
    }

    #[test]
    fn sold_out_says_whether_it_is_final() {
        for is_final in [false, true] {
            let problem = Problem::with(Kind::SoldOut, Help::Final(is_final));
            let body: serde_json::Value = serde_json::from_slice(&problem.body()).unwrap();
            assert_eq!(body["final"], is_final);
        }
        let problem = Problem::from(Kind::SoldOut);
        let body: serde_json::Value = serde_json::from_slice(&problem.body()).unwrap();
        assert_eq!(body["final"], false);
    }

    #[test]
    fn every_kernel_code_has_a_problem_of_the_same_name() {
        for code in Code::ALL {
            assert_eq!(Kind::from(code).code(), code.name());
        }
        for unavailable in [
            Unavailable::Overloaded,
            Unavailable::Draining,
            Unavailable::JournalFull,
            Unavailable::StockUnreachable,
        ] {
            let problem = Problem::from(unavailable);
            assert_eq!(problem.kind.code(), unavailable.name());
            assert_eq!(problem.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(problem.retry_after.is_some());
        }
    }

    #[test]
    fn codes_are_unique() {
        let mut codes: Vec<_> = Kind::ALL.iter().map(|k| k.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::COUNT);
    }

    #[test]
    fn retry_after_is_spread() {
        let seen: std::collections::HashSet<_> =
            (0..200).map(|_| Problem::from(Kind::JournalFull).retry_after).collect();
        assert!(seen.len() > 5);
        assert!(seen.iter().all(|s| (5..=15).contains(&s.unwrap())));
        let at = NodeTime::new(10_000);
        let problem = Problem::not_open(at.plus_ms(5_500), at);
        assert!((6..=8).contains(&problem.retry_after.unwrap()));
    }
}
