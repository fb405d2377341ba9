//! A connection with its own runtime. Calls block their thread, each step of them for a bounded
//! time; after a failure that leaves the connection in doubt it is closed, and the next call opens
//! another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Statement, Value};
use tokio::runtime::{Builder, Runtime};

use super::bulk::Bulk;
use super::{Endpoint, error, unavailable};
use crate::persist::store::StoreError;

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Batches, one after the other: it says something every second or so.
    Persist,
    Write,
    Read,
}

impl Use {
    /// How long the server keeps a session that says nothing. So one that was cut off in the midst
    /// of a transaction lets go of its locks, and whoever takes its place can go on.
    ///
    /// Units: seconds.
    const fn idle_s(self) -> u32 {
        match self {
            // Longer than another database may hold their common thread up.
            Self::Persist => 30,
            Self::Write | Self::Read => 120,
        }
    }
}

/// How long a statement waits for a row that another session has locked. Units: seconds.
const LOCK_WAIT_S: u32 = 5;
/// How long the server waits for a reader that is slow to take its rows. Units: seconds.
const SLOW_READER_S: u32 = 600;

/// Where a database is, and the session with it, if one is open.
pub struct Link {
    endpoint: Endpoint,
    of: Use,
    runtime: Runtime,
    session: RefCell<Option<Session>>,
}

/// An open session.
pub struct Session {
    conn: Conn,
    /// By the address of the statement's parts, and its rows.
    prepared: HashMap<(usize, usize), Statement>,
    packet_max: usize,
    timeout: Duration,
}

impl Link {
    pub fn new(endpoint: Endpoint, of: Use) -> Result<Self, StoreError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| StoreError::Unavailable(e.into()))?;
        Ok(Self { endpoint, of, runtime, session: RefCell::new(None) })
    }

    /// Runs `work` on the open session, or on a new one, which `greet` looks at first.
    ///
    /// A session is kept where `work` succeeded, or failed in a way that says what the session is
    /// in: a row that does not fit, a watermark that is elsewhere. It must have rolled back then.
    pub fn run<T>(
        &self,
        greet: impl AsyncFnOnce(&mut Session) -> Result<(), StoreError>,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let taken = self.session.borrow_mut().take();
        let mut session = match taken {
            Some(session) => session,
            None => self.runtime.block_on(async {
                let mut session = Session::open(&self.endpoint, self.of).await?;
                greet(&mut session).await?;
                Ok::<_, StoreError>(session)
            })?,
        };
        let done = self.runtime.block_on(work(&mut session));
        let is_sound = match &done {
            Ok(_) => true,
            Err(e) => matches!(
                e,
                StoreError::Data(_)
                    | StoreError::Watermark { .. }
                    | StoreError::Map { .. }
                    | StoreError::LetterGone(_)
                    | StoreError::Corrupt(_)
            ),
        };
        // Else it is dropped, here, where no runtime is entered: its socket is closed at once,
        // where a goodbye would wait for a server that may not answer.
        if is_sound {
            *self.session.borrow_mut() = Some(session);
        }
        done
    }
}

/// One step of a call.
async fn within<T>(
    timeout: Duration,
    what: &str,
    step: impl Future<Output = mysql_async::Result<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(timeout, step).await {
        Ok(done) => done.map_err(error),
        Err(_) => Err(unavailable(format!("no answer to {what} within {timeout:?}"))),
    }
}

impl Session {
    async fn open(endpoint: &Endpoint, of: Use) -> Result<Self, StoreError> {
        let opening = Conn::new(endpoint.options.clone());
        let named = |e: StoreError| match e {
            // A refused login is no fault of a row.
            StoreError::Data(e) => unavailable(format!("{}: {e}", endpoint.name)),
            StoreError::Unavailable(e) => unavailable(format!("{}: {e}", endpoint.name)),
            other => other,
        };
        let conn = within(endpoint.connect_timeout, "a login", opening).await.map_err(named)?;
        let mut session = Self {
            conn,
            prepared: HashMap::new(),
            packet_max: usize::MAX,
            timeout: endpoint.read_timeout,
        };
        let isolation = match of {
            Use::Persist | Use::Write => "READ COMMITTED",
            Use::Read => "REPEATABLE READ",
        };
        session.query(&format!("SET SESSION TRANSACTION ISOLATION LEVEL {isolation}")).await?;
        let settings = format!(
            "SET SESSION wait_timeout = {}, innodb_lock_wait_timeout = {LOCK_WAIT_S}, \
             net_write_timeout = {SLOW_READER_S}, time_zone = '+00:00', \
             sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'",
            of.idle_s()
        );
        session.query(&settings).await?;
        let packet = session.rows("SELECT @@max_allowed_packet", ()).await?;
        session.packet_max = packet.first().map_or(Ok(1 << 20), |row| cell(row, 0))?;
        Ok(session)
    }

    /// A statement without parameters or rows.
    pub async fn query(&mut self, sql: &str) -> Result<(), StoreError> {
        within(self.timeout, first_word(sql), self.conn.query_drop(sql)).await
    }

    /// A statement without parameters or rows that may take long: it changes a table.
    pub async fn alter(&mut self, sql: &str, timeout: Duration) -> Result<(), StoreError> {
        within(timeout, first_word(sql), self.conn.query_drop(sql)).await
    }

    /// A prepared statement; how many rows it changed.
    pub async fn execute(
        &mut self,
        sql: &str,
        params: impl Into<Params>,
    ) -> Result<u64, StoreError> {
        let params = params.into();
        within(self.timeout, first_word(sql), self.conn.exec_drop(sql, params)).await?;
        Ok(self.conn.affected_rows())
    }

    /// A prepared statement's rows.
    pub async fn rows(
        &mut self,
        sql: &str,
        params: impl Into<Params>,
    ) -> Result<Vec<Row>, StoreError> {
        let params = params.into();
        within(self.timeout, first_word(sql), self.conn.exec(sql, params)).await
    }

    /// Hands the rows of a statement on, one by one: there may be more than memory holds.
    pub async fn each(
        &mut self,
        sql: &str,
        see: &mut dyn FnMut(&Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let timeout = self.timeout;
        // A sort of all rows comes before the first one.
        let begun = self.conn.exec_iter(sql, ());
        let mut result = within(timeout.max(LONG_READ), first_word(sql), begun).await?;
        while let Some(row) = within(timeout, "a row", result.next()).await? {
            see(&row)?;
        }
        within(timeout, "the end of rows", result.drop_result()).await
    }

    /// Writes rows by a statement of fixed sizes.
    pub async fn write<R>(
        &mut self,
        bulk: &'static Bulk,
        rows: &[R],
        encode: impl Fn(&R, &mut Vec<Value>),
    ) -> Result<(), StoreError> {
        let mut rest = rows;
        while !rest.is_empty() {
            let size = bulk.size(rest.len(), self.packet_max);
            let (now, later) = rest.split_at(size);
            let mut values = Vec::with_capacity(size * bulk.columns);
            for row in now {
                encode(row, &mut values);
            }
            debug_assert_eq!(values.len(), size * bulk.columns);
            let statement = self.prepared(bulk, size).await?;
            let writing = self.conn.exec_drop(statement, Params::Positional(values));
            within(self.timeout, bulk.head, writing).await?;
            rest = later;
        }
        Ok(())
    }

    /// Reads rows by their keys, by a statement of fixed sizes. `first`: values before the keys.
    pub async fn read<K>(
        &mut self,
        bulk: &'static Bulk,
        first: &[Value],
        keys: &[K],
        encode: impl Fn(&K, &mut Vec<Value>),
        mut see: impl FnMut(&Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut rest = keys;
        while !rest.is_empty() {
            let size = bulk.size(rest.len(), self.packet_max);
            let (now, later) = rest.split_at(size);
            let mut values = first.to_vec();
            for key in now {
                encode(key, &mut values);
            }
            let statement = self.prepared(bulk, size).await?;
            let reading = self.conn.exec(statement, Params::Positional(values));
            let rows: Vec<Row> = within(self.timeout, bulk.head, reading).await?;
            for row in &rows {
                see(row)?;
            }
            rest = later;
        }
        Ok(())
    }

    async fn prepared(
        &mut self,
        bulk: &'static Bulk,
        rows: usize,
    ) -> Result<Statement, StoreError> {
        let key = (std::ptr::from_ref(bulk).addr(), rows);
        if let Some(statement) = self.prepared.get(&key) {
            return Ok(statement.clone());
        }
        let preparing = self.conn.prep(bulk.text(rows));
        let statement = within(self.timeout, bulk.head, preparing).await?;
        self.prepared.insert(key, statement.clone());
        Ok(statement)
    }
}

/// How long a read of a whole table may take to begin.
const LONG_READ: Duration = Duration::from_mins(10);

/// What a statement is, for messages.
fn first_word(sql: &str) -> &str {
    sql.split_whitespace().next().unwrap_or("a statement")
}

/// A row's cell as what it must be.
pub fn cell<T: mysql_async::prelude::FromValue>(row: &Row, column: usize) -> Result<T, StoreError> {
    let value = row.as_ref(column).cloned().unwrap_or(Value::NULL);
    mysql_async::from_value_opt(value)
        .map_err(|e| StoreError::Corrupt(format!("column {column}: {e}")))
}
