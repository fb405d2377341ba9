//! The pool of units on real Redis servers: the scripts, the client, and what may go wrong.

mod cli;
mod client;
pub mod cluster;
mod comparison;
mod faults;
mod histories;
mod rules;
mod secure;
pub mod sentinel;

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use onrush::config::RedisConfig;
use onrush::stock::ask::{
    Asker, Change, Epoch, HomeStanding, PoolAnswer, PoolAsk, PoolNews, PoolRefusal, PoolView,
    Standing,
};
use onrush::stock::authority::StockAuthority as _;
use onrush::stock::redis::driver::{Delivery, RedisStock};
use onrush::stock::redis::endpoint::Endpoint;
use onrush::stock::redis::script::{Call, read};
use onrush::units::{Incarnation, ItemIndex, JournalId, KeyHash};
use rustix::process::{Pid, Signal, kill_process};

use crate::e2e::wait_until;

/// How long anything here may take. Far more than it does.
const PATIENCE: Duration = Duration::from_secs(30);

/// A port that nobody has just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A real server in a folder of its own, killed when it goes out of sight.
pub struct Server {
    dir: tempfile::TempDir,
    pub port: u16,
    program: &'static str,
    options: Vec<String>,
    child: Child,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        Self::on(free_port(), options)
    }

    fn on(port: u16, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut all = vec![String::from("--port"), port.to_string()];
        all.extend(["--bind", "127.0.0.1", "--save", ""].map(String::from));
        all.extend(options.iter().map(ToString::to_string));
        let server = Self::spawn(dir, port, "redis-server", all);
        server.wait_until_it_answers();
        server
    }

    fn spawn(
        dir: tempfile::TempDir,
        port: u16,
        program: &'static str,
        options: Vec<String>,
    ) -> Self {
        let child = launch(dir.path(), program, &options);
        Self { dir, port, program, options, child }
    }

    fn wait_until_it_answers(&self) {
        wait_until("Redis answers", PATIENCE, || {
            let client = redis::Client::open(self.url()).unwrap();
            let connection = client.get_connection_with_timeout(Duration::from_secs(1));
            connection.is_ok_and(|mut c| redis::cmd("PING").query::<String>(&mut c).is_ok())
        });
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Runs a command of Redis itself; its answer as text.
    fn order(&self, words: &[&str]) -> String {
        let mut command = redis::cmd(words[0]);
        let value: redis::Value = command.arg(&words[1..]).query(&mut self.connection()).unwrap();
        match value {
            redis::Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            other => format!("{other:?}"),
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again in the same folder, on the same port.
    pub fn restart(&mut self) {
        self.kill();
        self.child = launch(self.dir.path(), self.program, &self.options);
        self.wait_until_it_answers();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Installs what these tests run, by the script that users have their servers from.
pub fn install() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let run = "source scripts/lib.sh; source scripts/stack.d/redis.sh; redis_install; \
                   need openssl openssl";
        let mut bash = Command::new("bash");
        bash.args(["-c", run]).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        let output = bash.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "Redis cannot be had: {said}");
    });
}

fn launch(dir: &Path, program: &str, options: &[String]) -> Child {
    install();
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    // It ends when the test's thread does, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]).args(options).current_dir(dir);
    command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
    command.spawn().expect("setpriv is part of every Linux")
}

/// The settings of a client of one server.
fn settings(url: &str) -> RedisConfig {
    RedisConfig { urls: vec![url.into()], timeout_ms: 500, ..RedisConfig::default() }
}

fn item(number: u32) -> ItemIndex {
    ItemIndex::new(number)
}

/// What all nodes call an item of these tests.
fn name(item: ItemIndex) -> String {
    format!("sale/sku-{item}")
}

fn asker(item: ItemIndex, journal: u64) -> Asker {
    Asker {
        item,
        journal: JournalId::new(journal),
        incarnation: Incarnation::new(1),
        epoch: Epoch::default(),
        standing: Standing::default(),
    }
}

fn home(added: u64, journals: &[u64]) -> HomeStanding {
    let journals = journals.iter().map(|id| JournalId::new(*id)).collect();
    HomeStanding { added, withdrawn: 0, journals: Some(journals) }
}

fn grant(from: u64, up_to: u64) -> PoolAsk {
    PoolAsk::Grant { from, up_to, need: up_to - from, nodes: 0, max: u64::MAX }
}

fn join(home: Option<HomeStanding>) -> PoolAsk {
    PoolAsk::Join { home, bump_above: 0 }
}

#[track_caller]
fn view(answer: PoolAnswer) -> PoolView {
    answer.view.expect("a view")
}

/// Asks by a plain connection, without the client's thread.
fn ask_on(
    connection: &mut redis::Connection,
    endpoint: &Endpoint,
    asker: &Asker,
    ask: &PoolAsk,
) -> PoolAnswer {
    let call = Call::new(endpoint, &name(asker.item), asker, ask);
    let value: redis::Value = call.by_text().query(connection).unwrap();
    read(asker, ask.clone(), &value).unwrap()
}

/// A node's client with its thread, and what that delivers.
struct Asking {
    stock: RedisStock,
    heard: Receiver<Delivery>,
    news: Vec<PoolNews>,
}

impl Asking {
    fn new(config: &RedisConfig) -> Self {
        let (to, heard) = channel();
        let endpoint = Endpoint::new(config).unwrap();
        let deliver = move |delivery| to.send(delivery).unwrap_or(());
        let stock = RedisStock::start(endpoint, deliver).unwrap();
        Self { stock, heard, news: Vec::new() }
    }

    fn send(&mut self, asker: &Asker, ask: &PoolAsk) {
        self.stock.name(asker.item, &name(asker.item));
        self.stock.ask(*asker, ask.clone());
    }

    /// The next answer; news on the way are kept.
    #[track_caller]
    fn answer(&mut self) -> PoolAnswer {
        loop {
            match self.heard.recv_timeout(PATIENCE).expect("an answer") {
                Delivery::Answer(answer) => return answer,
                Delivery::News(news) => self.news.push(news),
            }
        }
    }

    #[track_caller]
    fn ask(&mut self, asker: &Asker, ask: &PoolAsk) -> PoolAnswer {
        self.send(asker, ask);
        self.answer()
    }

    /// Asks again until Redis answers, whatever it says.
    #[track_caller]
    fn ask_until_answered(&mut self, asker: &Asker, ask: &PoolAsk) -> PoolAnswer {
        let mut found = None;
        wait_until("Redis answers the client", PATIENCE, || {
            let answer = self.ask(asker, ask);
            let is_answer = !matches!(answer.refusal, Some(PoolRefusal::Unavailable(_)));
            found = Some(answer);
            is_answer
        });
        found.unwrap()
    }

    /// Waits for these news; older ones count.
    #[track_caller]
    fn wait_for(&mut self, news: PoolNews) {
        while !self.news.contains(&news) {
            match self.heard.recv_timeout(PATIENCE).expect("news") {
                Delivery::News(heard) => self.news.push(heard),
                Delivery::Answer(answer) => panic!("nobody asked: {answer:?}"),
            }
        }
        self.news.retain(|heard| *heard != news);
    }

    /// Makes the pool of the asker's item, as its home node does: the epoch first.
    #[track_caller]
    fn create(&mut self, asker: &mut Asker, added: u64, journals: &[u64]) {
        let there = view(self.ask_until_answered(asker, &PoolAsk::Inspect));
        assert_eq!(there.epoch.number, 0, "it is there already");
        asker.epoch = Epoch { number: 1, server: there.epoch.server };
        let made = self.ask(asker, &PoolAsk::Create { home: home(added, journals) });
        assert_eq!(made.refusal, None);
    }

    /// Records the pool's epoch and joins it, as a node does after a refusal.
    #[expect(clippy::needless_pass_by_value, reason = "reads better at the many places of use")]
    #[track_caller]
    fn follow(&mut self, asker: &mut Asker, home: Option<HomeStanding>) -> PoolView {
        for _ in 0..8 {
            let answer = self.ask_until_answered(asker, &join(home.clone()));
            match answer.refusal {
                None => return view(answer),
                Some(PoolRefusal::Epoch) => asker.epoch = view(answer).epoch,
                other => panic!("cannot join: {other:?}"),
            }
        }
        panic!("a join never ends")
    }
}

/// Whether an answer says that nothing is known.
fn is_unavailable(answer: &PoolAnswer) -> bool {
    matches!(answer.refusal, Some(PoolRefusal::Unavailable(_)))
}

/// News of an item.
fn news(item: ItemIndex, change: Change) -> PoolNews {
    PoolNews::Changed { item, change }
}

const KEY: KeyHash = KeyHash::new(77);
