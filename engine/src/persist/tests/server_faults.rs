//! What real servers do to persist: deadlocks, killed sessions, lost answers, restarts, refusals.
//! Whatever it is, persist waits and goes on, and the database shards end with exactly what the
//! journal says.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::thread;
use std::time::Duration;

use super::backends::Rival;
use super::stack_servers::{Flavour, Servers, rough, shared};
use super::*;
use crate::kernel::record::{CONTROL, Record, SaleDefined};
use crate::persist::driver::Persist;
use crate::persist::testing::note;
use crate::units::{ItemIndex, NodeTime, SaleIndex};

fn bench_on(server: &'static Servers, seed: u64, records: usize) -> Bench {
    Bench::with(Databases::on(server, layout()), seed, records)
}

/// A proxy that can lose a connection around a COMMIT.
struct Proxy {
    port: u16,
    rule: Arc<AtomicU8>,
}

/// The COMMIT is passed on, and its answer is not.
const AFTER: u8 = 1;
/// The COMMIT is not passed on.
const BEFORE: u8 = 2;
/// Nothing is passed on any more, and neither end hears why.
const SILENT: u8 = 3;

impl Proxy {
    fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let rule = Arc::new(AtomicU8::new(0));
        let of_threads = rule.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let swallows = Arc::new(AtomicBool::new(false));
                let (rule, is_cut) = (of_threads.clone(), swallows.clone());
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    pump(from, to, &|bytes| {
                        let is_commit = bytes.windows(7).any(|w| w == b"\x03COMMIT");
                        match rule.load(Ordering::Relaxed) {
                            AFTER if is_commit => is_cut.store(true, Ordering::Relaxed),
                            BEFORE if is_commit => {
                                rule.store(0, Ordering::Relaxed);
                                return false;
                            }
                            SILENT if is_commit => {
                                rule.store(0, Ordering::Relaxed);
                                loop {
                                    thread::park();
                                }
                            }
                            _ => {}
                        }
                        true
                    });
                });
                let rule = of_threads.clone();
                thread::spawn(move || {
                    pump(server, client, &|_| {
                        let cuts = swallows.load(Ordering::Relaxed);
                        if cuts {
                            rule.store(0, Ordering::Relaxed);
                        }
                        !cuts
                    });
                });
            }
        });
        Self { port, rule }
    }
}

/// Copies until an end, or until `passes` says no; then both ends are closed.
fn pump(mut from: TcpStream, mut to: TcpStream, passes: &dyn Fn(&[u8]) -> bool) {
    let mut bytes = [0; 1 << 13];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if !passes(&bytes[..count]) || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn a_commit_whose_answer_is_lost_is_applied_once(flavour: Flavour) {
    let server = shared(flavour);
    let proxy = Proxy::new(server.port("db-0"));
    let mut databases = Databases::on(server, layout());
    databases.port = Some(proxy.port);
    let mut bench = Bench::with(databases, 71, 500);
    for round in 0..40u8 {
        bench.generator.write(30);
        proxy.rule.store(1 + round % 2, Ordering::Relaxed);
        bench.step_all();
    }
    proxy.rule.store(0, Ordering::Relaxed);
    bench.catch_up();
    bench.assert_complete();
    assert!(bench.sum_of(|s| &s.retries) >= 20, "{}", bench.sum_of(|s| &s.retries));
    assert_eq!(bench.status.alarms(), [""; 0]);
}

/// A writer whose machine is gone: its server hears nothing, and keeps its transaction open.
fn a_session_that_was_cut_off_in_mid_transaction_is_waited_for_for_a_bounded_time(
    flavour: Flavour,
) {
    let server = shared(flavour);
    let proxy = Proxy::new(server.port("db-0"));
    let mut databases = Databases::on(server, layout());
    (databases.port, databases.patience) = (Some(proxy.port), Duration::from_secs(2));
    let mut bench = Bench::with(databases, 81, 300);
    bench.catch_up();
    bench.generator.write(400);
    proxy.rule.store(SILENT, Ordering::Relaxed);
    bench.step(1);
    let error = bench.status.shard(shard(1)).last_error().unwrap();
    assert!(error.contains("no answer to COMMIT"), "{error}");
    let clock = crate::clock::RealClock::new();
    bench.step(1);
    let error = bench.status.shard(shard(1)).last_error();
    assert!(error.is_some(), "its rows are locked");
    bench.catch_up();
    let waited = Duration::from_nanos(crate::clock::Clock::monotonic_ns(&clock));
    assert!(waited < Duration::from_secs(90), "{waited:?}");
    bench.assert_complete();
    assert_eq!(bench.status.alarms(), [""; 0]);
}

/// Waits until a session of this server waits for a row; its number.
fn waiting_session(watcher: &mut Rival) -> String {
    let sql = "SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX
               WHERE trx_state = 'LOCK WAIT'";
    // The server renews this table only for who has not looked for a while.
    for _ in 0..120 {
        // MySQL cannot show a statement with an id in it: that one is not the one that waits.
        let found = watcher.try_rows(sql).unwrap_or_default();
        if let Some((_, id)) = found.into_iter().flatten().next() {
            return id;
        }
        thread::sleep(Duration::from_millis(250));
    }
    panic!("nobody waits for a row");
}

/// Has `rival` lock all accounts of shard 1, a writer run into that, and `strike` then; the errors
/// that the writer met.
fn amid_a_transaction(
    server: &'static Servers,
    seed: u64,
    prepare: &str,
    strike: impl Fn(&str, &mut Rival, &str) + Sync,
) -> (Bench, Vec<String>) {
    let mut bench = bench_on(server, seed, 600);
    bench.catch_up();
    let name = bench.databases.name(shard(1));
    let mut rival = Rival::admin(server);
    rival.rows(&format!("USE {name}"));
    for statement in prepare.split(';').filter(|s| !s.trim().is_empty()) {
        rival.rows(statement);
    }
    rival.rows("SELECT member FROM accounts FOR UPDATE");
    bench.generator.write(400);
    let (strike, is_struck) = (&strike, &AtomicBool::new(false));
    let mut errors = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut watcher = Rival::admin(server);
            let session = waiting_session(&mut watcher);
            strike(&session, &mut rival, &name);
            is_struck.store(true, Ordering::Relaxed);
            rival.rows("ROLLBACK");
        });
        // A wait may end before the watcher has seen it: then there is another.
        for _ in 0..12 {
            if is_struck.load(Ordering::Relaxed) {
                break;
            }
            bench.step(1);
            errors.extend(bench.status.shard(shard(1)).last_error());
        }
    });
    (bench, errors)
}

fn a_deadlock_is_tried_again(flavour: Flavour) {
    let (_turn, server) = rough(flavour);
    // The rival has changed more rows than the batch, so that the batch is the victim.
    let prepare = "CREATE TABLE IF NOT EXISTS many
                       (n BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, a INT);
                   START TRANSACTION;
                   INSERT INTO many (a) SELECT 1 FROM information_schema.COLUMNS a LIMIT 3000;
                   INSERT INTO many (a) SELECT a FROM many;
                   INSERT INTO many (a) SELECT a FROM many";
    let (mut bench, errors) = amid_a_transaction(server, 72, prepare, |_, rival, _| {
        rival.rows("SELECT seq FROM watermarks FOR UPDATE");
    });
    assert!(errors.iter().any(|e| e.contains("Deadlock")), "{errors:?}");
    bench.execute(shard(1), "DROP TABLE many");
    bench.catch_up();
    bench.assert_complete();
    assert_eq!(bench.status.alarms(), [""; 0]);
}

fn a_session_killed_in_mid_transaction_is_rolled_back_and_tried_again(flavour: Flavour) {
    let (_turn, server) = rough(flavour);
    let (mut bench, errors) =
        amid_a_transaction(server, 73, "START TRANSACTION", |session, _, _| {
            Rival::admin(server).rows(&format!("KILL {session}"));
        });
    // The connection is closed, or its server says so first. A lock wait that ended is neither.
    let is_lost = |error: &String| {
        ["closed", "killed", "reset", "interrupted"].iter().any(|text| error.contains(*text))
    };
    assert!(errors.iter().any(is_lost), "{errors:?}");
    bench.catch_up();
    bench.assert_complete();
    assert_eq!(bench.status.alarms(), [""; 0]);
}

fn a_row_that_stays_locked_holds_the_batch_up_for_a_bounded_time(flavour: Flavour) {
    let (_turn, server) = rough(flavour);
    let mut bench = bench_on(server, 74, 600);
    bench.catch_up();
    let mut rival = Rival::admin(server);
    rival.rows(&format!("USE {}", bench.databases.name(shard(1))));
    rival.rows("START TRANSACTION");
    rival.rows("SELECT seq FROM watermarks FOR UPDATE");
    bench.generator.write(400);
    bench.step(1);
    let error = bench.status.shard(shard(1)).last_error().unwrap();
    assert!(error.contains("Lock wait timeout"), "{error}");
    rival.rows("ROLLBACK");
    bench.catch_up();
    bench.assert_complete();
}

fn a_read_only_server_is_waited_for(flavour: Flavour) {
    let (_turn, server) = rough(flavour);
    let mut bench = bench_on(server, 75, 300);
    bench.catch_up();
    Rival::admin(server).rows("SET GLOBAL read_only = 1");
    bench.generator.write(300);
    bench.step_all();
    let error = bench.status.shard(shard(0)).last_error();
    Rival::admin(server).rows("SET GLOBAL read_only = 0");
    assert!(error.as_deref().is_some_and(|e| e.contains("read-only")), "{error:?}");
    bench.catch_up();
    assert_eq!(bench.status.shard(shard(0)).last_error(), None);
    bench.assert_complete();
}

/// Statements are made to fit; what cannot be made smaller waits until the server takes it.
fn a_small_max_allowed_packet_slows_persist_and_loses_nothing(flavour: Flavour) {
    let (_turn, server) = rough(flavour);
    let mut bench = bench_on(server, 76, 300);
    bench.catch_up();
    Rival::admin(server).rows("SET GLOBAL max_allowed_packet = 1024");
    bench.restart(4096);
    bench.generator.write(600);
    bench.catch_up();
    let items: Vec<_> = (0..40)
        .map(|i| format!(r#"{{"sku":"S{i}","name":"{}","points":1,"stock":1}}"#, "n".repeat(150)))
        .collect();
    let definition = format!(r#"{{"id":"big","name":"Big","items":[{}]}}"#, items.join(","));
    let (sale, first_item) = (SaleIndex::new(1), ItemIndex::new(5));
    let at = NodeTime::new(1_700_000_900_000);
    let sale = SaleDefined { sale, first_item, definition, at, note: note() };
    bench.generator.append(&[(CONTROL, Record::from(sale))]);
    bench.step_all();
    let error = bench.status.shard(shard(0)).last_error();
    Rival::admin(server).rows("SET GLOBAL max_allowed_packet = 67108864");
    assert!(error.is_some(), "a definition of 7 KiB does not fit into 1 KiB");
    assert_eq!(bench.status.letters(), 0, "and that is not the record's fault");
    bench.catch_up();
    bench.assert_complete();
    assert_eq!(bench.figure(shard(3), "SELECT count(*) FROM items WHERE sale = 1"), 40);
}

fn a_frozen_server_holds_its_thread_up_for_a_bounded_time(flavour: Flavour) {
    let (_turn, server) = rough(flavour);
    let mut databases = Databases::on(server, layout());
    databases.patience = Duration::from_secs(1);
    let mut bench = Bench::with(databases, 77, 300);
    bench.catch_up();
    let pid = rustix::process::Pid::from_raw(server.pid("db-0")).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    bench.generator.write(300);
    let (send, done) = std::sync::mpsc::channel();
    let watch = thread::spawn(move || {
        let in_time = done.recv_timeout(Duration::from_mins(1)).is_ok();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        in_time
    });
    for _ in 0..3 {
        bench.step_all();
    }
    let error = bench.status.shard(shard(2)).last_error();
    send.send(()).ok();
    assert!(watch.join().unwrap(), "twelve calls of one second each");
    assert!(error.as_deref().is_some_and(|e| e.contains("no answer")), "{error:?}");
    bench.catch_up();
    bench.assert_complete();
    assert_eq!(bench.status.alarms(), [""; 0]);
}

fn a_server_killed_again_and_again_holds_every_record_once(flavour: Flavour) {
    let (_turn, server) = rough(flavour);
    let mut bench = bench_on(server, 78, 300);
    for _ in 0..3 {
        bench.generator.write(2_000);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(100));
                server.kill("db-0");
            });
            for _ in 0..40 {
                bench.step_all();
            }
        });
        // It may have stored everything before the kill: then there is more that it cannot.
        bench.generator.write(200);
        let fails = |bench: &mut Bench| {
            bench.step_all();
            bench.status.shard(shard(0)).last_error().is_some()
        };
        assert!((0..200).any(|_| fails(&mut bench)), "the server is down");
        server.restart("db-0");
    }
    bench.catch_up();
    bench.assert_complete();
    assert_eq!(bench.status.alarms(), [""; 0]);
}

fn a_database_set_back_to_a_backup_is_an_alarm_and_is_filled_up(flavour: Flavour) {
    let mut bench = bench_on(shared(flavour), 79, 500);
    bench.step_all();
    let copy = bench.databases.back_up(shard(2));
    bench.generator.write(600);
    bench.catch_up();
    bench.databases.restore(shard(2), &copy);
    bench.generator.write(200);
    bench.catch_up();
    let alarms = bench.status.alarms();
    assert!(alarms[0].contains("database shard 2: the watermark was"), "{alarms:?}");
    assert!(bench.sum_of(|s| &s.rewinds) > 0);
    bench.assert_complete();
}

/// Two persist processes that both believe to be alone, at full speed.
fn two_that_write_the_same_databases_at_once_apply_every_record_once(flavour: Flavour) {
    let mut bench = bench_on(shared(flavour), 80, 0);
    bench.generator.write(4_000);
    let frames = bench.generator.frames.clone();
    let clock: Arc<dyn crate::clock::Clock> = Arc::new(crate::clock::RealClock::new());
    let mut running = Vec::new();
    for _ in 0..2 {
        let writers = bench.writers_on(&frames, 50);
        running.push(Persist::start(writers, bench.status.clone(), 2, &clock).unwrap());
    }
    let head = frames.head_seq();
    for persist in &running {
        assert!(persist.status().wait_persisted(head, Duration::from_mins(2)));
    }
    for persist in running {
        assert_eq!(persist.status().alarms(), [""; 0]);
        persist.stop(None);
    }
    bench.assert_complete();
}

on_every_server! {
    a_commit_whose_answer_is_lost_is_applied_once,
    a_session_that_was_cut_off_in_mid_transaction_is_waited_for_for_a_bounded_time,
    a_deadlock_is_tried_again,
    a_session_killed_in_mid_transaction_is_rolled_back_and_tried_again,
    a_row_that_stays_locked_holds_the_batch_up_for_a_bounded_time,
    a_read_only_server_is_waited_for,
    a_small_max_allowed_packet_slows_persist_and_loses_nothing,
    a_frozen_server_holds_its_thread_up_for_a_bounded_time,
    a_server_killed_again_and_again_holds_every_record_once,
    a_database_set_back_to_a_backup_is_an_alarm_and_is_filled_up,
    two_that_write_the_same_databases_at_once_apply_every_record_once,
}
