//! A small HTTP/1.1 server whose behaviour a test knows to the millisecond.
//!
//! A thread per connection. It can stall for a time at a moment, be killed and started again on
//! the same port.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What came in.
#[derive(Debug, Default)]
pub struct Ask {
    pub method: String,
    pub path: String,
    pub member: Option<u64>,
    pub key: Option<String>,
    pub body: Vec<u8>,
    pub number: u64,
    /// The port of its connection's other end.
    pub peer: u16,
}

/// What goes out: bytes as they are, and whether the connection ends behind them.
pub struct Say {
    pub bytes: Vec<u8>,
    pub hang_up: bool,
    /// These again and again behind the bytes, every 10 ms.
    pub drip: Option<&'static [u8]>,
}

impl Say {
    pub fn json(status: u16, body: &str) -> Self {
        let bytes = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             \r\n{body}",
            body.len()
        );
        Self { bytes: bytes.into_bytes(), hang_up: false, drip: None }
    }

    pub fn raw(bytes: &[u8], hang_up: bool) -> Self {
        Self { bytes: bytes.to_vec(), hang_up, drip: None }
    }
}

pub type Handler = Arc<dyn Fn(&Ask) -> Say + Send + Sync>;

pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    handler: Handler,
    alive: AtomicBool,
    served: AtomicU64,
    /// Answers wait until this moment.
    stalled_until: Mutex<Option<Instant>>,
    connections: Mutex<Vec<TcpStream>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Ask) -> Say + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), Arc::new(handler))
    }

    pub fn start_at(address: SocketAddr, handler: Handler) -> Self {
        let listener = bind(address);
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            handler,
            alive: AtomicBool::new(true),
            served: AtomicU64::new(0),
            stalled_until: Mutex::new(None),
            connections: Mutex::new(Vec::new()),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if !accepting.alive.load(Ordering::SeqCst) {
                    return;
                }
                accepting.connections.lock().unwrap().push(stream.try_clone().unwrap());
                let shared = accepting.clone();
                thread::spawn(move || serve(&shared, &stream));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::SeqCst)
    }

    /// No answer leaves for so long.
    pub fn stall(&self, time: Duration) {
        *self.shared.stalled_until.lock().unwrap() = Some(Instant::now() + time);
    }

    /// Ends all connections and listens no more.
    pub fn kill(&self) {
        self.shared.alive.store(false, Ordering::SeqCst);
        for c in self.shared.connections.lock().unwrap().drain(..) {
            let _ = c.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread, which then lets go of the port.
        let _ = TcpStream::connect(self.address);
    }

    pub fn restart(&self) -> Self {
        Self::start_at(self.address, self.shared.handler.clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn bind(address: SocketAddr) -> TcpListener {
    for _ in 0..500 {
        if let Ok(listener) = TcpListener::bind(address) {
            return listener;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("{address} does not get free");
}

fn serve(shared: &Shared, stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(mut ask) = read_ask(&mut reader) {
        if !shared.alive.load(Ordering::SeqCst) {
            return;
        }
        ask.peer = stream.peer_addr().map_or(0, |peer| peer.port());
        ask.number = shared.served.fetch_add(1, Ordering::SeqCst);
        let say = (shared.handler)(&ask);
        let until = *shared.stalled_until.lock().unwrap();
        if let Some(until) = until {
            thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        if !shared.alive.load(Ordering::SeqCst) || writer.write_all(&say.bytes).is_err() {
            return;
        }
        if let Some(drip) = say.drip {
            while writer.write_all(drip).is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
            return;
        }
        if say.hang_up {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn read_ask(reader: &mut BufReader<&TcpStream>) -> Option<Ask> {
    let mut ask = Ask::default();
    let mut length = 0;
    for i in 0.. {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if i == 0 {
            let mut words = line.split(' ');
            ask.method = words.next()?.into();
            ask.path = words.next()?.into();
            continue;
        }
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "x-member-id" => ask.member = value.parse().ok(),
            "idempotency-key" => ask.key = Some(value.into()),
            _ => {}
        }
    }
    ask.body = vec![0; length];
    reader.read_exact(&mut ask.body).ok()?;
    Some(ask)
}
