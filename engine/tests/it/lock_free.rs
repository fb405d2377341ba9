//! The lock-free parts on real threads; `tests/loom.rs` walks every interleaving of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use onrush::journal::doorbell::Doorbell;
use onrush::stock::line::StockLines;
use onrush::units::{ItemIndex, Quantity, TakeUnits as _};

#[test]
fn no_ring_is_lost() {
    let (bell, work) = (Arc::new(Doorbell::new()), Arc::new(AtomicU64::new(0)));
    let (theirs, their_work) = (bell.clone(), work.clone());
    let sleeper = std::thread::spawn(move || {
        theirs.settle();
        let mut seen = 0;
        while seen < 20_000 {
            let now = their_work.load(Ordering::Acquire);
            if now == seen {
                let idle = || their_work.load(Ordering::Acquire) == seen;
                theirs.wait(idle, Duration::from_mins(1));
            }
            seen = now;
        }
    });
    for _ in 0..20_000 {
        work.fetch_add(1, Ordering::Release);
        bell.ring();
    }
    sleeper.join().unwrap();
}

/// [An item that nobody had asked for of late was looked at every 40 ms: so long a member was
/// told "no unit" while another node held one for nobody.]
#[test]
fn of_a_watched_item_one_refusal_is_told_at_once_and_no_sale() {
    let stock = StockLines::default();
    let told = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&told);
    stock.call_at_miss(move |item| {
        counter.fetch_add(u64::from(item.get()), Ordering::Relaxed);
    });
    let (item, one) = (ItemIndex::new(7), Quantity::new(1));
    assert!(!stock.try_take(item, one));
    stock.watch(item);
    stock.line(item).give_back(1);
    assert!(stock.try_take(item, one));
    assert_eq!(told.load(Ordering::Relaxed), 0, "not watched, then sold");
    assert!(!stock.try_take(item, one) && !stock.try_take(item, one));
    assert_eq!(told.load(Ordering::Relaxed), 7, "once, until it is watched again");
}
