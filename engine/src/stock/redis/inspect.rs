//! What operators see of pools, read from Redis and nowhere else; and the order to rebuild one.

use std::collections::BTreeMap;

use redis::{Cmd, RedisError, RedisResult, Value};
use serde::Serialize;

use super::RedisStockError;
use super::endpoint::Endpoint;
use super::link::{Link, block_on, nobody, within};
use super::script::{Call, read};
use crate::config::RedisMode;
use crate::stock::ask::{PoolAnswer, PoolAsk, PoolRefusal};

/// How often a pool is looked at until it stands still.
const LOOKS_MAX: u32 = 50;

/// A pool as it stands in Redis.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PoolReport {
    pub sale: String,
    pub sku: String,
    pub epoch: u32,
    /// The server that the epoch belongs to, in hexadecimal.
    pub server: String,
    /// "open", "shut" (it waits for reports), or "lost" (its server is another one since).
    pub state: &'static str,
    /// Journals that must report before it opens; empty where it is open.
    pub waits_for: Vec<String>,
    /// Whether it also waits for the home node to say which journals there are.
    pub waits_for_home: bool,
    pub added: u64,
    pub withdrawn: u64,
    /// Units that can be granted.
    pub pool: u64,
    pub confirmed: u64,
    pub wanted: u64,
    pub is_sold_out: bool,
    pub journals: Vec<JournalReport>,
}

/// What a pool knows of a journal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct JournalReport {
    pub journal: String,
    pub incarnation: u64,
    /// The newest epoch that it joined.
    pub epoch: u32,
    pub has_joined: bool,
    pub granted: u64,
    pub accepted: u64,
    pub returned: u64,
    pub confirmed: u64,
    pub reversed: u64,
    pub wanted: u64,
}

/// Every pool, or those of a sale, or one; in the order of their names.
pub fn pools(
    endpoint: &Endpoint,
    sale: Option<&str>,
    sku: Option<&str>,
) -> Result<Vec<PoolReport>, RedisStockError> {
    let looking = async {
        let mut link = Link::open(endpoint).await?;
        let names = match (sale, sku) {
            (Some(sale), Some(sku)) => vec![format!("{sale}/{sku}")],
            _ => names(endpoint, &mut link, sale.unwrap_or("*"), sku.unwrap_or("*")).await?,
        };
        let mut found = Vec::new();
        for name in names {
            found.extend(look(endpoint, &mut link, &name).await?);
        }
        Ok(found)
    };
    block_on(looking)?.map_err(|error| endpoint.failed(&error))
}

/// Begins a new epoch of a pool that is there: it is shut until every journal has reported.
/// `false`: there is no such pool.
pub fn rebuild(endpoint: &Endpoint, pool: &PoolReport) -> Result<bool, RedisStockError> {
    let asking = async {
        let mut link = Link::open(endpoint).await?;
        let name = format!("{}/{}", pool.sale, pool.sku);
        let ask = PoolAsk::Join { home: None, bump_above: pool.epoch };
        let answer = ask_as_nobody(endpoint, &mut link, &name, ask).await?;
        Ok(answer.view.is_some_and(|view| view.epoch.number > pool.epoch))
    };
    block_on(asking)?.map_err(|error: RedisError| endpoint.failed(&error))
}

async fn ask_as_nobody(
    endpoint: &Endpoint,
    link: &mut Link,
    name: &str,
    ask: PoolAsk,
) -> RedisResult<PoolAnswer> {
    let asker = nobody();
    let value = link.run(&Call::new(endpoint, name, &asker, &ask)).await?;
    read(&asker, ask, &value).map_err(foreign)
}

fn foreign(why: String) -> RedisError {
    RedisError::from((redis::ErrorKind::UnexpectedReturnType, "not of our scripts", why))
}

/// The names of all pools, from every master.
async fn names(
    endpoint: &Endpoint,
    link: &mut Link,
    sale: &str,
    sku: &str,
) -> RedisResult<Vec<String>> {
    let pattern = endpoint.key(&format!("{sale}/{sku}"));
    let mut names = Vec::new();
    if endpoint.mode() == RedisMode::Cluster {
        for (host, port) in masters(endpoint).await? {
            let client = endpoint.client_of(&host, port)?;
            let mut link = Link::open_one(endpoint, &client).await?;
            scan(&mut link, &pattern, &mut names).await?;
        }
    } else {
        scan(link, &pattern, &mut names).await?;
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

async fn scan(link: &mut Link, pattern: &str, names: &mut Vec<String>) -> RedisResult<()> {
    let mut cursor = String::from("0");
    loop {
        let mut command = redis::cmd("SCAN");
        command.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1_000);
        let (next, keys): (String, Vec<String>) =
            redis::from_redis_value(query(link, &command).await?)?;
        let inner = |key: &String| {
            let (_, rest) = key.split_once('{')?;
            rest.strip_suffix('}').map(str::to_owned)
        };
        names.extend(keys.iter().filter_map(inner).filter(|name| name.contains('/')));
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}

/// The addresses of a Cluster's masters, from the first node that answers.
async fn masters(endpoint: &Endpoint) -> RedisResult<Vec<(String, u16)>> {
    let mut last = None;
    for client in endpoint.clients()? {
        let opening = Link::open_one(endpoint, &client);
        let mut link = match within(endpoint.connect_timeout, opening).await {
            Ok(link) => link,
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        let mut command = redis::cmd("CLUSTER");
        command.arg("NODES");
        let nodes: String = redis::from_redis_value(query(&mut link, &command).await?)?;
        return Ok(nodes.lines().filter_map(master_in).collect());
    }
    Err(last.expect("there is a URL, and it did not answer"))
}

/// `ID HOST:PORT@BUS FLAGS …`
fn master_in(line: &str) -> Option<(String, u16)> {
    let mut words = line.split(' ').skip(1);
    let address = words.next()?.split('@').next()?;
    let is_master = words.next()?.split(',').any(|flag| flag == "master");
    let (host, port) = address.rsplit_once(':')?;
    is_master.then(|| Some((host.to_owned(), port.parse().ok()?)))?
}

async fn query(link: &mut Link, command: &Cmd) -> RedisResult<Value> {
    link.query(command).await?.extract_error()
}

/// What a script says of a pool, and the pool's fields, of one moment: nothing changed in between,
/// unless it changes all the time.
async fn look_once(
    endpoint: &Endpoint,
    link: &mut Link,
    name: &str,
) -> RedisResult<(PoolAnswer, BTreeMap<String, String>)> {
    let mut command = redis::cmd("HGETALL");
    command.arg(endpoint.key(name));
    let mut before: BTreeMap<String, String> =
        redis::from_redis_value(query(link, &command).await?)?;
    for _ in 0..LOOKS_MAX {
        let answer = ask_as_nobody(endpoint, link, name, PoolAsk::Inspect).await?;
        let after = redis::from_redis_value(query(link, &command).await?)?;
        if before == after {
            return Ok((answer, after));
        }
        before = after;
    }
    let answer = ask_as_nobody(endpoint, link, name, PoolAsk::Inspect).await?;
    Ok((answer, before))
}

async fn look(endpoint: &Endpoint, link: &mut Link, name: &str) -> RedisResult<Option<PoolReport>> {
    let (answer, fields) = look_once(endpoint, link, name).await?;
    let view = answer.view.unwrap_or_default();
    if view.epoch.number == 0 {
        return Ok(None);
    }
    let (sale, sku) = name.split_once('/').unwrap_or((name, ""));
    let journals = journals(&fields, view.epoch.number);
    let listed = fields.get("listed").map_or("-", String::as_str);
    let has_joined = |id: &str| journals.iter().any(|j| j.journal == id && j.has_joined);
    let mut waits_for = Vec::new();
    if !view.is_open {
        let known = journals.iter().filter(|j| j.accepted > 0).map(|j| j.journal.as_str());
        let needed = listed.split(',').filter(|id| id.len() > 1).chain(known);
        waits_for = needed.filter(|id| !has_joined(id)).map(str::to_owned).collect();
        waits_for.sort_unstable();
        waits_for.dedup();
    }
    Ok(Some(PoolReport {
        sale: sale.into(),
        sku: sku.into(),
        epoch: view.epoch.number,
        server: format!("{:032x}", view.epoch.server.get()),
        state: match answer.refusal {
            Some(PoolRefusal::Lost) => "lost",
            _ if view.is_open => "open",
            _ => "shut",
        },
        waits_for,
        waits_for_home: !view.is_open && listed == "-",
        added: view.added,
        withdrawn: view.withdrawn,
        pool: view.pool,
        confirmed: view.confirmed_elsewhere,
        wanted: view.lacking(),
        is_sold_out: view.is_sold_out,
        journals,
    }))
}

fn journals(fields: &BTreeMap<String, String>, epoch: u32) -> Vec<JournalReport> {
    let ids = fields.keys().filter_map(|field| field.strip_prefix("e:"));
    let of = |id: &str| {
        let number = |field: &str| {
            let value = fields.get(&format!("{field}:{id}"));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        JournalReport {
            journal: id.to_owned(),
            incarnation: number("i"),
            epoch: number("e").try_into().unwrap_or(u32::MAX),
            has_joined: number("e") == u64::from(epoch),
            granted: number("g"),
            accepted: number("a"),
            returned: number("r"),
            confirmed: number("c"),
            reversed: number("u"),
            wanted: number("w"),
        }
    };
    ids.map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clusters_masters_are_found_among_its_nodes() {
        let line = "07c3 127.0.0.1:30001@31001,host slave,nofail e7d1 0 1 4 connected";
        assert_eq!(master_in(line), None);
        let line = "e7d1 127.0.0.1:30002@31002 myself,master - 0 0 1 connected 0-5460";
        assert_eq!(master_in(line), Some(("127.0.0.1".into(), 30002)));
        let line = "e7d2 ::1:30003@31003 master - 0 0 1 connected 0-5460";
        assert_eq!(master_in(line), Some(("::1".into(), 30003)));
    }
}
