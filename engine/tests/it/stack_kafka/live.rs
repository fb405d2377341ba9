//! A node behind which Kafka, `MySQL` and persist processes all run: audited while it sells, and
//! caught up with once what had failed is back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use onrush::audit::AuditReport;
use onrush::audit::finding::Check;

use super::{PATIENCE, Persister, Shop, Stack, broker, lag, wait_stored};
use crate::e2e::{Node, measured, now, onrush, run, turn, wait_until};
use crate::stack_mysql::{MEMBERS, SALE, command, redeem};
use crate::stack_servers::{Flavour, Servers};
use crate::stack_split::use_databases;

/// A shop on two databases, and its node, which sells.
fn shop_on(stack: &Stack, servers: &Servers) -> (Shop, Node) {
    let mut shop = Shop::open(stack);
    use_databases(&mut shop.site, servers, 2, false);
    let (code, out, err) = command(&shop.site, &["db", "migrate"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let node = shop.site.start();
    node.import_members(1, MEMBERS, 1_000_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 1_000_000, 1_000)]);
    (shop, node)
}

/// Sets the flag when it is dropped: the load ends too where something else fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn everything_is_held_against_everything_while_the_sale_runs() {
    let _turn = turn();
    let servers = Servers::start(Flavour::MySql, 2, 0);
    let (shop, node) = shop_on(broker(), &servers);
    let _persist = [shop.persist("persist-1.log"), shop.persist("persist-2.log")];
    wait_stored(&node);
    let (stop, first) = (AtomicBool::new(false), AtomicU64::new(0));
    let sold = thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = Stop(&stop);
            for round in 0..5 {
                // There is something new to compare.
                let goal = first.load(Ordering::Relaxed) + 300;
                wait_until("it sells", PATIENCE, || first.load(Ordering::Relaxed) >= goal);
                let before = first.load(Ordering::Relaxed);
                let url = format!("http://{}", node.admin);
                let (code, out, err) =
                    run(onrush().args(["audit", "--all", "--json", "--admin", &url]));
                assert_eq!(code, Some(0), "audit {round}: {out}\n{err}");
                let report = AuditReport::parse(&out).unwrap();
                assert!(report.subject.is_live && report.passes(), "{report}");
                // Each store has been read, and was compared.
                for check in Check::ALL {
                    let is_quiet = check == Check::StoreDeadLetters;
                    let checked = report.line(check).checked;
                    assert!(
                        checked > 0 || is_quiet,
                        "{} compared nothing:\n{report}",
                        check.label()
                    );
                }
                assert!(report.line(Check::Shipped).checked > MEMBERS, "{report}");
                assert!(first.load(Ordering::Relaxed) > before, "nothing was sold meanwhile");
            }
        });
        redeem(&node, &stop, &first)
    });
    assert!(sold.len() > 1_500, "{}", sold.len());
    wait_stored(&node);
    assert!(node.stop().success());
    let (code, out, err) = shop.audit_all();
    assert_eq!(code, Some(0), "{out}\n{err}");
}

/// A backlog in Kafka, whose consumer was killed; and in the midst of it a database that is killed,
/// refuses, and is back.
#[test]
fn a_database_that_refused_amid_a_backlog_is_caught_up_with_once_it_is_back() {
    let _turn = turn();
    let (stack, servers) = (broker(), Servers::start(Flavour::MySql, 2, 0));
    let (shop, node) = shop_on(stack, &servers);
    let mut persist = Some(shop.persist("persist-0.log"));
    wait_stored(&node);
    let (stop, first) = (AtomicBool::new(false), AtomicU64::new(0));
    let sold = thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = Stop(&stop);
            for round in 1..=2 {
                // Longer than a member of the group may be silent.
                stack.order("kill", "kafka-1");
                thread::sleep(Duration::from_secs(12));
                stack.order("start", "kafka-1");
                persist.take().into_iter().for_each(Persister::kill);
                let next = persist.insert(shop.persist(&format!("persist-{round}.log")));
                let is_there = || next.log().contains("partitions assigned");
                wait_until("somebody reads again", PATIENCE, is_there);
                servers.kill("db-1");
                thread::sleep(Duration::from_secs(2));
                servers.restart("db-1");
                let begun = now();
                wait_until("it is caught up with", PATIENCE, || {
                    lag(&node).is_some_and(|l| l < 4_000)
                });
                measured("a database amid a backlog killed and back, caught up with", begun);
            }
        });
        redeem(&node, &stop, &first)
    });
    assert!(sold.len() > 1_000, "{}", sold.len());
    wait_stored(&node);
    assert!(node.stop().success());
    let (code, out, err) = shop.audit_all();
    assert_eq!(code, Some(0), "{out}\n{err}");
}
