//! The thread `stock-redis`: takes asks from a bounded channel, answers by a callback.
//!
//! Asks for one item are sent in order, the next once the one before is answered or given up;
//! different items go beside each other over one connection. An ask that cannot be sent, or is not
//! answered in time, is answered with `Unavailable`, and never sent again from here: what became
//! of it is told by the next answer's counters.
//!
//! ```text
//!            opened                 broken, demoted, or several timeouts in a row
//! opening ───────────► up ──────────────────────────────────────────────────► down
//!    ▲                                                                         │ a pause
//!    └─────────────────────────────────────────────────────────────────────────┘
//! ```

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::RedisStockError;
use super::endpoint::{Endpoint, one_line};
use super::link::Link;
use super::news::{Heard, follow};
use super::script::{Call, ScriptName, read};
use super::stats::RedisStats;
use crate::stock::ask::{Asker, PoolAnswer, PoolAsk, PoolNews, PoolRefusal};
use crate::stock::authority::StockAuthority;
use crate::units::ItemIndex;

/// Asks that wait for the thread; beyond, they are given up at once.
const ORDERS_MAX: usize = 16_384;
/// Asks that wait for an earlier one of the same item.
const WAITING_MAX: usize = 64;
/// News on their way.
const NEWS_MAX: usize = 1_024;
/// Timeouts in a row, after which a connection that may be dead is given up.
const TIMEOUTS_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What comes back.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::large_enum_variant, reason = "passed on at once, and mostly answers")]
pub enum Delivery {
    Answer(PoolAnswer),
    News(PoolNews),
}

/// Items as this node numbers them, and as all nodes name them.
#[derive(Default)]
struct Names {
    by_item: HashMap<ItemIndex, Arc<str>>,
    by_name: HashMap<Arc<str>, ItemIndex>,
}

type Order = (Asker, PoolAsk);

/// The handle that asks. Dropping it ends the thread.
pub struct RedisStock {
    orders: Option<Sender<Order>>,
    names: Arc<RwLock<Names>>,
    stats: Arc<RedisStats>,
    thread: Option<JoinHandle<()>>,
}

impl RedisStock {
    /// Starts the thread; it connects by itself, and goes on trying.
    ///
    /// `deliver` runs on that thread, and holds it up for as long as it takes.
    pub fn start(
        endpoint: Endpoint,
        deliver: impl FnMut(Delivery) + Send + 'static,
    ) -> Result<Self, RedisStockError> {
        let (orders, taken) = channel(ORDERS_MAX);
        let names = Arc::<RwLock<Names>>::default();
        let stats = Arc::<RedisStats>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(RedisStockError::Thread)?;
        let mut driver = Driver {
            endpoint,
            names: Arc::clone(&names),
            stats: Arc::clone(&stats),
            deliver: Box::new(deliver),
            state: State::Opening,
            link_number: 0,
            pause: PAUSE_MIN,
            timeouts: 0,
            waiting: HashMap::new(),
            busy: HashSet::new(),
            calls: JoinSet::new(),
            openings: JoinSet::new(),
        };
        let thread = std::thread::Builder::new()
            .name("stock-redis".into())
            .spawn(move || runtime.block_on(driver.run(taken)))
            .map_err(RedisStockError::Thread)?;
        Ok(Self { orders: Some(orders), names, stats, thread: Some(thread) })
    }

    pub fn stats(&self) -> &Arc<RedisStats> {
        &self.stats
    }
}

impl StockAuthority for RedisStock {
    fn name(&mut self, item: ItemIndex, name: &str) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let name: Arc<str> = name.into();
        names.by_item.insert(item, Arc::clone(&name));
        names.by_name.insert(name, item);
    }

    fn ask(&mut self, asker: Asker, ask: PoolAsk) {
        let orders = self.orders.as_ref().expect("there until it is dropped");
        match orders.try_send((asker, ask)) {
            Ok(()) => {}
            // Not answered at all: asks are repeated, and this one would only have waited.
            Err(TrySendError::Full(_)) => self.stats.turned_away(),
            Err(TrySendError::Closed(_)) => unreachable!("the thread ends with this handle"),
        }
    }

    fn answer(&mut self) -> Option<PoolAnswer> {
        None
    }
}

impl Drop for RedisStock {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum State {
    Opening,
    Up(Link),
    Down { until: Instant, why: String },
}

/// What became of a call.
struct Done {
    order: Order,
    link_number: u64,
    took: Duration,
    result: Result<PoolAnswer, Failure>,
}

enum Failure {
    Redis(RedisError),
    /// An answer that is not of our scripts.
    Foreign(String),
}

struct Driver {
    endpoint: Endpoint,
    names: Arc<RwLock<Names>>,
    stats: Arc<RedisStats>,
    deliver: Box<dyn FnMut(Delivery) + Send>,
    state: State,
    /// Counts connections, so that a call of an earlier one does not end the present one.
    link_number: u64,
    pause: Duration,
    timeouts: u32,
    waiting: HashMap<ItemIndex, VecDeque<Order>>,
    busy: HashSet<ItemIndex>,
    calls: JoinSet<Done>,
    openings: JoinSet<RedisResult<Link>>,
}

impl Driver {
    async fn run(&mut self, mut orders: Receiver<Order>) {
        let (to, mut heard) = channel(NEWS_MAX);
        let mut listening = JoinSet::new();
        listening.spawn(follow(self.endpoint.clone(), to));
        self.open();
        loop {
            let (is_down, until) = match self.state {
                State::Down { until, .. } => (true, until),
                _ => (false, Instant::now()),
            };
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.take(order),
                    None => return,
                },
                Some(done) = self.calls.join_next() => {
                    self.done(done.expect("a call does not panic"));
                }
                Some(opened) = self.openings.join_next() => {
                    self.opened(opened.expect("opening does not panic"));
                }
                () = sleep_until(until), if is_down => self.open(),
                Some(heard) = heard.recv() => self.hear(heard),
            }
        }
    }

    fn open(&mut self) {
        self.state = State::Opening;
        let endpoint = self.endpoint.clone();
        self.openings.spawn(async move { Link::open(&endpoint).await });
    }

    fn opened(&mut self, opened: RedisResult<Link>) {
        match opened {
            Ok(link) => {
                self.link_number += 1;
                self.timeouts = 0;
                self.stats.linked();
                tracing::info!(at = self.endpoint.at(), "connected to Redis");
                self.state = State::Up(link);
                let items: Vec<_> = self.waiting.keys().copied().collect();
                for item in items {
                    self.send_next(item);
                }
            }
            Err(error) => self.go_down(&one_line(&error)),
        }
    }

    /// Gives the connection up, and all that waits for it.
    fn go_down(&mut self, why: &str) {
        let was_up = matches!(self.state, State::Up(_));
        if was_up || self.pause == PAUSE_MIN {
            tracing::warn!(at = self.endpoint.at(), why, "no connection to Redis");
        }
        self.stats.lost();
        self.state = State::Down { until: Instant::now() + self.pause, why: why.to_owned() };
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        let waiting: Vec<_> = self.waiting.drain().flat_map(|(_, orders)| orders).collect();
        for order in waiting {
            self.give_up(order, why);
        }
    }

    fn take(&mut self, order: Order) {
        let item = order.0.item;
        if let State::Down { why, .. } = &self.state {
            let why = why.clone();
            return self.give_up(order, &why);
        }
        let waiting = self.waiting.entry(item).or_default();
        if waiting.len() >= WAITING_MAX {
            return self.give_up(order, "too many asks wait for an earlier one of this item");
        }
        waiting.push_back(order);
        self.send_next(item);
    }

    /// Sends an item's next ask, unless one is out.
    fn send_next(&mut self, item: ItemIndex) {
        let State::Up(link) = &self.state else { return };
        if self.busy.contains(&item) {
            return;
        }
        let Some(waiting) = self.waiting.get_mut(&item) else { return };
        let Some((asker, ask)) = waiting.pop_front() else {
            self.waiting.remove(&item);
            return;
        };
        let name = {
            let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
            names.by_item.get(&item).cloned().expect("an item is named before its first ask")
        };
        let call = Call::new(&self.endpoint, &name, &asker, &ask);
        self.busy.insert(item);
        self.stats.called(ScriptName::of(&ask));
        let (mut link, link_number) = (link.clone(), self.link_number);
        self.calls.spawn(async move {
            let started = Instant::now();
            let result = match link.run(&call).await {
                Ok(value) => read(&asker, ask.clone(), &value).map_err(Failure::Foreign),
                Err(error) => Err(Failure::Redis(error)),
            };
            Done { order: (asker, ask), link_number, took: started.elapsed(), result }
        });
    }

    fn done(&mut self, done: Done) {
        let Done { order, link_number, took, result } = done;
        let item = order.0.item;
        self.busy.remove(&item);
        match result {
            Ok(answer) => {
                self.stats.answered(took);
                self.timeouts = 0;
                self.pause = PAUSE_MIN;
                (self.deliver)(Delivery::Answer(answer));
            }
            Err(failure) => {
                let (why, is_broken) = self.judge(failure);
                self.give_up(order, &why);
                let is_present = link_number == self.link_number;
                if is_broken && is_present && matches!(self.state, State::Up(_)) {
                    self.go_down(&why);
                }
            }
        }
        self.send_next(item);
    }

    /// What to say of a failure, and whether the connection is done with.
    fn judge(&mut self, failure: Failure) -> (String, bool) {
        let error = match failure {
            Failure::Redis(error) => error,
            Failure::Foreign(why) => {
                self.stats.failed(false);
                return (why, false);
            }
        };
        self.stats.failed(error.is_timeout());
        let is_broken = if error.is_timeout() {
            self.timeouts += 1;
            self.timeouts >= TIMEOUTS_MAX
        } else {
            use ServerErrorKind::{MasterDown, ReadOnly};
            // Another may be the master by now.
            let is_demoted = matches!(error.kind(), ErrorKind::Server(ReadOnly | MasterDown));
            is_demoted || error.is_io_error() || error.is_unrecoverable_error()
        };
        (one_line(&error), is_broken)
    }

    fn give_up(&mut self, (asker, asked): Order, why: &str) {
        let refusal = Some(PoolRefusal::Unavailable(why.to_owned()));
        let answer = PoolAnswer { asker, asked, view: None, refusal };
        (self.deliver)(Delivery::Answer(answer));
    }

    fn hear(&mut self, heard: Heard) {
        let news = match heard {
            Heard::Subscribed => PoolNews::Reconnected,
            Heard::Changed(change, name) => {
                let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
                let Some(item) = names.by_name.get(name.as_str()) else { return };
                PoolNews::Changed { item: *item, change }
            }
        };
        self.stats.heard();
        (self.deliver)(Delivery::News(news));
    }
}
