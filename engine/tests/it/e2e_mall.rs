//! Three nodes of one mall on loopback, for the tests named `e2e_nodes…`.

use std::net::{SocketAddr, TcpListener};

use onrush::cluster::map::{NodeSpec, SlotMap};
use onrush::units::{MemberId, Slot};
use serde_json::Value;

use crate::e2e::{Node, Site};
use crate::e2e_client::{Client, Wish};
use crate::stack_lease::proxy::Proxy;

pub const SECRET: &str = "nodes-among-themselves";
pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// The nodes, some of which may not run.
pub struct Mall {
    pub sites: Vec<Site>,
    pub nodes: Vec<Option<Node>>,
    pub map: SlotMap,
}

/// Addresses that were free a moment ago.
fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("it is bound"))
}

impl Mall {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts all three, and waits until each has seen that the others are up. `set` sees each
    /// site before that.
    pub fn start_with(set: impl Fn(&mut Site)) -> Self {
        let mut mall = Self::prepare(set);
        mall.start_all();
        mall
    }

    /// Starts all three, and waits until each has seen that the others are up.
    #[track_caller]
    pub fn start_all(&mut self) {
        for at in 0..NAMES.len() {
            self.start_node(at);
        }
        for (from, of) in (0..9).map(|n| (n / 3, n % 3)).filter(|(from, of)| from != of) {
            self.wait_health(from, of, "up");
        }
    }

    /// Nothing runs yet.
    pub fn prepare(set: impl Fn(&mut Site)) -> Self {
        let addresses: [SocketAddr; 6] = free_addresses();
        let slots = ["0-1364", "1365-2729", "2730-4095"];
        let specs: Vec<NodeSpec> = (0..NAMES.len())
            .map(|at| NodeSpec {
                name: NAMES[at].into(),
                public: format!("http://{}", addresses[2 * at]),
                admin: format!("http://{}", addresses[2 * at + 1]),
                slots: vec![slots[at].into()],
            })
            .collect();
        let map = SlotMap::new(1, NAMES[0], &specs).expect("a map");
        let nodes = specs.iter().map(|spec| {
            let NodeSpec { name, public, admin, slots } = spec;
            format!(
                "{{ name = {name:?}, public = {public:?}, admin = {admin:?}, slots = {slots:?} }}"
            )
        });
        let nodes = format!("[{}]", nodes.collect::<Vec<_>>().join(", "));
        let sites = (0..NAMES.len()).map(|at| {
            let mut site = Site::new();
            site.listen_on(&addresses[2 * at].to_string(), &addresses[2 * at + 1].to_string());
            site.set("cluster.self", &format!("{:?}", NAMES[at]));
            site.set("cluster.secret", &format!("{SECRET:?}"));
            site.set("cluster.probe_every_ms", "100");
            site.set("cluster.nodes", &nodes);
            set(&mut site);
            site
        });
        let sites = sites.collect();
        Self { sites, nodes: NAMES.map(|_| None).into(), map }
    }

    /// Lets a node listen elsewhere, with ways at the addresses that the map names: its public
    /// one, and its operators'. Before it is started.
    #[track_caller]
    pub fn put_ways_before(&mut self, at: usize) -> [Proxy; 2] {
        let node = self.map.nodes().nth(at).expect("it is in the map").1;
        let mapped = [&node.public, &node.admin]
            .map(|url| url.authority().parse::<SocketAddr>().expect("an address"));
        let own: [SocketAddr; 2] = free_addresses();
        self.sites[at].listen_on(&own[0].to_string(), &own[1].to_string());
        [0, 1].map(|side| Proxy::on(mapped[side], own[side]))
    }

    #[track_caller]
    pub fn start_node(&mut self, at: usize) {
        self.nodes[at] = Some(self.sites[at].start());
    }

    #[track_caller]
    pub fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().expect("it runs")
    }

    #[track_caller]
    pub fn take(&mut self, at: usize) -> Node {
        self.nodes[at].take().expect("it runs")
    }

    pub fn client(&self, at: usize) -> Client {
        self.node(at).client()
    }

    pub fn admin(&self, at: usize) -> Client {
        self.node(at).admin()
    }

    pub fn owner_of(&self, member: u64) -> usize {
        self.map.owner(Slot::of(MemberId::new(member))).index()
    }

    /// The members from 1 on that a node owns.
    pub fn members_of(&self, at: usize) -> impl Iterator<Item = u64> + '_ {
        (1..).filter(move |member| self.owner_of(*member) == at)
    }

    pub fn member_of(&self, at: usize) -> u64 {
        self.members_of(at).next().expect("slots are spread")
    }

    /// A sale's id whose home is this node, so that its units are there in any case.
    pub fn sale_of(&self, at: usize, name: &str) -> String {
        let is_home = |id: &String| self.map.home(id).index() == at;
        (0..1_000).map(|n| format!("{name}-{n}")).find(is_home).expect("homes are spread")
    }

    /// Opens a sale at each node's home, and gives their ids.
    #[track_caller]
    pub fn open_sales(&self, name: &str, items: &[(&str, u64, u64, u32)]) -> Vec<String> {
        let ids: Vec<String> = (0..NAMES.len()).map(|at| self.sale_of(at, name)).collect();
        for id in &ids {
            self.node(0).open_sale(id, 60_000, items);
        }
        ids
    }

    /// What a member wants of the sale at home where the member is.
    pub fn wish(&self, sales: &[String], member: u64, key: &str) -> Wish {
        Wish::new(member, key, &sales[self.owner_of(member)], "cup")
    }

    /// Waits until a node sees another as it is said to be.
    #[track_caller]
    pub fn wait_health(&self, from: usize, of: usize, health: &str) {
        let what = format!("{} sees {} {health}", NAMES[from], NAMES[of]);
        crate::e2e::wait_until(&what, std::time::Duration::from_secs(20), || {
            self.cluster(from)["nodes"][of]["health"] == health
        });
    }

    pub fn cluster(&self, at: usize) -> Value {
        self.admin(at).get("/v1/cluster").expect(200).json()
    }
}
