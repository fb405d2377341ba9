//! Random histories: several leases and one pool, with messages lost, late and repeated, nodes that
//! crash between any two steps or are cut off, and a server that forgets. The invariants are
//! checked after each step.
//!
//! The pool lies behind [`Place`]: the model of it, or real servers (`tests/it/stack_redis`). What
//! this file takes from the parent module is all that both have.

use std::collections::{HashMap, VecDeque};

use super::{
    A, Asker, Change, E, Elsewhere, Epoch, Holder, HomeStanding, ITEM, Incarnation, JournalId,
    KeyHash, Known, Lease, LeaseAction, LeaseEvent, Phase, PoolAnswer, PoolAsk, PoolRefusal,
    PoolView, RULES, Standing,
};

/// Where the pool lives, and what may become of it there.
pub trait Place {
    /// Carries an ask out. `None`: its answer comes later, or never.
    fn ask(&mut self, node: usize, asker: &Asker, ask: &PoolAsk) -> Option<PoolAnswer>;
    /// What was published by the asks before, and which nodes listen there.
    fn news(&mut self) -> Vec<(usize, Change)>;
    /// Something breaks, perhaps.
    fn break_something(&mut self, random: &mut Random) -> Happened;
    /// A step has passed, and it is now so many milliseconds: what was to last so long is over.
    fn pass(&mut self, now: u64, random: &mut Random) -> Happened;
    /// From here on nothing breaks, and all talk with the same server.
    fn heal(&mut self) -> Happened;
    /// The pool on the server that counts; `None`: it is lost.
    fn look(&mut self, asker: &Asker) -> Option<PoolView>;
    /// Milliseconds that a step may take.
    fn step_ms(&self, how: How) -> u64;
}

/// What happened where the pool lives, as nodes may notice it.
#[derive(Default)]
pub struct Happened {
    /// Something that was granted, returned or withdrawn may be forgotten.
    pub is_forgotten: bool,
    /// Nodes with a new connection: they hear so, and their first asks may come too early.
    pub reconnected: Vec<usize>,
    /// Answers that nobody waited for any more, perhaps.
    pub answers: Vec<(usize, PoolAnswer)>,
    pub counted: Vec<&'static str>,
}

/// `SplitMix64`.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, Debug)]
enum Record {
    Epoch(Epoch),
    Total(u64),
    Granted { granted: u64, epoch: u32 },
    Returned(u64),
    Added(u64),
    Withdrawn(u64),
    Sold(u64),
    Reversed(u64),
}

/// What a journal proves.
#[derive(Clone, Copy, Default, Debug)]
struct Books {
    epoch: Epoch,
    standing: Standing,
    added: u64,
    withdrawn: u64,
    total_seen: u64,
}

impl Books {
    fn here(&self) -> u64 {
        self.standing.accepted - self.standing.returned
    }
    fn apply(&mut self, record: Record, is_home: bool) {
        match record {
            Record::Epoch(epoch) => {
                assert!(epoch.number > self.epoch.number, "an epoch entered twice");
                self.epoch = epoch;
            }
            Record::Total(total) => self.total_seen = total,
            Record::Granted { granted, epoch } => {
                assert_eq!(epoch, self.epoch.number, "a grant of another epoch");
                self.standing.accepted = granted;
            }
            Record::Returned(returned) => self.standing.returned = returned,
            Record::Added(units) => self.added += units,
            Record::Withdrawn(units) => self.withdrawn += units,
            Record::Sold(units) => self.standing.confirmed += units,
            Record::Reversed(units) => self.standing.unconfirmed += units,
        }
        let total = if is_home { self.added - self.withdrawn } else { self.total_seen };
        assert!(self.here() <= total, "I1 in one journal: {self:?}");
    }
    fn sold(&self) -> u64 {
        self.standing.confirmed - self.standing.unconfirmed
    }
}

struct Node {
    journal: JournalId,
    is_home: bool,
    incarnation: u32,
    disk: Books,
    /// Written, not durable: lost by a crash. Each with what comes once it is durable.
    writing: VecDeque<(Record, Option<LeaseEvent>)>,
    lease: Lease,
    line: u64,
    elsewhere: Elsewhere,
    /// Withdrawals answered: key, units.
    answered: HashMap<u128, u64>,
    /// Its connection broke with news on it: it is told so once there is another.
    has_missed: bool,
    /// Until when its asks fail at once: the connection for news may be there before.
    asks_fail_until: u64,
    /// Until when nothing gets through to it, or from it.
    cut_until: u64,
}

/// What may happen in a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    Faulty,
    Well,
    /// The same, and nobody buys.
    Quiet,
}

pub struct World<P> {
    place: P,
    random: Random,
    now: u64,
    nodes: Vec<Node>,
    asks: Vec<(Asker, PoolAsk)>,
    answers: Vec<(usize, PoolAnswer)>,
    /// Units were added or reversed: a "final" may be out of date for a while.
    has_grown: bool,
    /// By the pool.
    withdrawn: u64,
    keys: u128,
    /// Found while nobody knew.
    stats: HashMap<&'static str, u64>,
}

impl<P: Place> World<P> {
    pub fn new(seed: u64, count: usize, total: u64, place: P) -> Self {
        let random = Random::new(seed);
        let nodes = (0..count).map(|index| {
            let journal = JournalId::new(index as u64 + 1);
            let mut disk = Books::default();
            if index == 0 {
                disk.added = total;
            }
            let mut node = Node {
                journal,
                is_home: index == 0,
                incarnation: 0,
                disk,
                writing: VecDeque::new(),
                lease: lease(journal, 0, Known::default()),
                line: 0,
                elsewhere: Elsewhere::default(),
                answered: HashMap::new(),
                has_missed: false,
                asks_fail_until: 0,
                cut_until: 0,
            };
            node.start(count);
            node
        });
        Self {
            place,
            now: 1_000,
            nodes: nodes.collect(),
            asks: Vec::new(),
            answers: Vec::new(),
            has_grown: false,
            withdrawn: 0,
            keys: 0,
            stats: HashMap::new(),
            random,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.stats.entry(what).or_default() += 1;
    }

    fn event(&mut self, index: usize, event: LeaseEvent) {
        let mut todo = VecDeque::from([event]);
        while let Some(event) = todo.pop_front() {
            let mut actions = Vec::new();
            self.nodes[index].lease.on(self.now, event, &mut actions);
            for action in actions {
                if let Some(next) = self.act(index, action) {
                    todo.push_back(next);
                }
            }
        }
        self.check();
    }

    fn act(&mut self, index: usize, action: LeaseAction) -> Option<LeaseEvent> {
        let node = &mut self.nodes[index];
        match action {
            A::Ask(asker, ask) => {
                assert_eq!(asker.epoch, node.disk.epoch, "asked under what is not durable");
                let told = (asker.standing.accepted, asker.standing.returned);
                let durable = (node.disk.standing.accepted, node.disk.standing.returned);
                assert_eq!(told, durable, "told what is not durable");
                if self.now < node.asks_fail_until {
                    let refusal = Some(PoolRefusal::Unavailable("no connection".into()));
                    let failed = PoolAnswer { asker, asked: ask, view: None, refusal };
                    self.answers.push((index, failed));
                    self.count("asks without a connection");
                } else {
                    self.asks.push((asker, ask));
                }
            }
            A::RecordEpoch(epoch) => {
                let then = Some(E::EpochDurable { epoch });
                node.writing.push_back((Record::Epoch(epoch), then));
            }
            A::RecordTotal(total) => node.writing.push_back((Record::Total(total), None)),
            A::RecordGranted { granted, epoch } => {
                let then = Some(E::AcceptDurable { granted });
                node.writing.push_back((Record::Granted { granted, epoch }, then));
            }
            A::Enter { quantity } => node.line += quantity,
            A::Take { quantity } => {
                let quantity = quantity.min(node.line);
                node.line -= quantity;
                return Some(E::Taken { quantity });
            }
            A::RecordReturned { quantity, .. } => {
                let before = node.writing.iter().filter_map(|(record, _)| match record {
                    Record::Returned(returned) => Some(*returned),
                    _ => None,
                });
                let returned = before.max().unwrap_or(node.disk.standing.returned) + quantity;
                let then = Some(E::ReturnDurable { returned });
                node.writing.push_back((Record::Returned(returned), then));
            }
            A::Withdrawn { key, quantity } => {
                if let Some(quantity) = quantity {
                    assert!(node.answered.insert(key.get(), quantity).is_none(), "answered twice");
                    node.writing.push_back((Record::Withdrawn(quantity), None));
                }
            }
            A::WithdrawalFound { quantity, .. } => {
                node.writing.push_back((Record::Withdrawn(quantity), None));
                self.count("withdrawals found");
            }
            A::Elsewhere(elsewhere) => node.elsewhere = elsewhere,
            A::Halt(why) => panic!("{why:?}: no data folder here is a copy"),
        }
        None
    }

    /// What must hold at any time, by durable evidence and what is in the lines.
    fn check(&self) {
        let home = &self.nodes[0].disk;
        let total = home.added - home.withdrawn;
        let here: u64 = self.nodes.iter().map(|node| node.disk.here()).sum();
        assert!(here <= total, "I1: {here} units with nodes, {total} in the sale");
        for node in &self.nodes {
            let sold = node.disk.sold() + node.selling();
            assert!(sold + node.line <= node.disk.here(), "I2: {} of {:?}", node.line, node.disk);
        }
        let sold: u64 = self.nodes.iter().map(|node| node.disk.sold()).sum();
        assert!(sold <= total);
        if !self.has_grown && self.nodes.iter().any(Node::is_final) {
            // What the pool has withdrawn is gone, though it is not on record yet.
            let total = home.added - self.withdrawn.max(home.withdrawn);
            assert_eq!(sold, total, "sold out, it is said for good");
        }
    }

    fn step(&mut self, how: How) {
        self.now += self.random.below(self.place.step_ms(how));
        let happened = self.place.pass(self.now, &mut self.random);
        self.happen(happened);
        let index = self.random.below(self.nodes.len() as u64) as usize;
        let is_faulty = how == How::Faulty && self.random.percent(60);
        match self.random.below(100) {
            0..30 => self.deliver_ask(is_faulty),
            30..50 => self.deliver_answer(is_faulty),
            50..65 => self.sync(index),
            65..80 => self.look(index),
            80..95 if how != How::Quiet => self.sell(index),
            95 if is_faulty => self.crash(index),
            96 if is_faulty => {
                let happened = self.place.break_something(&mut self.random);
                self.happen(happened);
            }
            97 if is_faulty => self.admin(),
            98 if is_faulty && self.random.percent(20) => self.reverse(index),
            99 if is_faulty && self.random.percent(20) => self.cut(index),
            // News for nothing are harmless, and must not be what keeps it all going.
            _ if how == How::Faulty => {
                let change = Change::ALL[self.random.below(3) as usize];
                self.event(index, E::News(change));
            }
            _ => {}
        }
    }

    fn deliver_ask(&mut self, is_faulty: bool) {
        if self.asks.is_empty() {
            return;
        }
        let at = if is_faulty { self.random.below(self.asks.len() as u64) as usize } else { 0 };
        let (asker, ask) = if is_faulty && self.random.percent(10) {
            self.asks[at].clone()
        } else {
            self.asks.remove(at)
        };
        if is_faulty && self.random.percent(5) {
            return self.count("asks lost");
        }
        let index = asker.journal.get() as usize - 1;
        if self.now < self.nodes[index].cut_until {
            return self.count("asks of a node that is cut off");
        }
        if let Some(answer) = self.place.ask(index, &asker, &ask) {
            self.answered(index, answer);
        }
        self.tell_news(is_faulty);
    }

    fn answered(&mut self, index: usize, answer: PoolAnswer) {
        self.withdrawn = self.withdrawn.max(answer.view.as_ref().map_or(0, |v| v.withdrawn));
        self.answers.push((index, answer));
    }

    fn tell_news(&mut self, is_faulty: bool) {
        for (index, change) in self.place.news() {
            let is_cut = self.now < self.nodes[index].cut_until;
            if !is_cut && (!is_faulty || self.random.percent(80)) {
                self.event(index, E::News(change));
            } else {
                self.nodes[index].has_missed = true;
            }
        }
    }

    /// What happened to the pool's server reaches the nodes as it may.
    fn happen(&mut self, happened: Happened) {
        // A withdrawal that only it knew is undone.
        self.has_grown |= happened.is_forgotten;
        for what in happened.counted {
            self.count(what);
        }
        for (index, answer) in happened.answers {
            self.answered(index, answer);
        }
        // Whoever is connected to it anew hears so, and may ask too early all the same.
        for index in happened.reconnected {
            self.nodes[index].asks_fail_until = self.now + self.random.below(3) * 200;
            if self.now >= self.nodes[index].cut_until && self.random.percent(80) {
                self.event(index, E::News(Change::Turned));
            } else {
                self.nodes[index].has_missed = true;
            }
        }
        self.tell_news(false);
    }

    /// A node is cut off from the pool's server.
    fn cut(&mut self, index: usize) {
        self.nodes[index].cut_until = self.now + self.random.below(500);
        self.nodes[index].has_missed = true;
        self.count("nodes cut off");
    }

    fn deliver_answer(&mut self, is_faulty: bool) {
        if self.answers.is_empty() {
            return;
        }
        let at = if is_faulty { self.random.below(self.answers.len() as u64) as usize } else { 0 };
        let (index, mut answer) = if is_faulty && self.random.percent(10) {
            self.answers[at].clone()
        } else {
            self.answers.remove(at)
        };
        let is_cut = self.now < self.nodes[index].cut_until;
        if is_cut || is_faulty && self.random.percent(10) {
            answer.view = None;
            answer.refusal = Some(PoolRefusal::Unavailable("lost".into()));
            self.count("answers lost");
        }
        self.event(index, E::Answer(answer));
    }

    /// The oldest record is durable now.
    fn sync(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some((record, then)) = node.writing.pop_front() else { return };
        node.disk.apply(record, node.is_home);
        if let Record::Reversed(units) = record {
            node.line += units;
        }
        let (added, withdrawn) = (node.disk.added, node.disk.withdrawn);
        if matches!(record, Record::Added(_) | Record::Withdrawn(_)) {
            self.event(index, E::HomeDurable { added, withdrawn });
        }
        if let Some(event) = then {
            self.event(index, event);
        }
        self.check();
    }

    fn look(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Standing { confirmed, unconfirmed, .. } = node.disk.standing;
        let (free, is_missed) = (node.line, node.line == 0 && self.random.percent(70));
        self.event(index, E::Seen { free, confirmed, unconfirmed, is_missed });
    }

    fn sell(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.line > 0 {
            node.line -= 1;
            node.writing.push_back((Record::Sold(1), None));
        }
    }

    fn reverse(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let pending = node.writing.iter().filter(|(r, _)| matches!(r, Record::Reversed(_))).count();
        if node.disk.sold() > pending as u64 {
            self.has_grown = true;
            node.writing.push_back((Record::Reversed(1), None));
        }
    }

    fn admin(&mut self) {
        let home = &mut self.nodes[0];
        if self.random.percent(20) {
            self.has_grown = true;
            home.writing.push_back((Record::Added(5), None));
        } else if !home.lease.is_withdrawing() {
            self.keys += 1;
            let (quantity, key) = (1 + self.random.below(20), KeyHash::new(self.keys));
            self.event(0, E::Withdraw { quantity, key });
        }
    }

    fn crash(&mut self, index: usize) {
        let count = self.nodes.len();
        let node = &mut self.nodes[index];
        // Some of what was written was durable, and nobody was told.
        let kept = self.random.below(node.writing.len() as u64 + 1) as usize;
        for (record, _) in node.writing.drain(..).take(kept) {
            node.disk.apply(record, node.is_home);
        }
        node.start(count);
        self.count("crashes");
    }

    /// Without faults, and before anybody buys: who holds units asks for nothing.
    fn wait_for_the_pool(&mut self) {
        let happened = self.place.heal();
        self.happen(happened);
        for index in 0..self.nodes.len() {
            self.nodes[index].cut_until = 0;
            if std::mem::take(&mut self.nodes[index].has_missed) {
                self.event(index, E::News(Change::Turned));
            }
        }
        for step in 0..8_000 {
            self.step(How::Quiet);
            if step % 16 == 0 && self.is_open() {
                return;
            }
        }
        panic!("the pool stays shut: {:#?}", self.stands());
    }

    /// Whether the pool grants, and every node has joined it.
    fn is_open(&mut self) -> bool {
        let asker = Asker {
            item: ITEM,
            journal: JournalId::new(0),
            incarnation: Incarnation::new(0),
            epoch: Epoch::default(),
            standing: Standing::default(),
        };
        let Some(view) = self.place.look(&asker) else { return false };
        let has_joined =
            |node: &Node| node.lease.phase() == Phase::Open && node.disk.epoch == view.epoch;
        view.is_open && self.nodes.iter().all(has_joined)
    }

    fn stands(&self) -> Vec<(Phase, u64, Books)> {
        self.nodes.iter().map(|node| (node.lease.phase(), node.line, node.disk)).collect()
    }

    /// So many steps with faults, and then until all is sold; `last` happens in between: nothing
    /// else comes behind it that would have anybody look. Gives the place back, and what there was.
    pub fn run(
        mut self,
        steps: u64,
        last: impl FnOnce(&mut P) -> Happened,
    ) -> (P, HashMap<&'static str, u64>) {
        for _ in 0..steps {
            self.step(How::Faulty);
        }
        let happened = last(&mut self.place);
        self.happen(happened);
        self.heal();
        (self.place, self.stats)
    }

    /// Until nothing changes any more, without faults; everything is sold.
    fn heal(&mut self) {
        self.wait_for_the_pool();
        for _ in 0..200_000 {
            self.step(How::Well);
            // Where all was withdrawn, nothing is sold out.
            let is_known = |node: &Node| node.is_final() || self.total() == 0;
            let is_over = self.nodes.iter().all(|n| is_known(n) && n.writing.is_empty());
            if is_over && self.sold() == self.total() {
                return;
            }
        }
        panic!("sold {} of {}: {:#?}", self.sold(), self.total(), self.stands());
    }

    fn sold(&self) -> u64 {
        self.nodes.iter().map(|node| node.disk.sold()).sum()
    }
    fn total(&self) -> u64 {
        self.nodes[0].disk.added - self.nodes[0].disk.withdrawn
    }
}

impl Node {
    /// As the stock lines have it.
    fn is_final(&self) -> bool {
        let elsewhere = self.elsewhere.final_confirmed;
        elsewhere.is_some_and(|there| there + self.disk.sold() == self.elsewhere.total)
    }
    fn selling(&self) -> u64 {
        self.writing.iter().filter(|(record, _)| matches!(record, Record::Sold(_))).count() as u64
    }

    /// A process begins, with what the disk proves.
    fn start(&mut self, count: usize) {
        self.incarnation += 1;
        self.line = self.disk.here() - self.disk.sold();
        let journals = (1..=count as u64).map(JournalId::new).collect();
        let Books { added, withdrawn, .. } = self.disk;
        let home = HomeStanding { added, withdrawn, journals: Some(journals) };
        let known = Known {
            epoch: self.disk.epoch,
            standing: self.disk.standing,
            home: self.is_home.then_some(home),
            total: if self.is_home { added - withdrawn } else { self.disk.total_seen },
            free: self.line,
        };
        self.lease = lease(self.journal, self.incarnation, known);
        self.elsewhere = Elsewhere::default();
    }
}

fn lease(journal: JournalId, incarnation: u32, known: Known) -> Lease {
    let incarnation = Incarnation::new(incarnation);
    Lease::new(RULES, Holder { item: ITEM, journal, incarnation }, known)
}
