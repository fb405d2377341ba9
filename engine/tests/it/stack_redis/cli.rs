//! `onrush stock`: what an operator sees of pools, and the order to rebuild one.

use super::*;
use crate::e2e::{onrush, run};

struct Desk {
    dir: tempfile::TempDir,
    server: Server,
    one: Asking,
}

impl Desk {
    fn new() -> Self {
        let server = Server::start(&[]);
        let dir = tempfile::tempdir().unwrap();
        let text =
            format!("[stock]\nkind = \"redis\"\n[stock.redis]\nurls = [\"{}\"]\n", server.url());
        std::fs::write(dir.path().join("onrush.toml"), text).unwrap();
        let one = Asking::new(&settings(&server.url()));
        Self { dir, server, one }
    }

    fn stock(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let config = self.dir.path().join("onrush.toml");
        run(onrush().arg("stock").args(args).arg("--config").arg(config))
    }
}

#[test]
fn pools_are_shown_as_a_table_and_as_json() {
    let mut desk = Desk::new();
    let (code, out, err) = desk.stock(&["inspect"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("no pool"), "{out}");
    for number in 0..3 {
        let mut a = asker(item(number), 0xabc);
        desk.one.create(&mut a, 100, &[0xabc]);
        a.standing.accepted = view(desk.one.ask(&a, &grant(0, 30))).granted;
        a.standing.confirmed = 7;
        desk.one.ask(&a, &PoolAsk::Tell);
    }
    let (code, out, err) = desk.stock(&["inspect"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for text in ["sku-0", "sku-2", "0000000000000abc", "open", "70"] {
        assert!(out.contains(text), "{text} in\n{out}");
    }
    let (code, out, _) = desk.stock(&["inspect", "--sale", "sale", "--sku", "sku-1", "--json"]);
    assert_eq!(code, Some(0));
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 1, "{out}");
    assert_eq!(found[0]["sku"], "sku-1");
    assert_eq!(found[0]["pool"], 70);
    assert_eq!(found[0]["journals"][0]["granted"], 30);
    assert_eq!(found[0]["journals"][0]["confirmed"], 7);
}

#[test]
fn a_rebuild_says_what_it_waits_for_and_ends_once_all_have_reported() {
    let mut desk = Desk::new();
    let (mut a, mut b) = (asker(item(1), 0xa), asker(item(1), 0xb));
    desk.one.create(&mut a, 100, &[0xa, 0xb]);
    a.standing.accepted = view(desk.one.ask(&a, &grant(0, 30))).granted;
    desk.one.follow(&mut b, None);
    let of_item = ["--sale", "sale", "--sku", "sku-1"];
    let (code, out, err) =
        desk.stock(&[&["rebuild", "--wait-ms", "300"][..], &of_item[..]].concat());
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("epoch 2") && out.contains("the home node"), "{out}");
    desk.one.follow(&mut a, Some(home(100, &[0xa, 0xb])));
    let (code, out, err) = desk.stock(&[&["inspect"][..], &of_item[..]].concat());
    assert_eq!(code, Some(1), "a shut pool needs a hand: {out}{err}");
    assert!(out.contains("000000000000000b"), "{out}");
    desk.one.follow(&mut b, None);
    assert_eq!(view(desk.one.ask(&a, &PoolAsk::Tell)).pool, 70);
    let (code, out, _) = desk.stock(&["inspect"]);
    assert_eq!(code, Some(0), "{out}");
}

#[test]
fn what_is_not_there_is_said_in_one_line() {
    let mut desk = Desk::new();
    let (code, _, err) = desk.stock(&["rebuild", "--sale", "sale", "--sku", "none"]);
    assert_eq!((code, err.lines().count()), (Some(2), 1), "{err}");
    assert!(err.contains("sale/none"), "{err}");
    desk.server.kill();
    let (code, _, err) = desk.stock(&["inspect"]);
    assert_eq!((code, err.lines().count()), (Some(2), 1), "{err}");
    assert!(err.contains("no answer from Redis"), "{err}");
}
