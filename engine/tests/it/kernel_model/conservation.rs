//! Invariant I11: every durable prefix of the journal conserves units and points by itself.
//!
//! Reads records as they become durable, in whatever order shards interleave, and checks after
//! each single one: no unit is sold that was not granted or given back *before*, no balance is
//! below zero or differs from the record's own figures, and the ledgers sum to zero.

use std::collections::HashMap;

use onrush::kernel::record::Record;
use onrush::units::{ItemIndex, MemberId, Points, Quantity};

#[derive(Default)]
pub struct Conservation {
    /// Granted, returned, and units out (held, confirmed, retired).
    items: HashMap<ItemIndex, (u64, u64, u64)>,
    totals: HashMap<ItemIndex, u64>,
    people: HashMap<MemberId, (i128, i128)>,
    issued: i128,
    spent: i128,
    sum_of_people: i128,
    pub record_count: u64,
}

impl Conservation {
    pub fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (_, record) = Record::take(&mut bytes).expect("a whole record");
            self.record_count += 1;
            self.apply(&record);
            assert_eq!(self.sum_of_people + self.spent, self.issued, "I3 after {record:?}");
        }
    }

    fn person(&mut self, member: MemberId, by: (i128, i128), after: (Points, Points)) {
        let person = self.people.entry(member).or_default();
        person.0 += by.0;
        person.1 += by.1;
        self.sum_of_people += by.0 + by.1;
        assert!(person.0 >= 0 && person.1 >= 0, "I3, {member:?}");
        let after = (i128::from(after.0.get()), i128::from(after.1.get()));
        assert_eq!(*person, after, "{member:?}");
    }

    fn units(&mut self, item: ItemIndex, out: Option<Quantity>, back: Option<Quantity>) {
        let (granted, returned, sold) = self.items.entry(item).or_default();
        *sold += u64::from(out.map_or(0, Quantity::get));
        *sold -= u64::from(back.map_or(0, Quantity::get));
        assert!(*sold + *returned <= *granted, "I2: {item:?} sold {sold}, granted {granted}");
    }

    fn apply(&mut self, record: &Record) {
        let p = |points: Points| i128::from(points.get());
        match record {
            Record::Opened(r) => {
                self.issued += p(r.points);
                self.person(r.member, (p(r.points), 0), (r.points, Points::ZERO));
            }
            Record::Credited(r) => {
                self.issued += p(r.amount);
                self.person(r.member, (p(r.amount), 0), (r.free_after, r.held_after));
            }
            Record::Debited(r) => {
                self.issued -= p(r.amount);
                self.person(r.member, (-p(r.amount), 0), (r.free_after, r.held_after));
            }
            Record::Held(r) => {
                let after = (r.free_after, r.held_after);
                self.person(r.member, (-p(r.points), p(r.points)), after);
                self.units(r.item, Some(r.quantity), None);
            }
            Record::Redeemed(r) => {
                self.spent += p(r.points);
                self.person(r.member, (-p(r.points), 0), (r.free_after, r.held_after));
                self.units(r.item, Some(r.quantity), None);
            }
            Record::Confirmed(r) => {
                self.spent += p(r.points);
                self.person(r.member, (0, -p(r.points)), (r.free_after, r.held_after));
            }
            Record::Released(r) => {
                let after = (r.free_after, r.held_after);
                self.person(r.member, (p(r.points), -p(r.points)), after);
                self.units(r.item, None, Some(r.quantity));
            }
            Record::Reversed(r) => {
                self.spent -= p(r.points);
                self.person(r.member, (p(r.points), 0), (r.free_after, r.held_after));
                self.units(r.item, None, r.units_back.then_some(r.quantity));
            }
            Record::StockChanged(r) => {
                self.totals.insert(r.item, r.total_after);
            }
            Record::Granted(r) => {
                let known = self.items.entry(r.item).or_default();
                known.0 = r.granted;
                assert!(known.0 - known.1 <= self.totals.get(&r.item).copied().unwrap_or(0), "I1");
            }
            Record::Returned(r) => {
                self.items.entry(r.item).or_default().1 = r.returned;
                self.units(r.item, None, None);
            }
            Record::TotalSeen(r) => {
                self.totals.insert(r.item, r.total);
            }
            Record::EpochSeen(_)
            | Record::KeysDropped(_)
            | Record::SaleDefined(_)
            | Record::SaleChanged(_)
            | Record::ChangeSeen(_)
            | Record::SlotsClaimed(_)
            | Record::Imported(_) => {}
        }
    }
}
