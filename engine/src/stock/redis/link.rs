//! A connection to Redis, whichever kind it is; shared by all calls that are out at a time.

use std::time::Duration;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{Client, Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

use super::endpoint::Endpoint;
use super::script::Call;
use super::{RedisStockError, script};
use crate::config::RedisMode;
use crate::stock::ask::{Asker, Epoch, PoolAsk, Standing};
use crate::units::{Incarnation, ItemIndex, JournalId};

/// An open connection.
#[derive(Clone)]
pub enum Link {
    /// To one server.
    One(MultiplexedConnection),
    /// To the masters of a Cluster.
    Cluster(ClusterConnection),
}

impl Link {
    /// Connects and logs in, within the connect timeout.
    pub async fn open(endpoint: &Endpoint) -> RedisResult<Self> {
        match endpoint.mode() {
            RedisMode::Single | RedisMode::Sentinel => {
                let client = server(endpoint, 0).await?;
                Self::open_one(endpoint, &client).await
            }
            RedisMode::Cluster => {
                let client = endpoint.cluster()?;
                let opening = client.get_async_connection();
                within(endpoint.connect_timeout, opening).await.map(Self::Cluster)
            }
        }
    }

    /// Connects to one server.
    pub(super) async fn open_one(endpoint: &Endpoint, client: &Client) -> RedisResult<Self> {
        let config = endpoint.connection();
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        within(endpoint.connect_timeout, opening).await.map(Self::One)
    }

    pub async fn query(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        }
    }

    /// Runs a script by its hash; by its text, where the server does not know it (any more).
    pub async fn run(&mut self, call: &Call) -> RedisResult<Value> {
        match self.query(&call.by_hash()).await.and_then(Value::extract_error) {
            Err(e) if e.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.query(&call.by_text()).await.and_then(Value::extract_error)
            }
            done => done,
        }
    }
}

/// A client of one server: with Sentinels, of the master that they name; else of the URL at
/// `turn`, so that one that is down is passed over.
pub(super) async fn server(endpoint: &Endpoint, turn: usize) -> RedisResult<Client> {
    if endpoint.mode() == RedisMode::Sentinel {
        let mut sentinel = endpoint.sentinel()?;
        return within(endpoint.connect_timeout, sentinel.async_get_client()).await;
    }
    let mut clients = endpoint.clients()?;
    let index = turn % clients.len();
    Ok(clients.swap_remove(index))
}

/// Bounds a step of connecting.
pub(super) async fn within<T>(
    timeout: Duration,
    step: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    tokio::time::timeout(timeout, step).await.unwrap_or_else(|_| Err(timed_out(timeout)))
}

fn timed_out(timeout: Duration) -> RedisError {
    let text = format!("no answer within {} ms", timeout.as_millis());
    std::io::Error::new(std::io::ErrorKind::TimedOut, text).into()
}

/// Looks whether Redis can be reached, lets us in and runs our scripts: at the start, and for
/// `onrush config check`. Blocks for two timeouts at most.
///
/// Errors: `Refused` where trying again cannot help, `Unreachable` where it may.
pub fn check(endpoint: &Endpoint) -> Result<Epoch, RedisStockError> {
    block_on(async {
        let mut link = Link::open(endpoint).await.map_err(|e| endpoint.failed(&e))?;
        let asker = nobody();
        let call = Call::new(endpoint, "-", &asker, &PoolAsk::Inspect);
        let value = link.run(&call).await.map_err(|e| endpoint.failed(&e))?;
        let answer = script::read(&asker, PoolAsk::Inspect, &value)
            .map_err(|reason| RedisStockError::Unreachable { at: endpoint.at().into(), reason })?;
        Ok(answer.view.unwrap_or_default().epoch)
    })?
}

/// Asks in nobody's name: to look.
pub(super) fn nobody() -> Asker {
    Asker {
        item: ItemIndex::UNKNOWN,
        journal: JournalId::new(0),
        incarnation: Incarnation::new(0),
        epoch: Epoch::default(),
        standing: Standing::default(),
    }
}

/// Runs a future on a runtime of its own.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> Result<T, RedisStockError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(RedisStockError::Thread)?.block_on(future))
}
