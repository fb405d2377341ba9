//! Redis as the simulation has it: servers that run the model of the scripts
//! ([`Pool`]), forget, fall back and are split; and the network to them.
//!
//! ```text
//! control ─ ask ─► calls ──► server: Pool::on ──► answers ──► control
//!                    │ lost, late, twice, mixed     │ the same; and news, to every node
//! ```
//! What a message meets is decided when its turn comes, by the random numbers of the step at hand:
//! so a plan that is cut down still goes the same way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use super::ledger::Units;
use super::plan::{RedisFault, Weather};
use crate::journal::sim::SimRng;
use crate::shard::control::ControlHandle;
use crate::stock::ask::{
    Asker, Epoch, PoolAnswer, PoolAsk, PoolNews, PoolRefusal, PoolView, Standing,
};
use crate::stock::authority::StockAuthority;
use crate::stock::pool::Pool;
use crate::units::{Incarnation, ItemIndex, JournalId, KeyHash};

/// Copies of a server that are kept, at most.
const COPIES_MAX: usize = 4;
/// How long the driver waits for an answer. Not so in every world: then the lease itself does.
const TIMEOUT_MS: u64 = 300;
/// Messages under way, at most: behind that nothing comes twice.
const MESSAGES_MAX: usize = 60;

/// What a journal has proved to a server, and by which opening of it.
type Told = BTreeMap<(ItemIndex, JournalId), (Incarnation, Standing)>;

/// All that a server keeps.
#[derive(Clone, Default)]
struct Store {
    pools: BTreeMap<ItemIndex, Pool>,
    told: Told,
    epochs: BTreeMap<ItemIndex, u32>,
}

struct Server {
    id: KeyHash,
    store: Store,
}

/// A process that talks with Redis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    pub node: usize,
    /// Whether it runs on a copy of the node's data folder.
    pub is_copy: bool,
}

struct Call {
    peer: Peer,
    server: usize,
    asker: Asker,
    ask: PoolAsk,
}

/// A call whose answer the driver waits for.
struct Waiting {
    peer: Peer,
    /// What it says instead of an answer, once it has waited until then.
    given_up: PoolAnswer,
    until_ms: u64,
    /// Whether a server has run it.
    was_run: bool,
}

enum What {
    Call(Call),
    Answer(Peer, PoolAnswer),
    News(usize, PoolNews),
}

struct Message {
    what: What,
    due_ms: u64,
    was_put_off: bool,
    /// Until the node's journal has a newer epoch of this item than this.
    waits: Option<(ItemIndex, u32)>,
}

/// What came by in the network, so that a test can see that it did.
#[derive(Clone, Copy, Default, Debug)]
pub struct NetCounts {
    pub calls: u64,
    pub lost: u64,
    pub failed: u64,
    pub repeated: u64,
    pub forgotten: u64,
    pub rebuilds: u64,
    pub copies_refused: u64,
    pub late_grants: u64,
}

struct Net {
    now_ms: u64,
    weather: Weather,
    servers: Vec<Server>,
    /// The one that all but those who are split off talk with.
    main: usize,
    at: Vec<usize>,
    next_server: u128,
    is_stopped_until: u64,
    cut_until: Vec<u64>,
    /// Until when a node's calls fail at once: its connection for news may be there before.
    calls_down_until: Vec<u64>,
    /// Nodes whose connection broke with news on it, or that may not have heard of one.
    has_missed: Vec<bool>,
    replica: Store,
    copies: VecDeque<Store>,
    messages: Vec<Message>,
    waiting: Vec<Waiting>,
    /// How long it waits.
    timeout_ms: u64,
    doors: Vec<Option<(Peer, ControlHandle)>>,
    /// What each node's journal proves of each item; empty while it starts.
    proved: Vec<Vec<Units>>,
    /// Whose next grant is answered late, and what happens behind it.
    late_grant: Option<(usize, Option<RedisFault>)>,
    /// A copy of a data folder asked what no server can know better about.
    is_copy_unknown: bool,
    counts: NetCounts,
}

/// The handle to it, for the world and for the nodes.
#[derive(Clone)]
pub struct SimRedis(Arc<Mutex<Net>>);

impl SimRedis {
    pub fn new(nodes: usize, seed: u64) -> Self {
        let first = Server { id: KeyHash::new(1), store: Store::default() };
        Self(Arc::new(Mutex::new(Net {
            now_ms: 0,
            weather: Weather::default(),
            servers: vec![first],
            main: 0,
            at: vec![0; nodes],
            next_server: 2,
            is_stopped_until: 0,
            cut_until: vec![0; nodes],
            calls_down_until: vec![0; nodes],
            has_missed: vec![false; nodes],
            replica: Store::default(),
            copies: VecDeque::new(),
            messages: Vec::new(),
            waiting: Vec::new(),
            timeout_ms: if seed % 8 == 1 { 100_000 } else { TIMEOUT_MS },
            doors: (0..nodes).map(|_| None).collect(),
            proved: vec![Vec::new(); nodes],
            late_grant: None,
            is_copy_unknown: false,
            counts: NetCounts::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Net> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The authority of a process; its answers go to this control thread.
    pub fn authority(&self, peer: Peer, control: ControlHandle) -> Box<dyn StockAuthority> {
        let mut net = self.lock();
        net.doors[peer.node] = Some((peer, control));
        net.send(What::News(peer.node, PoolNews::Reconnected));
        Box::new(SimStock { peer, net: self.clone() })
    }

    /// What a running node's journal proves: nothing else may be told.
    pub fn prove(&self, node: usize, items: &[Units]) {
        let mut net = self.lock();
        net.proved[node].clear();
        net.proved[node].extend_from_slice(items);
    }

    /// The process is gone. What it sent is still on its way.
    pub fn hang_up(&self, peer: Peer) {
        let mut net = self.lock();
        net.proved[peer.node].clear();
        net.doors[peer.node] = None;
        net.waiting.retain(|waiting| waiting.peer != peer);
        if peer.is_copy {
            net.is_copy_unknown = false;
            net.messages.retain(|message| match &message.what {
                What::Call(call) => call.peer != peer,
                What::Answer(of, _) => *of != peer,
                What::News(..) => true,
            });
        }
    }

    /// Whether the copy that runs must end: what it asks cannot be judged by any server.
    pub fn is_copy_unknown(&self) -> bool {
        self.lock().is_copy_unknown
    }

    pub fn set_time(&self, now_ms: u64) {
        self.lock().now_ms = now_ms;
    }
    pub fn weather(&self) -> Weather {
        self.lock().weather
    }
    pub fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }
    pub fn cut(&self, node: usize, ms: u64) {
        let mut net = self.lock();
        net.cut_until[node] = net.now_ms + ms;
        net.reconnect(node);
    }
    pub fn counts(&self) -> NetCounts {
        self.lock().counts
    }
    pub fn copy_refused(&self) {
        self.lock().counts.copies_refused += 1;
    }

    pub fn fault(&self, fault: RedisFault) {
        self.lock().fault(fault);
    }

    /// The node's next grant is answered when an epoch has gone by; what brings that about happens
    /// right behind it. `None`: an operator has the pool rebuilt.
    pub fn delay_grant(&self, node: usize, fault: Option<RedisFault>) {
        self.lock().late_grant = Some((node, fault));
    }

    /// As `onrush stock rebuild` does: nobody's join, above the epoch that is there.
    pub fn rebuild(&self, item: ItemIndex) {
        self.lock().rebuild(item);
    }

    /// From here on nothing breaks, and all talk with the same server.
    pub fn heal(&self) {
        let mut net = self.lock();
        net.weather = Weather::default();
        net.is_stopped_until = 0;
        net.cut_until.fill(0);
        net.timeout_ms = TIMEOUT_MS;
        net.late_grant = None;
        let until = net.now_ms + TIMEOUT_MS;
        for waiting in &mut net.waiting {
            waiting.until_ms = until.min(waiting.until_ms);
        }
        for at in 0..net.messages.len() {
            net.messages[at].due_ms = 0;
            net.messages[at].waits = None;
            if let What::Call(Call { peer, asker, ask, .. }) = &net.messages[at].what {
                let (node, is_found) = (peer.node, net.waits_for(*peer, asker, ask).is_some());
                net.has_missed[node] |= !is_found;
            }
        }
        // Only whoever has missed something is told: a lease must not need more.
        for node in 0..net.at.len() {
            if net.has_missed[node] || net.at[node] != net.main {
                net.at[node] = net.main;
                net.has_missed[node] = false;
                net.reconnect(node);
            }
        }
    }

    /// One message goes its way, if one is due; whether it did.
    pub fn turn(&self, rng: &mut SimRng) -> bool {
        let mut net = self.lock();
        net.time_out();
        let now = net.now_ms;
        let is_due =
            |(_, message): &(usize, &Message)| message.due_ms <= now && net.may_go(message);
        let due: Vec<usize> =
            net.messages.iter().enumerate().filter(is_due).map(|(at, _)| at).collect();
        let Some(first) = due.first() else { return false };
        let at =
            if net.weather.is_mixed { due[rng.below(due.len() as u64) as usize] } else { *first };
        net.go(at, rng);
        true
    }

    /// All messages that are due, in order, as in good weather; whether there were any.
    pub fn deliver(&self) -> bool {
        let mut rng = SimRng::new(0);
        let mut did = false;
        while self.turn(&mut rng) {
            did = true;
        }
        did
    }

    /// The pool as a journal sees it on the server that counts; `None`: it is missing, or lost.
    pub fn look(&self, item: ItemIndex, journal: JournalId) -> Option<PoolView> {
        let mut net = self.lock();
        let (main, id) = (net.main, net.servers[net.main].id);
        let view = net.view(main, item, Asker { journal, ..nobody(item) });
        (view.epoch.number > 0 && view.epoch.server == id).then_some(view)
    }
}

fn nobody(item: ItemIndex) -> Asker {
    Asker {
        item,
        journal: JournalId::new(0),
        incarnation: Incarnation::new(0),
        epoch: Epoch::default(),
        standing: Standing::default(),
    }
}

impl Net {
    fn send(&mut self, what: What) {
        let due_ms = self.now_ms;
        self.messages.push(Message { what, due_ms, was_put_off: false, waits: None });
    }

    /// A node has another connection: it may have missed something, and hears so.
    fn reconnect(&mut self, node: usize) {
        let up_ms = [0, 30, 400][(self.now_ms as usize + node) % 3];
        self.calls_down_until[node] = self.now_ms + up_ms;
        self.send(What::News(node, PoolNews::Reconnected));
    }

    fn wait(&mut self, peer: Peer, given_up: PoolAnswer, until_ms: u64) {
        self.waiting.push(Waiting { peer, given_up, until_ms, was_run: false });
    }

    fn is_stopped(&self) -> bool {
        self.now_ms < self.is_stopped_until
    }

    /// Asks that were not answered in time are given up, as the driver does.
    fn time_out(&mut self) {
        let now = self.now_ms;
        while let Some(at) = self.waiting.iter().position(|waiting| waiting.until_ms <= now) {
            let Waiting { peer, given_up, .. } = self.waiting.remove(at);
            self.hand_over(peer, given_up);
        }
    }

    fn hand_over(&self, to: Peer, answer: PoolAnswer) {
        if let Some((peer, door)) = &self.doors[to.node]
            && *peer == to
        {
            door.stock_answer(answer);
        }
    }

    fn may_go(&self, message: &Message) -> bool {
        let (What::Answer(peer, _), Some((item, epoch))) = (&message.what, message.waits) else {
            return true;
        };
        let proved = self.proved[peer.node].get(item.get() as usize);
        proved.is_some_and(|units| units.epoch > epoch)
    }

    /// A message goes its way, or meets what the weather has for it.
    fn go(&mut self, at: usize, rng: &mut SimRng) {
        let Weather { lost, twice, slow_ms, .. } = self.weather;
        let node = match &self.messages[at].what {
            What::Call(Call { peer, .. }) | What::Answer(peer, _) => peer.node,
            What::News(node, _) => *node,
        };
        let now = self.now_ms;
        let message = &mut self.messages[at];
        if slow_ms > 0 && !message.was_put_off {
            message.was_put_off = true;
            message.due_ms = now + rng.below(u64::from(slow_ms));
            return;
        }
        let is_call = matches!(message.what, What::Call(_));
        let until = self.cut_until[node].max(if is_call { self.is_stopped_until } else { 0 });
        if now < until {
            // What is stuck in between may arrive yet.
            message.due_ms = until;
            if rng.coin() {
                self.lose(at, node);
            }
            return;
        }
        if rng.below(100) < u64::from(lost) {
            return self.lose(at, node);
        }
        let is_again = rng.below(100) < u64::from(twice) && self.messages.len() < MESSAGES_MAX;
        let Message { what, .. } = self.messages.remove(at);
        if is_again {
            self.counts.repeated += 1;
            let again = match &what {
                What::Call(call) => What::Call(Call { ask: call.ask.clone(), ..*call }),
                What::Answer(peer, answer) => What::Answer(*peer, answer.clone()),
                What::News(node, news) => What::News(*node, *news),
            };
            let due_ms = now + rng.below(1 + u64::from(slow_ms));
            self.messages.push(Message { what: again, due_ms, was_put_off: true, waits: None });
        }
        match what {
            What::Call(call) => self.call(call),
            What::Answer(peer, answer) => self.answer(peer, answer),
            What::News(node, news) => {
                if let Some((_, door)) = &self.doors[node] {
                    door.stock_news(news);
                }
            }
        }
    }

    fn lose(&mut self, at: usize, node: usize) {
        self.counts.lost += 1;
        self.has_missed[node] |= matches!(self.messages.remove(at).what, What::News(..));
    }

    fn waits_for(&self, by: Peer, asker: &Asker, ask: &PoolAsk) -> Option<usize> {
        self.waiting.iter().position(|Waiting { peer, given_up, .. }| {
            *peer == by && (&given_up.asker, &given_up.asked) == (asker, ask)
        })
    }

    fn call(&mut self, call: Call) {
        let Call { peer, server, asker, ask } = call;
        let known = self.servers[server].store.told.get(&(asker.item, asker.journal)).copied();
        let (incarnation, told) = known.unwrap_or_default();
        let standing = asker.standing;
        let is_behind = incarnation > asker.incarnation
            || told.accepted > standing.accepted
            || told.returned > standing.returned;
        if peer.is_copy && !is_behind {
            // Nobody could know that this is a copy.
            self.is_copy_unknown = true;
            return;
        }
        let answer = self.run(server, &asker, &ask);
        // What a call does that was given up, or that comes again while the answer to its first
        // coming is on its way, is found by the next one, whenever that is.
        let is_found = self
            .waits_for(peer, &asker, &ask)
            .is_some_and(|at| !std::mem::replace(&mut self.waiting[at].was_run, true));
        self.has_missed[peer.node] |= !is_found;
        let is_let_in = answer.refusal.is_none() && ask != PoolAsk::Inspect;
        assert!(!(peer.is_copy && is_let_in), "an old copy of a data folder was let in: {ask:?}");
        let has_grant = matches!(ask, PoolAsk::Grant { .. })
            && answer.refusal.is_none()
            && answer.view.as_ref().is_some_and(|view| view.granted > standing.accepted);
        let item = asker.item;
        self.send(What::Answer(peer, answer));
        if let Some((_, fault)) =
            self.late_grant.filter(|(node, _)| *node == peer.node && has_grant)
        {
            self.late_grant = None;
            self.counts.late_grants += 1;
            let message = self.messages.last_mut().expect("it was just sent");
            (message.was_put_off, message.waits) = (true, Some((item, asker.epoch.number)));
            match fault {
                Some(fault) => self.fault(fault),
                None => self.rebuild(item),
            }
        }
    }

    /// A server runs a script.
    fn run(&mut self, server: usize, asker: &Asker, ask: &PoolAsk) -> PoolAnswer {
        self.counts.calls += 1;
        let Server { id, store } = &mut self.servers[server];
        let pool = store.pools.entry(asker.item).or_default();
        let answer = pool.on(*id, asker, ask);
        let news = pool.take_news();
        let epoch = answer.view.as_ref().map_or(0, |view| view.epoch.number);
        let known = store.epochs.entry(asker.item).or_default();
        assert!(epoch >= *known, "epochs rise: {epoch} behind {known}");
        *known = epoch;
        if answer.refusal.is_none() && *ask != PoolAsk::Inspect {
            let told = store.told.entry((asker.item, asker.journal)).or_default();
            told.0 = told.0.max(asker.incarnation);
            told.1.raise(&asker.standing);
        }
        if let Some(change) = news {
            let news = PoolNews::Changed { item: asker.item, change };
            for node in (0..self.at.len()).filter(|node| self.at[*node] == server) {
                let due_ms = self.now_ms;
                let what = What::News(node, news);
                self.messages.push(Message { what, due_ms, was_put_off: false, waits: None });
            }
        }
        answer
    }

    fn answer(&mut self, peer: Peer, answer: PoolAnswer) {
        if let Some(at) = self.waits_for(peer, &answer.asker, &answer.asked) {
            self.waiting.remove(at);
        }
        self.hand_over(peer, answer);
    }

    fn view(&mut self, server: usize, item: ItemIndex, asker: Asker) -> PoolView {
        let Server { id, store } = &mut self.servers[server];
        let pool = store.pools.entry(item).or_default();
        pool.on(*id, &asker, &PoolAsk::Inspect).view.unwrap_or_default()
    }

    fn rebuild(&mut self, item: ItemIndex) {
        if self.is_stopped() {
            return;
        }
        let main = self.main;
        let above = self.view(main, item, nobody(item)).epoch.number;
        if above > 0 {
            let ask = PoolAsk::Join { home: None, bump_above: above };
            self.run(main, &nobody(item), &ask);
            self.counts.rebuilds += 1;
        }
    }

    fn fault(&mut self, fault: RedisFault) {
        match fault {
            RedisFault::Stop { ms } => {
                self.is_stopped_until = self.now_ms + u64::from(ms);
                return;
            }
            RedisFault::Sync => {
                self.replica = self.servers[self.main].store.clone();
                self.copies.push_front(self.replica.clone());
                self.copies.truncate(COPIES_MAX);
                return;
            }
            RedisFault::Restart => {}
            RedisFault::Empty => self.servers[self.main].store = Store::default(),
            RedisFault::Backup { back } => {
                let copy = self.copies.get(usize::from(back)).cloned();
                self.servers[self.main].store = copy.unwrap_or_default();
            }
            RedisFault::Failover => self.servers[self.main].store = self.replica.clone(),
            RedisFault::Split { node } => {
                let old = self.main;
                self.main = self.servers.len();
                let (id, store) = (KeyHash::default(), self.replica.clone());
                self.servers.push(Server { id, store });
                self.at.fill(self.main);
                let count = self.at.len();
                self.at[usize::from(node) % count] = old;
            }
        }
        if !matches!(fault, RedisFault::Split { .. }) {
            // Whoever was split off comes back.
            self.at.fill(self.main);
        }
        self.servers[self.main].id = KeyHash::new(self.next_server);
        self.next_server += 1;
        self.counts.forgotten += 1;
        for node in 0..self.at.len() {
            if self.at[node] == self.main {
                self.reconnect(node);
            }
        }
    }
}

/// A process's end of it.
struct SimStock {
    peer: Peer,
    net: SimRedis,
}

impl StockAuthority for SimStock {
    fn name(&mut self, _: ItemIndex, _: &str) {}

    fn ask(&mut self, asker: Asker, ask: PoolAsk) {
        let mut net = self.net.lock();
        let server = net.at[self.peer.node];
        if let Some(proved) = net.proved[self.peer.node].get(asker.item.get() as usize) {
            let told = asker.standing;
            let is_durable = told.accepted <= proved.granted
                && told.returned <= proved.returned
                && told.confirmed <= proved.ever_confirmed
                && asker.epoch.number <= proved.epoch;
            assert!(is_durable, "I4: told before it was durable: {asker:?}, {proved:?}");
        }
        let refusal = Some(PoolRefusal::Unavailable("no answer in time".into()));
        let given_up = PoolAnswer { asker, asked: ask.clone(), view: None, refusal };
        if net.now_ms < net.calls_down_until[self.peer.node] {
            net.counts.failed += 1;
            let at_once = net.now_ms;
            return net.wait(self.peer, given_up, at_once);
        }
        let until_ms = net.now_ms + net.timeout_ms;
        net.wait(self.peer, given_up, until_ms);
        net.send(What::Call(Call { peer: self.peer, server, asker, ask }));
    }

    fn answer(&mut self) -> Option<PoolAnswer> {
        None
    }
}
