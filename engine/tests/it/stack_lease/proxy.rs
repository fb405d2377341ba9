//! A way over loopback that a test can cut, and that counts the connections made over it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How often a cut way is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// Which way something goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Towards {
    Server,
    Client,
}

#[derive(Default)]
struct Way {
    /// Nothing passes: what is sent waits here, as in a network that loses and repeats.
    is_cut: AtomicBool,
    is_over: AtomicBool,
    opened: AtomicUsize,
    /// Pieces that still pass until the way cuts itself, by direction; 0: it does not.
    left: [AtomicUsize; 2],
}

impl Way {
    /// Called before a piece is passed on.
    fn count(&self, towards: Towards) {
        let left = &self.left[towards as usize];
        let one_less = |left: usize| left.checked_sub(1);
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) == Ok(1) {
            self.is_cut.store(true, Ordering::Relaxed);
        }
    }
}

/// Takes connections and passes on what comes over them, both ways.
pub struct Proxy {
    pub address: SocketAddr,
    way: Arc<Way>,
}

impl Proxy {
    /// In front of a server, on a free port.
    #[track_caller]
    pub fn before(server: SocketAddr) -> Self {
        Self::on(SocketAddr::from(([127, 0, 0, 1], 0)), server)
    }

    #[track_caller]
    pub fn on(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a listener that is polled");
        let address = listener.local_addr().expect("it is bound");
        let way = Arc::<Way>::default();
        let taking = Arc::clone(&way);
        std::thread::spawn(move || {
            while !taking.is_over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => {
                        taking.opened.fetch_add(1, Ordering::Relaxed);
                        join(&client, server, &taking);
                    }
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        });
        Self { address, way }
    }

    /// Connections stay open, new ones are taken, and nothing passes.
    pub fn cut(&self) {
        self.way.is_cut.store(true, Ordering::Relaxed);
    }

    /// Cuts itself at the `nth` piece from now on in a direction, which does not pass any more.
    pub fn cut_at(&self, towards: Towards, nth: usize) {
        self.way.left[towards as usize].store(nth, Ordering::Relaxed);
    }

    pub fn is_cut(&self) -> bool {
        self.way.is_cut.load(Ordering::Relaxed)
    }

    /// What waited passes now, late.
    pub fn heal(&self) {
        self.way.is_cut.store(false, Ordering::Relaxed);
    }

    /// Connections so far.
    pub fn opened(&self) -> usize {
        self.way.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.way.is_over.store(true, Ordering::Relaxed);
    }
}

/// Joins a connection to one of its own to the server; without a server it ends at once.
fn join(client: &TcpStream, server: SocketAddr, way: &Arc<Way>) {
    let Ok(server) = TcpStream::connect(server) else { return };
    for stream in [client, &server] {
        // Accepted sockets are blocking on Linux whatever their listener is; said all the same.
        stream.set_nonblocking(false).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
    }
    let twice = |stream: &TcpStream| stream.try_clone().expect("a second handle");
    let ways = [(client, &server, Towards::Server), (&server, client, Towards::Client)];
    for (from, to, towards) in ways {
        let (from, to, way) = (twice(from), twice(to), Arc::clone(way));
        std::thread::spawn(move || pass(from, to, towards, &way));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, towards: Towards, way: &Way) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        way.count(towards);
        while way.is_cut.load(Ordering::Relaxed) && !way.is_over.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE);
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
