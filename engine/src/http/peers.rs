//! A worker's way to the other nodes: kept-alive connections, one request at a time on each.
//!
//! Thread: stays on the thread that made it; only the health of nodes is shared between threads.
//!
//! - Never a hang: a request waits for a connection at most `connect_timeout_ms`, for its answer
//!   at most its patience, and for a node that goes down meanwhile not at all.
//! - A connection that the other side closed while it lay idle shows only when it is used. The
//!   request is sent once more then, on a new one: everything that nodes send each other either
//!   reads, or has a key, or says what shall be.
//! - Who says that a request comes from a node proves it by the shared secret. A request without
//!   proof that says so all the same is refused, so nobody outside gains anything by saying it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::batch::is_same;
use super::identity::X_MEMBER_ID;
use super::parse::{IDEMPOTENCY_KEY, X_OPERATOR, X_REASON, X_REFERENCE};
use super::problem::{Help, Kind, Problem};
use super::reply::Body;
use crate::cluster::map::{NodeIndex, SlotMap};
use crate::cluster::nodes::{Cluster, Health};
use crate::cluster::route::{Decision, Misrouted, decide};
use crate::config::ClusterConfig;
use crate::units::Slot;

/// The version of the sender's map: says that a node has sent the request on.
pub const ONRUSH_FORWARDED: HeaderName = HeaderName::from_static("onrush-forwarded");
/// Proves it.
pub const ONRUSH_NODE_SECRET: HeaderName = HeaderName::from_static("onrush-node-secret");
/// What goes along with a request; everything else is between the client and this node.
const PASSED_ON: [HeaderName; 6] =
    [X_MEMBER_ID, IDEMPOTENCY_KEY, CONTENT_TYPE, X_OPERATOR, X_REASON, X_REFERENCE];
/// Bytes of the largest answer that another node is believed to give.
const ANSWER_LEN_MAX: usize = 64 << 20;

/// Which listener of the other node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Public,
    Admin,
}

/// A request to another node.
#[derive(Clone, Debug)]
pub struct Ask {
    pub side: Side,
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub patience: Duration,
}

/// What the other node said.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; a problem where the node did not do what was asked.
    pub fn json(&self) -> Option<serde_json::Value> {
        self.status.is_success().then(|| serde_json::from_slice(&self.body).ok()).flatten()
    }
    /// The `code` of a problem, or its status.
    pub fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["code"].as_str().map_or_else(|| self.status.as_u16().to_string(), str::to_owned)
    }
}

type Sender = http1::SendRequest<Body>;

/// The connections to one listener of one node.
#[derive(Default)]
struct Pool {
    /// The last one back is the next one used, so few are kept busy and the rest go idle.
    idle: RefCell<Vec<Sender>>,
    open: Rc<Cell<usize>>,
}

/// One worker's connections to all other nodes.
pub struct Peers {
    cluster: Arc<Cluster>,
    config: ClusterConfig,
    secret: HeaderValue,
    version: HeaderValue,
    /// By node, then by side.
    pools: Box<[[Pool; 2]]>,
}

/// Why a node gave no answer.
enum Failure {
    /// No connection: it is down.
    Connect(std::io::Error),
    /// The connection broke, or the answer did not come.
    Lost(String),
    /// As many connections as there may be are busy.
    Full,
}

impl Peers {
    /// `None` for a node that is alone.
    pub fn new(cluster: &Arc<Cluster>, config: &ClusterConfig) -> Option<Self> {
        let map = cluster.map()?;
        let secret = config.secret.as_ref().map_or("", |secret| secret.reveal());
        let mut secret = HeaderValue::from_str(secret).expect("the settings are checked");
        secret.set_sensitive(true);
        Some(Self {
            cluster: Arc::clone(cluster),
            config: config.clone(),
            secret,
            version: HeaderValue::from(map.version()),
            pools: map.nodes().map(|_| Default::default()).collect(),
        })
    }

    pub fn map(&self) -> &SlotMap {
        self.cluster.map().expect("peers are made where there is a map")
    }
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
    pub fn name(&self, node: NodeIndex) -> &str {
        &self.map().node(node).name
    }
    /// How long another node's answer may take.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.config.answer_timeout_ms)
    }

    /// Whether another node has sent this request.
    ///
    /// Errors: `not-trusted`: it says so without proof.
    pub fn is_from_node(&self, headers: &HeaderMap) -> Result<bool, Problem> {
        if !headers.contains_key(ONRUSH_FORWARDED) {
            return Ok(false);
        }
        let mut offered = headers.get_all(ONRUSH_NODE_SECRET).iter();
        let is_proven = offered
            .next()
            .is_some_and(|offered| is_same(self.secret.as_bytes(), offered.as_bytes()));
        if is_proven && offered.next().is_none() { Ok(true) } else { Err(Kind::NotTrusted.into()) }
    }

    /// Where a request for `slot` goes; `None`: it is this node's own.
    ///
    /// Errors: `not-trusted`.
    #[inline]
    pub fn place(
        &self,
        slot: Slot,
        headers: &HeaderMap,
        is_redirected: bool,
    ) -> Result<Option<Decision>, Problem> {
        let map = self.map();
        if map.owner(slot) == map.me() {
            return Ok(None);
        }
        let is_forwarded = self.is_from_node(headers)?;
        let policy = if is_redirected { self.config.misrouted } else { Misrouted::Forward };
        let is_down = |node| self.cluster.peer(node).is_down();
        Ok(Some(decide(map, slot, policy, || is_forwarded, is_down)))
    }

    /// The same request, to be sent on.
    pub fn ask_of(&self, side: Side, parts: &Parts, body: Bytes) -> Ask {
        let mut headers = HeaderMap::with_capacity(12);
        for name in PASSED_ON {
            for value in parts.headers.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        // The answer to a HEAD is cut short by whoever answers it.
        let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
        Ask { side, method, path, headers, body, patience: self.patience() }
    }

    /// Sends a request to a node and waits for its answer.
    ///
    /// Errors: `node-down` at once where it is known to be, else as soon as it is found out;
    /// `overloaded`.
    pub async fn send(&self, node: NodeIndex, ask: &Ask) -> Result<Answer, Problem> {
        let peer = self.cluster.peer(node);
        // Made before the look, so that no fall between the two is missed.
        let fall = peer.fall();
        if peer.is_down() {
            return Err(self.down(node));
        }
        let exchange = tokio::time::timeout(ask.patience, self.exchange(node, ask));
        tokio::select! {
            done = exchange => match done {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(Failure::Full)) => Err(Kind::Overloaded.into()),
                Ok(Err(Failure::Connect(error))) => {
                    if peer.note(Health::Down) {
                        tracing::warn!(node = self.name(node), %error, "a node is down");
                    }
                    Err(self.down(node))
                }
                Ok(Err(Failure::Lost(reason))) => {
                    tracing::debug!(node = self.name(node), reason, "no answer from a node");
                    Err(self.down(node))
                }
                Err(_) => Err(self.down(node)),
            },
            () = fall => Err(self.down(node)),
        }
    }

    /// The problem that says so.
    pub fn down(&self, node: NodeIndex) -> Problem {
        let detail = format!(
            "Node {} does not answer. What reached it before is done, and a retry with the same \
             key gets its answer.",
            self.name(node)
        );
        Problem::with(Kind::NodeDown, Help::Detail(detail))
    }

    /// Asks a node whether it is ready, and notes what it says.
    async fn probe(&self, node: NodeIndex) {
        let ask = Ask {
            side: Side::Public,
            method: Method::GET,
            path: "/readyz".into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            patience: Duration::from_millis(self.config.probe_timeout_ms),
        };
        let answer = tokio::time::timeout(ask.patience, self.exchange(node, &ask)).await;
        let health = match answer {
            Ok(Ok(answer)) if answer.status == StatusCode::OK => Health::Up,
            Ok(Ok(_)) => Health::NotReady,
            Ok(Err(Failure::Full)) => return,
            Ok(Err(_)) | Err(_) => Health::Down,
        };
        let before = self.cluster.peer(node).health();
        if self.cluster.peer(node).note(health) {
            let (before, now) = (before.name(), health.name());
            tracing::info!(node = self.name(node), before, now, "another node's health");
        }
    }

    async fn exchange(&self, node: NodeIndex, ask: &Ask) -> Result<Answer, Failure> {
        let pool = &self.pools[node.index()][ask.side as usize];
        loop {
            let idle = pool.idle.borrow_mut().pop();
            let is_new = idle.is_none();
            let mut sender = match idle {
                Some(sender) if sender.is_closed() => continue,
                Some(sender) => sender,
                None => self.connect(node, ask.side, pool).await?,
            };
            match self.exchange_on(&mut sender, node, ask).await {
                Ok(answer) => {
                    if !sender.is_closed() {
                        pool.idle.borrow_mut().push(sender);
                    }
                    return Ok(answer);
                }
                Err(error) if is_new => return Err(Failure::Lost(error)),
                Err(_) => {}
            }
        }
    }

    async fn exchange_on(
        &self,
        sender: &mut Sender,
        node: NodeIndex,
        ask: &Ask,
    ) -> Result<Answer, String> {
        sender.ready().await.map_err(|error| error.to_string())?;
        let mut request = Request::new(Body::from(ask.body.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = ask.path.parse().map_err(|_| String::from("the path is no URI"))?;
        let headers = request.headers_mut();
        headers.clone_from(&ask.headers);
        let node = self.map().node(node);
        let url = match ask.side {
            Side::Public => &node.public,
            Side::Admin => &node.admin,
        };
        headers.insert(HOST, HeaderValue::from_str(url.authority()).expect("a checked URL"));
        headers.insert(ONRUSH_FORWARDED, self.version.clone());
        headers.insert(ONRUSH_NODE_SECRET, self.secret.clone());
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = read_all(body).await?;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn connect(&self, node: NodeIndex, side: Side, pool: &Pool) -> Result<Sender, Failure> {
        if pool.open.get() >= self.config.connections_max {
            return Err(Failure::Full);
        }
        let place = Open::new(&pool.open);
        let node = self.map().node(node);
        let url = match side {
            Side::Public => &node.public,
            Side::Admin => &node.admin,
        };
        let patience = Duration::from_millis(self.config.connect_timeout_ms);
        let stream = tokio::time::timeout(patience, TcpStream::connect(url.authority())).await;
        let stream = stream
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(Failure::Connect)?;
        // A socket that does not take the option works all the same.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::Lost(error.to_string()))?;
        tokio::task::spawn_local(async move {
            let _place = place;
            // How it ends is seen by whoever uses it next.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// One of the connections that may be open at once.
struct Open(Rc<Cell<usize>>);

impl Open {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn read_all(mut body: Incoming) -> Result<Bytes, String> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        let Some(frame) = frame else { break };
        let Ok(piece) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        if first.is_empty() && rest.is_empty() {
            first = piece;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&first);
        }
        rest.extend_from_slice(&piece);
        if rest.len() > ANSWER_LEN_MAX {
            return Err("the answer is too long".into());
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Looks after the health of the other nodes; runs on the admin thread, and never ends.
pub async fn watch(peers: Rc<Peers>) {
    let every = Duration::from_millis(peers.config.probe_every_ms);
    let nodes: Vec<NodeIndex> = peers.map().others().map(|(node, _)| node).collect();
    let watching = nodes.into_iter().map(|node| {
        let peers = Rc::clone(&peers);
        tokio::task::spawn_local(async move {
            loop {
                peers.probe(node).await;
                tokio::time::sleep(every).await;
            }
        })
    });
    for task in watching.collect::<Vec<_>>() {
        // They end with the runtime.
        let _ = task.await;
    }
}
