//! One request at a time over a kept-alive connection: redeem with a durable answer, "sold out",
//! and bare hyper. Every sample asks each of them in turn, so all three meet the same machine.
//!
//! Rates over many connections, on pinned cores, are measured by `http_redeem`.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use onrush::app::Node;
use onrush::clock::{Clock, RealClock};
use onrush::config::Config;
use onrush_benches::bare;
use onrush_benches::http_client::Caller;
use onrush_benches::redeem::{Redeem, prepare};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MEMBERS: u64 = 20_000;

/// A server and what it is asked.
struct Case {
    name: &'static str,
    caller: Caller,
    requests: Redeem,
    /// The class that its answers have to be of, as an index of `by_class`.
    class: usize,
}

/// One worker and one shard; without persist, which runs behind the sale.
fn node(data: &Path) -> Node {
    let mut config = Config::default();
    config.node.data = data.to_path_buf();
    config.http.listen = "127.0.0.1:0".parse().expect("an address");
    config.http.admin = config.http.listen;
    config.http.workers = 1;
    config.shards.count = 1;
    config.persist.run = false;
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let node = Node::start(config, &clock).expect("the node starts");
    let addresses = node.addresses();
    prepare(addresses.public, addresses.admin, MEMBERS).expect("the node takes the sale");
    node
}

/// Asks each case so many times, one after the other; how long each took in all.
fn ask(cases: &mut [Case], times: u64) -> Vec<Duration> {
    let mut spent = vec![Duration::ZERO; cases.len()];
    for _ in 0..times {
        for (case, spent) in cases.iter_mut().zip(&mut spent) {
            *spent += case.caller.call(&mut case.requests).expect("an answer");
        }
    }
    for case in cases {
        let answers: u64 = case.caller.by_class.iter().sum();
        assert_eq!(case.caller.by_class[case.class], answers, "{}: another answer", case.name);
    }
    spent
}

fn http(criterion: &mut Criterion) {
    // On a disk, where the target folder is.
    let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let node = node(data.path());
    let (sender, listening) = mpsc::channel();
    std::thread::spawn(move || bare::serve(|address| sender.send(address).map_err(io_error)));
    let bare = listening.recv().expect("the bare server listens");
    let public = node.addresses().public;
    let case = |name, address, sku, seed, class| Case {
        name,
        caller: Caller::open(address).expect("a connection"),
        requests: Redeem::new(MEMBERS, sku, 0, seed),
        class,
    };
    let mut cases = [
        case("bare hyper", bare, "hot", 1, 0),
        case("redeem, durable", public, "hot", 2, 0),
        case("sold out", public, "gone", 3, 1),
    ];
    let mut group = criterion.benchmark_group("http");
    group.throughput(Throughput::Elements(1));
    for at in 0..cases.len() {
        let name = cases[at].name;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| ask(&mut cases, times)[at]);
        });
    }
    group.finish();
    drop(cases);
    node.stop();
}

fn io_error(error: impl std::error::Error + Send + Sync + 'static) -> std::io::Error {
    std::io::Error::other(error)
}

criterion_group!(benches, http);
criterion_main!(benches);
