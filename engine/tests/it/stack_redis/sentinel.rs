//! A real Sentinel that fails over: the client follows, and notices that the server is another.

use onrush::config::RedisMode;

use super::*;

/// A master with a replica, and a Sentinel that watches both.
pub struct Watched {
    pub master: Server,
    pub replica: Server,
    sentinel: Server,
}

impl Watched {
    pub fn start() -> Self {
        let master = Server::start(&[]);
        let port = master.port.to_string();
        let replica = Server::start(&[
            "--replicaof",
            "127.0.0.1",
            &port,
            "--repl-diskless-sync-delay",
            "0",
            "--repl-timeout",
            "5",
        ]);
        wait_until("the replica follows", PATIENCE, || {
            replica.order(&["INFO", "replication"]).contains("master_link_status:up")
        });
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "sentinel monitor mall 127.0.0.1 {port} 1\n\
             sentinel down-after-milliseconds mall 500\n\
             sentinel failover-timeout mall 4000\n"
        );
        std::fs::write(dir.path().join("sentinel.conf"), text).unwrap();
        let sentinel_port = free_port();
        let options = ["sentinel.conf", "--sentinel", "--bind", "127.0.0.1", "--port"];
        let mut options = options.map(String::from).to_vec();
        options.push(sentinel_port.to_string());
        let sentinel = Server::spawn(dir, sentinel_port, "redis-server", options);
        sentinel.wait_until_it_answers();
        let watched = Self { master, replica, sentinel };
        wait_until("the Sentinel knows the replica", PATIENCE, || {
            let known = watched.sentinel.order(&["SENTINEL", "REPLICAS", "mall"]);
            known.contains(&watched.replica.port.to_string())
        });
        watched
    }

    pub fn settings(&self) -> RedisConfig {
        RedisConfig {
            mode: RedisMode::Sentinel,
            sentinel_master: "mall".into(),
            ..settings(&self.sentinel.url())
        }
    }

    pub fn wait_for_the_replica(&self) {
        let offset = |server: &Server, field: &str| {
            let info = server.order(&["INFO", "replication"]);
            let line = info.lines().find_map(|line| line.strip_prefix(field).map(str::to_owned));
            line.unwrap_or_default()
        };
        wait_until("the replica has it all", PATIENCE, || {
            offset(&self.master, "master_repl_offset:")
                == offset(&self.replica, "slave_repl_offset:")
        });
    }
}

#[test]
fn a_failover_is_followed_and_seen_as_another_life() {
    let mut watched = Watched::start();
    let mut one = Asking::new(&watched.settings());
    let mut a = asker(item(1), 1);
    one.create(&mut a, 100, &[1]);
    a.standing.accepted = view(one.ask(&a, &grant(0, 40))).granted;
    one.ask(&a, &PoolAsk::Tell);
    one.wait_for(PoolNews::Reconnected);
    watched.wait_for_the_replica();
    watched.master.kill();
    let answer = one.ask_until_answered(&a, &grant(40, 50));
    assert_eq!(answer.refusal, Some(PoolRefusal::Lost), "its identity is another");
    assert_eq!(view(answer).epoch, a.epoch, "it has all that the master had");
    let seen = one.follow(&mut a, Some(home(100, &[1])));
    assert_eq!((a.epoch.number, seen.is_open, seen.pool), (2, true, 60));
    one.wait_for(PoolNews::Reconnected);
}

/// † Redis failover that forgets: the replica had missed grants that were sold.
#[test]
fn a_failover_to_a_replica_that_missed_grants_grants_nothing_twice() {
    let mut watched = Watched::start();
    let mut one = Asking::new(&watched.settings());
    let (mut a, mut b) = (asker(item(1), 1), asker(item(1), 2));
    one.create(&mut a, 100, &[1, 2]);
    one.follow(&mut b, None);
    a.standing.accepted = view(one.ask(&a, &grant(0, 10))).granted;
    watched.wait_for_the_replica();
    watched.replica.signal(Signal::STOP);
    b.standing.accepted = view(one.ask(&b, &grant(0, 90))).granted;
    assert_eq!(b.standing.accepted, 90, "granted behind the replica's back");
    watched.master.kill();
    watched.replica.signal(Signal::CONT);
    let answer = one.ask_until_answered(&a, &grant(10, 50));
    assert_eq!(answer.refusal, Some(PoolRefusal::Lost));
    let seen = one.follow(&mut a, Some(home(100, &[1, 2])));
    assert_eq!((seen.is_open, seen.pool), (false, 0), "the other has not reported");
    let seen = one.follow(&mut b, None);
    assert_eq!((seen.is_open, seen.pool, seen.granted), (true, 0, 90), "nothing is left");
}
