//! Replay of what does not fit, and snapshots with wrong bytes: an error each time, never a panic,
//! and never a change.

use super::*;
use crate::kernel::record::{HEADER_LEN, RecordHead};
use crate::kernel::slot::SlotState;
use crate::units::JournalId;

/// A slot with an example of everything, and the records that made it.
fn example() -> (Slot, Vec<u8>, SlotState) {
    let mut bed = Bed::new();
    let slot = Slot::of(member(7));
    let bought = view(&bed.ask(&redeem(7, "a", 0, 1))).id;
    let held = view(&bed.ask(&hold(7, "b", 1, 1))).id;
    let dropped = view(&bed.ask(&hold(7, "c", 1, 1))).id;
    bed.ask(&confirm(7, held));
    bed.ask(&cancel(7, dropped));
    bed.ask(&credit(7, "k", 5));
    bed.ask(&debit(7, "l", 6));
    bed.ask(&reverse(bought, "r"));
    for (sale, item) in [(1, 2), (2, 4), (3, 6), (4, 8)] {
        let _ = sale;
        add_sale(&mut bed.shard, SalePhase::Open, false);
        bed.ask(&hold(7, &format!("more {item}"), item, 1));
    }
    bed.now += 1000;
    bed.expire();
    bed.drop_keys(1);
    let mut own = Vec::new();
    let mut rest = &bed.journal[..];
    while !rest.is_empty() {
        let head = RecordHead::peek(rest).expect("a head");
        if head.slot == slot {
            own.extend_from_slice(&rest[..head.length]);
        }
        rest = &rest[head.length..];
    }
    let mut bytes = Vec::new();
    bed.shard.slot(slot).encode(&mut bytes);
    (slot, own, SlotState::decode(&bytes).expect("a snapshot"))
}

fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut all) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (record, behind) = rest.split_at(RecordHead::peek(rest).expect("a head").length);
        all.push(record);
        rest = behind;
    }
    all
}

#[test]
fn replay_gives_the_live_digest() {
    let (slot, journal, live) = example();
    let mut replayed = SlotState::new(slot);
    for record in records(&journal) {
        replayed.apply_bytes(record).expect("it fits");
    }
    assert_eq!(replayed.digest(), live.digest());
    assert_eq!(replayed.totals(), live.totals());
    assert_eq!(replayed.item_counts(), live.item_counts());
}

#[test]
fn a_record_left_out_or_applied_twice_is_noticed() {
    let (slot, journal, live) = example();
    let all = records(&journal);
    for skip in 0..all.len() {
        let mut state = SlotState::new(slot);
        let rest = all.iter().enumerate().filter(|(place, _)| *place != skip);
        let fits = rest.fold(true, |fits, (_, record)| fits && state.apply_bytes(record).is_ok());
        assert!(!fits || state.digest() != live.digest(), "without record {skip}");

        let mut state = SlotState::new(slot);
        let mut fits = true;
        for (place, record) in all.iter().enumerate() {
            fits &= state.apply_bytes(record).is_ok();
            if place == skip {
                fits &= state.apply_bytes(record).is_ok();
            }
        }
        assert!(!fits || state.digest() != live.digest(), "record {skip} twice");
    }
}

#[test]
fn a_record_with_any_field_changed_is_an_error_or_another_digest_and_changes_nothing() {
    let (slot, journal, _) = example();
    let mut state = SlotState::new(slot);
    for record in records(&journal) {
        let before = state.digest();
        for at in HEADER_LEN..record.len() {
            let mut changed = record.to_vec();
            changed[at] ^= 0x41;
            let mut bytes = Vec::new();
            state.encode(&mut bytes);
            let mut other = SlotState::decode(&bytes).expect("a snapshot");
            if other.apply_bytes(&changed).is_ok() {
                let mut right = SlotState::decode(&bytes).expect("a snapshot");
                right.apply_bytes(record).expect("it fits");
                assert_ne!(other.digest(), right.digest(), "byte {at} of {record:?}");
            } else {
                assert_eq!(other.digest(), before, "byte {at} of {record:?}");
            }
        }
        state.apply_bytes(record).expect("it fits");
    }
}

#[test]
fn a_snapshot_cut_or_changed_at_any_byte_never_panics_and_is_never_taken_for_the_right_one() {
    let (_, _, live) = example();
    let mut bytes = Vec::new();
    live.encode(&mut bytes);
    for cut in 0..bytes.len() {
        assert!(SlotState::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    bytes.push(0);
    assert!(SlotState::decode(&bytes).is_err());
    bytes.pop();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            if let Ok(other) = SlotState::decode(&bytes) {
                assert_ne!(other.digest(), live.digest(), "bit {bit} of byte {at}");
            }
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_record_of_another_slot_or_of_no_slot_is_refused() {
    let (slot, journal, _) = example();
    let other = Slot::new(slot.get() ^ 1);
    let mut state = SlotState::new(other);
    assert!(records(&journal).into_iter().all(|record| state.apply_bytes(record).is_err()));
    let mut bytes = Vec::new();
    let seen = crate::kernel::record::Granted {
        item: ItemIndex::new(0),
        granted: 1,
        epoch: 1,
        at: NodeTime::new(0),
    };
    seen.encode(other, &mut bytes);
    assert!(state.apply_bytes(&bytes).is_err());
    assert_eq!(state.digest(), SlotState::new(other).digest());
}

#[test]
fn the_digest_does_not_depend_on_the_order_of_opening() {
    let mut slots = [1, 2].map(|step| {
        let mut state = ShardState::new(JournalId::new(1), KernelLimits::default());
        let slot = Slot::of(member(1));
        state.adopt_slot(slot, None);
        let mut ids: Vec<_> = (0..400_000).filter(|&id| Slot::of(member(id)) == slot).collect();
        if step == 2 {
            ids.reverse();
        }
        let (stock, mut effects) = (TestStock::new(0, 0), Effects::default());
        for id in ids {
            state.decide(NodeTime::new(5), &open(id, id), &stock, &mut effects);
        }
        state.slot(slot).digest()
    });
    slots.sort_unstable();
    assert_eq!(slots[0], slots[1]);
}
