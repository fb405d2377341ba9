//! kill -9 between every two steps on the node's side.

use serde_json::json;

use onrush::crash::CrashPoint;

use super::{PATIENCE, Redis, item, sell, total};
use crate::e2e::{Node, Site, turn, wait_until};
use crate::e2e_client::Client;

/// Does what can be done before the node dies, with keys that are the same in each life.
fn live(node: &Node) -> std::io::Result<()> {
    let sale = json!({
        "id": "s", "name": "s", "opens_at": "2026-01-01T00:00:00Z",
        "closes_at": "2099-01-01T00:00:00Z", "hold_ttl_ms": 60_000,
        "items": [{"sku": "cup", "name": "c", "points": 1, "stock": 24, "limit_per_member": 1000}],
    });
    let mut admin = node.admin();
    let mut post = |path: &str, key: &str, body: &serde_json::Value| {
        admin.send("POST", path, &[("idempotency-key", key)], &body.to_string())
    };
    post("/v1/sales", "d", &sale)?;
    post("/v1/sales/s/open", "o", &json!({}))?;
    let mut client: Client = node.client();
    for n in 0..12 {
        client.try_redeem(&crate::e2e_client::Wish::new(1, format!("k{n}"), "s", "cup"))?;
    }
    // Returns what lies here, once the lease has seen how much that is, and takes it off the total.
    std::thread::sleep(std::time::Duration::from_millis(250));
    post("/v1/sales/s/items/cup/stock", "w", &json!({"withdraw": 9}))?;
    Ok(())
}

fn points() -> Vec<CrashPoint> {
    CrashPoint::ALL.iter().copied().filter(|p| p.name().starts_with("lease-")).collect()
}

fn survives(point: CrashPoint, nth: u32) -> bool {
    let redis = Redis::start();
    let mut site: Site = redis.site();
    let node = site.start();
    node.import_members(1, 1, 1_000);
    assert!(node.stop().success());
    site.set_env("ONRUSH_CRASH_AT", &format!("{}:{nth}", point.name()));
    let mut node = site.start();
    let _ = live(&node);
    let was_hit = node.ends_within(std::time::Duration::from_millis(300));
    drop(node);
    site.clear_env("ONRUSH_CRASH_AT");
    let node = site.start();
    live(&node).expect("a whole life");
    // Whatever the crash left between Redis and the journal is evened out: all is sold, once.
    let left = total(&node) - item(&node)["confirmed"].as_u64().expect("units");
    sell(&node, 1, "rest", left);
    wait_until("sold out for good", PATIENCE, || item(&node)["sold_out"] == true);
    let sold = node.units("s", "cup");
    assert_eq!(sold, [0, 0, total(&node)], "{}:{nth}", point.name());
    // What the withdrawal was answered with is what is gone.
    assert!((15..=24).contains(&total(&node)), "{}:{nth}: {}", point.name(), total(&node));
    assert!(node.stop().success());
    site.audit();
    was_hit
}

#[test]
fn kill_9_at_every_step_of_a_lease_leaves_every_unit_in_one_place() {
    let _turn = turn();
    for point in points() {
        let hits = [1, 3].into_iter().filter(|nth| survives(point, *nth)).count();
        assert!(hits > 0, "never hit: {}", point.name());
    }
}
