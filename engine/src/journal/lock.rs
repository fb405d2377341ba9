//! One process per data folder.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::error::JournalError;

const NAME: &str = "lock";

/// Held as long as it lives. The kernel lets go of it when the process dies, however it dies.
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock of a folder, without waiting.
    ///
    /// Errors: `Locked` where another process, or another journal of this one, holds it.
    pub fn take(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(NAME);
        let locking =
            |e: std::io::Error| JournalError::io(format!("locking {}", path.display()))(e);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(locking)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::Locked { path }),
            Err(e) => Err(locking(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_refused_until_the_first_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        let refused = FolderLock::take(folder.path()).err().unwrap();
        assert!(matches!(refused, JournalError::Locked { .. }));
        assert!(refused.to_string().contains("another process"));
        drop(first);
        FolderLock::take(folder.path()).unwrap();
    }
}
