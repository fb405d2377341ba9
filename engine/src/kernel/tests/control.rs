//! The control machine: sales by time and by command, stock totals, grants.

use std::sync::Arc;

use super::{TestStock, key, member, open, redeem};
use crate::kernel::catalog::SalePhase;
use crate::kernel::code::Code;
use crate::kernel::control::{
    ASKED_UNKNOWN, ControlCommand, ControlOutcome, ControlState, ItemStock, SlotClaim,
};
use crate::kernel::definition::ValidSale;
use crate::kernel::effects::Effects;
use crate::kernel::record::{AdminNote, Record, RecordHead, SaleChange};
use crate::kernel::state::{KernelLimits, ShardState};
use crate::units::{ItemIndex, JournalId, KeyHash, NodeTime, Quantity, SaleIndex, Slot};

fn refused(code: Code) -> ControlOutcome {
    ControlOutcome::Refused(crate::kernel::command::Refusal { code, detail: 0 })
}

fn sale(id: &str, name: &str) -> Arc<ValidSale> {
    let text = format!(
        r#"{{"id":"{id}","name":"{name}","opens_at":"1970-01-01T00:00:10Z",
            "closes_at":"1970-01-01T00:00:20Z","hold_ttl_ms":1000,"items":[
            {{"sku":"mug","name":"Mug","points":100,"stock":10,"limit_per_member":1}},
            {{"sku":"cap","name":"Cap","points":100,"stock":0,"limit_per_member":1}}]}}"#
    );
    Arc::new(ValidSale::parse(&text).expect("a valid definition"))
}

struct Bed {
    control: ControlState,
    effects: Effects,
    now: u64,
    journal: Vec<u8>,
}

impl Bed {
    fn new() -> Self {
        let (control, effects) = (ControlState::new(), Effects::default());
        Self { control, effects, now: 1000, journal: Vec::new() }
    }
    fn ask(&mut self, command: &ControlCommand) -> ControlOutcome {
        self.effects.clear();
        let outcome = self.control.decide(NodeTime::new(self.now), command, &mut self.effects);
        self.journal.extend_from_slice(&self.effects.records);
        outcome
    }
    fn tick(&mut self) -> Vec<(u32, SaleChange)> {
        self.effects.clear();
        let changes = self.control.tick(NodeTime::new(self.now), &mut self.effects);
        self.journal.extend_from_slice(&self.effects.records);
        changes.into_iter().map(|(sale, change)| (sale.get(), change)).collect()
    }
    fn define(&mut self, id: &str) -> ControlOutcome {
        self.ask(&define(id, "Sale"))
    }
    fn replayed(&self) -> ControlState {
        let mut replayed = ControlState::new();
        let mut rest = &self.journal[..];
        while !rest.is_empty() {
            let (bytes, behind) = rest.split_at(RecordHead::peek(rest).expect("a head").length);
            rest = behind;
            let (_, record) = Record::take(&mut &bytes[..]).expect("a record");
            replayed.apply(&record, bytes).expect("it fits");
        }
        replayed
    }
    fn stock(&self, item: usize) -> (u64, u64, u64) {
        let ItemStock { total, granted, returned, .. } = self.control.items()[item];
        (total, granted, returned)
    }
}

#[test]
fn slots_are_claimed_once_and_the_claim_outlives_replay_and_snapshots() {
    let mut bed = Bed::new();
    let claim = |slots: &str| {
        let (node, slots) = ("a".to_owned(), slots.to_owned());
        ControlCommand::ClaimSlots { claim: SlotClaim { node, version: 3, slots } }
    };
    assert_eq!(bed.ask(&claim("0-9")), ControlOutcome::Noted);
    let written = bed.journal.len();
    assert_eq!(bed.ask(&claim("0-9")), ControlOutcome::Noted);
    assert_eq!(code(&bed.ask(&claim("0-10"))), Some(Code::Invalid));
    assert_eq!(bed.journal.len(), written, "neither is a record");
    let replayed = bed.replayed();
    assert_eq!(replayed.claim(), bed.control.claim());
    assert_eq!(replayed.claim().map(|c| c.slots.as_str()), Some("0-9"));
    let mut bytes = Vec::new();
    bed.control.encode(&mut bytes);
    let decoded = ControlState::decode(&bytes).expect("its own bytes");
    assert_eq!(decoded.claim(), bed.control.claim());
    assert_eq!(decoded.digest(), bed.control.digest());
}

fn define(id: &str, name: &str) -> ControlCommand {
    let note = AdminNote::default();
    ControlCommand::DefineSale { sale: sale(id, name), is_home: true, note }
}

fn change(sale: u32, change: SaleChange) -> ControlCommand {
    ControlCommand::Change { sale: SaleIndex::new(sale), change, note: AdminNote::default() }
}

fn add(item: u32, quantity: u32, key_text: &str) -> ControlCommand {
    let (item, quantity) = (ItemIndex::new(item), Quantity::new(quantity));
    ControlCommand::AddStock { item, quantity, key: key(key_text), note: AdminNote::default() }
}

fn withdraw(item: u32, asked: u32, taken: u32, key_text: &str) -> ControlCommand {
    ControlCommand::WithdrawStock {
        item: ItemIndex::new(item),
        asked: Quantity::new(asked),
        taken: Quantity::new(taken),
        key: key(key_text),
        note: AdminNote::default(),
    }
}

fn grant(item: u32, granted: u64) -> ControlCommand {
    ControlCommand::GrantAccepted { item: ItemIndex::new(item), granted, epoch: 1 }
}

fn give_up(item: u32, quantity: u32) -> ControlCommand {
    let (item, quantity) = (ItemIndex::new(item), Quantity::new(quantity));
    ControlCommand::Return { item, quantity, epoch: 1 }
}

fn see_epoch(epoch: u32) -> ControlCommand {
    ControlCommand::SeeEpoch { item: ItemIndex::new(0), epoch, server: KeyHash::new(9) }
}

fn see_total(total: u64) -> ControlCommand {
    ControlCommand::SeeTotal { item: ItemIndex::new(0), total }
}

fn code(outcome: &ControlOutcome) -> Option<Code> {
    match outcome {
        ControlOutcome::Refused(refusal) => Some(refusal.code),
        _ => None,
    }
}

#[test]
fn a_sale_is_defined_once() {
    let mut bed = Bed::new();
    let defined = |replayed| ControlOutcome::Defined { sale: SaleIndex::new(0), replayed };
    assert_eq!(bed.define("a"), defined(false));
    assert_eq!(bed.effects.record_count, 3, "the sale and the stock of its two items");
    assert_eq!(bed.define("a"), defined(true));
    assert!(bed.effects.is_empty());
    assert_eq!(code(&bed.ask(&define("a", "Another"))), Some(Code::SaleExists));
    bed.define("b");
    assert_eq!(bed.control.sale_by_id("b"), Some(SaleIndex::new(1)));
    assert_eq!(bed.control.sales()[1].first_item, ItemIndex::new(2));
    assert_eq!(bed.stock(2), (10, 0, 0));
}

#[test]
fn sale_changes_by_row() {
    let mut bed = Bed::new();
    bed.define("a");
    let ok = |changed| Ok(changed);
    let table = [
        (change(9, SaleChange::Opened), Err(Code::SaleNotFound)),
        (change(0, SaleChange::Paused), Err(Code::SaleNotOpen)),
        (change(0, SaleChange::Resumed), Err(Code::SaleNotOpen)),
        (change(0, SaleChange::Opened), ok(true)),
        (change(0, SaleChange::Opened), ok(false)),
        (change(0, SaleChange::Resumed), ok(false)),
        (change(0, SaleChange::Paused), ok(true)),
        (change(0, SaleChange::Paused), ok(false)),
        (change(0, SaleChange::Resumed), ok(true)),
        (change(0, SaleChange::Ended), ok(true)),
        (change(0, SaleChange::Ended), ok(false)),
        (change(0, SaleChange::Opened), Err(Code::SaleEnded)),
        (change(0, SaleChange::Paused), Err(Code::SaleEnded)),
        (change(0, SaleChange::Resumed), Err(Code::SaleEnded)),
    ];
    for (row, (command, expected)) in table.iter().enumerate() {
        let outcome = bed.ask(command);
        let found = match outcome {
            ControlOutcome::Changed { changed, .. } => Ok(changed),
            ref other => Err(code(other).expect("a change or a refusal")),
        };
        assert_eq!(found, *expected, "row {row}: {command:?}");
        assert_eq!(bed.effects.record_count, u32::from(found == Ok(true)), "row {row}");
    }
}

#[test]
fn time_opens_and_ends_a_sale_once_and_a_clock_set_back_reopens_nothing() {
    let mut bed = Bed::new();
    bed.define("a");
    assert_eq!(bed.control.next_tick(), Some(NodeTime::new(10_000)));
    assert_eq!(bed.tick(), []);
    bed.now = 10_000;
    assert_eq!(bed.tick(), [(0, SaleChange::Opened)]);
    bed.now = 20_000;
    assert_eq!(bed.tick(), [(0, SaleChange::Ended)]);
    bed.now = 12_000;
    assert_eq!(bed.tick(), []);
    assert_eq!(code(&bed.ask(&change(0, SaleChange::Opened))), Some(Code::SaleEnded));
    assert_eq!(bed.control.sales()[0].phase, SalePhase::Ended);
    assert_eq!(bed.control.next_tick(), None);
}

#[test]
fn a_sale_that_was_slept_through_ends_without_opening() {
    let mut bed = Bed::new();
    bed.define("a");
    bed.now = 30_000;
    assert_eq!(bed.tick(), [(0, SaleChange::Ended)]);
}

#[test]
fn stock_by_row() {
    let mut bed = Bed::new();
    bed.define("a");
    let stock = |item, quantity, total, replayed| ControlOutcome::Stock {
        item: ItemIndex::new(item),
        quantity: Quantity::new(quantity),
        total,
        replayed,
    };
    let lease =
        |granted, returned| ControlOutcome::Lease { item: ItemIndex::new(0), granted, returned };
    let no = |code| ControlOutcome::Refused(super::super::command::Refusal { code, detail: 0 });
    // command, outcome, units that enter the line, total/granted/returned of item 0
    let table = [
        (add(99, 1, "k"), no(Code::ItemNotFound), 0, (10, 0, 0)),
        (add(0, 0, "k"), no(Code::Invalid), 0, (10, 0, 0)),
        (add(0, 5, "k"), stock(0, 5, 15, false), 0, (15, 0, 0)),
        (add(0, 5, "k"), stock(0, 5, 15, true), 0, (15, 0, 0)),
        (add(0, 6, "k"), no(Code::KeyReused), 0, (15, 0, 0)),
        (add(1, 5, "k"), no(Code::KeyReused), 0, (15, 0, 0)),
        (grant(0, 16), no(Code::Invalid), 0, (15, 0, 0)),
        (grant(0, 12), lease(12, 0), 12, (15, 12, 0)),
        (grant(0, 12), lease(12, 0), 0, (15, 12, 0)),
        (grant(0, 3), lease(12, 0), 0, (15, 12, 0)),
        (withdraw(0, 0, 0, "w"), no(Code::Invalid), 0, (15, 12, 0)),
        (withdraw(0, 2, 3, "w"), no(Code::Invalid), 0, (15, 12, 0)),
        // Only what lies in the pool can be taken off the total.
        (withdraw(0, 8, 4, "w"), no(Code::Invalid), 0, (15, 12, 0)),
        (give_up(0, 1), lease(12, 1), 0, (15, 12, 1)),
        (give_up(0, 12), no(Code::Invalid), 12, (15, 12, 1)),
        (give_up(0, 3), lease(12, 4), 0, (15, 12, 4)),
        (withdraw(0, 8, 4, "w"), stock(0, 4, 11, false), 0, (11, 12, 4)),
        (withdraw(0, 8, 4, "w"), stock(0, 4, 11, true), 0, (11, 12, 4)),
        (withdraw(0, 9, 4, "w"), no(Code::KeyReused), 0, (11, 12, 4)),
        (add(0, 8, "w"), no(Code::KeyReused), 0, (11, 12, 4)),
        (withdraw(0, 8, 0, "nothing left"), stock(0, 0, 11, false), 0, (11, 12, 4)),
        (grant(0, 15), lease(15, 4), 3, (11, 15, 4)),
        (grant(0, 16), no(Code::Invalid), 0, (11, 15, 4)),
    ];
    for (row, (command, expected, given_back, counters)) in table.into_iter().enumerate() {
        assert_eq!(bed.ask(&command), expected, "row {row}: {command:?}");
        let back: u32 = bed.effects.given_back.iter().map(|(_, units)| units.get()).sum();
        assert_eq!(back, given_back, "row {row}: {command:?}");
        assert_eq!(bed.stock(0), counters, "row {row}: {command:?}");
    }
    bed.ask(&change(0, SaleChange::Ended));
    assert_eq!(code(&bed.ask(&add(0, 5, "late"))), Some(Code::SaleEnded));
    assert_eq!(bed.ask(&add(0, 5, "k")), stock(0, 5, 15, true));
}

#[test]
fn a_journal_that_is_not_the_sales_home_learns_its_total_and_never_changes_it() {
    let mut bed = Bed::new();
    let note = AdminNote::default();
    bed.ask(&ControlCommand::DefineSale { sale: sale("a", "Sale"), is_home: false, note });
    assert_eq!(bed.effects.record_count, 1, "no stock of its own");
    let lease =
        |granted, returned| ControlOutcome::Lease { item: ItemIndex::new(0), granted, returned };
    let invalid = refused(Code::Invalid);
    let grant_under =
        |granted, epoch| ControlCommand::GrantAccepted { item: ItemIndex::new(0), granted, epoch };
    let table = [
        (add(0, 5, "k"), invalid.clone(), (0, 0, 0)),
        (grant_under(4, 1), invalid.clone(), (0, 0, 0)),
        (see_total(10), ControlOutcome::Noted, (10, 0, 0)),
        (see_epoch(0), invalid.clone(), (10, 0, 0)),
        (see_epoch(3), ControlOutcome::Noted, (10, 0, 0)),
        (see_epoch(3), invalid.clone(), (10, 0, 0)),
        // † A grant of an older epoch, whose answer was in flight while the pool was rebuilt.
        (grant_under(4, 2), invalid.clone(), (10, 0, 0)),
        (grant_under(4, 3), lease(4, 0), (10, 4, 0)),
        (see_total(3), invalid.clone(), (10, 4, 0)),
        (see_total(4), ControlOutcome::Noted, (4, 4, 0)),
        (withdraw(0, 1, 0, "w"), invalid.clone(), (4, 4, 0)),
    ];
    for (row, (command, expected, counters)) in table.into_iter().enumerate() {
        assert_eq!(bed.ask(&command), expected, "row {row}: {command:?}");
        assert_eq!(bed.stock(0), counters, "row {row}: {command:?}");
    }
    let known = bed.control.items()[0];
    assert_eq!((known.epoch, known.server, known.is_home), (3, KeyHash::new(9), false));
    bed.define("b");
    let item = ItemIndex::new(2);
    assert_eq!(bed.ask(&ControlCommand::SeeTotal { item, total: 9 }), invalid, "its own");
    assert_eq!(bed.replayed().digest(), bed.control.digest());
}

#[test]
fn a_withdrawal_known_by_its_key_alone_answers_whatever_number_comes_with_it() {
    let mut bed = Bed::new();
    bed.define("a");
    bed.ask(&ControlCommand::WithdrawStock {
        item: ItemIndex::new(0),
        asked: ASKED_UNKNOWN,
        taken: Quantity::new(3),
        key: key("w"),
        note: AdminNote::default(),
    });
    let (item, quantity) = (ItemIndex::new(0), Quantity::new(3));
    let expected = ControlOutcome::Stock { item, quantity, total: 7, replayed: true };
    assert_eq!(bed.ask(&withdraw(0, 5, 0, "w")), expected);
    assert_eq!(bed.control.items()[0].withdrawn(), 3);
}

#[test]
fn a_snapshot_of_version_1_is_still_read() {
    let mut bed = Bed::new();
    bed.define("a");
    bed.ask(&grant(0, 7));
    let mut bytes = Vec::new();
    bed.control.encode(&mut bytes);
    // Items stand before the keys, of which there are none: a count of one byte. What version 2
    // added to each of them is `added`, a flag, an epoch of one byte and 16 of the server. The last
    // byte says that there is no claim of slots: version 3.
    let end = bytes.len() - 2;
    let second = end - 22..end;
    assert_eq!(bytes[second.clone()][..3], [0, 0, 0], "the cap: {:?}", &bytes[second]);
    let old_items = [10, 7, 0, 0, 0, 0];
    bytes.truncate(end - 2 * 22);
    bytes.extend_from_slice(&old_items);
    bytes.push(0);
    bytes[0] = 1;
    let old = ControlState::decode(&bytes).expect("a snapshot of version 1");
    let (old, new) = (old.items(), bed.control.items());
    assert_eq!((old[0].total, old[0].granted, old[0].added), (10, 7, 10));
    assert!(old[0].is_home && old[1].is_home);
    assert_eq!(old[0], new[0]);
}

#[test]
fn replay_and_snapshot_give_the_live_digest() {
    let mut bed = Bed::new();
    bed.define("a");
    bed.ask(&change(0, SaleChange::Opened));
    bed.ask(&change(0, SaleChange::Paused));
    bed.ask(&add(0, 5, "k"));
    bed.ask(&see_epoch(1));
    bed.ask(&grant(0, 15));
    bed.ask(&give_up(0, 3));
    bed.ask(&withdraw(0, 3, 3, "w"));
    bed.define("b");
    assert_eq!(bed.replayed().digest(), bed.control.digest());
    let mut bytes = Vec::new();
    bed.control.encode(&mut bytes);
    assert_eq!(ControlState::decode(&bytes).expect("a snapshot").digest(), bed.control.digest());
    for cut in 0..bytes.len() {
        assert!(ControlState::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..bytes.len() {
        bytes[at] ^= 0x11;
        if let Ok(other) = ControlState::decode(&bytes) {
            assert_ne!(other.digest(), bed.control.digest(), "byte {at}");
        }
        bytes[at] ^= 0x11;
    }
}

#[test]
fn a_shards_catalog_is_made_of_the_control_machines() {
    let mut bed = Bed::new();
    bed.define("a");
    bed.ask(&change(0, SaleChange::Opened));
    let mut shard = ShardState::new(JournalId::new(5), KernelLimits::default());
    *shard.catalog_mut() = bed.control.catalog();
    let slot = Slot::of(member(7));
    shard.adopt_slot(slot, None);
    let (stock, mut effects) = (TestStock::new(2, 1), Effects::default());
    let now = NodeTime::new(bed.now);
    shard.decide(now, &open(7, 100), &stock, &mut effects);
    let outcome = shard.decide(now, &redeem(7, "a", 0, 1), &stock, &mut effects);
    assert!(matches!(outcome, super::Outcome::Redemption { .. }), "{outcome:?}");
}
