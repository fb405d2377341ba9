//! The disk as the journal sees it: one directory of flat names. Traits, and the real one.
//!
//! The simulated one is in [`super::sim`]; journal code above this file never touches `std::fs`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::buffer::AlignedBuffer;
use super::format::BLOCK_LEN;

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    ReadWrite,
}

/// One directory. Clones are handles to the same one.
pub trait Disk: Clone + Send + Sync + 'static {
    type File: DiskFile;
    /// Makes a new, empty file. Errors where the name is taken.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    fn open(&self, name: &str, access: Access) -> io::Result<Self::File>;
    /// Replaces `to` where it exists. Durable only after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Durable only after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    fn sync_dir(&self) -> io::Result<()>;
    /// The names in the directory, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
}

/// One file. Offsets, lengths and buffers of writes are multiples of a block, and the buffers
/// aligned to one (see [`AlignedBuffer`]); so are offsets and buffers of reads.
pub trait DiskFile: Send + 'static {
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
    /// Reserves the space up to `len`, or fails with ENOSPC.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Writes all of `bytes`; durable only after [`DiskFile::sync`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes all of `bytes`, and returns once they are durable.
    fn write_durable_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Fills `bytes` as far as the file reaches; returns how many.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;
}

/// How writes reach the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Path2Disk {
    /// `O_DIRECT|O_DSYNC`: past the page cache, one system call per frame.
    Direct,
    /// Through the page cache, then `fdatasync`.
    Buffered,
    /// Through the page cache, and no further. Only [`UNSAFE_NO_SYNC_ENV`] asks for it.
    Unsynced,
}

/// The environment variable that takes every sync out, so that the power-loss test can show that
/// it would notice. Said aloud at each start; the promises do not hold under it.
const UNSAFE_NO_SYNC_ENV: &str = "ONRUSH_UNSAFE_NO_SYNC";

/// A directory of the machine.
#[derive(Clone)]
pub struct RealDisk {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    directory: File,
    path_to_disk: Path2Disk,
}

impl RealDisk {
    /// Makes the directory where it is missing, durably.
    pub fn make_dir(path: &Path) -> io::Result<()> {
        if !path.exists() {
            std::fs::create_dir_all(path)?;
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Opens the directory, made where it is missing.
    ///
    /// Where `direct` is wished for, a probe file tells whether the file system takes direct
    /// I/O; some (tmpfs, overlays) refuse, and get write and `fdatasync`.
    pub fn open(path: &Path, direct: bool) -> io::Result<Self> {
        Self::make_dir(path)?;
        let path_to_disk = if std::env::var_os(UNSAFE_NO_SYNC_ENV).is_some() {
            tracing::error!("{UNSAFE_NO_SYNC_ENV} is set: nothing is durable, answers can be lost");
            Path2Disk::Unsynced
        } else if direct && probe_direct(path) {
            Path2Disk::Direct
        } else {
            Path2Disk::Buffered
        };
        Ok(Self { shared: Arc::new(Shared::new(path, path_to_disk)?) })
    }

    /// Opens an existing directory to read only; nothing in it is made or changed.
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        Ok(Self { shared: Arc::new(Shared::new(path, Path2Disk::Buffered)?) })
    }

    pub fn is_direct(&self) -> bool {
        self.shared.path_to_disk == Path2Disk::Direct
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<RealFile> {
        let path = self.shared.path.join(name);
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
        let open = |flags| rustix::fs::open(&path, flags | OFlags::CLOEXEC, mode);
        let plain = File::from(open(flags)?);
        let direct = match self.shared.path_to_disk {
            Path2Disk::Direct if flags.contains(OFlags::RDWR) => {
                let existing = (flags & !(OFlags::CREATE | OFlags::EXCL)) | OFlags::DIRECT;
                let later = File::from(open(existing)?);
                Some(Direct { later, durable: File::from(open(existing | OFlags::DSYNC)?) })
            }
            _ => None,
        };
        let is_synced = self.shared.path_to_disk != Path2Disk::Unsynced;
        Ok(RealFile { plain, direct, is_synced })
    }
}

impl Shared {
    fn new(path: &Path, path_to_disk: Path2Disk) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), directory: File::open(path)?, path_to_disk })
    }
}

fn probe_direct(directory: &Path) -> bool {
    let path = directory.join(".direct-io-probe");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::DIRECT | OFlags::DSYNC;
    let outcome = rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        .map_err(io::Error::from)
        .and_then(|fd| File::from(fd).write_all_at(AlignedBuffer::new(BLOCK_LEN).as_slice(), 0));
    let _ = std::fs::remove_file(&path);
    outcome.is_ok()
}

impl Disk for RealDisk {
    type File = RealFile;

    fn create(&self, name: &str) -> io::Result<RealFile> {
        self.file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }
    fn open(&self, name: &str, access: Access) -> io::Result<RealFile> {
        match access {
            Access::Read => self.file(name, OFlags::RDONLY),
            Access::ReadWrite => self.file(name, OFlags::RDWR),
        }
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.shared.path.join(from), self.shared.path.join(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.shared.path.join(name))
    }
    fn sync_dir(&self) -> io::Result<()> {
        match self.shared.path_to_disk {
            Path2Disk::Unsynced => Ok(()),
            Path2Disk::Direct | Path2Disk::Buffered => self.shared.directory.sync_all(),
        }
    }
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.shared.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// A file of the machine.
pub struct RealFile {
    /// Through the page cache: reads, and writes where direct ones are refused.
    plain: File,
    direct: Option<Direct>,
    /// False only under [`UNSAFE_NO_SYNC_ENV`].
    is_synced: bool,
}

/// The same file, past the page cache. Content that need not be durable at once (zeros of a
/// segment to come, a snapshot) also goes this way: piece by piece, it never floods the disk as
/// the sync of a full page cache does, so the journal's own writes are hardly held up.
struct Direct {
    later: File,
    durable: File,
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        self.plain.metadata().map(|m| m.len())
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&self.plain, flags, 0, len) {
            // The zeros that follow reserve the space just as well.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.direct.as_ref().map_or(&self.plain, |d| &d.later);
        file.write_all_at(bytes, offset)
    }
    fn write_durable_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(direct) = &self.direct {
            return direct.durable.write_all_at(bytes, offset);
        }
        self.plain.write_all_at(bytes, offset)?;
        if self.is_synced { self.plain.sync_data() } else { Ok(()) }
    }
    fn sync(&self) -> io::Result<()> {
        if self.is_synced { self.plain.sync_all() } else { Ok(()) }
    }
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.plain.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }
}
