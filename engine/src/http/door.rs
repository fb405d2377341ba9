//! The door: listeners bound before anything else, and the threads that serve them.
//!
//! ```text
//! http-00 … http-NN   public (and gateway) listener, each thread with a socket of its own on the
//!                     same port (SO_REUSEPORT): the kernel deals connections out
//! http-admin          the operators' listener; imports and audits run here, out of members' way
//! ```
//! It opens before there is a core: `/livez` is 200, `/readyz` 503 with progress, everything else
//! 503 `starting`. It closes in two steps: `drain` ends the public side behind the requests it has
//! accepted, while the admin listener still answers probes; `stop` ends that too.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::cells::Cells;
use super::history::History;
use super::link::{Closing, LinkIo, Patience, Serving};
use super::metrics::Scrape;
use super::peers;
use super::route::Surface;
use super::serve::serve;
use super::spool;
use super::worker::{Audit, Shared, Worker};
use crate::clock::Clock;
use crate::cluster::nodes::Cluster;
use crate::config::{ClusterConfig, HttpConfig};
use crate::shard::core::NodeView;
use crate::telemetry::figures::NodeFigures;

/// Why the door cannot open.
#[derive(Error, Debug)]
pub enum DoorError {
    #[error("cannot listen on {address} ({setting}): {error}")]
    Bind { setting: &'static str, address: SocketAddr, error: std::io::Error },
    #[error("cannot use {path} for imports: {error}")]
    Spool { path: PathBuf, error: std::io::Error },
    #[error("cannot start the thread {name}: {error}")]
    Thread { name: String, error: std::io::Error },
}

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 4096;
/// Files beside connections: segments, databases, logs.
const FILES_BESIDE: u64 = 1024;
/// Bytes of a request's head, and headers in it; beyond, hyper answers 431 and closes.
const HEAD_LEN_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 64;
/// A peer that takes no bytes for this long has gone. Units: milliseconds.
const SILENT_PEER_MS: u32 = 30_000;
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Pause after the kernel could not hand over a connection, for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the door needs of the node.
pub struct DoorParts {
    /// The nodes that this one is among, and how it deals with them; its secret is read already.
    pub cluster: Arc<Cluster>,
    pub cluster_config: ClusterConfig,
    pub view: Arc<NodeView>,
    pub clock: Arc<dyn Clock>,
    pub figures: Arc<dyn NodeFigures>,
    pub audit: Arc<Audit>,
    /// Set once the node has recovered.
    pub history: Arc<OnceLock<Arc<dyn History>>>,
    /// A folder of the door's own, for imports on their way.
    pub spool: PathBuf,
}

/// Where the door listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub gateway: Option<SocketAddr>,
}

/// Listeners that are bound, and served by nobody yet.
pub struct BoundDoor {
    config: HttpConfig,
    /// One per worker.
    public: Vec<TcpListener>,
    gateway: Vec<TcpListener>,
    admin: TcpListener,
    addresses: Addresses,
}

/// Ports of the core that a door takes: one per worker, and the admin thread's.
pub fn port_count(config: &HttpConfig) -> usize {
    config.workers + 1
}

impl BoundDoor {
    /// Binds all listeners.
    ///
    /// Errors: the first address that cannot be had.
    pub fn bind(config: HttpConfig) -> Result<Self, DoorError> {
        let public = bind_all("http.listen", config.listen, config.workers)?;
        let admin = bind_all("http.admin", config.admin, 1)?.remove(0);
        let gateway = match config.gateway {
            Some(address) => bind_all("http.gateway", address, config.workers)?,
            None => Vec::new(),
        };
        let local = |listener: &TcpListener| listener.local_addr().expect("it is bound");
        let addresses = Addresses {
            public: local(&public[0]),
            admin: local(&admin),
            gateway: gateway.first().map(local),
        };
        Ok(Self { config, public, gateway, admin, addresses })
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Starts the threads.
    pub fn serve(self, parts: DoorParts) -> Result<Door, DoorError> {
        let DoorParts { view, clock, figures, audit, history, spool, cluster, cluster_config } =
            parts;
        spool::clear(&spool).map_err(|error| DoorError::Spool { path: spool.clone(), error })?;
        raise_file_limit(self.config.connections_max);
        let workers = self.config.workers;
        let cells: Vec<Arc<Cells>> = (0..=workers).map(|_| Arc::default()).collect();
        let scrape = Scrape::new(
            Arc::clone(&view),
            Arc::clone(&figures),
            cells.clone(),
            Arc::clone(&cluster),
        );
        let config = self.config;
        let shared = Arc::new(Shared {
            config,
            cluster,
            cluster_config,
            view,
            clock,
            figures,
            audit,
            history,
            spool,
            scrape,
        });
        let (phase, _) = watch::channel(Phase::Serving);
        let connections = Arc::new(AtomicUsize::new(0));
        let mut door = Door {
            addresses: self.addresses,
            shared: Arc::clone(&shared),
            cells: cells.clone(),
            phase,
            public: Vec::new(),
            admin: None,
        };
        let mut gateway = self.gateway.into_iter();
        for (at, public) in self.public.into_iter().enumerate() {
            let mut listeners = vec![(Surface::Public, public)];
            listeners.extend(gateway.next().map(|listener| (Surface::Gateway, listener)));
            let thread = Thread {
                shared: Arc::clone(&shared),
                cells: Arc::clone(&cells[at]),
                phase: door.phase.subscribe(),
                connections: Arc::clone(&connections),
                listeners,
                ends_at: Phase::Draining,
            };
            door.public.push(thread.spawn(&format!("http-{at:02}"))?);
        }
        let thread = Thread {
            shared,
            cells: Arc::clone(&cells[workers]),
            phase: door.phase.subscribe(),
            // Operators are never kept out by members.
            connections: Arc::default(),
            listeners: vec![(Surface::Admin, self.admin)],
            ends_at: Phase::Stopping,
        };
        door.admin = Some(thread.spawn("http-admin")?);
        Ok(door)
    }
}

/// What the threads are to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    Serving,
    /// The public side takes no more, and ends when what it has taken is answered.
    Draining,
    /// The admin side too.
    Stopping,
    /// Everything ends now.
    Ended,
}

/// A door that is open.
pub struct Door {
    addresses: Addresses,
    shared: Arc<Shared>,
    cells: Vec<Arc<Cells>>,
    phase: watch::Sender<Phase>,
    public: Vec<JoinHandle<()>>,
    admin: Option<JoinHandle<()>>,
}

impl Door {
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Ends the public side: no new connections, idle ones closed, accepted requests answered.
    /// Gives whether all were, by the deadline; those that were not are cut off.
    pub fn drain(&mut self, deadline: Duration) -> bool {
        self.phase.send_replace(Phase::Draining);
        let threads = std::mem::take(&mut self.public);
        self.join(threads, deadline)
    }

    /// Ends the admin side too, and the door with it.
    pub fn stop(mut self, deadline: Duration) -> bool {
        let is_drained = self.drain(deadline);
        self.phase.send_replace(Phase::Stopping);
        let threads: Vec<_> = self.admin.take().into_iter().collect();
        self.join(threads, deadline) && is_drained
    }

    /// Connections open now, on all listeners.
    pub fn connection_count(&self) -> u64 {
        self.cells.iter().map(|cells| cells.connections_open.load(Ordering::Relaxed)).sum()
    }

    fn join(&self, threads: Vec<JoinHandle<()>>, deadline: Duration) -> bool {
        let now_ns = || self.shared.clock.monotonic_ns();
        let end_ns =
            now_ns().saturating_add(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX));
        while threads.iter().any(|thread| !thread.is_finished()) && now_ns() < end_ns {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut is_drained = true;
        for thread in threads {
            if thread.is_finished() {
                thread.join().expect("a panic would have ended the process");
            } else {
                // Left behind: its connections break when the process ends.
                is_drained = false;
            }
        }
        is_drained
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Ended);
    }
}

/// One thread to be.
struct Thread {
    shared: Arc<Shared>,
    cells: Arc<Cells>,
    phase: watch::Receiver<Phase>,
    connections: Arc<AtomicUsize>,
    listeners: Vec<(Surface, TcpListener)>,
    ends_at: Phase,
}

impl Thread {
    fn spawn(self, name: &str) -> Result<JoinHandle<()>, DoorError> {
        let failed = |error| DoorError::Thread { name: name.to_owned(), error };
        let builder = std::thread::Builder::new().name(name.to_owned());
        builder
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .thread_name("http-file")
                    .build_local(tokio::runtime::LocalOptions::default())
                    .expect("a runtime needs no more than an epoll");
                runtime.block_on(self.run());
                // Work on files that outlived its request is not waited for.
                runtime.shutdown_background();
            })
            .map_err(failed)
    }

    async fn run(self) {
        let worker = Rc::new(Worker::new(self.shared, self.cells));
        tokio::task::spawn_local(sweep(Rc::clone(&worker)));
        if self.ends_at == Phase::Stopping
            && let Some(peers) = &worker.peers
        {
            tokio::task::spawn_local(peers::watch(Rc::clone(peers)));
        }
        let accepting: Vec<_> = self
            .listeners
            .into_iter()
            .map(|(surface, listener)| {
                let acceptor = Acceptor {
                    worker: Rc::clone(&worker),
                    surface,
                    connections: Arc::clone(&self.connections),
                };
                let phase = self.phase.clone();
                tokio::task::spawn_local(acceptor.run(listener, phase, self.ends_at))
            })
            .collect();
        for task in accepting {
            task.await.expect("a panic would have ended the process");
        }
        worker.links.drain();
        let mut phase = self.phase;
        while worker.links.count() > 0 && *phase.borrow_and_update() < Phase::Ended {
            let _ = tokio::time::timeout(Duration::from_millis(5), phase.changed()).await;
        }
    }
}

/// Ends connections that wait too long, once a second.
async fn sweep(worker: Rc<Worker>) {
    let config = &worker.shared.config;
    let patience = Patience {
        head_ticks: config.read_timeout_ms.div_ceil(1000),
        idle_ticks: config.idle_timeout_ms.div_ceil(1000),
    };
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        for _ in 0..worker.links.sweep(patience) {
            Cells::count(&worker.cells.connections_timed_out);
        }
    }
}

/// Takes connections from one listener.
struct Acceptor {
    worker: Rc<Worker>,
    surface: Surface,
    connections: Arc<AtomicUsize>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener, mut phase: watch::Receiver<Phase>, ends_at: Phase) {
        let listener = tokio::net::TcpListener::from_std(listener).expect("it is non-blocking");
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.open(stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                changed = phase.wait_for(|phase| *phase >= ends_at) => {
                    // Without a sender the door itself is gone.
                    let _ = changed;
                    break;
                }
            }
        }
        // Connections that the kernel has accepted already are served, not reset.
        while let Some(Ok((stream, _))) = now(listener.accept()).await {
            self.open(stream);
        }
    }

    fn open(&self, stream: TcpStream) {
        let cells = &self.worker.cells;
        let max = self.worker.shared.config.connections_max;
        let Some(place) = Place::take(&self.connections, max) else {
            Cells::count(&cells.connections_refused);
            return;
        };
        Cells::count(&cells.connections_accepted);
        Cells::count(&cells.connections_open);
        // A socket that takes neither option works all the same.
        let _ = stream.set_nodelay(true);
        let _ = sockopt::set_tcp_user_timeout(&stream, SILENT_PEER_MS);
        let open = self.worker.links.open(self.surface);
        let link = open.handle();
        let io = LinkIo { io: TokioIo::new(stream), link: link.clone() };
        let worker = Rc::clone(&self.worker);
        let service = service_fn(move |request| serve(Rc::clone(&worker), link.clone(), request));
        // Without hyper's `pipeline_flush`: it holds an answer back while anything of the next
        // request has come, and buffers answers without bound for whoever does not read them.
        let connection = http1::Builder::new()
            .max_buf_size(HEAD_LEN_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(io, service);
        let worker = Rc::clone(&self.worker);
        tokio::task::spawn_local(async move {
            let _place = place;
            Serving::new(open, connection).await;
            Cells::uncount(&worker.cells.connections_open);
        });
    }
}

impl<S> Closing for http1::Connection<LinkIo, S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = super::reply::Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn close(self: std::pin::Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// One of the connections that may be open at once.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        // Relaxed: the count guards nothing but itself.
        if open.fetch_add(1, Ordering::Relaxed) >= max {
            open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self(Arc::clone(open)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The future's output if it has one at once.
async fn now<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// Binds `count` sockets to one address.
fn bind_all(
    setting: &'static str,
    address: SocketAddr,
    count: usize,
) -> Result<Vec<TcpListener>, DoorError> {
    let failed = |error| DoorError::Bind { setting, address, error };
    if address.port() != 0 {
        // Sockets that share a port would share it with another node's too: a plain bind fails.
        TcpListener::bind(address).map_err(failed)?;
    }
    let is_shared = count > 1;
    let first = bind_one(address, is_shared).map_err(failed)?;
    let common = first.local_addr().map_err(failed)?;
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(bind_one(common, is_shared).map_err(failed)?);
    }
    Ok(listeners)
}

fn bind_one(address: SocketAddr, is_shared: bool) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if is_shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Asks for as many files as the connections need; with fewer, fewer are accepted.
fn raise_file_limit(connections_max: usize) {
    let wanted = connections_max as u64 + FILES_BESIDE;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = Rlimit { current: Some(current), maximum: limit.maximum };
    if setrlimit(Resource::Nofile, raised).is_err() || current < wanted {
        tracing::warn!(wanted, current, "fewer files may be open than connections_max asks for");
    }
}
