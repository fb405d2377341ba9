//! Snapshots and reports of running shards, as the auditor takes them: a base to begin from, and
//! marks to compare with on the way.

use super::journal::CannotRead;
use super::model::{
    Account, BaseSlot, ControlMark, Item, Redemption, Sale, SlotMark, SlotSums, Stand, items_of,
};
use crate::kernel::catalog::SalePhase;
use crate::kernel::control::ControlState;
use crate::kernel::slot::{ItemCounts, SlotState, SlotTotals};
use crate::units::{ItemIndex, SaleIndex, Seq, Slot};

/// Sees a part: its slot (or `CONTROL`), its cut, its bytes.
pub type SeePart<'a> = dyn FnMut(Slot, Seq, &[u8]) -> Result<(), CannotRead> + 'a;

/// A snapshot to begin from; read more than once.
pub trait Base {
    fn lowest_cut(&self) -> Seq;
    fn each(&self, see: &mut SeePart<'_>) -> Result<(), CannotRead>;
}

/// A slot's state at a cut, as somebody says it is.
#[derive(Clone, Debug)]
pub struct SlotClaim {
    pub mark: SlotMark,
    pub digest: u128,
}

/// The control state at a cut, as somebody says it is.
#[derive(Clone, Debug)]
pub struct ControlClaim {
    pub mark: ControlMark,
    pub digest: u128,
}

/// All that is claimed about one node.
#[derive(Default, Debug)]
pub struct Claims {
    pub slots: Vec<SlotClaim>,
    pub control: Vec<ControlClaim>,
}

impl Claims {
    /// Adds a snapshot's part.
    ///
    /// Errors: the part is damaged, in words.
    pub fn add_part(
        &mut self,
        slot: Slot,
        cut: Seq,
        bytes: &[u8],
        by: &str,
    ) -> Result<(), CannotRead> {
        let damaged = |e| CannotRead(format!("{by}: slot {slot} does not read: {e}"));
        if slot == crate::kernel::record::CONTROL {
            let state = ControlState::decode(bytes).map_err(damaged)?;
            self.control.push(ControlClaim::of(&state, cut, by));
        } else {
            let state = SlotState::decode(bytes).map_err(damaged)?;
            self.slots.push(SlotClaim::of(&state, cut, by));
        }
        Ok(())
    }
}

impl SlotClaim {
    pub fn of(state: &SlotState, cut: Seq, by: &str) -> Self {
        Self::reported(state.slot(), cut, state.digest(), &state.totals(), by)
            .with_items(&state.item_counts().into_iter().collect::<Vec<_>>())
    }

    /// What a running shard reports of a slot.
    pub fn reported(slot: Slot, cut: Seq, digest: u128, totals: &SlotTotals, by: &str) -> Self {
        let mark = SlotMark { slot, cut, sums: sums_of(totals), items: None, by: by.to_owned() };
        Self { mark, digest }
    }

    fn with_items(mut self, items: &[(ItemIndex, ItemCounts)]) -> Self {
        let all = items.iter().map(|(item, c)| (*item, [c.held, c.confirmed, c.retired]));
        self.mark.items = Some(all.collect());
        self
    }
}

impl ControlClaim {
    pub fn of(state: &ControlState, cut: Seq, by: &str) -> Self {
        let items = state.items().iter().map(|i| [i.total, i.granted, i.returned]).collect();
        let mark = ControlMark { cut, items, by: by.to_owned() };
        Self { mark, digest: state.digest() }
    }
}

/// Points of a sum that stays far below 2^127.
fn signed(sum: u128) -> i128 {
    i128::try_from(sum).unwrap_or(i128::MAX)
}

fn sums_of(totals: &SlotTotals) -> SlotSums {
    SlotSums {
        members: totals.members,
        free: signed(totals.free),
        held: signed(totals.held),
        opened: signed(totals.sums.opened),
        credited: signed(totals.sums.credited),
        debited: signed(totals.sums.debited),
        redeemed: signed(totals.sums.redeemed),
        reversed: signed(totals.sums.reversed),
        begun: totals.begun,
        record_count: totals.record_count,
        record_checksum: totals.record_checksum,
    }
}

/// A slot as the model begins with it.
pub fn base_slot(state: &SlotState, cut: Seq) -> BaseSlot {
    let account = |a: crate::kernel::command::AccountView| {
        let seq = Seq::NONE;
        (a.member, Account { free: a.free.get(), held: a.held.get(), seq })
    };
    let redemption = |r: crate::kernel::dump::RedemptionDump| Redemption {
        id: r.id,
        member: r.member,
        key: r.key,
        points: r.points,
        item: r.item,
        quantity: r.quantity,
        state: r.state,
        expires_at: r.expires_at,
        is_retired: false,
        is_forgotten: false,
        seq: Seq::NONE,
    };
    BaseSlot {
        cut,
        accounts: state.dump_accounts().map(account).collect(),
        redemptions: state.dump_redemptions().map(redemption).collect(),
        settled: state.dump_settled().map(|(item, [c, r])| (item, [0, c, r])).collect(),
        admin_keys: state.dump_admin_keys().collect(),
        dropped_sales: state.dropped_sales().to_vec(),
        sums: sums_of(&state.totals()),
    }
}

/// Sales and items as the model begins with them.
///
/// Errors: a definition does not read.
pub fn base_control(state: &ControlState) -> Result<(Vec<Sale>, Vec<Item>), CannotRead> {
    let (mut sales, mut items) = (Vec::new(), Vec::new());
    for (index, known) in (0..).map(SaleIndex::new).zip(state.sales()) {
        let (id, its) = items_of(known.sale.canonical(), index)
            .map_err(|why| CannotRead(format!("the definition of sale {index} {why}")))?;
        let stand = Stand {
            is_opened: known.phase >= SalePhase::Open,
            is_paused: known.paused,
            is_ended: known.phase >= SalePhase::Ended,
        };
        let first_item = known.first_item.get();
        sales.push(Sale { id, first_item, item_count: its.len() as u32, stand });
        items.extend(its);
    }
    for (item, stock) in items.iter_mut().zip(state.items()) {
        let total = i128::from(stock.total);
        if stock.is_home {
            item.total = total;
        } else {
            item.total_seen = Some(total);
        }
        (item.epoch, item.server) = (stock.epoch, stock.server);
        item.granted = i128::from(stock.granted);
        item.returned = i128::from(stock.returned);
    }
    Ok((sales, items))
}
