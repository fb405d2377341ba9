//! A real Cluster of three masters, made as an operator makes it.

use onrush::config::RedisMode;
use onrush::stock::redis::inspect;

use super::*;

const ITEMS: u32 = 24;

/// Three masters, and the settings of their clients.
pub fn cluster() -> (Vec<Server>, RedisConfig) {
    // The bus listens 10,000 above the port, which must be a port, too.
    let port = || std::iter::repeat_with(free_port).find(|port| *port < 55_000).unwrap();
    let options =
        ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "yes"];
    let servers: Vec<_> = (0..3).map(|_| Server::on(port(), &options)).collect();
    let addresses = servers.iter().map(|server| format!("127.0.0.1:{}", server.port));
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(addresses).arg("--cluster-yes");
    let output = create.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    wait_until("the Cluster is up", PATIENCE, || {
        servers.iter().all(|s| s.order(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
    });
    let config = RedisConfig {
        mode: RedisMode::Cluster,
        urls: servers.iter().map(Server::url).collect(),
        timeout_ms: 500,
        ..RedisConfig::default()
    };
    (servers, config)
}

fn keys(server: &Server) -> u32 {
    let count: u32 = redis::cmd("DBSIZE").query(&mut server.connection()).unwrap();
    count
}

#[test]
fn pools_live_on_all_masters_of_a_cluster_each_in_one_slot() {
    let (mut servers, config) = cluster();
    let (mut one, mut two) = (Asking::new(&config), Asking::new(&config));
    let mut askers: Vec<_> = (0..ITEMS).map(|number| asker(item(number), 1)).collect();
    for a in &mut askers {
        one.create(a, 100, &[1, 2]);
        let granted = view(one.ask(a, &grant(0, 60))).granted;
        assert_eq!(granted, 60);
        a.standing.accepted = granted;
        let withdraw = PoolAsk::Withdraw { from: 0, up_to: 10, key: KEY };
        assert_eq!(view(one.ask(a, &withdraw)).pool, 30);
        assert_eq!(view(one.ask(a, &PoolAsk::Total { added: 110 })).pool, 40);
    }
    let spread: Vec<_> = servers.iter().map(keys).collect();
    assert_eq!(spread.iter().sum::<u32>(), ITEMS, "one key per item");
    assert!(spread.iter().all(|count| *count > 0), "{spread:?}");

    // News go to whichever node one listens to.
    two.wait_for(PoolNews::Reconnected);
    for a in &mut askers {
        let mut b = asker(a.item, 2);
        two.follow(&mut b, None);
        two.news.clear();
        a.standing.returned = 5;
        assert_eq!(view(two.ask(&b, &grant(0, 50))).granted, 40);
        b.standing.accepted = 40;
        two.ask(&b, &grant(40, 43));
        one.ask(a, &PoolAsk::Tell);
        two.wait_for(news(a.item, Change::Freed));
    }

    let endpoint = Endpoint::new(&config).unwrap();
    let found = inspect::pools(&endpoint, None, None).unwrap();
    assert_eq!(found.len() as u32, ITEMS, "from every master");
    assert!(found.iter().all(|pool| pool.state == "open" && pool.journals.len() == 2));
    let of_one = inspect::pools(&endpoint, Some("sale"), Some("sku-3")).unwrap();
    assert_eq!((of_one.len(), of_one[0].sku.as_str()), (1, "sku-3"));

    // One master dies: its items are unavailable, the others' are not.
    let before: Vec<_> = askers.iter().map(|a| a.epoch).collect();
    servers[0].kill();
    servers[0].restart();
    wait_until("the Cluster is up again", PATIENCE, || {
        servers.iter().all(|s| s.order(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
    });
    let mut lost = 0;
    for a in &mut askers {
        let answer = one.ask_until_answered(a, &PoolAsk::Tell);
        match answer.refusal {
            None => {}
            Some(PoolRefusal::Lost) => {
                lost += 1;
                let seen =
                    one.follow(a, Some(HomeStanding { withdrawn: 10, ..home(110, &[1, 2]) }));
                assert!(!seen.is_open, "the other journal has not reported");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lost, spread[0], "those of the master that was another life");
    let moved = askers.iter().zip(before).filter(|(a, before)| a.epoch != *before).count();
    assert_eq!(moved as u32, lost);
}
