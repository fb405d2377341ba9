//! The schema and its versions; reads for the API.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::persist::embedded::{self, EmbeddedWriter};
use crate::persist::status::PersistStatus;
use crate::persist::testing::{Generator, dump, fold};
use crate::persist::writer::WriterSettings;
use crate::ship::frames::MemoryFrames;

fn layout() -> Layout {
    Layout::new(4).unwrap()
}

fn open(folder: &Path, frames: &MemoryFrames, batch: usize) -> Vec<EmbeddedWriter<MemoryFrames>> {
    let status = Arc::new(PersistStatus::new(layout()));
    let settings = WriterSettings { batch, ..WriterSettings::default() };
    embedded::open(folder, settings, &status, || Ok(frames.clone())).unwrap()
}

/// Steps all writers until each has stored what there is.
fn catch_up(writers: &mut [EmbeddedWriter<MemoryFrames>]) {
    for writer in writers {
        for now in 0..100_000 {
            writer.step(now, true);
            if writer.has_stored(writer.head_seq()) {
                break;
            }
        }
        assert!(writer.has_stored(writer.head_seq()));
    }
}

#[test]
fn the_database_holds_what_a_naive_fold_of_the_records_gives_whatever_the_batches() {
    for (seed, batch) in [(1, 1), (2, 7), (3, 64), (4, 4096)] {
        let folder = tempfile::tempdir().unwrap();
        let mut generator = Generator::new(seed, 60);
        generator.write(if batch == 1 { 300 } else { 1500 });
        let mut writers = open(folder.path(), &generator.frames, batch);
        catch_up(&mut writers);
        assert_eq!(writers[0].status().alarms(), [""; 0]);
        dump(folder.path(), layout()).assert_is(&fold(&generator.written, 4));
    }
}

#[test]
fn a_file_of_a_newer_schema_or_of_another_place_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shard = DatabaseShard::new(1);
    let store = SqliteStore::open(folder.path(), shard, layout()).unwrap();
    let add = "INSERT INTO schema_versions VALUES (99, 'from the future')";
    store.connection().execute(add, []).unwrap();
    drop(store);
    let error = SqliteStore::open(folder.path(), shard, layout()).err().unwrap();
    assert!(matches!(error, StoreError::SchemaTooNew { found: 99, newest: 5 }), "{error}");

    let shard = DatabaseShard::new(2);
    drop(SqliteStore::open(folder.path(), shard, layout()).unwrap());
    let other = SqliteStore::open(folder.path(), shard, Layout::new(8).unwrap()).err().unwrap();
    assert!(matches!(other, StoreError::WrongShard { .. }), "{other}");
    assert!(other.to_string().contains("2 of 4"), "{other}");
}
