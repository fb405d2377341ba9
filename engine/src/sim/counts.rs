//! What a run came by: a simulation in which something never happens shows nothing about it.

use super::redis::NetCounts;
use super::router::RouteCounts;
use super::ship::ShipCounts;
use super::snapshots::SnapshotCounts;

/// What a run came by, so that a test can see that everything did happen.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub steps: u64,
    /// How long the worlds were, by their own clocks.
    pub virtual_ms: u64,
    pub answers: u64,
    pub redemptions: u64,
    pub replays: u64,
    pub refusals: u64,
    pub crashes: u64,
    pub starts: u64,
    pub records: u64,
    pub finals: u64,
    pub keys_dropped: u64,
    pub withdrawn: u64,
    pub reversed: u64,
    pub expired: u64,
    pub net: NetCounts,
    pub routes: RouteCounts,
    pub ship: ShipCounts,
    pub snapshots: SnapshotCounts,
}

impl Counts {
    fn all(&mut self) -> [(&'static str, &mut u64); 45] {
        let (net, routes, ship) = (&mut self.net, &mut self.routes, &mut self.ship);
        let snapshots = &mut self.snapshots;
        [
            ("steps", &mut self.steps),
            ("virtual milliseconds", &mut self.virtual_ms),
            ("answers", &mut self.answers),
            ("redemptions", &mut self.redemptions),
            ("replays", &mut self.replays),
            ("refusals", &mut self.refusals),
            ("crashes", &mut self.crashes),
            ("starts", &mut self.starts),
            ("records", &mut self.records),
            ("finals", &mut self.finals),
            ("keys dropped", &mut self.keys_dropped),
            ("withdrawn units", &mut self.withdrawn),
            ("reversed", &mut self.reversed),
            ("expired", &mut self.expired),
            ("calls of Redis", &mut net.calls),
            ("lost messages", &mut net.lost),
            ("calls without a connection", &mut net.failed),
            ("repeated messages", &mut net.repeated),
            ("servers that forget", &mut net.forgotten),
            ("rebuilds by hand", &mut net.rebuilds),
            ("copies refused", &mut net.copies_refused),
            ("late grants", &mut net.late_grants),
            ("requests passed on", &mut routes.forwarded),
            ("redirects", &mut routes.redirected),
            ("requests by a wrong map", &mut routes.wrong_node),
            ("requests to a node that is down", &mut routes.node_down),
            ("lost requests", &mut routes.lost),
            ("requests sent twice", &mut routes.repeated),
            ("claims refused", &mut routes.claims_refused),
            ("messages", &mut ship.topic.messages),
            ("messages given up", &mut ship.topic.given_up),
            ("messages written twice", &mut ship.topic.doubled),
            ("producers that came to an end", &mut ship.topic.producers_lost),
            ("messages that retention dropped", &mut ship.topic.dropped),
            ("commits", &mut ship.commits),
            ("rewinds", &mut ship.rewinds),
            ("databases set back", &mut ship.restored),
            ("crashes of persist", &mut ship.crashes),
            ("zombies", &mut ship.zombies),
            ("snapshots", &mut snapshots.taken),
            ("snapshots given up", &mut snapshots.given_up),
            ("starts from a snapshot", &mut snapshots.used),
            ("damaged snapshots put aside", &mut snapshots.put_aside),
            ("journals refused for a snapshot", &mut snapshots.refused),
            ("segments that went", &mut snapshots.segments),
        ]
    }

    pub fn add(&mut self, other: &Self) {
        let mut other = *other;
        for ((_, sum), (_, more)) in self.all().into_iter().zip(other.all()) {
            *sum += *more;
        }
    }

    /// A simulation in which something never comes by shows nothing about it.
    pub fn assert_that_everything_happened(mut self) {
        for (what, count) in self.all() {
            assert!(*count > 0, "no {what} in all these seeds");
        }
    }
}
