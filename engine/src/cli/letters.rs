//! `onrush persist dead-letters`: records that could not be applied, and those that wait for them.
//!
//! Exit codes: 0 there are none (any more), 1 there are some, 2 a database could not be reached.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::config::{Config, Overrides};
use crate::kernel::record::Record;
use crate::persist::letters::{self, Tried};
use crate::persist::store::{Letter, LetterId, LetterState, Store};
use crate::persist::stores;
use crate::ship::partition::{DatabaseShard, Layout};

/// Prints every letter in a line.
pub fn list(config: Option<&Path>, data: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let mut count = 0;
    for mut store in open(config, data)? {
        let shard = store.shard();
        letters::each(&mut store, |_, id, letter| {
            println!("{}", line(shard, id, &letter));
            count += 1;
            Ok(())
        })?;
    }
    Ok(tell(count))
}

/// Prints one letter whole. `name`: SHARD/ID, as the list says.
pub fn show(config: Option<&Path>, data: Option<PathBuf>, name: &str) -> anyhow::Result<ExitCode> {
    let parts = name.split_once('/').and_then(|(s, id)| Some((s.parse().ok()?, id.parse().ok()?)));
    let (shard, wanted): (u8, i64) =
        parts.with_context(|| format!("{name} is no letter: SHARD/ID, as the list says"))?;
    let mut found = None;
    for mut store in open(config, data)? {
        if store.shard() == DatabaseShard::new(shard) {
            letters::each(&mut store, |_, id, letter| {
                if id == LetterId(wanted) {
                    found = Some(letter);
                }
                Ok(())
            })?;
        }
    }
    let letter = found.with_context(|| format!("there is no letter {name}, or it was applied"))?;
    println!("{}", line(DatabaseShard::new(shard), LetterId(wanted), &letter));
    println!("journal {:016x}, incarnation {}", letter.stream.journal.get(), letter.incarnation);
    println!("written at {}", letter.at.rfc3339());
    match Record::take(&mut &letter.record[..]) {
        Ok((_, record)) => println!("record: {record:?}"),
        Err(error) => println!("record: unreadable, {error}"),
    }
    let hex: Vec<String> = letter.record.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("bytes: {}", hex.concat());
    Ok(ExitCode::SUCCESS)
}

/// Applies what fits by now, in order.
pub fn retry(config: Option<&Path>, data: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let (mut applied, mut left) = (0, 0);
    for mut store in open(config, data)? {
        let shard = store.shard().get();
        for (id, outcome) in letters::retry(&mut store)? {
            match outcome {
                Tried::Applied => {
                    applied += 1;
                    println!("{shard}/{}  applied", id.0);
                }
                Tried::Failed(reason) => {
                    left += 1;
                    println!("{shard}/{}  FAILED: {reason}", id.0);
                }
                Tried::Parked => {
                    left += 1;
                    println!("{shard}/{}  waits for the one before it", id.0);
                }
            }
        }
    }
    println!("{applied} applied, {left} left");
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn open(config: Option<&Path>, data: Option<PathBuf>) -> anyhow::Result<Vec<Box<dyn Store>>> {
    let config = Config::load(config, Overrides { data, ..Overrides::default() })?;
    let layout = Layout::new(config.database_count()).expect("checked with the settings");
    let folder = config.node.data.join("db");
    let open = |shard: DatabaseShard| {
        stores::open_one(&config.store, &folder, shard, layout)
            .with_context(|| format!("database shard {}", shard.get()))
    };
    layout.shards().map(open).collect()
}

fn line(shard: DatabaseShard, id: LetterId, letter: &Letter) -> String {
    let state = if letter.state == LetterState::Dead { "dead" } else { "parked" };
    let member = letter.member.map_or_else(|| "?".into(), |m| m.to_string());
    format!(
        "{}/{}  {state:6}  member {member}  slot {}  seq {}  {}",
        shard.get(),
        id.0,
        letter.slot,
        letter.seq,
        letter.reason
    )
}

fn tell(count: u64) -> ExitCode {
    println!("{count} letters");
    if count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
