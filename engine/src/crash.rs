//! Crash points: the places where a test may kill the process, listed by the code itself.
//!
//! `ONRUSH_CRASH_AT=name[:n]` kills the process with SIGKILL at the n-th hit of the point (the
//! first, where n is left out). Unset, a point costs one relaxed load of a static. Tests in one
//! process set a hook instead, which sees the points that its own thread hits.

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// The environment variable that arms a point.
pub const ENV: &str = "ONRUSH_CRASH_AT";

macro_rules! crash_points {
    ($($(#[$doc:meta])* $variant:ident $name:literal),* $(,)?) => {
        /// A place where the process may be made to die.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum CrashPoint { $($(#[$doc])* $variant),* }

        impl CrashPoint {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The name that [`ENV`] takes.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

crash_points! {
    /// A frame is built, nothing of it is written.
    JournalBeforeWrite "journal-before-write",
    /// The frame is written and synced, nobody was told.
    JournalAfterWrite "journal-after-write",
    /// The durable sequence number is published, no completion has run.
    JournalBeforeCompletions "journal-before-completions",
    /// The completions of a frame have run, and were flushed.
    JournalAfterCompletions "journal-after-completions",
    /// A record is durable, its reply has not been handed to the door.
    BeforeReply "before-reply",
    /// The journal turned to its next segment, and has not written there.
    JournalAfterRotation "journal-after-rotation",
    /// The closing mark is written.
    JournalAfterClose "journal-after-close",
    /// The next segment exists under its temporary name, empty.
    SegmentAfterCreate "segment-after-create",
    /// The next segment is filled with zeros, not synced.
    SegmentAfterFill "segment-after-fill",
    /// The next segment is synced, not renamed.
    SegmentAfterSync "segment-after-sync",
    /// The next segment has its name, the directory is not synced.
    SegmentAfterRename "segment-after-rename",
    /// The next segment is ready.
    SegmentAfterDirSync "segment-after-dir-sync",
    /// An old segment is about to go.
    SegmentBeforeRemove "segment-before-remove",
    /// An old segment is gone, the directory is not synced.
    SegmentAfterRemove "segment-after-remove",
    /// Opening: the end is known, nothing behind it is zeroed.
    OpenBeforeZeroing "open-before-zeroing",
    /// Opening: everything behind the end is zeroed and synced.
    OpenAfterZeroing "open-after-zeroing",
    /// Opening: an unproven frame is about to be written anew.
    OpenBeforeResync "open-before-resync",
    /// Opening: the unproven frames are written anew and synced.
    OpenAfterResync "open-after-resync",
    /// Opening: the higher incarnation is about to be recorded.
    OpenBeforeIncarnation "open-before-incarnation",
    /// Opening: the higher incarnation is durable.
    OpenAfterIncarnation "open-after-incarnation",
    /// A snapshot's parts are written, its footer is not.
    SnapshotAfterWrite "snapshot-after-write",
    /// A snapshot is synced, not renamed.
    SnapshotAfterSync "snapshot-after-sync",
    /// A snapshot has its name, the directory is not synced.
    SnapshotAfterRename "snapshot-after-rename",
    /// A snapshot is durable, the third one back is still there.
    SnapshotBeforeRemove "snapshot-before-remove",
    /// The third snapshot back is gone.
    SnapshotAfterRemove "snapshot-after-remove",
    /// An ask is about to be sent to the stock authority.
    LeaseBeforeAsk "lease-before-ask",
    /// The authority has answered, nothing of it is recorded.
    LeaseAfterAnswer "lease-after-answer",
    /// A grant is recorded durably, its units are not in the line.
    LeaseBeforeEnter "lease-before-enter",
    /// Units have left the line, their return is not recorded.
    LeaseAfterTake "lease-after-take",
    /// A return is durable, the authority was not told.
    LeaseBeforeTell "lease-before-tell",
    /// An epoch is durable, nothing was asked under it.
    LeaseAfterEpoch "lease-after-epoch",
    /// Added units are durable, the authority was not told.
    LeaseAfterAdd "lease-after-add",
    /// Units are withdrawn from the pool, the journal does not know.
    LeaseAfterWithdraw "lease-after-withdraw",
    /// A batch's rows and watermarks are written to a database shard, not committed.
    PersistBeforeCommit "persist-before-commit",
    /// A batch is committed to a database shard, nobody was told.
    PersistAfterCommit "persist-after-commit",
    /// A month's side table is there, empty.
    ArchiveAfterSide "archive-after-side",
    /// The month's rows are in the side table, in no file.
    ArchiveAfterExchange "archive-after-exchange",
    /// They are written to a file, which does not have its name.
    ArchiveAfterWrite "archive-after-write",
    /// The file has its name, nothing is compared.
    ArchiveAfterRename "archive-after-rename",
    /// All is compared and its checksum written down, nothing is added to the sums that stay.
    ArchiveAfterCheck "archive-after-check",
    /// It is added, the side table is still there.
    ArchiveAfterSums "archive-after-sums",
    /// The side table is gone, nothing says so.
    ArchiveAfterDrop "archive-after-drop",
    /// Only the empty partition is left.
    ArchiveAfterDone "archive-after-done",
    /// Partitions are stopped where they are, and not announced where they go.
    SplitAfterStop "split-after-stop",
    /// They are announced where they go, nothing is copied.
    SplitAfterAnnounce "split-after-announce",
    /// A page of rows is copied.
    SplitAfterPage "split-after-page",
    /// All is copied, nothing is compared.
    SplitAfterCopy "split-after-copy",
    /// All is compared, the old database shard is still the owner.
    SplitAfterCheck "split-after-check",
    /// The new database shard is the owner, the old one has not let go.
    SplitAfterSwitch "split-after-switch",
    /// The old one has let go, its rows are still there.
    SplitAfterGone "split-after-gone",
    /// A page of rows is deleted.
    SplitAfterDelete "split-after-delete",
    /// All rows are deleted, the map still names the partitions.
    SplitBeforeForget "split-before-forget",
}

/// Marks a place where the process may be made to die.
#[macro_export]
macro_rules! crash_point {
    ($point:expr) => {
        if $crate::crash::is_armed() {
            $crate::crash::hit($point);
        }
    };
}

struct Armed {
    point: CrashPoint,
    hits_left: u64,
}

// Relaxed everywhere: arming happens before the threads that hit points are started, or, for a
// hook, on the very thread that hits them. `KILL_AT` itself is behind a lock.
static IS_ARMED: AtomicBool = AtomicBool::new(false);
static KILL_AT: Mutex<Option<Armed>> = Mutex::new(None);

type Hook = Box<dyn FnMut(CrashPoint)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Arms the point that [`ENV`] names, if any. Called once, before any thread is started.
///
/// Errors: one line that says what is wrong with the variable.
pub fn arm_from_env() -> Result<(), String> {
    let Ok(text) = std::env::var(ENV) else { return Ok(()) };
    let armed = parse(&text)?;
    *KILL_AT.lock().expect("nobody panics with this lock") = Some(armed);
    IS_ARMED.store(true, Ordering::Relaxed);
    Ok(())
}

fn parse(text: &str) -> Result<Armed, String> {
    let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
    let point = CrashPoint::ALL.iter().copied().find(|p| p.name() == name);
    let point = point.ok_or_else(|| format!("{ENV}: there is no crash point {name:?}"))?;
    match nth.parse() {
        Ok(hits_left) if hits_left > 0 => Ok(Armed { point, hits_left }),
        _ => Err(format!("{ENV}: {nth:?} is not a count of hits from 1 on")),
    }
}

/// Lets `hook` see every point that this thread hits, until [`clear_hook`].
pub fn set_hook(hook: impl FnMut(CrashPoint) + 'static) {
    HOOK.with(|h| *h.borrow_mut() = Some(Box::new(hook)));
    IS_ARMED.store(true, Ordering::Relaxed);
}

pub fn clear_hook() {
    HOOK.with(|h| *h.borrow_mut() = None);
}

#[inline]
pub fn is_armed() -> bool {
    IS_ARMED.load(Ordering::Relaxed)
}

/// The slow path of [`crash_point!`].
#[cold]
pub fn hit(point: CrashPoint) {
    HOOK.with(|h| {
        if let Some(hook) = h.borrow_mut().as_mut() {
            hook(point);
        }
    });
    let mut kill_at = KILL_AT.lock().expect("nobody panics with this lock");
    if let Some(armed) = kill_at.as_mut().filter(|a| a.point == point) {
        armed.hits_left -= 1;
        if armed.hits_left == 0 {
            die();
        }
    }
}

/// Ends the process as kill -9 does: no destructor, no flush.
pub fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        for point in CrashPoint::ALL {
            let armed = parse(point.name()).unwrap();
            assert_eq!((armed.point, armed.hits_left), (*point, 1));
        }
        assert_eq!(parse("journal-after-write:7").unwrap().hits_left, 7);
    }

    #[test]
    fn a_wrong_name_or_count_is_said_in_words() {
        for text in ["", "nowhere", "journal-after-write:0", "journal-after-write:x"] {
            assert!(parse(text).err().unwrap().contains(ENV), "{text}");
        }
    }

    #[test]
    fn a_hook_sees_the_points_of_its_own_thread() {
        let seen = std::rc::Rc::new(RefCell::new(Vec::new()));
        let inner = seen.clone();
        set_hook(move |point| inner.borrow_mut().push(point));
        crash_point!(CrashPoint::JournalAfterWrite);
        let elsewhere = || crash_point!(CrashPoint::JournalBeforeWrite);
        std::thread::spawn(elsewhere).join().unwrap();
        clear_hook();
        crash_point!(CrashPoint::JournalAfterClose);
        assert_eq!(*seen.borrow(), [CrashPoint::JournalAfterWrite]);
    }
}
