//! Histories on the disk's bytes: each rule of opening, with the failure it was found by.

use super::world::{Model, SEGMENT_BYTES, World, open_core, read_all};
use crate::journal::core::{JournalCore, OpenedCore};
use crate::journal::format::{self, BLOCK_LEN, Frame, FrameHeader, SegmentHeader, Unverified};
use crate::journal::scan::{Scan, scan};
use crate::journal::sim::{Fault, SimDisk};
use crate::journal::tail::{DurableMark, Tail};
use crate::journal::{JournalError, segments};
use crate::units::{JournalId, Seq};

/// A journal on a well disk after frames of these many records, and what was promised.
fn journal_of(counts: &[u32]) -> (SimDisk, Model) {
    let (disk, mut model) = (SimDisk::new(5), Model::default());
    let mut world = World::new(open_core(&disk).unwrap(), SimDisk::new(6));
    for count in counts {
        world.prepare().unwrap();
        assert!(world.append(&mut model, *count).unwrap());
    }
    (disk, model)
}

fn scanned(disk: &SimDisk) -> Scan {
    scan(disk, |_, _| {}).unwrap().unwrap()
}

/// Opens and checks that exactly what was promised is there.
fn check(disk: &SimDisk, model: &mut Model) -> OpenedCore<SimDisk> {
    let opened = open_core(disk).unwrap();
    model.check(disk, &SimDisk::new(0), &opened).unwrap();
    opened
}

fn frame_at(bytes: &[u8], segment: u64, offset: usize) -> Option<Frame<'_>> {
    let frame = Unverified::take(&bytes[offset..]).ok()?;
    frame.verify(JournalId::new(77), segment).ok()
}

fn segment_one(disk: &SimDisk) -> Vec<u8> {
    disk.bytes(&segments::name(1)).unwrap()
}

/// A frame as a second one in flight would be: after `before`, claiming what `before` claimed.
fn in_flight_after(before: &FrameHeader, checksum: u32, record: u64) -> (FrameHeader, Vec<u8>) {
    let header = FrameHeader {
        number: before.number + 1,
        first_seq: before.next_seq(),
        previous_checksum: checksum,
        record_count: 1,
        record_bytes: 24,
        kind: format::FrameKind::Records,
        ..*before
    };
    let mut bytes = vec![0; header.frame_len()];
    let record = super::world::record(record);
    bytes[format::FRAME_HEADER_LEN..][..24].copy_from_slice(&record);
    format::seal_frame(&mut bytes, &header);
    (header, bytes)
}

#[test]
fn the_last_frame_torn_at_any_byte_ends_the_journal_before_it() {
    // An older file would show other bytes behind the tear; zeros are what the segment held.
    let (disk, model) = journal_of(&[3, 5, 200]);
    let (whole, end) = (segment_one(&disk), scanned(&disk));
    let last = end.last.unwrap();
    let start = last.place.offset as usize;
    let len = last.header.frame_len();
    assert!(len > BLOCK_LEN);
    for cut in 0..len {
        let mut torn = whole.clone();
        torn[start + cut..start + len].fill(0);
        if torn == whole {
            continue;
        }
        let disk = SimDisk::new(1);
        disk.set_bytes(&segments::name(1), &torn);
        let opened = scan(&disk, |_, _| {}).unwrap().unwrap();
        assert_eq!(opened.end.offset as usize, start, "cut at {cut}");
        assert_eq!(opened.last_seq(), Seq::new(8), "cut at {cut}");
        assert_eq!(opened.is_dirty_behind, cut > 0, "cut at {cut}");
        // Opening in full is slower: every block's edge, and a sample of the rest.
        if cut % 509 == 0 || cut % BLOCK_LEN < 2 {
            let mut promised = Model { acked: model.acked[..8].to_vec(), ..Model::default() };
            check(&disk, &mut promised);
            let after = segment_one(&disk);
            assert!(frame_at(&after, 1, start).is_some_and(|f| f.records().is_empty()));
            assert!(after[start + BLOCK_LEN..].iter().all(|b| *b == 0), "zeroed behind");
        }
    }
}

#[test]
fn every_flipped_bit_of_the_last_frame_ends_the_journal_before_it() {
    let (disk, _) = journal_of(&[3, 5]);
    let (whole, end) = (segment_one(&disk), scanned(&disk));
    let start = end.last.unwrap().place.offset as usize;
    for bit in 0..BLOCK_LEN * 8 {
        let mut flipped = whole.clone();
        flipped[start + bit / 8] ^= 1 << (bit % 8);
        disk.set_bytes(&segments::name(1), &flipped);
        let found = scanned(&disk);
        assert_eq!((found.last_seq(), found.is_dirty_behind), (Seq::new(3), true), "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_of_an_acknowledged_frame_is_damage_and_changes_nothing() {
    let (disk, _) = journal_of(&[3, 5, 1]);
    let whole = segment_one(&disk);
    // The opening mark and the first two frames take a block each; the last proves them.
    for block in 1..=3 {
        for bit in (0..BLOCK_LEN * 8).step_by(if block == 2 { 1 } else { 41 }) {
            let at = block * BLOCK_LEN + bit / 8;
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (bit % 8);
            disk.set_bytes(&segments::name(1), &flipped);
            match open_core(&disk).err().unwrap() {
                JournalError::Damaged { file, offset, frame, claimed, .. } => {
                    assert_eq!((file, frame), (segments::name(1), block as u64), "bit {bit}");
                    assert_eq!((offset, claimed), ((block * BLOCK_LEN) as u64, 3), "bit {bit}");
                }
                other => panic!("bit {bit}: {other}"),
            }
            assert_eq!(segment_one(&disk), flipped, "nothing was changed");
        }
    }
}

/// Two frames in flight, the first torn, the second whole: a normal power loss.
#[test]
fn a_whole_second_frame_behind_a_torn_first_is_no_damage() {
    let (disk, mut model) = journal_of(&[3, 5]);
    let (mut bytes, end) = (segment_one(&disk), scanned(&disk));
    let last = end.last.unwrap();
    let (first, first_bytes) = in_flight_after(&last.header, last.checksum, 9_001);
    let checksum = frame_at(&first_bytes, 1, 0).unwrap().checksum();
    let (_, second_bytes) = in_flight_after(&first, checksum, 9_002);
    let at = end.end.offset as usize;
    bytes[at..at + BLOCK_LEN].copy_from_slice(&first_bytes);
    bytes[at + 64..at + BLOCK_LEN].fill(0);
    bytes[at + BLOCK_LEN..at + 2 * BLOCK_LEN].copy_from_slice(&second_bytes);
    disk.set_bytes(&segments::name(1), &bytes);
    check(&disk, &mut model);

    // The stale second frame must not come back to life: a new first frame of the same size is
    // written where the torn one stood, and power fails again.
    let mut world = World::new(open_core(&disk).unwrap(), SimDisk::new(0));
    assert!(world.append(&mut model, 1).unwrap());
    let disk = disk.restart();
    model.incarnation = 0;
    check(&disk, &mut model);
    let after = segment_one(&disk);
    let survivors = (0..after.len() / BLOCK_LEN).filter_map(|b| frame_at(&after, 1, b * BLOCK_LEN));
    assert!(survivors.into_iter().all(|f| !f.records().starts_with(&9_002u64.to_le_bytes())));
}

/// The second of two in flight begins the next segment; the first was torn at this one's end.
#[test]
fn a_stale_frame_in_a_later_segment_is_zeroed_too() {
    let (disk, mut model) = journal_of(&[3]);
    let last = scanned(&disk).last.unwrap();
    let (first, first_bytes) = in_flight_after(&last.header, last.checksum, 9_001);
    let checksum = frame_at(&first_bytes, 1, 0).unwrap().checksum();
    let (_, mut stale) = in_flight_after(&FrameHeader { segment: 2, ..first }, checksum, 9_002);
    let mut later = disk.bytes(&segments::name(2)).unwrap();
    later[BLOCK_LEN..2 * BLOCK_LEN].copy_from_slice(&stale);
    disk.set_bytes(&segments::name(2), &later);
    check(&disk, &mut model);
    let after = disk.restart().bytes(&segments::name(2)).unwrap();
    assert!(after[BLOCK_LEN..].iter().all(|b| *b == 0));
    stale.fill(0);
}

/// A sync failed and the process died; the page cache still shows the frame.
#[test]
fn a_frame_that_only_the_page_cache_has_is_written_anew() {
    let mut shown_and_lost = 0;
    for seed in 0..64 {
        let disk = SimDisk::new(seed);
        let mut model = Model::default();
        let mut world = World::new(open_core(&disk).unwrap(), SimDisk::new(0));
        assert!(world.append(&mut model, 2).unwrap());
        disk.fault_at(disk.operations(), Fault::Error);
        assert!(world.append(&mut model, 200).is_err());
        disk.heal();
        let without_reopening = disk.restart();
        // A plain restart answers from what it sees; what it answered survives a power loss.
        let disk = SimDisk::new(seed);
        let mut again = Model::default();
        let mut world = World::new(open_core(&disk).unwrap(), SimDisk::new(0));
        assert!(world.append(&mut again, 2).unwrap());
        disk.fault_at(disk.operations(), Fault::Error);
        assert!(world.append(&mut again, 200).is_err());
        let disk = disk.process_restart();
        check(&disk, &mut again);
        let shown = again.acked.len();
        check(&disk.restart(), &mut again);
        assert_eq!(again.acked.len(), shown, "seed {seed}");
        shown_and_lost +=
            usize::from(shown == 202 && scanned(&without_reopening).last_seq() < Seq::new(202));
    }
    assert!(shown_and_lost > 30, "the history happened {shown_and_lost} times");
}

#[test]
fn what_is_proven_by_a_later_header_is_not_written_anew() {
    let (disk, _) = journal_of(&[3, 5, 1]);
    let found = scanned(&disk);
    assert_eq!(found.unproven.len(), 1);
    assert_eq!(found.unproven[0].header.first_seq, Seq::new(9));
}

#[test]
fn a_newer_version_is_refused_with_a_clear_word() {
    let newer = |block: &mut [u8]| {
        block[12..16].copy_from_slice(&2u32.to_le_bytes());
        let checksum = crc32c::crc32c(&block[12..]);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
    };
    // The segment; its first frame; the last frame; a frame behind the end.
    for block in [0, 1, 3, 4] {
        let (disk, _) = journal_of(&[3, 5]);
        let mut bytes = segment_one(&disk);
        if block == 4 {
            bytes.copy_within(3 * BLOCK_LEN..4 * BLOCK_LEN, 4 * BLOCK_LEN);
        }
        newer(&mut bytes[block * BLOCK_LEN..(block + 1) * BLOCK_LEN]);
        disk.set_bytes(&segments::name(1), &bytes);
        let refused = open_core(&disk).err().unwrap();
        let expected = matches!(refused, JournalError::Newer { version: 2, .. });
        assert!(expected, "block {block}: {refused}");
        assert!(refused.to_string().contains("newer program"));
        assert_eq!(segment_one(&disk), bytes, "nothing was changed");
    }
}

#[test]
fn missing_mixed_and_headless_segments_are_refused() {
    let rotated = || journal_of(&[300, 300, 300, 300, 300, 300, 300]).0;
    let name = segments::name;
    assert!(segments::list(&rotated()).unwrap().len() >= 3);
    let refused = |disk: &SimDisk| open_core(disk).err().unwrap();

    let disk = rotated();
    crate::journal::disk::Disk::remove(&disk, &name(2)).unwrap();
    assert!(matches!(refused(&disk), JournalError::SegmentMissing { file } if file == name(2)));

    let disk = rotated();
    let mut bytes = disk.bytes(&name(2)).unwrap();
    bytes[100] ^= 1;
    disk.set_bytes(&name(2), &bytes);
    assert!(matches!(refused(&disk), JournalError::SegmentHeader { .. }));

    let disk = rotated();
    let foreign = SegmentHeader {
        journal: JournalId::new(78),
        segment: 2,
        file_len: SEGMENT_BYTES,
        incarnation: crate::units::Incarnation::new(1),
    };
    let mut bytes = vec![0; SEGMENT_BYTES as usize];
    foreign.encode(&mut bytes[..BLOCK_LEN]);
    disk.set_bytes(&name(2), &bytes);
    assert!(matches!(refused(&disk), JournalError::Mixed { .. }));

    let disk = rotated();
    let bytes = disk.bytes(&name(2)).unwrap();
    disk.set_bytes(&name(2), &bytes[..bytes.len() - BLOCK_LEN]);
    assert!(matches!(refused(&disk), JournalError::SegmentHeader { .. }));
}

#[test]
fn where_early_segments_were_deleted_the_first_one_left_is_believed_or_damaged() {
    let (disk, _) = journal_of(&[300, 300, 300, 300, 300, 300, 300]);
    segments::remove(&disk, 1).unwrap();
    let opened = open_core(&disk).unwrap();
    assert!(opened.first_seq > Seq::new(1));
    let all = read_all(&disk, &opened, opened.first_seq).unwrap();
    assert_eq!(all.first().unwrap().0, opened.first_seq.get());
    assert_eq!(all.last().unwrap().0, opened.last_seq.get());
    let gone = read_all(&disk, &opened, Seq::new(1)).err().unwrap();
    assert!(matches!(gone, JournalError::Gone { .. }));

    let mut bytes = disk.bytes(&segments::name(2)).unwrap();
    bytes[BLOCK_LEN + 200] ^= 1;
    disk.set_bytes(&segments::name(2), &bytes);
    assert!(matches!(open_core(&disk).err().unwrap(), JournalError::BaseDamaged { .. }));
}

#[test]
fn a_tail_says_where_a_durable_frame_is_missing() {
    let (disk, _) = journal_of(&[3, 5, 1]);
    let mut bytes = segment_one(&disk);
    let durable = || std::sync::Arc::new(DurableMark::new(Seq::new(9)));
    let open = |disk: &SimDisk| {
        Tail::open(disk.clone(), JournalId::new(77), Seq::new(1), durable()).unwrap()
    };
    let mut whole = open(&disk);
    assert!((0..3).all(|_| whole.next().unwrap().is_some()));
    assert!(whole.next().unwrap().is_none());
    bytes[3 * BLOCK_LEN + 130] ^= 1;
    disk.set_bytes(&segments::name(1), &bytes);
    let mut damaged = open(&disk);
    assert!(damaged.next().unwrap().is_some());
    let found = damaged.next().err().unwrap();
    assert!(matches!(found, JournalError::Damaged { offset: 12_288, frame: 3, .. }), "{found}");
}

#[test]
fn an_opening_that_finds_its_segment_full_makes_the_next_one() {
    let (disk, mut model) = (SimDisk::new(5), Model::default());
    for _ in 0..3 * SEGMENT_BYTES as usize / BLOCK_LEN {
        check(&disk, &mut model);
    }
    assert!(segments::list(&disk).unwrap().len() >= 3);
    let _: JournalCore<SimDisk> = check(&disk, &mut model).core;
}
