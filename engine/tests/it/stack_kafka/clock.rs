//! A node whose wall clock is set back while it ships and persists.

use std::thread;
use std::time::Duration;

use super::faults::{conclude, open, sell};
use super::{Shop, broker, wait_stored};
use crate::e2e::{measured, now, turn};
use crate::e2e_clock::{give_clock, set_clock};

/// librdkafka waits until a moment of the wall clock: who waits while it is set back by two hours,
/// waits for two hours. (libfaketime shows its waits the wrong clock as long as that is ahead, so
/// nothing is asked of shipper and persist before it is back.)
#[test]
fn a_clock_set_back_by_two_hours_holds_up_neither_shipper_nor_persist() {
    let _turn = turn();
    let mut shop = Shop::open(broker());
    shop.site.set("persist.run", "true");
    if !give_clock(&mut shop.site, "a clock set back under a shipper") {
        return;
    }
    let node = shop.site.start();
    open(&node);
    sell(&node, "before", 50);
    wait_stored(&node);
    for round in 0..2 {
        set_clock(&shop.site, "+7200");
        sell(&node, &format!("ahead-{round}"), 100);
        thread::sleep(Duration::from_millis(500));
        set_clock(&shop.site, "+0");
        let begun_at = now();
        sell(&node, &format!("back-{round}"), 100);
        wait_stored(&node);
        measured("a clock set back by two hours, what was sold on both sides stored", begun_at);
    }
    conclude(&shop, node);
}
