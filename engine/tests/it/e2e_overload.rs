//! Ten times the load that the node can carry: what it does carry is to stay at 80 % of its best or
//! above, and its memory stays bounded. Both are printed. Load is all that differs: the best is
//! what the same connections get done when each asks as it is answered.
//!
//! The node has one core, the generator another: one thread that writes pipelined requests to many
//! connections and only counts the status lines that come back. It offers them by the clock, not by
//! the answers (open loop). A request that is due goes to the next connection that takes it; what
//! all of them are too full to take is held back, as it would be by TCP in a client. So whether ten
//! times the load was offered depends on one thing alone, how fast it comes round to all of its
//! connections. Goodput is compared by the clock. A round in which neighbours took the node's core,
//! or kept the generator from its own, is not counted, unless too few are left.
//!
//! What fails is a node that collapses. Between half and 80 % lies what a disk that stalls does to
//! one of two runs [75 % over nine rounds on a busy host, 100 % on the same code an hour later]:
//! there the figure is printed, and a person looks.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::e2e::{Random, Site, now, setting, skip, turn, wait_until};
use crate::e2e_idle::raise_file_limit;

const MEMBERS: u64 = 20_000;
const CONNECTIONS: usize = 1_000;
/// Units: bytes of memory per redemption, with its request key, generously.
const REDEMPTION_BYTES_MAX: u64 = 1_024;
/// What a status line begins with; three digits follow.
const STATUS_LINE: &[u8] = b"HTTP/1.1 ";

/// What came back.
#[derive(Default, Clone, Copy, Debug)]
struct Counts {
    sent: u64,
    done: u64,
    refused: u64,
    other: u64,
    /// Sent, and not answered by the end.
    waiting: u64,
    seconds: f64,
    /// The longest time between two looks at the same connection.
    slowest_pass: Duration,
    /// Shares of the node's core: the node's, and its neighbours'.
    busy: f64,
    taken: f64,
}

impl Counts {
    fn goodput(&self) -> f64 {
        self.done as f64 / self.seconds
    }
    fn rate(&self) -> f64 {
        self.sent as f64 / self.seconds
    }
    /// Of a rate that was wanted, how much found its way to a connection, or all of them full.
    fn offered(&self, wanted: f64) -> f64 {
        wanted * (1.0 - self.slowest_pass.as_secs_f64() / self.seconds)
    }
    fn count(&mut self, status: &[u8]) {
        match status {
            b"201" => self.done += 1,
            b"503" => self.refused += 1,
            _ => self.other += 1,
        }
    }
    fn answered(&self) -> u64 {
        self.done + self.refused + self.other
    }
}

struct Connection {
    stream: TcpStream,
    to_send: Vec<u8>,
    sent: usize,
    /// The end of what was read, which may hold half a status line.
    tail: Vec<u8>,
    outstanding: u64,
}

impl Connection {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        // Small, or the kernel's buffers hold seconds of load that nobody asked the node for.
        sockopt::set_socket_send_buffer_size(&stream, 32 << 10).expect("set");
        stream.set_nonblocking(true).expect("set");
        stream.set_nodelay(true).expect("set");
        Self { stream, to_send: Vec::new(), sent: 0, tail: Vec::new(), outstanding: 0 }
    }

    fn queue(&mut self, request: &[u8]) {
        self.to_send.extend_from_slice(request);
        self.outstanding += 1;
    }

    /// Whether all that was queued is on its way.
    fn flush(&mut self) -> bool {
        while self.sent < self.to_send.len() {
            match self.stream.write(&self.to_send[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => panic!("the node closed a connection under load: {error}"),
            }
        }
        self.to_send.clear();
        self.sent = 0;
        true
    }

    fn drain(&mut self, buffer: &mut [u8], counts: &mut Counts) {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => panic!("the node closed a connection under load"),
                Ok(count) => self.scan(&buffer[..count], counts),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn scan(&mut self, bytes: &[u8], counts: &mut Counts) {
        self.tail.extend_from_slice(bytes);
        let whole = STATUS_LINE.len() + 3;
        let mut at = 0;
        while at + whole <= self.tail.len() {
            let rest = &self.tail[at..];
            if rest.starts_with(STATUS_LINE) {
                counts.count(&rest[STATUS_LINE.len()..whole]);
                self.outstanding -= 1;
                at += whole;
            } else {
                let next = rest[1..].iter().position(|b| *b == b'H');
                at += next.map_or(rest.len() - 1, |n| n + 1).min(rest.len());
            }
        }
        self.tail.drain(..at.min(self.tail.len()));
    }
}

/// Requests without end, each with a key of its own.
struct Requests<'a> {
    tag: &'a str,
    random: Random,
    number: u64,
    text: Vec<u8>,
}

impl Requests<'_> {
    fn next(&mut self) -> &[u8] {
        self.number += 1;
        self.text.clear();
        write!(
            self.text,
            "POST /v1/sales/load/redemptions HTTP/1.1\r\nhost: x\r\nx-member-id: {}\r\n\
             idempotency-key: {}-{}\r\ncontent-type: application/json\r\ncontent-length: 26\r\n\
             \r\n{{\"sku\":\"cup\",\"quantity\":1}}",
            1 + self.random.below(MEMBERS),
            self.tag,
            self.number
        )
        .expect("a buffer");
        &self.text
    }
}

/// How requests are offered.
#[derive(Clone, Copy)]
enum Offer {
    /// As many as are answered, this many ahead on each connection: what finds the best.
    AsAnswered { ahead: u64 },
    /// So many a second, whether or not any is answered.
    Regardless { per_second: f64 },
}

/// Requests that are written at a time, at most: each write costs the generator more than the
/// requests in it.
const AT_ONCE: u64 = 32;

/// Offers requests over this many connections for so long.
fn drive(
    address: SocketAddr,
    tag: &str,
    connections: usize,
    offer: Offer,
    length: Duration,
) -> Counts {
    let random = Random::from_seed(connections as u64);
    let mut requests = Requests { tag, random, number: 0, text: Vec::new() };
    let mut connections: Vec<_> = (0..connections).map(|_| Connection::open(address)).collect();
    let mut buffer = vec![0; 256 << 10];
    let mut counts = Counts::default();
    let begun = now();
    while begun.elapsed() < length {
        let pass_begun = now();
        for connection in &mut connections {
            let mut takes_more = connection.flush();
            let mut room = match offer {
                Offer::AsAnswered { ahead } => ahead.saturating_sub(connection.outstanding),
                Offer::Regardless { per_second } => {
                    let due = per_second * begun.elapsed().as_secs_f64();
                    (due as u64).saturating_sub(counts.sent)
                }
            };
            while takes_more && room > 0 {
                let count = room.min(AT_ONCE);
                (0..count).for_each(|_| connection.queue(requests.next()));
                counts.sent += count;
                room -= count;
                takes_more = connection.flush();
            }
            connection.drain(&mut buffer, &mut counts);
        }
        counts.slowest_pass = counts.slowest_pass.max(pass_begun.elapsed());
    }
    counts.seconds = begun.elapsed().as_secs_f64();
    counts.waiting = connections.iter().map(|connection| connection.outstanding).sum();
    assert_eq!(counts.answered() + counts.waiting, counts.sent, "answers to nothing: {counts:?}");
    assert_eq!(counts.other, 0, "neither 201 nor 503: {counts:?}");
    counts
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    let _ = sched_setaffinity(None, &set);
}

/// Processor time that was had on a core by anybody. Units: ticks of the kernel's clock.
fn core_ticks(core: usize) -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("Linux");
    let name = format!("cpu{core} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name)).expect("the core is there");
    let fields = line.split(' ').map(|ticks| ticks.parse::<u64>().expect("a number"));
    // user, nice, system, soft interrupts, which a process's own time has too, and what the machine
    // below us took.
    let counted = [0, 1, 2, 6, 7];
    fields.enumerate().filter(|(at, _)| counted.contains(at)).map(|(_, ticks)| ticks).sum()
}

/// How much of the best goodput is left. `rounds`: the best and what was carried, of each.
fn share(rounds: &[(f64, f64)]) -> f64 {
    if rounds.is_empty() {
        return 0.0;
    }
    median(rounds.iter().map(|of| of.1)) / median(rounds.iter().map(|of| of.0))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The share of the best goodput that is wanted, and the one below which the test fails.
const AIM: f64 = 0.8;
const FLOOR: f64 = 0.5;
/// Rounds that are compared at least, and that are begun at most: neighbours on the machine take
/// from some of them.
const ROUNDS: std::ops::Range<usize> = 3..9;
/// The share of the node's core that neighbours may take in a round that counts.
const TAKEN_MAX: f64 = 0.1;
/// The node inherits its core; the generator is the thread that starts it.
const NODE_CORE: usize = 0;
const GENERATOR_CORE: usize = 1;

/// With the built-in bounds, which let TCP hold back what cannot be carried.
#[test]
fn ten_times_the_load_leaves_the_goodput_and_bounds_the_memory() {
    let _turn = turn();
    let seconds = Duration::from_secs(setting("ONRUSH_OVERLOAD_SECONDS", 4));
    if !raise_file_limit(3_000) {
        skip("overload", "the limit of open files cannot be raised (ulimit -n)");
        return;
    }
    let mut site = Site::new();
    site.set("snapshot.every_ms", "60000");
    let overload = move || {
        pin(NODE_CORE);
        let node = site.start();
        pin(GENERATOR_CORE);
        node.import_members(1, MEMBERS, 1_000_000);
        node.open_sale("load", 3_600_000, &[("cup", 1, 1_000_000_000, 1_000_000)]);

        let run = |tag: &str, offer| {
            let begun = (node.cpu_ticks(), core_ticks(NODE_CORE));
            let mut counts = drive(node.public, tag, CONNECTIONS, offer, seconds);
            let (own, all) = (node.cpu_ticks() - begun.0, core_ticks(NODE_CORE) - begun.1);
            let ticks = counts.seconds * rustix::param::clock_ticks_per_second() as f64;
            counts.busy = own as f64 / ticks;
            counts.taken = all.saturating_sub(own) as f64 / ticks;
            counts
        };
        let alone = |tag: &str| run(tag, Offer::AsAnswered { ahead: 8 });
        // Each run of a round begins at rest: persist has the same core.
        let settle = || {
            wait_until("the database shards have caught up", Duration::from_mins(2), || {
                node.metric("onrush_persist_lag_records") == 0.0
            });
        };
        alone("warm");

        // What a load of this size needs is there after the first round; what has no bound would
        // grow again in the next.
        let (mut resident, mut sold) = (vec![node.resident_bytes()], vec![0]);
        let (mut rounds, mut disturbed, mut begun) = (Vec::new(), Vec::new(), 0);
        let mut kept = 0.0;
        while begun < ROUNDS.end && (rounds.len() < ROUNDS.start || kept < AIM) {
            settle();
            let best = alone(&format!("alone-{begun}"));
            settle();
            // A part more, for what the slowest pass leaves undone.
            let wanted = 12.0 * best.goodput();
            let offer = Offer::Regardless { per_second: wanted };
            let over = run(&format!("over-{begun}"), offer);
            begun += 1;
            resident.push(node.resident_bytes());
            sold.push(best.done + over.done);
            let offered = over.offered(wanted);
            let void = if best.taken.max(over.taken) > TAKEN_MAX {
                ": not counted, neighbours had the node's core"
            } else if best.done == 0 || offered < 10.0 * best.goodput() {
                ": not counted, the generator was too slow"
            } else {
                ""
            };
            println!(
                "overload: best {:.0}/s with {:.0} % of the core; offered {:.1} times that, \
                 {:.1} times sent, the rest held back by full connections; {:.0}/s carried with \
                 {:.0} % of the core, {:.0}/s refused, {} left unanswered; neighbours had {:.0} \
                 and {:.0} % of the core, the generator came round within {:?}{void}",
                best.goodput(),
                100.0 * best.busy,
                offered / best.goodput(),
                over.rate() / best.goodput(),
                over.goodput(),
                100.0 * over.busy,
                over.refused as f64 / over.seconds,
                over.waiting,
                100.0 * best.taken,
                100.0 * over.taken,
                over.slowest_pass,
            );
            let counted = if void.is_empty() { &mut rounds } else { &mut disturbed };
            counted.push((best.goodput(), over.goodput()));
            kept = share(&rounds);
        }
        let counted = rounds.len();
        if counted < ROUNDS.start {
            rounds.append(&mut disturbed);
            kept = share(&rounds);
        }
        let mib: Vec<u64> = resident.iter().map(|bytes| bytes >> 20).collect();
        // Past the harness, which shows a test's output only where it fails.
        let _ = writeln!(
            io::stderr(),
            "MEASURED ten times the load: {:.0} % of the best goodput is left, {} (medians of {} \
             rounds, {counted} of them undisturbed); memory {mib:?} MiB before and behind each",
            100.0 * kept,
            if kept >= AIM { "as wanted" } else { "LESS THAN WANTED" },
            rounds.len()
        );
        assert!(kept >= FLOOR, "{:.0} % of the best goodput is left", 100.0 * kept);
        // What is sold is remembered, and may take room; what is refused may not.
        for (pair, sold) in resident.windows(2).zip(&sold[1..]).skip(1) {
            let bound = pair[0] + sold * REDEMPTION_BYTES_MAX + (64 << 20);
            assert!(pair[1] < bound, "memory grows without bound: {mib:?} MiB, {sold} sold");
        }
        assert!(node.stop().success());
        site.audit();
    };
    thread::spawn(overload).join().expect("the overload test");
}
