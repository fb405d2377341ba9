//! A disk in memory that loses power, tears writes, fails and fills up: for tests and the
//! simulation. Everything it does follows from its seed.
//!
//! What it models, per file: what readers see (`seen`, the page cache) and what survives a power
//! loss (`kept`, the platter). A power loss keeps each un-synced 512-byte sector or loses it, one
//! by one, and each un-synced change of the directory from some point on. A failed sync drops the
//! blocks from the cache's list of what is to be written while readers go on seeing them, as
//! Linux does: a second sync then succeeds and has written nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Access, Disk, DiskFile};

const SECTOR_LEN: usize = 512;

/// A small generator whose stream is fixed for all time, so that a printed seed stays good.
///
/// Source: `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Clone)]
pub struct SimRng(u64);

impl SimRng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }
}

/// What happens at one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The operation fails with EIO after any part of it happened. The machine goes on.
    Error,
    /// Power fails in the middle of the operation: every later one fails too, until
    /// [`SimDisk::restart`].
    PowerLoss,
}

#[derive(Clone)]
enum DirChange {
    Link { name: String, inode: u64 },
    Unlink { name: String },
    Rename { from: String, to: String },
}

#[derive(Default)]
struct Inode {
    seen: Vec<u8>,
    kept: Vec<u8>,
    /// Sectors that `kept` does not have yet.
    dirty: BTreeSet<usize>,
}

struct State {
    rng: SimRng,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    names_kept: BTreeMap<String, u64>,
    dir_changes: Vec<DirChange>,
    /// Mutating operations so far; the next one has this index.
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    is_dead: bool,
    capacity: u64,
}

/// A simulated directory. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// A simulated file.
pub struct SimFile {
    state: Arc<Mutex<State>>,
    inode: u64,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn enospc() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

impl SimDisk {
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                rng: SimRng::new(seed),
                inodes: HashMap::new(),
                next_inode: 1,
                names: BTreeMap::new(),
                names_kept: BTreeMap::new(),
                dir_changes: Vec::new(),
                operations: 0,
                faults: BTreeMap::new(),
                is_dead: false,
                capacity: u64::MAX,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with this lock")
    }

    /// Plans a fault for the operation with this index (see [`SimDisk::operations`]).
    pub fn fault_at(&self, operation: u64, fault: Fault) {
        self.lock().faults.insert(operation, fault);
    }

    /// Forgets all planned faults: the disk is well from here on.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// How many operations that change anything were done so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Units: bytes, over all files.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Cuts the power now.
    pub fn power_loss(&self) {
        self.lock().die();
    }

    /// Whether power was lost.
    pub fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    /// Kills the process but not the machine: everything seen stays seen, and open handles of
    /// the dead process are gone with it.
    pub fn process_restart(&self) -> Self {
        self.lock().faults.clear();
        self.clone()
    }

    /// Powers the machine on again: only what was kept is there.
    pub fn restart(&self) -> Self {
        let mut state = self.lock();
        if !state.is_dead {
            state.die();
        }
        let names = state.names_kept.clone();
        let mut inodes = HashMap::new();
        for inode in names.values() {
            let kept = state.inodes[inode].kept.clone();
            inodes.insert(*inode, Inode { seen: kept.clone(), kept, dirty: BTreeSet::new() });
        }
        let seed = state.rng.next_u64();
        let fresh = Self::new(seed);
        {
            let mut new = fresh.lock();
            new.inodes = inodes;
            new.next_inode = state.next_inode;
            new.names.clone_from(&names);
            new.names_kept = names;
            new.capacity = state.capacity;
        }
        fresh
    }

    /// Another directory with the same files, all of them on the platter.
    pub fn copy(&self) -> Self {
        let mut state = self.lock();
        let fresh = Self::new(state.rng.next_u64());
        {
            let mut new = fresh.lock();
            for (name, inode) in &state.names {
                let seen = state.inodes[inode].seen.clone();
                let file = Inode { kept: seen.clone(), seen, dirty: BTreeSet::new() };
                new.inodes.insert(*inode, file);
                new.names.insert(name.clone(), *inode);
            }
            new.names_kept = new.names.clone();
            new.next_inode = state.next_inode;
            new.capacity = state.capacity;
        }
        fresh
    }

    /// Another directory with what a power loss would surely leave of this one.
    pub fn platter(&self) -> Self {
        let state = self.lock();
        let fresh = Self::new(0);
        {
            let mut new = fresh.lock();
            new.names.clone_from(&state.names_kept);
            new.names_kept.clone_from(&state.names_kept);
            for inode in state.names_kept.values() {
                let kept = state.inodes[inode].kept.clone();
                let file = Inode { seen: kept.clone(), kept, dirty: BTreeSet::new() };
                new.inodes.insert(*inode, file);
            }
        }
        fresh
    }

    /// What a reader sees of a file: for tests that look at the bytes.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        state.names.get(name).map(|inode| state.inodes[inode].seen.clone())
    }

    /// Replaces a file's content, on the platter too: rot, or a test's own history.
    pub fn set_bytes(&self, name: &str, bytes: &[u8]) {
        let mut state = self.lock();
        let inode = match state.names.get(name) {
            Some(inode) => *inode,
            None => state.link(name),
        };
        state.names_kept.insert(name.to_owned(), inode);
        let file = Inode { seen: bytes.to_vec(), kept: bytes.to_vec(), dirty: BTreeSet::new() };
        state.inodes.insert(inode, file);
    }
}

impl State {
    /// Counts an operation and says what is to happen to it.
    fn begin(&mut self) -> io::Result<Option<Fault>> {
        if self.is_dead {
            return Err(eio());
        }
        let fault = self.faults.get(&self.operations).copied();
        self.operations += 1;
        Ok(fault)
    }

    fn link(&mut self, name: &str) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.names.insert(name.to_owned(), inode);
        inode
    }

    /// Every un-synced sector and change of the directory is kept or lost.
    fn die(&mut self) {
        self.is_dead = true;
        let mut inodes: Vec<u64> = self.inodes.keys().copied().collect();
        inodes.sort_unstable();
        for inode in inodes {
            let dirty = self.inodes[&inode].dirty.clone();
            self.keep_some(inode, dirty);
        }
        let kept = self.rng.below(self.dir_changes.len() as u64 + 1) as usize;
        for change in std::mem::take(&mut self.dir_changes).into_iter().take(kept) {
            apply(&mut self.names_kept, change);
        }
    }

    /// Each of these sectors reaches the platter, or does not.
    fn keep_some(&mut self, inode: u64, sectors: impl IntoIterator<Item = usize>) {
        for sector in sectors {
            if self.rng.coin() {
                self.inodes.get_mut(&inode).expect("it is open").keep(sector..sector + 1);
            }
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|i| self.inodes[i].seen.len() as u64).sum()
    }
}

impl Inode {
    fn keep(&mut self, sectors: Range<usize>) {
        let start = sectors.start * SECTOR_LEN;
        let end = (sectors.end * SECTOR_LEN).min(self.seen.len());
        if self.kept.len() < end {
            self.kept.resize(end, 0);
        }
        self.kept[start..end].copy_from_slice(&self.seen[start..end]);
        for sector in sectors {
            self.dirty.remove(&sector);
        }
    }

    fn keep_all(&mut self) {
        let mut run = 0..0;
        for sector in std::mem::take(&mut self.dirty) {
            if sector == run.end {
                run.end += 1;
                continue;
            }
            self.keep(std::mem::replace(&mut run, sector..sector + 1));
        }
        self.keep(run);
    }

    /// Gives the sectors that were written.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Range<usize> {
        let end = offset + bytes.len();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[offset..end].copy_from_slice(bytes);
        let sectors = offset / SECTOR_LEN..end.div_ceil(SECTOR_LEN);
        self.dirty.extend(sectors.clone());
        sectors
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: DirChange) {
    match change {
        DirChange::Link { name, inode } => {
            names.insert(name, inode);
        }
        DirChange::Unlink { name } => {
            names.remove(&name);
        }
        DirChange::Rename { from, to } => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.lock();
        let fault = state.begin()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if fault == Some(Fault::Error) {
            return Err(eio());
        }
        let inode = state.link(name);
        state.dir_changes.push(DirChange::Link { name: name.to_owned(), inode });
        if fault == Some(Fault::PowerLoss) {
            state.die();
            return Err(eio());
        }
        Ok(SimFile { state: self.state.clone(), inode })
    }

    fn open(&self, name: &str, _access: Access) -> io::Result<SimFile> {
        let state = self.lock();
        if state.is_dead {
            return Err(eio());
        }
        let inode = *state.names.get(name).ok_or_else(|| not_found(name))?;
        Ok(SimFile { state: self.state.clone(), inode })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let change = DirChange::Rename { from: from.to_owned(), to: to.to_owned() };
        self.change_dir(from, change)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change_dir(name, DirChange::Unlink { name: name.to_owned() })
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.lock();
        match state.begin()? {
            None => {
                for change in std::mem::take(&mut state.dir_changes) {
                    apply(&mut state.names_kept, change);
                }
                Ok(())
            }
            Some(Fault::Error) => Err(eio()),
            Some(Fault::PowerLoss) => {
                state.die();
                Err(eio())
            }
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.lock();
        if state.is_dead {
            return Err(eio());
        }
        Ok(state.names.keys().cloned().collect())
    }
}

impl SimDisk {
    fn change_dir(&self, name: &str, change: DirChange) -> io::Result<()> {
        let mut state = self.lock();
        let fault = state.begin()?;
        if !state.names.contains_key(name) {
            return Err(not_found(name));
        }
        if fault == Some(Fault::Error) {
            return Err(eio());
        }
        apply(&mut state.names, change.clone());
        state.dir_changes.push(change);
        if fault == Some(Fault::PowerLoss) {
            state.die();
            return Err(eio());
        }
        Ok(())
    }
}

impl SimFile {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with this lock")
    }

    fn write(&self, offset: u64, bytes: &[u8], is_durable: bool) -> io::Result<()> {
        let mut state = self.lock();
        let fault = state.begin()?;
        let offset = usize::try_from(offset).expect("simulated files are small");
        let seen_len = state.inodes[&self.inode].seen.len();
        let growth = (offset + bytes.len()).saturating_sub(seen_len) as u64;
        if growth > 0 && state.used() + growth > state.capacity {
            return Err(enospc());
        }
        let file = state.inodes.get_mut(&self.inode).expect("it is open");
        let sectors = file.write(offset, bytes);
        match fault {
            None if is_durable => {
                file.keep(sectors);
                Ok(())
            }
            None => Ok(()),
            Some(Fault::Error) => {
                if is_durable {
                    state.keep_some(self.inode, sectors.clone());
                    // Readers go on seeing all of it, and no later sync writes the rest.
                    let file = state.inodes.get_mut(&self.inode).expect("it is open");
                    for sector in sectors {
                        file.dirty.remove(&sector);
                    }
                }
                Err(eio())
            }
            Some(Fault::PowerLoss) => {
                state.die();
                Err(eio())
            }
        }
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.lock();
        if state.is_dead {
            return Err(eio());
        }
        Ok(state.inodes[&self.inode].seen.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let state = self.lock();
        if state.is_dead {
            return Err(eio());
        }
        let growth = len.saturating_sub(state.inodes[&self.inode].seen.len() as u64);
        if state.used() + growth > state.capacity { Err(enospc()) } else { Ok(()) }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(offset, bytes, false)
    }

    fn write_durable_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(offset, bytes, true)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        let fault = state.begin()?;
        let file = state.inodes.get_mut(&self.inode).expect("it is open");
        match fault {
            None => {
                file.keep_all();
                Ok(())
            }
            Some(Fault::Error) => {
                let dirty = std::mem::take(&mut file.dirty);
                state.keep_some(self.inode, dirty);
                Err(eio())
            }
            Some(Fault::PowerLoss) => {
                state.die();
                Err(eio())
            }
        }
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let state = self.lock();
        if state.is_dead {
            return Err(eio());
        }
        let seen = &state.inodes[&self.inode].seen;
        let start = usize::try_from(offset).map_or(seen.len(), |o| o.min(seen.len()));
        let len = bytes.len().min(seen.len() - start);
        bytes[..len].copy_from_slice(&seen[start..start + len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(disk: &SimDisk, name: &str, bytes: &[u8]) -> SimFile {
        let file = disk.create(name).unwrap();
        file.write_at(0, bytes).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        file
    }

    #[test]
    fn synced_bytes_survive_and_unsynced_ones_are_kept_or_lost_by_the_sector() {
        let mut mixed = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let file = file_with(&disk, "a", &[1; 4096]);
            file.write_at(0, &[2; 2048]).unwrap();
            let after = disk.restart().bytes("a").unwrap();
            assert!(after[2048..].iter().all(|b| *b == 1));
            assert!(after.chunks(SECTOR_LEN).all(|s| s.iter().all(|b| *b == s[0])));
            mixed += usize::from(after[..2048].contains(&1) && after[..2048].contains(&2));
        }
        assert!(mixed > 25);
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_a_second_one() {
        let mut lost = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let file = file_with(&disk, "a", &[1; 512]);
            file.write_at(0, &[2; 512]).unwrap();
            disk.fault_at(disk.operations(), Fault::Error);
            assert!(file.sync().is_err());
            file.sync().unwrap();
            assert_eq!(disk.bytes("a").unwrap()[0], 2, "readers see the page cache");
            lost += usize::from(disk.restart().bytes("a").unwrap()[0] == 1);
        }
        assert!(lost > 10);
    }

    #[test]
    fn names_survive_only_a_synced_directory() {
        let mut lost = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            file_with(&disk, "a", &[1; 512]);
            disk.rename("a", "b").unwrap();
            let after = disk.restart();
            assert!(after.bytes("a").is_some() != after.bytes("b").is_some());
            lost += usize::from(after.bytes("b").is_none());
            disk.is_dead().then_some(()).unwrap();
        }
        assert!(lost > 10);
    }

    #[test]
    fn a_dead_disk_does_nothing_and_a_full_one_says_so() {
        let disk = SimDisk::new(1);
        disk.set_capacity(1024);
        let file = file_with(&disk, "a", &[1; 1024]);
        let full = file.write_at(1024, &[1; 512]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.allocate(4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.power_loss();
        assert!(file.write_at(0, &[0; 512]).is_err() && disk.list().is_err());
        assert!(disk.restart().list().unwrap() == ["a"]);
    }
}
