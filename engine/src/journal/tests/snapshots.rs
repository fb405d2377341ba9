//! Snapshots: what is kept, what a damaged one leads to, and what must be refused.

use crate::clock::Stamp;
use crate::journal::JournalError;
use crate::journal::disk::Disk as _;
use crate::journal::sim::SimDisk;
use crate::journal::snapshot::{
    Chosen, Part, SnapshotHeader, SnapshotInfo, SnapshotWriter, choose, kept,
};
use crate::units::{Incarnation, JournalId, NodeTime, Seq, Slot};

const JOURNAL: JournalId = JournalId::new(7);

fn header() -> SnapshotHeader {
    let stamp = Stamp { node: NodeTime::new(5), wall_ms: 6 };
    SnapshotHeader { journal: JOURNAL, incarnation: Incarnation::new(3), stamp }
}

/// The parts of the snapshot whose cuts begin at `cut`: one of them larger than a chunk.
fn parts(cut: u64) -> Vec<(Slot, Seq, Vec<u8>)> {
    let len = |i: u64| if i == 2 { 3_000_000 } else { i as usize * 1_000 };
    (0..5)
        .map(|i| (Slot::new(i as u16), Seq::new(cut + 4 - i), vec![(cut + i) as u8; len(i)]))
        .collect()
}

fn write(disk: &SimDisk, cut: u64) -> Vec<SnapshotInfo> {
    let mut writer = SnapshotWriter::create(disk, header()).unwrap();
    for (slot, cut, bytes) in parts(cut) {
        writer.part(Part { slot, cut, bytes: &bytes }).unwrap();
    }
    writer.finish().unwrap()
}

fn choose_at(disk: &SimDisk, first: u64, last: u64) -> Result<Chosen<SimDisk>, JournalError> {
    choose(disk, JOURNAL, Seq::new(first), Seq::new(last))
}

fn read(chosen: Chosen<SimDisk>) -> Vec<(Slot, Seq, Vec<u8>)> {
    let (mut reader, mut all) = (chosen.reader.unwrap(), Vec::new());
    while let Some(part) = reader.next().unwrap() {
        all.push((part.slot, part.cut, part.bytes.to_vec()));
    }
    all
}

#[test]
fn parts_come_back_and_two_snapshots_are_kept() {
    let disk = SimDisk::new(1);
    assert!(choose_at(&disk, 1, 0).unwrap().reader.is_none());
    for (round, cut) in [10, 20, 30].into_iter().enumerate() {
        let infos = write(&disk, cut);
        assert_eq!(infos.len(), (round + 1).min(2));
        let newest = infos.last().unwrap();
        assert_eq!((newest.number, newest.header), (round as u64 + 1, header()));
        assert_eq!((newest.lowest_cut.get(), newest.highest_cut.get()), (cut, cut + 4));
        assert_eq!(newest.part_count, 5);
        assert_eq!(read(choose_at(&disk, 1, 100).unwrap()), parts(cut));
    }
    let infos = kept(&disk).unwrap();
    assert_eq!(infos.iter().map(|i| i.lowest_cut.get()).collect::<Vec<_>>(), [20, 30]);
    assert_eq!(read(choose_at(&disk.restart(), 1, 100).unwrap()), parts(30));
}

#[test]
fn a_damaged_newest_snapshot_leads_to_the_older_one() {
    let disk = SimDisk::new(1);
    write(&disk, 10);
    write(&disk, 20);
    let name = "000000000002.snapshot";
    let good = disk.bytes(name).unwrap();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        disk.set_bytes(name, &bytes);
        let chosen = choose_at(&disk, 11, 100).unwrap();
        assert_eq!(chosen.damaged.len(), 1);
        assert_eq!(read(chosen), parts(10));
        // It was put aside, so that the next snapshot does not count it as kept.
        assert!(disk.bytes(name).is_none());
        assert_eq!(kept(&disk).unwrap().len(), 1);
    };
    let part_byte = 4096 + 5 * 32 + 2_000;
    for at in [0, 9, 13, 20, 41, 4095, 4096, 4100, 4110, 4115, 4121, part_byte, good.len() - 4090] {
        changed(&|bytes| bytes[at] ^= 4);
    }
    for len in [0, 1, 4096, 8192, good.len() / 2 / 4096 * 4096, good.len() - 1, good.len() - 4096] {
        changed(&|bytes| bytes.truncate(len));
    }
    changed(&|bytes| bytes.extend_from_slice(&[0; 4096]));
}

#[test]
fn a_snapshot_whose_writer_was_killed_before_its_name_was_synced_counts_only_once_it_is() {
    let disk = SimDisk::new(1);
    write(&disk, 10);
    write(&disk, 20);
    // What kill -9 between the rename and the sync leaves.
    disk.rename("000000000002.snapshot", "unfinished").unwrap();
    disk.sync_dir().unwrap();
    disk.rename("unfinished", "000000000002.snapshot").unwrap();
    assert!(disk.platter().bytes("000000000002.snapshot").is_none());
    choose_at(&disk, 1, 100).unwrap();
    assert_eq!(kept(&disk).unwrap().len(), 2);
    assert!(disk.platter().bytes("000000000002.snapshot").is_some(), "it survives a power cut");
}

#[test]
fn a_damaged_older_snapshot_covers_nothing_and_stops_nobody() {
    let disk = SimDisk::new(1);
    write(&disk, 10);
    write(&disk, 20);
    let name = "000000000001.snapshot";
    let mut bytes = disk.bytes(name).unwrap();
    let footer = bytes.len() - 4096;
    bytes[footer] ^= 1;
    disk.set_bytes(name, &bytes);
    let cuts = |infos: Vec<SnapshotInfo>| -> Vec<u64> {
        infos.iter().map(|info| info.lowest_cut.get()).collect()
    };
    assert_eq!(cuts(kept(&disk).unwrap()), [20]);
    assert_eq!(read(choose_at(&disk, 21, 100).unwrap()), parts(20));
    // The next one takes its place.
    assert_eq!(cuts(write(&disk, 30)), [20, 30]);
}

#[test]
fn what_does_not_fit_the_journal_is_refused() {
    let disk = SimDisk::new(1);
    write(&disk, 10);
    assert!(choose_at(&disk, 11, 14).is_ok());
    let lost = choose_at(&disk, 1, 13).err().unwrap();
    assert!(matches!(lost, JournalError::SnapshotBeyondEnd { .. }), "{lost}");
    let hole = choose_at(&disk, 12, 100).err().unwrap();
    assert!(matches!(hole, JournalError::SnapshotTooOld { .. }), "{hole}");
    let foreign = choose(&disk, JournalId::new(8), Seq::new(1), Seq::new(100)).err().unwrap();
    assert!(matches!(foreign, JournalError::Mixed { .. }), "{foreign}");
    let none = choose_at(&SimDisk::new(2), 12, 100).err().unwrap();
    assert!(matches!(none, JournalError::NoSnapshot { .. }), "{none}");

    let mut bytes = disk.bytes("000000000001.snapshot").unwrap();
    bytes[12..16].copy_from_slice(&2u32.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[12..4096]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    disk.set_bytes("000000000001.snapshot", &bytes);
    let newer = choose_at(&disk, 1, 100).err().unwrap();
    assert!(matches!(newer, JournalError::Newer { version: 2, .. }), "{newer}");
}
