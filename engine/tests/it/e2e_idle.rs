//! 10,000 connections that do nothing cost the others nothing.

use std::net::TcpStream;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::e2e::{Node, Site, now, skip, turn};
use crate::e2e_client::Wish;

const CONNECTIONS: usize = 10_000;

/// Lets this process (and the node it starts) have so many open files.
pub fn raise_file_limit(wanted: u64) -> bool {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|now| now >= wanted) {
        return true;
    }
    limit.current = Some(wanted);
    if limit.maximum.is_some_and(|most| most < wanted) {
        limit.maximum = Some(wanted);
    }
    setrlimit(Resource::Nofile, limit).is_ok()
}

/// Redemptions one after the other on one connection. Units: microseconds, the median.
fn median_latency_us(node: &Node, tag: &str) -> u128 {
    let mut client = node.client();
    let mut latencies: Vec<u128> = (0..400)
        .map(|number| {
            let wish = Wish::new(1 + number % 50, format!("{tag}-{number}"), "idle", "cup");
            let begun = now();
            client.redeem(&wish).expect(201);
            begun.elapsed().as_micros()
        })
        .collect();
    latencies.sort_unstable();
    latencies[latencies.len() / 2]
}

#[test]
fn ten_thousand_idle_connections_cost_the_others_nothing() {
    let _turn = turn();
    if !raise_file_limit(CONNECTIONS as u64 + 1_000) {
        skip("idle connections", "the limit of open files cannot be raised (ulimit -n)");
        return;
    }
    let mut site = Site::new();
    site.set("http.read_timeout_ms", "60000");
    let node = site.start();
    node.import_members(1, 50, 1_000_000);
    node.open_sale("idle", 3_600_000, &[("cup", 1, 100_000, 100_000)]);
    median_latency_us(&node, "warm");
    let before = median_latency_us(&node, "before");
    let memory_before = node.resident_bytes();
    let idle: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|number| {
            let address = node.public;
            TcpStream::connect_timeout(&address, Duration::from_secs(5))
                .unwrap_or_else(|e| panic!("connection {number}: {e}"))
        })
        .collect();
    let with = median_latency_us(&node, "with");
    let memory = node.resident_bytes().saturating_sub(memory_before) / CONNECTIONS as u64;
    println!(
        "{} idle connections: median answer {before} µs before, {with} µs with them, {memory} \
         bytes of memory each",
        idle.len()
    );
    // Twice, because two runs on a shared machine differ; what is looked for is ten times.
    assert!(with < 2 * before + 1_000, "{before} µs became {with} µs");
    assert!(memory < 64 << 10, "{memory} bytes each");
    assert!(node.stop().success(), "idle connections do not hold up the drain");
}
