//! What is known before the first request.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::check::{Balances, CheckError, Options, store, view};
use crate::http::once::ask_all;
use crate::plan::{Plan, RedeemWork};

/// The state of things before the run.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// Per item of the plan.
    pub items: Vec<ItemBefore>,
    /// Free and held points; members without an account are missing.
    pub balances: Option<HashMap<u64, u64>>,
    /// Redemptions that the store has already.
    pub stored: HashSet<store::Id>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct ItemBefore {
    pub limit: Option<u64>,
    pub total: Option<u64>,
    pub free: Option<u64>,
    /// Held and confirmed.
    pub taken: Option<u64>,
}

/// Looks before the run.
pub fn before(plan: &Plan, work: &RedeemWork, options: &Options) -> Result<Before, CheckError> {
    let target = &plan.targets[0];
    let sale = view::sale(target, options.admin.as_ref(), &work.sale, options.timeout)?;
    let items = work.items.iter().map(|item| {
        let known = sale.items.iter().find(|i| i.sku == item.sku);
        known.map_or(ItemBefore::default(), |i| ItemBefore {
            limit: i.limit_per_member.filter(|&limit| limit > 0),
            total: i.total,
            free: i.free,
            taken: i.held.zip(i.confirmed).map(|(held, confirmed)| held + confirmed),
        })
    });
    let balances = match &options.balances {
        Balances::Unknown => None,
        Balances::File(path) => Some(read_balances(path)?),
        Balances::Ask => Some(ask_balances(plan, work, options)?),
    };
    let stored = match &options.store {
        Some(store) => store::ids_of_sale(store, &work.sale)?,
        None => HashSet::new(),
    };
    Ok(Before { items: items.collect(), balances, stored })
}

fn read_balances(path: &Path) -> Result<HashMap<u64, u64>, CheckError> {
    let wrong = |detail: String| CheckError::File { path: path.display().to_string(), detail };
    let mut rows = csv::Reader::from_path(path).map_err(|e| wrong(e.to_string()))?;
    let mut balances = HashMap::new();
    for row in rows.deserialize::<(u64, u64)>() {
        let (member, points) = row.map_err(|e| wrong(e.to_string()))?;
        // The first row of a member opens the account; others change nothing.
        balances.entry(member).or_insert(points);
    }
    Ok(balances)
}

fn ask_balances(
    plan: &Plan,
    work: &RedeemWork,
    options: &Options,
) -> Result<HashMap<u64, u64>, CheckError> {
    let path = "/v1/members/me/points";
    let members: Vec<u64> = (work.first_member..=work.last_member).collect();
    let asks: Vec<_> = members.iter().map(|&m| (path.to_owned(), Some(m))).collect();
    let replies =
        ask_all(&plan.targets[0], &asks, options.timeout, options.quiet, "balances before")?;
    let mut balances = HashMap::new();
    for (member, reply) in members.into_iter().zip(replies) {
        if reply.status == 404 {
            continue;
        }
        let points: view::Points = view::parse(path, &reply)?;
        balances.insert(member, points.free + points.held);
    }
    Ok(balances)
}
