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
    /// Members with points set aside, where all were asked: such a hold may end in the run.
    pub holders: Option<HashSet<u64>>,
    /// Units of the sale that are held, where that is known.
    pub held: Option<u64>,
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
            bound: (i.unsold().filter(|_| i.total.is_some() || plan.targets.len() == 1))
                .map(|unsold| unsold + i.held.unwrap_or(0)),
            total: i.total,
            held: i.held,
            taken: i.held.zip(i.confirmed).map(|(held, confirmed)| held + confirmed),
        })
    });
    let (balances, holders) = match &options.balances {
        Balances::Unknown => (None, None),
        Balances::File(path) => (Some(read_balances(path)?), None),
        Balances::Ask => {
            let (balances, holders) = ask_balances(plan, work, options)?;
            (Some(balances), Some(holders))
        }
    };
    let held = sale.items.iter().map(|i| i.held).sum();
    let (stored, orphans) = match &options.store {
        Some(store) => (store::ids_of_sale(store, &work.sale)?, store::orphans(store)?),
        None => Default::default(),
    };
    Ok(Before { items: items.collect(), balances, holders, held, stored, orphans })
}

impl Before {
    /// Whether a hold of this member from before may have ended in the run.
    pub fn may_have_held(&self, member: u64) -> bool {
        self.holders.as_ref().map_or(self.held != Some(0), |holders| holders.contains(&member))
    }
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
) -> Result<(HashMap<u64, u64>, HashSet<u64>), CheckError> {
    let path = "/v1/members/me/points";
    let mut places = work.first_member..=work.last_member;
    let asks = places.clone().map(|place| (path.to_owned(), Some(work.member(place))));
    let (mut balances, mut holders) = (HashMap::new(), HashSet::new());
    ask_each(&plan.targets, asks, options.patience(), "balances before", |reply| {
        let place = places.next().expect("as many answers as asks");
        if reply.status == 404 {
            return Ok(());
        }
        let points: view::Points = view::parse(path, &reply)?;
        let member = work.member(place);
        balances.insert(member, points.free + points.held);
        holders.extend((points.held > 0).then_some(member));
        Ok::<_, CheckError>(())
    })?;
    Ok((balances, holders))
}
