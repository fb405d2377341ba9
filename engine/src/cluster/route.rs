//! Where a request belongs. Pure: the map, the request's slot and what is known of nodes in, one
//! decision out.
//!
//! | slot is | came forwarded | its node is | then |
//! |---|---|---|---|
//! | ours | either | | here |
//! | another's | yes | either | refused: nobody forwards twice |
//! | another's | no | down | refused at once, with Retry-After |
//! | another's | no | up | forwarded, or sent there by 307: as the settings say |
//!
//! So two nodes whose maps disagree cannot pass a request around between them.

use serde::{Deserialize, Serialize};

use super::map::{NodeIndex, SlotMap};
use crate::planted::{self, Bug};
use crate::units::Slot;

/// What becomes of a request that another node owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Misrouted {
    /// It is passed on, and its answer passed back.
    #[default]
    Forward,
    /// The client is told where to go: 307.
    Redirect,
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    Here,
    Forward(NodeIndex),
    Redirect(NodeIndex),
    /// Another node sent it here, and it is that one's that is named: the maps disagree.
    WrongNode(NodeIndex),
    Down(NodeIndex),
}

/// Decides for one slot. `is_forwarded`: another node of the mall sent the request, provably.
pub fn decide(
    map: &SlotMap,
    slot: Slot,
    policy: Misrouted,
    is_forwarded: impl FnOnce() -> bool,
    is_down: impl FnOnce(NodeIndex) -> bool,
) -> Decision {
    let owner = map.owner(slot);
    if owner == map.me() {
        return Decision::Here;
    }
    if is_forwarded() && !planted::is(Bug::PassedOnTwice) {
        if planted::is(Bug::DecidesForOthers) {
            return Decision::Here;
        }
        return Decision::WrongNode(owner);
    }
    if is_down(owner) {
        return Decision::Down(owner);
    }
    match policy {
        Misrouted::Forward => Decision::Forward(owner),
        Misrouted::Redirect => Decision::Redirect(owner),
    }
}

/// Parts that belong to different nodes, each with its places in the whole, in the order of the
/// nodes. Joined by those places, the parts' answers are in the order of the request.
pub fn split(map: &SlotMap, slots: impl IntoIterator<Item = Slot>) -> Vec<(NodeIndex, Vec<usize>)> {
    let mut parts: Vec<(NodeIndex, Vec<usize>)> =
        map.nodes().map(|(node, _)| (node, Vec::new())).collect();
    for (at, slot) in slots.into_iter().enumerate() {
        parts[map.owner(slot).index()].1.push(at);
    }
    parts.retain(|(_, places)| !places.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::map::NodeSpec;

    fn map() -> SlotMap {
        let spec = |name: &str, port: u16, slots: &str| NodeSpec {
            name: name.into(),
            public: format!("http://h:{port}"),
            admin: format!("http://h:{}", port + 1),
            slots: vec![slots.into()],
        };
        let specs = [spec("a", 10, "0-99"), spec("b", 20, "100-199"), spec("c", 30, "200-4095")];
        SlotMap::new(1, "a", &specs).unwrap()
    }

    #[test]
    fn the_table_of_decisions() {
        use Misrouted::{Forward, Redirect};
        let map = map();
        let node = |name| map.by_name(name).unwrap();
        let (b, c) = (node("b"), node("c"));
        for (slot, policy, is_forwarded, is_down, expected) in [
            (0, Forward, false, false, Decision::Here),
            (99, Redirect, false, false, Decision::Here),
            (99, Forward, true, true, Decision::Here),
            (100, Forward, false, false, Decision::Forward(b)),
            (100, Redirect, false, false, Decision::Redirect(b)),
            (100, Forward, false, true, Decision::Down(b)),
            (100, Redirect, false, true, Decision::Down(b)),
            (4095, Forward, true, false, Decision::WrongNode(c)),
            (4095, Redirect, true, false, Decision::WrongNode(c)),
            (4095, Forward, true, true, Decision::WrongNode(c)),
        ] {
            let got = decide(&map, Slot::new(slot), policy, || is_forwarded, |_| is_down);
            assert_eq!(got, expected, "{slot} {policy:?} {is_forwarded} {is_down}");
        }
    }

    #[test]
    fn parts_keep_their_places() {
        let map = map();
        let slots = [150, 0, 4000, 199, 1].map(Slot::new);
        let parts = split(&map, slots);
        let names: Vec<_> =
            parts.iter().map(|(n, at)| (map.node(*n).name.as_str(), at.clone())).collect();
        assert_eq!(names, [("a", vec![1, 4]), ("b", vec![0, 3]), ("c", vec![2])]);
        assert_eq!(split(&map, []), []);
    }
}
