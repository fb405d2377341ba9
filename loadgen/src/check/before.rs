//! What is known before the first request.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::check::{Balances, CheckError, Options, store, view};
use crate::http::once::ask_each;
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
    /// Redemptions that its ledger names already, and that it has not (any more).
    pub orphans: HashSet<store::Id>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct ItemBefore {
    pub limit: Option<u64>,
    /// Units that this run can have at most, where that is known.
    pub bound: Option<u64>,
    pub total: Option<u64>,
    /// Held by others: such a hold may end in the run.
    pub held: Option<u64>,
    /// Held and confirmed.
    pub taken: Option<u64>,
}

/// Looks before the run.
pub fn before(plan: &Plan, work: &RedeemWork, options: &Options) -> Result<Before, CheckError> {
    let sale = view::sale(&plan.targets, &options.admin, &work.sale, options.timeout)?;
    let items = work.items.iter().map(|item| {
        let known = sale.items.iter().find(|i| i.sku == item.sku);
        known.map_or(ItemBefore::default(), |i| ItemBefore {
            limit: i.limit_per_member.filter(|&limit| limit > 0),
            // One of several nodes knows only of the units that it has at the moment.
            bound: i.unsold().filter(|_| i.total.is_some() || plan.targets.len() == 1),
            total: i.total,
            held: i.held,
            taken: i.held.zip(i.confirmed).map(|(held, confirmed)| held + confirmed),
        })
    });
    let balances = match &options.balances {
        Balances::Unknown => None,
        Balances::File(path) => Some(read_balances(path)?),
        Balances::Ask => Some(ask_balances(plan, work, options)?),
    };
    let (stored, orphans) = match &options.store {
        Some(store) => (store::ids_of_sale(store, &work.sale)?, store::orphans(store)?),
        None => Default::default(),
    };
    Ok(Before { items: items.collect(), balances, stored, orphans })
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
    let mut places = work.first_member..=work.last_member;
    let asks = places.clone().map(|place| (path.to_owned(), Some(work.member(place))));
    let mut balances = HashMap::new();
    ask_each(&plan.targets, asks, options.patience(), "balances before", |reply| {
        let place = places.next().expect("as many answers as asks");
        if reply.status == 404 {
            return Ok(());
        }
        let points: view::Points = view::parse(path, &reply)?;
        balances.insert(work.member(place), points.free + points.held);
        Ok::<_, CheckError>(())
    })?;
    Ok(balances)
}
