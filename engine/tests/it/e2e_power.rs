//! Power loss: what kill -9 does not show, because the page cache outlives a process.
//!
//! The data lie on an ext4 image behind a loop device. In mid-burst the file system is shut down
//! without flushing its journal, as a power cut would; it is mounted again, and every 201 must be
//! there. The same cut with the syncs taken out must lose some: else this test proves nothing.
//!
//! `ONRUSH_POWER_CUTS` says how often; `scripts/test crash` does 20. Needs root and loop devices.
#![allow(unsafe_code, reason = "one ioctl that no crate wraps")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::e2e::{Random, Site, measured, now, run, setting, skip, turn};
use crate::e2e_burst::{Attempt, Book, ITEMS, MEMBERS, POINTS, SALE, burst};
use crate::e2e_client::Reply;

/// A small ext4 file system of its own, gone when dropped.
pub struct Volume {
    dir: tempfile::TempDir,
    is_mounted: bool,
}

impl Volume {
    /// Nothing, with the reason said, where this machine does not let us.
    pub fn new(test: &str, mebibytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let image = File::create(dir.path().join("image")).expect("writable");
        image.set_len(mebibytes << 20).expect("sparse files");
        let mut volume = Self { dir, is_mounted: false };
        fs::create_dir(volume.mount_point()).expect("writable");
        let (code, out, err) = run(Command::new("mkfs.ext4").arg("-qF").arg(volume.image()));
        if code != Some(0) {
            skip(test, &format!("no ext4 image: {out}{err}"));
            return None;
        }
        if let Err(why) = volume.mount() {
            skip(test, &format!("no loop mount (it needs root): {why}"));
            return None;
        }
        Some(volume)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&mut self) -> Result<(), String> {
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]).arg(self.image()).arg(self.mount_point());
        let (code, out, err) = run(&mut command);
        self.is_mounted = code == Some(0);
        if self.is_mounted { Ok(()) } else { Err(format!("{out}{err}")) }
    }

    fn unmount(&mut self) {
        let (code, out, err) = run(Command::new("umount").arg(self.mount_point()));
        assert_eq!(code, Some(0), "{out}{err}");
        self.is_mounted = false;
    }

    /// Cuts the power: from now on every write fails, and what was not synced is lost.
    fn cut(&self) {
        cut_power(&self.mount_point());
    }

    /// After [`Self::cut`], once nothing uses the file system any more.
    fn come_back(&mut self) {
        self.unmount();
        self.mount().expect("an image that was mounted before");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = run(Command::new("umount").arg("-l").arg(self.mount_point()));
        }
    }
}

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`.
fn cut_power(mount_point: &Path) {
    const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    const NO_LOG_FLUSH: u32 = 2;
    let root = File::open(mount_point).expect("mounted");
    // SAFETY: this ioctl reads one u32 behind the pointer that `Setter` passes, and writes nothing.
    let outcome = unsafe {
        let request = rustix::ioctl::Setter::<EXT4_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH);
        rustix::ioctl::ioctl(&root, request)
    };
    outcome.expect("ext4, and we are root");
}

#[test]
fn nothing_that_was_answered_is_lost_by_a_power_cut() {
    let _turn = turn();
    let Some(mut volume) = Volume::new("power cuts", 512) else { return };
    let cuts = setting("ONRUSH_POWER_CUTS", 2);
    let mut random = Random::new("power cuts");
    let site = Site::new().with_data(&volume.mount_point().join("data"));
    let mut book = Book::default();
    let node = site.start();
    node.import_members(1, MEMBERS, POINTS);
    node.open_sale(SALE, 3_600_000, ITEMS);
    node.kill();
    for cut in 0..cuts {
        let attempts = burst_and_cut(&site, &mut volume, &mut random, &format!("w{cut}"));
        site.audit();
        let node = site.start();
        book.reconcile(&node, attempts, &mut random);
        book.compare(&node);
        node.kill();
    }
    println!("{cuts} power cuts, {}", book.summary());
    assert!(book.unanswered() > 0, "no cut met a request on its way");
}

#[test]
fn without_its_syncs_the_same_power_cut_loses_answers() {
    let _turn = turn();
    let Some(mut volume) = Volume::new("power cuts without syncs", 512) else { return };
    let mut random = Random::new("power cuts without syncs");
    let mut site = Site::new().with_data(&volume.mount_point().join("data"));
    let node = site.start();
    node.import_members(1, MEMBERS, POINTS);
    node.open_sale(SALE, 3_600_000, ITEMS);
    assert!(node.stop().success());
    site.set_env("ONRUSH_UNSAFE_NO_SYNC", "1");
    let attempts = burst_and_cut(&site, &mut volume, &mut random, "unsafe");
    site.clear_env("ONRUSH_UNSAFE_NO_SYNC");
    let told: Vec<&Attempt> =
        attempts.iter().filter(|a| a.reply.as_ref().is_some_and(|r| r.status == 201)).collect();
    assert!(told.len() > 50, "only {} were answered", told.len());

    let mut node = site.launch();
    if !node.wait_ready_or_end() {
        println!("without syncs the node could not even start again");
        return;
    }
    let mut client = node.client();
    let is_lost = |attempt: &&&Attempt| {
        let first = attempt.reply.as_ref().expect("answered");
        let again = client.redeem(&attempt.wish);
        let is_there = |again: &Reply| again.status == 201 && again.body == first.body;
        !is_there(&again)
    };
    let lost = told.iter().filter(is_lost).count();
    println!("without syncs: {lost} of {} answers were lost", told.len());
    assert!(lost > 0, "a cut without syncs lost nothing: this test could not fail");
}

/// Starts a node, cuts the power in mid-burst, and mounts the disk again.
fn burst_and_cut(site: &Site, volume: &mut Volume, random: &mut Random, tag: &str) -> Vec<Attempt> {
    let mut node = site.start();
    let load = burst(node.public, random.next(), tag);
    thread::sleep(Duration::from_millis(200 + random.below(400)));
    volume.cut();
    // A failed write stops the node by itself (I7); a machine without power stops anything.
    let has_stopped = node.ends_within(Duration::from_secs(5));
    println!("{tag}: the node {}", if has_stopped { "stopped by itself" } else { "was killed" });
    drop(node);
    let attempts = load.finish();
    volume.come_back();
    attempts
}

/// A disk that fills up: nothing that was answered is lost, and the node says what is wrong.
#[test]
fn a_full_disk_loses_nothing() {
    let _turn = turn();
    let Some(volume) = Volume::new("a full disk", 640) else { return };
    let mut random = Random::new("a full disk");
    let mut site = Site::new().with_data(&volume.mount_point().join("data"));
    site.set("journal.keep_ms", "86400000");
    let mut book = Book::default();
    let node = site.start();
    node.import_members(1, MEMBERS, POINTS);
    node.open_sale(SALE, 3_600_000, ITEMS);
    let ballast = volume.mount_point().join("ballast");
    let load = burst(node.public, random.next(), "full");
    thread::sleep(Duration::from_millis(200));
    let mut fill = Command::new("dd");
    fill.args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", ballast.display()));
    run(&mut fill);
    thread::sleep(Duration::from_secs(3));
    drop(node);
    let attempts = load.finish();
    fs::remove_file(&ballast).expect("there");
    site.audit();
    let begun = now();
    let node = site.start();
    measured("a node's disk full, then emptied: up again", begun);
    book.reconcile(&node, attempts, &mut random);
    book.compare(&node);
    println!("a full disk: {}", book.summary());
    node.kill();
    site.audit();
}
