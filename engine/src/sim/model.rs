//! I5: what a start makes of snapshot and journal, held against two histories of the same records.
//!
//! The one is the simulation's books. The other is the engine's own replay of every record from the
//! first on, none of it from a snapshot: where both agree on a state that the start has otherwise,
//! the snapshot, its cuts or the replay behind them are wrong.

use std::collections::BTreeMap;

use super::ledger::Ledger;
use crate::kernel::catalog::SalePhase;
use crate::kernel::control::ControlState;
use crate::kernel::record::{CONTROL, Record, SaleChange};
use crate::kernel::slot::SlotState;
use crate::shard::recover::Recovered;
use crate::units::Slot;

/// Everything that was ever durable, applied in order.
#[derive(Default)]
pub struct Model {
    slots: BTreeMap<u16, Box<SlotState>>,
    control: ControlState,
}

impl Model {
    pub fn take(&mut self, slot: Slot, record: &Record, bytes: &[u8]) {
        if slot == CONTROL {
            return self.control.apply(record, bytes).expect("a durable record fits");
        }
        let state = self.slots.entry(slot.get());
        let state = state.or_insert_with(|| Box::new(SlotState::new(slot)));
        state.apply_bytes(bytes).expect("a durable record fits");
    }

    /// Whether anybody owns something there.
    pub fn is_used(&self, slot: Slot) -> bool {
        self.slots.contains_key(&slot.get())
    }
}

impl Ledger {
    /// Holds a recovered state, of everything durable, against these books.
    pub fn check_recovered(&self, recovered: &Recovered) {
        let (mut slots, mut accounts, mut redemptions, mut keys) = (0, 0, 0, 0);
        let mut sold = vec![[0; 3]; self.items.len()];
        for state in recovered.slots.iter().flatten() {
            let slot = state.slot();
            let known = self.model.slots.get(&slot.get());
            let known = known.unwrap_or_else(|| panic!("I5: slot {slot} came from nowhere"));
            slots += 1;
            assert_eq!(state.digest(), known.digest(), "I5: slot {slot}");
            for view in state.dump_accounts() {
                let account = self.accounts.get(&view.member.get()).expect("I5: an account");
                let (free, held) = (view.free.get(), view.held.get());
                assert_eq!((free, held), (account.free, account.held), "I5: {}", view.member);
                accounts += 1;
            }
            for found in state.dump_redemptions() {
                let told = self.redemptions.get(&found.id.get()).expect("I5: a redemption");
                assert_eq!(
                    (found.member, found.key, found.item, found.state),
                    (told.member, told.key, told.item, told.state),
                    "I5: a redemption"
                );
                let (quantity, points) = (u64::from(found.quantity.get()), found.points.get());
                assert_eq!((quantity, points), (told.quantity, told.points), "I5: a redemption");
                redemptions += 1;
            }
            for (key, _) in state.dump_admin_keys() {
                assert!(self.admin_keys.contains_key(&key.get()), "I5: a key that nobody used");
                keys += 1;
            }
            for (item, counts) in state.item_counts() {
                let sum = &mut sold[item.get() as usize];
                *sum = [sum[0] + counts.held, sum[1] + counts.confirmed, sum[2] + counts.retired];
            }
        }
        assert_eq!(slots, self.model.slots.len(), "I5: slots in which something happened");
        assert_eq!(accounts, self.accounts.len(), "I5: accounts");
        if self.sales.iter().all(|sale| !sale.are_keys_dropped) {
            assert_eq!(redemptions, self.redemptions.len(), "I5: redemptions");
        }
        let control = &recovered.control;
        for (key, _) in control.dump_keys() {
            assert!(self.admin_keys.contains_key(&key.get()), "I5: a key that nobody used");
            keys += 1;
        }
        assert_eq!(keys, self.admin_keys.len(), "I5: operators' keys");
        self.check_recovered_control(control);
        for (units, sum) in self.items.iter().zip(sold) {
            assert_eq!(sum, [units.held, units.confirmed, units.retired], "I5: units sold");
        }
    }

    fn check_recovered_control(&self, control: &ControlState) {
        assert_eq!(control.digest(), self.model.control.digest(), "I5: sales and stock");
        assert_eq!(control.claim().is_some(), self.has_claimed, "I5: the claim of slots");
        assert_eq!(control.items().len(), self.items.len(), "I5: items");
        for (found, units) in control.items().iter().zip(&self.items) {
            assert_eq!(
                (found.total, found.granted, found.returned, found.epoch),
                (units.total, units.granted, units.returned, units.epoch),
                "I5: an item's stock"
            );
        }
        assert_eq!(control.sales().len(), self.sales.len(), "I5: sales");
        for (found, sale) in control.sales().iter().zip(&self.sales) {
            let phase = match found.phase {
                SalePhase::Scheduled => None,
                SalePhase::Open => Some(SaleChange::Opened),
                SalePhase::Ended | SalePhase::KeysDropped => Some(SaleChange::Ended),
            };
            assert_eq!((phase, found.paused), (sale.phase, sale.is_paused), "I5: {}", sale.id);
        }
    }
}
