//! `onrush db`: the database shards' schema, and what is in them.
//!
//! Exit codes: 0 good, 1 something needs a hand, 2 a database could not be reached.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::config::{Config, Overrides, StoreKind};
use crate::persist::mysql::{self, Month, SchemaStatus};
use crate::persist::sqlite::{self, SqliteReader};
use crate::persist::store::{StoreError, StoreReader as _, WatermarkRow};
use crate::persist::stores;
use crate::ship::holdings::Hold;
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::units::NodeTime;

/// Brings every database shard to the newest schema.
pub fn migrate(config: Option<&Path>, from: Option<&str>) -> anyhow::Result<ExitCode> {
    let (config, layout) = load(config)?;
    let from = match from {
        Some(text) => Month::parse(text).with_context(|| format!("{text} is no month: YYYY-MM"))?,
        None => this_month(),
    };
    if config.store.kind == StoreKind::Sqlite {
        let folder = config.node.data.join("db");
        sqlite::open_all(&folder, layout)?;
        println!(
            "{} SQLite files in {} are at the newest schema",
            layout.count(),
            folder.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = ExitCode::SUCCESS;
    let endpoints = stores::primaries(&config.store.mysql)?;
    let spread = match spread_over(layout, &endpoints) {
        Ok(spread) => spread,
        Err((shard, error)) => {
            // Whether a new one is one of the first, only all together can tell.
            say(shard, endpoints[shard.index()].name(), &format!("FAILED: {error}"));
            println!("nothing was changed: every database shard must answer");
            return Ok(ExitCode::from(2));
        }
    };
    for (shard, endpoint) in layout.shards().zip(endpoints) {
        match mysql::migrate(&endpoint, shard, layout, spread, (from, this_month())) {
            Ok(applied) if applied.is_empty() => {
                say(shard, endpoint.name(), "is at the newest schema");
            }
            Ok(applied) => {
                say(shard, endpoint.name(), &format!("applied {}", applied.join(", ")));
            }
            Err(error) => {
                say(shard, endpoint.name(), &format!("FAILED: {error}"));
                code = worse(code, if error.is_transient() { 2 } else { 1 });
            }
        }
    }
    Ok(code)
}

/// Over how many database shards the partitions were spread when the first of them were made: now,
/// where there is none yet.
fn spread_over(
    layout: Layout,
    endpoints: &[mysql::Endpoint],
) -> Result<Layout, (DatabaseShard, StoreError)> {
    let mut made: Option<u8> = None;
    for (shard, endpoint) in layout.shards().zip(endpoints) {
        let count = mysql::made_as_one_of(endpoint).map_err(|error| (shard, error))?;
        // Those that came later were made as one of more.
        made = made.into_iter().chain(count).min();
    }
    Ok(made.and_then(Layout::new).unwrap_or(layout))
}

/// Takes every month before `before` out of every database.
pub fn archive(config: Option<&Path>, before: &str, to: &Path) -> anyhow::Result<ExitCode> {
    let (config, layout) = load(config)?;
    anyhow::ensure!(
        config.store.kind == StoreKind::Mysql,
        "SQLite files have no monthly partitions: only MySQL and MariaDB are archived"
    );
    let before = Month::parse(before).with_context(|| format!("{before} is no month: YYYY-MM"))?;
    anyhow::ensure!(before <= this_month(), "{before} is not over yet: it cannot be archived");
    let mut code = ExitCode::SUCCESS;
    for (shard, endpoint) in layout.shards().zip(stores::primaries(&config.store.mysql)?) {
        let done = mysql::archive(&endpoint, shard, layout, before, to, &mut |archived| {
            let mysql::Archived { table, month, rows, file } = archived;
            let text = format!("{table} {month}: {rows} rows in {}", file.display());
            say(shard, endpoint.name(), &text);
        });
        if let Err(error) = done {
            say(shard, endpoint.name(), &format!("FAILED: {error}"));
            let is_away =
                matches!(&error, mysql::ArchiveError::Store(error) if error.is_transient());
            code = worse(code, if is_away { 2 } else { 1 });
        }
    }
    Ok(code)
}

/// Tells version, partitions, watermarks and letters of every database shard.
pub fn status(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let (config, layout) = load(config)?;
    let mut code = ExitCode::SUCCESS;
    if config.store.kind == StoreKind::Sqlite {
        let folder = config.node.data.join("db");
        for shard in layout.shards() {
            let name = sqlite::path_of(&folder, shard).display().to_string();
            let rows = SqliteReader::open(&folder, shard).and_then(|r| r.watermarks());
            match rows {
                Ok(rows) => say(shard, &name, &stored(&rows)),
                Err(error) => {
                    say(shard, &name, &format!("FAILED: {error}"));
                    code = worse(code, 2);
                }
            }
        }
        return Ok(code);
    }
    for (shard, endpoint) in layout.shards().zip(stores::primaries(&config.store.mysql)?) {
        match mysql::status(&endpoint, shard, layout) {
            Ok(status) => code = worse(code, tell(shard, endpoint.name(), &status)),
            Err(error) => {
                say(shard, endpoint.name(), &format!("FAILED: {error}"));
                code = worse(code, if error.is_transient() { 2 } else { 1 });
            }
        }
        for replica in stores::replicas(&config.store.mysql, shard)? {
            let rows = mysql::MySqlReader::open(replica.clone(), shard, layout)
                .and_then(|r| r.watermarks());
            match rows {
                Ok(rows) => say(shard, &format!("replica {}", replica.name()), &stored(&rows)),
                Err(error) => {
                    say(shard, &format!("replica {}", replica.name()), &format!("FAILED: {error}"));
                    code = worse(code, 2);
                }
            }
        }
    }
    Ok(code)
}

pub fn load(config: Option<&Path>) -> anyhow::Result<(Config, Layout)> {
    let config = Config::load(config, Overrides::default())?;
    let layout = Layout::new(config.database_count()).expect("checked with the settings");
    Ok((config, layout))
}

fn this_month() -> Month {
    let ms = jiff::Timestamp::now().as_millisecond();
    Month::of(NodeTime::new(ms.try_into().unwrap_or(0)))
}

fn say(shard: DatabaseShard, name: &str, what: &str) {
    println!("database shard {}  {name}: {what}", shard.get());
}

fn worse(code: ExitCode, with: u8) -> ExitCode {
    // 2, not reached, tells more than 1.
    let (two, one) = (ExitCode::from(2), ExitCode::from(1));
    if code == two || with == 2 {
        two
    } else if code == one || with == 1 {
        one
    } else {
        ExitCode::SUCCESS
    }
}

/// Up to where the rows go, by the slowest and the newest partition.
fn stored(rows: &[WatermarkRow]) -> String {
    let mut journals: Vec<_> = rows.iter().map(|r| r.stream.journal).collect();
    journals.dedup();
    let of = |journal: crate::units::JournalId| {
        let own = rows.iter().filter(|r| r.stream.journal == journal);
        let seqs = own.clone().map(|r| r.watermark.seq.get());
        let (low, high) = (seqs.clone().min().unwrap_or(0), seqs.max().unwrap_or(0));
        let at = own.map(|r| r.at).max().unwrap_or_default().rfc3339();
        format!("journal {:016x} stored through {low} (newest {high}, of {at})", journal.get())
    };
    if journals.is_empty() {
        return "no records yet".into();
    }
    journals.into_iter().map(of).collect::<Vec<_>>().join("; ")
}

/// Prints a database's status; the exit code that it deserves.
fn tell(shard: DatabaseShard, name: &str, status: &SchemaStatus) -> u8 {
    let SchemaStatus { server, version, partitions, holdings, watermarks, letters } = status;
    let newest = mysql::NEWEST;
    if *version != newest {
        let advice = if *version < newest { ": run `onrush db migrate`" } else { ": too new" };
        say(shard, name, &format!("{server}, schema {version}, needed {newest}{advice}"));
        return 1;
    }
    say(shard, name, &format!("{server}, schema {version}; {}", stored(watermarks)));
    let is_moving = holdings.is_some_and(|map| {
        for hold in [Hold::Held, Hold::Leaving, Hold::Arriving, Hold::Gone] {
            let own: Vec<_> = map.that_are(hold).map(Partition::get).collect();
            if !own.is_empty() {
                println!("    {}: partitions {}", hold.name(), ranges(&own));
            }
        }
        map.each().any(|(_, holding)| holding.hold != Hold::Held)
    });
    if is_moving {
        println!("    partitions are on their way: let `onrush db split` finish");
    }
    for table in mysql::PARTITIONED {
        let own = partitions.iter().filter(|p| p.table == table);
        let text: Vec<_> = own.map(|p| format!("{} ~{}", p.name, p.rows)).collect();
        println!("    {table}: {}", text.join(", "));
    }
    if *letters > 0 {
        println!("    {letters} dead letters: onrush persist dead-letters list");
        return 1;
    }
    u8::from(is_moving)
}

/// Numbers that rise, as people write them: `0-7, 9`.
pub fn ranges(numbers: &[u8]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let text = |run: &[u8]| match run {
        [one] => one.to_string(),
        _ => format!("{}-{}", run[0], run[run.len() - 1]),
    };
    runs.map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_in_runs() {
        assert_eq!(ranges(&[0, 1, 2, 4, 7, 8]), "0-2, 4, 7-8");
        assert_eq!(ranges(&[]), "");
    }
}
