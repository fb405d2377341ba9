//! A store that is opened when it is first needed, and opened again after it failed: so a database
//! that is down at the start holds up nothing but itself.

use std::sync::Arc;

use super::store::{
    Letter, LetterId, RewindRequest, Store, StoreBatch, StoreError, Stream, WatermarkRow,
};
use crate::ship::holdings::Holdings;
use crate::ship::log::LogOffset;
use crate::ship::partition::{DatabaseShard, Partition};
use crate::units::Seq;

/// Opens the writing end of a database shard, by the settings.
pub type OpenStore = Arc<dyn Fn(DatabaseShard) -> Result<Box<dyn Store>, StoreError> + Send + Sync>;

/// A database shard that may not be there yet.
pub struct LazyStore {
    shard: DatabaseShard,
    open: OpenStore,
    store: Option<Box<dyn Store>>,
}

impl LazyStore {
    pub fn new(shard: DatabaseShard, open: OpenStore) -> Self {
        Self { shard, open, store: None }
    }

    fn with<T>(
        &mut self,
        call: impl FnOnce(&mut dyn Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let store = match &mut self.store {
            Some(store) => store,
            none => none.insert((self.open)(self.shard)?),
        };
        let result = call(&mut **store);
        if matches!(&result, Err(error) if error.is_transient()) {
            self.store = None;
        }
        result
    }
}

impl Store for LazyStore {
    fn shard(&self) -> DatabaseShard {
        self.shard
    }
    fn holdings(&mut self) -> Result<Holdings, StoreError> {
        self.with(|s| s.holdings())
    }
    fn watermarks(&mut self) -> Result<Vec<WatermarkRow>, StoreError> {
        self.with(|s| s.watermarks())
    }
    fn apply(&mut self, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
        self.with(|s| s.apply(batch))
    }
    fn ask_rewind(&mut self, stream: Stream, to: Seq, reason: &str) -> Result<(), StoreError> {
        self.with(|s| s.ask_rewind(stream, to, reason))
    }
    fn rewinds(&mut self) -> Result<Vec<RewindRequest>, StoreError> {
        self.with(|s| s.rewinds())
    }
    fn offsets(&mut self, topic: &str) -> Result<Vec<(Partition, LogOffset)>, StoreError> {
        self.with(|s| s.offsets(topic))
    }
    fn letters(
        &mut self,
        after: LetterId,
        limit: u32,
    ) -> Result<Vec<(LetterId, Letter)>, StoreError> {
        self.with(|s| s.letters(after, limit))
    }
    fn letter_failed(&mut self, id: LetterId, reason: &str) -> Result<(), StoreError> {
        self.with(|s| s.letter_failed(id, reason))
    }
}
