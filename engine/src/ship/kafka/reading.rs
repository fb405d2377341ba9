//! What the `consume` thread reads and for whom, without the consumer itself: `pump` does what is
//! decided here, and tells what came of it.
//!
//! A partition's way:
//! ```text
//!            assigned            first Resume           seek done
//!   Away ─────────────▶ Waiting ─────────────▶ Seeking ───────────▶ Reading(position)
//!    ▲   paused: nothing is fetched              ▲  Resume from before the position │
//!    └──────────── revoked ◀─────────────────────┴──────────────────────────────────┘
//! ```
//! A partition goes to the lane of the database shard whose writer resumed it last; one that its
//! writer resumes no more, because it was given to another database shard, waits for that one. The
//! control partition goes to every lane that resumed it, and is read from the furthest back that
//! any of them asks for: duplicates are harmless. A member partition whose lane fills up is paused,
//! and goes on once the lane has room. The control partition is not: one dead database would keep
//! the others from it. What finds no room in a lane is dropped there, and read again when that
//! writer has recovered.

use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, Sender, TrySendError, unbounded};

use super::consume::{Item, KafkaLog, LaneEnd, Resume, lane};
use crate::ship::log::LogOffset;
use crate::ship::partition::{DatabaseShard, Layout, PARTITION_COUNT, Partition};

/// A lane that is full to this part of it pauses its partitions, and lets them go on once it is
/// this empty.
const FULL: usize = 2;
const EMPTY: usize = 8;

/// Where a partition is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Away,
    Waiting,
    Seeking { to: i64 },
    Reading { position: i64 },
}

impl At {
    /// A writer wants to read on from an offset. Never forward: another writer may still be on the
    /// way there, and what this one has already is skipped by its watermark.
    fn resumed(self, offset: i64) -> Self {
        match self {
            Self::Away => Self::Away,
            Self::Waiting => Self::Seeking { to: offset },
            Self::Seeking { to } => Self::Seeking { to: to.min(offset) },
            Self::Reading { position } if offset < position => Self::Seeking { to: offset },
            Self::Reading { position } => Self::Reading { position },
        }
    }
}

/// What is read, and for whom.
pub struct Reading {
    /// Per partition, a bit for each lane that it goes to.
    takers: [u32; PARTITION_COUNT],
    lanes: Vec<LaneEnd>,
    /// Messages that a lane has room for.
    room: usize,
    resumed: Receiver<Resume>,
    at: [At; PARTITION_COUNT],
    /// Per database shard and partition, the round that its messages carry from here.
    rounds: Vec<[u32; PARTITION_COUNT]>,
}

impl Reading {
    /// Nothing is read yet; one log for each database shard's writer, before which so many messages
    /// may wait.
    pub fn new(topic: &str, layout: Layout, room: usize) -> (Self, Vec<KafkaLog>) {
        let (resumes, resumed) = unbounded();
        let of = |shard| lane(shard, topic, room, Sender::clone(&resumes));
        let (lanes, logs): (Vec<_>, Vec<_>) = layout.shards().map(of).unzip();
        let reading = Self {
            takers: [0; PARTITION_COUNT],
            lanes,
            room,
            resumed,
            at: [At::Away; PARTITION_COUNT],
            rounds: vec![[0; PARTITION_COUNT]; usize::from(layout.count())],
        };
        (reading, logs)
    }

    /// The group gave these to this process.
    pub fn assign(&mut self, partitions: impl IntoIterator<Item = Partition>) {
        for partition in partitions {
            self.at[partition.index()] = At::Waiting;
        }
        // Whose they are says each writer, once it has asked its database.
        for end in &self.lanes {
            end.lane.changed.store(true, Ordering::Release);
        }
    }

    /// They belong to somebody else now.
    pub fn take_away(&mut self, partitions: impl IntoIterator<Item = Partition>) {
        for partition in partitions {
            self.at[partition.index()] = At::Away;
            for end in &self.lanes {
                // What is queued of it belongs to somebody else now.
                end.lane.rounds[partition.index()].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The lanes that a partition goes to.
    fn lanes_of(&self, partition: Partition) -> impl Iterator<Item = usize> + use<> {
        let takers = self.takers[partition.index()];
        (0..self.lanes.len()).filter(move |lane| takers >> lane & 1 == 1)
    }

    /// Hears where the writers want to read on.
    pub fn hear_resumes(&mut self) {
        while let Ok(Resume { shard, from }) = self.resumed.try_recv() {
            self.let_go(shard, &from);
            for (partition, round, offset) in from {
                let index = partition.index();
                self.rounds[shard.index()][index] = round;
                let lane = 1 << shard.index();
                let takers = &mut self.takers[index];
                // A member partition has one database shard: the one that speaks for it last.
                *takers = if partition == Partition::CONTROL { *takers | lane } else { lane };
                self.at[index] = self.at[index].resumed(offset.get());
            }
        }
    }

    /// Stops what a writer had taken and does not resume: another is to take it on.
    fn let_go(&mut self, shard: DatabaseShard, from: &[(Partition, u32, LogOffset)]) {
        for partition in Partition::all() {
            let index = partition.index();
            let had = self.takers[index] >> shard.index() & 1 == 1;
            if !had || from.iter().any(|(p, ..)| *p == partition) {
                continue;
            }
            self.takers[index] &= !(1 << shard.index());
            if self.takers[index] == 0 && self.at[index] != At::Away {
                self.at[index] = At::Waiting;
            }
        }
    }

    /// Where the consumer is to seek to; told by [`Self::sought`] once it has.
    pub fn seeking(&self) -> impl Iterator<Item = (Partition, i64)> + '_ {
        Partition::all().filter_map(|partition| match self.at[partition.index()] {
            At::Seeking { to } => Some((partition, to)),
            _ => None,
        })
    }

    pub fn sought(&mut self, partition: Partition) {
        if let At::Seeking { to } = self.at[partition.index()] {
            self.at[partition.index()] = At::Reading { position: to };
        }
    }

    /// Whether a partition is to be fetched no further just now; `None`: it is not ours.
    pub fn waits(&self, partition: Partition, is_paused: bool) -> Option<bool> {
        Some(match self.at[partition.index()] {
            At::Away => return None,
            At::Waiting => true,
            At::Seeking { .. } => is_paused,
            At::Reading { .. } if partition == Partition::CONTROL => false,
            At::Reading { .. } => {
                let bound = self.room / if is_paused { EMPTY } else { FULL };
                self.lanes_of(partition).any(|lane| self.lanes[lane].sender.len() > bound)
            }
        })
    }

    /// A message has come.
    pub fn deliver(&mut self, partition: Partition, offset: i64, payload: &[u8]) {
        let index = partition.index();
        // What was under way before a seek is dropped. An offset below the position is a topic
        // that was made anew, or cut: the gap rule finds what is missing.
        let At::Reading { .. } = self.at[index] else { return };
        self.at[index] = At::Reading { position: offset + 1 };
        for lane in self.lanes_of(partition) {
            let item = Item {
                partition,
                round: self.rounds[lane][index],
                offset,
                payload: payload.into(),
            };
            if let Err(TrySendError::Full(_)) = self.lanes[lane].sender.try_send(item) {
                self.lanes[lane].lane.lost.store(true, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_read_from_the_furthest_back_that_any_writer_asks_for() {
        assert_eq!(At::Away.resumed(5), At::Away, "it is somebody else's");
        let at = At::Waiting.resumed(50).resumed(70).resumed(40);
        assert_eq!(at, At::Seeking { to: 40 });
    }

    #[test]
    fn a_writer_that_is_behind_takes_it_back_and_one_that_is_ahead_changes_nothing() {
        let at = At::Reading { position: 60 };
        assert_eq!(at.resumed(60), at);
        assert_eq!(at.resumed(90), at);
        assert_eq!(at.resumed(59), At::Seeking { to: 59 });
    }
}
