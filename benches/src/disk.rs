//! What a bench's data lie on: figures of durable writes want a disk.

use std::io;
use std::path::Path;

const TMPFS: u32 = 0x0102_1994;

/// What `f_type` of `statfs(2)` says, and its name. ext2 and ext3 say the same as ext4.
const NAMES: &[(u32, &str)] = &[
    (0x0000_ef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0xf2f5_2010, "f2fs"),
    (0x2fc1_2fc1, "zfs"),
    (0xca45_1a4e, "bcachefs"),
    (0x794c_7630, "overlayfs"),
    (0x0000_6969, "nfs"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
];

/// Names the type of the file system that `dir` is on; in hexadecimal where it is not known here.
///
/// Errors: `dir` is not there, or on tmpfs, where a sync costs nothing.
pub fn file_system(dir: &Path) -> io::Result<String> {
    let magic = rustix::fs::statfs(dir)?.f_type as u32;
    if magic == TMPFS {
        return Err(io::Error::other(format!(
            "{} is on tmpfs, where a sync costs nothing: name a folder on a disk",
            dir.display()
        )));
    }
    let known = NAMES.iter().find(|(number, _)| *number == magic);
    Ok(known.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_owned()))
}
