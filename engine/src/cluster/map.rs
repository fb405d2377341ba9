//! The slot map: every slot has exactly one owner.
//!
//! It comes from the settings, is checked whole before anything is opened, and is the same in
//! every node's settings but for `self`. Its version goes with each forwarded request, so that two
//! nodes that disagree are seen to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::units::{KeyHash, SLOT_COUNT, Slot};

/// Nodes of one map; `u8` holds their number, with air.
pub const NODES_MAX: usize = 64;
/// Bytes of a node's name.
const NAME_LEN_MAX: usize = 63;

/// One node, as the settings name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    pub name: String,
    /// `http://HOST:PORT` of its public listener, as the other nodes reach it.
    pub public: String,
    /// The same of its admin listener.
    pub admin: String,
    /// Single slots and ranges: `"7"`, `"0-1364"`.
    pub slots: Vec<String>,
}

/// What is wrong with a map. One line each.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum MapError {
    #[error("{0} nodes; a map has 1 to {NODES_MAX}")]
    Count(usize),
    #[error("node name {0:?}: 1 to {NAME_LEN_MAX} letters, digits, - _ or . are a name")]
    Name(String),
    #[error("two nodes are named {0}")]
    NameTwice(String),
    #[error("no node is named {0}, which cluster.self says this one is")]
    SelfUnknown(String),
    #[error("node {node}: {url:?} is not http://HOST:PORT")]
    Url { node: String, url: String },
    #[error("{url} is named twice, by {first} and by {second}")]
    UrlTwice { url: String, first: String, second: String },
    #[error("node {node}: {text:?} is no slot and no range of slots from 0 to {}", SLOT_COUNT - 1)]
    Range { node: String, text: String },
    #[error("slot {slot} is given to {first} and to {second}")]
    SlotTwice { slot: u16, first: String, second: String },
    #[error("slot {slot} is given to no node ({count} slots are not)")]
    SlotMissing { slot: u16, count: usize },
    #[error("version 0: a map's version is 1 or more, and rises with every change")]
    Version,
}

/// A node's place in the map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeIndex(u8);

impl NodeIndex {
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// `http://HOST:PORT`, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseUrl(String);

const SCHEME: &str = "http://";

impl BaseUrl {
    pub fn parse(text: &str) -> Option<Self> {
        let authority = text.strip_prefix(SCHEME)?;
        let (host, port) = authority.rsplit_once(':')?;
        let is_host = !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b));
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        (is_host && is_port).then(|| Self(text.to_owned()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// `HOST:PORT`
    pub fn authority(&self) -> &str {
        &self.0[SCHEME.len()..]
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A set of slots, in one spelling: `0-1364,2000`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SlotSet {
    /// First and last, rising, with a gap between any two.
    ranges: Vec<(u16, u16)>,
}

impl SlotSet {
    pub fn all() -> Self {
        Self { ranges: vec![(0, SLOT_COUNT as u16 - 1)] }
    }

    fn of(mut contains: impl FnMut(usize) -> bool) -> Self {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for slot in 0..SLOT_COUNT {
            if contains(slot) {
                match ranges.last_mut() {
                    Some((_, last)) if usize::from(*last) + 1 == slot => *last = slot as u16,
                    _ => ranges.push((slot as u16, slot as u16)),
                }
            }
        }
        Self { ranges }
    }

    pub fn contains(&self, slot: Slot) -> bool {
        self.ranges.iter().any(|&(first, last)| (first..=last).contains(&slot.get()))
    }

    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.ranges.iter().flat_map(|&(first, last)| (first..=last).map(Slot::new))
    }

    pub fn count(&self) -> usize {
        self.ranges.iter().map(|&(first, last)| usize::from(last - first) + 1).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Each range as the settings spell it.
    pub fn ranges(&self) -> impl Iterator<Item = String> + '_ {
        self.ranges.iter().map(|&(first, last)| match last {
            last if last == first => first.to_string(),
            last => format!("{first}-{last}"),
        })
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut is_in = [false; SLOT_COUNT];
        for slot in slots {
            is_in[slot.index()] = true;
        }
        Self::of(|slot| is_in[slot])
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.ranges().enumerate() {
            f.write_str(if at > 0 { "," } else { "" })?;
            f.write_str(&range)?;
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotSet({self})")
    }
}

/// A text that is no set of slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotSlots;

impl FromStr for SlotSet {
    type Err = NotSlots;

    fn from_str(text: &str) -> Result<Self, NotSlots> {
        let ranges: Option<Vec<_>> = text.split(',').map(parse_range).collect();
        let ranges = ranges.ok_or(NotSlots)?;
        Ok(Self::of(|slot| ranges.iter().any(|&(first, last)| (first..=last).contains(&slot))))
    }
}

/// `7` or `0-1364`.
fn parse_range(text: &str) -> Option<(usize, usize)> {
    let slot = |text: &str| {
        let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|slot| is_plain && *slot < SLOT_COUNT)
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (slot(first)?, slot(last)?),
        None => (slot(text)?, slot(text)?),
    };
    (first <= last).then_some((first, last))
}

/// A node of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapNode {
    pub name: String,
    pub public: BaseUrl,
    pub admin: BaseUrl,
    pub slots: SlotSet,
}

/// Which node owns which slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotMap {
    version: u64,
    nodes: Vec<MapNode>,
    me: NodeIndex,
    /// By slot: the lookup on every request's way.
    owners: Box<[u8; SLOT_COUNT]>,
}

impl SlotMap {
    /// Checks the map and finds this node in it.
    ///
    /// Errors: the first thing wrong, by name.
    pub fn new(version: u64, me: &str, specs: &[NodeSpec]) -> Result<Self, MapError> {
        const NOBODY: u8 = u8::MAX;
        if version == 0 {
            return Err(MapError::Version);
        }
        if !(1..=NODES_MAX).contains(&specs.len()) {
            return Err(MapError::Count(specs.len()));
        }
        let mut owners = Box::new([NOBODY; SLOT_COUNT]);
        let mut nodes: Vec<MapNode> = Vec::with_capacity(specs.len());
        for spec in specs {
            let node = spec.name.clone();
            if !is_name(&node) {
                return Err(MapError::Name(node));
            }
            if nodes.iter().any(|known| known.name == node) {
                return Err(MapError::NameTwice(node));
            }
            let url = |text: &str| {
                let wrong = || MapError::Url { node: node.clone(), url: text.to_owned() };
                BaseUrl::parse(text).ok_or_else(wrong)
            };
            let (public, admin) = (url(&spec.public)?, url(&spec.admin)?);
            for known in &nodes {
                for url in [&public, &admin] {
                    if *url == known.public || *url == known.admin {
                        let (first, second) = (known.name.clone(), node);
                        return Err(MapError::UrlTwice { url: url.to_string(), first, second });
                    }
                }
            }
            if public == admin {
                let (first, second) = (node.clone(), node);
                return Err(MapError::UrlTwice { url: public.to_string(), first, second });
            }
            for text in &spec.slots {
                let wrong = || MapError::Range { node: node.clone(), text: text.clone() };
                let (first, last) = parse_range(text).ok_or_else(wrong)?;
                for slot in first..=last {
                    let owner = &mut owners[slot];
                    if *owner != NOBODY {
                        let first = specs[usize::from(*owner)].name.clone();
                        let slot = slot as u16;
                        return Err(MapError::SlotTwice { slot, first, second: node });
                    }
                    *owner = nodes.len() as u8;
                }
            }
            nodes.push(MapNode { name: node, public, admin, slots: SlotSet::default() });
        }
        let count = (0..SLOT_COUNT).filter(|slot| owners[*slot] == NOBODY).count();
        if let Some(slot) = owners.iter().position(|owner| *owner == NOBODY) {
            return Err(MapError::SlotMissing { slot: slot as u16, count });
        }
        for (at, node) in nodes.iter_mut().enumerate() {
            node.slots = SlotSet::of(|slot| usize::from(owners[slot]) == at);
        }
        let at = nodes.iter().position(|node| node.name == me);
        let me = at.ok_or_else(|| MapError::SelfUnknown(me.to_owned()))?;
        Ok(Self { version, nodes, me: NodeIndex(me as u8), owners })
    }

    pub fn version(&self) -> u64 {
        self.version
    }
    /// This node's place.
    pub fn me(&self) -> NodeIndex {
        self.me
    }
    pub fn owner(&self, slot: Slot) -> NodeIndex {
        NodeIndex(self.owners[slot.index()])
    }
    /// The home node of a sale: its stock total is kept there.
    pub fn home(&self, sale_id: &str) -> NodeIndex {
        self.owner(sale_slot(sale_id))
    }
    pub fn node(&self, node: NodeIndex) -> &MapNode {
        &self.nodes[node.index()]
    }
    pub fn nodes(&self) -> impl Iterator<Item = (NodeIndex, &MapNode)> {
        (0..).map(NodeIndex).zip(&self.nodes)
    }
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }
    /// All nodes but this one.
    pub fn others(&self) -> impl Iterator<Item = (NodeIndex, &MapNode)> {
        self.nodes().filter(|(node, _)| *node != self.me)
    }
    pub fn by_name(&self, name: &str) -> Option<NodeIndex> {
        self.nodes().find(|(_, node)| node.name == name).map(|(node, _)| node)
    }
}

/// The slot that a sale's id falls into: the top 12 bits of its fingerprint.
pub fn sale_slot(sale_id: &str) -> Slot {
    Slot::new((KeyHash::of(sale_id.as_bytes()).get() >> 116) as u16)
}

fn is_name(text: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MemberId;

    fn spec(name: &str, port: u16, slots: &[&str]) -> NodeSpec {
        NodeSpec {
            name: name.into(),
            public: format!("http://10.0.0.1:{port}"),
            admin: format!("http://10.0.0.1:{}", port + 1),
            slots: slots.iter().map(|&s| s.into()).collect(),
        }
    }

    fn three() -> [NodeSpec; 3] {
        [
            spec("a", 1000, &["0-1364"]),
            spec("b", 2000, &["1365-2729", "4095"]),
            spec("c", 3000, &["2730-4094"]),
        ]
    }

    #[test]
    fn every_slot_has_the_owner_that_the_settings_say() {
        let map = SlotMap::new(7, "b", &three()).unwrap();
        let owner = |slot| map.node(map.owner(Slot::new(slot))).name.as_str();
        assert_eq!(
            [0, 1364, 1365, 2729, 2730, 4094, 4095].map(owner),
            ["a", "a", "b", "b", "c", "c", "b"]
        );
        assert_eq!(map.node(map.me()).name, "b");
        assert_eq!(map.node(map.me()).slots.to_string(), "1365-2729,4095");
        assert_eq!(map.nodes().map(|(_, node)| node.slots.count()).sum::<usize>(), SLOT_COUNT);
        assert_eq!(map.others().map(|(_, n)| n.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        // Homes are spread, and the same for every node that holds the map.
        let homes: std::collections::HashSet<_> =
            (0..64).map(|n| map.home(&format!("sale-{n}"))).collect();
        assert_eq!(homes.len(), 3);
        let other = SlotMap::new(7, "c", &three()).unwrap();
        assert_eq!(map.home("double-eleven"), other.home("double-eleven"));
    }

    #[test]
    fn a_map_with_anything_wrong_is_refused_by_name() {
        let with = |change: &dyn Fn(&mut [NodeSpec; 3])| {
            let mut specs = three();
            change(&mut specs);
            SlotMap::new(1, "a", &specs).map(|_| ()).unwrap_err()
        };
        let text = |s: &str| s.to_owned();
        let url = |i: usize| three()[i].public.clone();
        for (error, expected) in [
            (
                with(&|s| s[1].slots = vec![text("1366-2729"), text("4095")]),
                MapError::SlotMissing { slot: 1365, count: 1 },
            ),
            (
                with(&|s| s[1].slots[0] = text("1364-2729")),
                MapError::SlotTwice { slot: 1364, first: text("a"), second: text("b") },
            ),
            (
                with(&|s| s[2].slots.push(text("2730"))),
                MapError::SlotTwice { slot: 2730, first: text("c"), second: text("c") },
            ),
            (
                with(&|s| s[0].slots[0] = text("0-4096")),
                MapError::Range { node: text("a"), text: text("0-4096") },
            ),
            (with(&|s| s[1].name = text("a")), MapError::NameTwice(text("a"))),
            (with(&|s| s[1].name = text("b b")), MapError::Name(text("b b"))),
            (with(&|s| s[0].name = text("z")), MapError::SelfUnknown(text("a"))),
            (
                with(&|s| s[1].public = url(0)),
                MapError::UrlTwice { url: url(0), first: text("a"), second: text("b") },
            ),
            (
                with(&|s| s[2].admin = url(2)),
                MapError::UrlTwice { url: url(2), first: text("c"), second: text("c") },
            ),
            (
                with(&|s| s[0].public = text("https://h:1")),
                MapError::Url { node: text("a"), url: text("https://h:1") },
            ),
        ] {
            assert_eq!(error, expected, "{error}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
        assert_eq!(SlotMap::new(0, "a", &three()), Err(MapError::Version));
        assert_eq!(SlotMap::new(1, "a", &[]), Err(MapError::Count(0)));
        for wrong in ["", "-", "1-", "5-4", "4096", "+1", " 1", "1-2-3", "x"] {
            assert_eq!(parse_range(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_set_of_slots_has_one_spelling() {
        for (text, expected) in [
            ("0-4095", "0-4095"),
            ("7", "7"),
            ("3,1,2", "1-3"),
            ("0-10,5-20", "0-20"),
            ("4095,0", "0,4095"),
        ] {
            let set: SlotSet = text.parse().unwrap();
            assert_eq!(set.to_string(), expected);
            assert_eq!(expected.parse(), Ok(set.clone()));
            assert_eq!(set.iter().collect::<SlotSet>(), set);
            assert_eq!(set.iter().count(), set.count());
            assert!(set.iter().all(|slot| set.contains(slot)));
        }
        assert_eq!("1,".parse::<SlotSet>(), Err(NotSlots));
        assert_eq!(SlotSet::all().count(), SLOT_COUNT);
        assert!(!"1-3".parse::<SlotSet>().unwrap().contains(Slot::of(MemberId::new(7))));
    }
}
