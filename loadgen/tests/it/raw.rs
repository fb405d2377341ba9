//! A server that reads request heads and writes whatever a test says, for as long as it says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

pub struct RawServer {
    pub address: SocketAddr,
    alive: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl RawServer {
    /// `answer` writes to a request of this number; false ends the connection.
    pub fn start(answer: impl Fn(&mut TcpStream, u64) -> bool + Send + Sync + 'static) -> Self {
        let count = AtomicU64::new(0);
        Self::serve(move |stream| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while read_head(&mut reader) && answer(stream, count.fetch_add(1, Ordering::SeqCst)) {}
        })
    }

    /// Answers every request of three lines, at hardly any cost.
    pub fn effortless() -> Self {
        Self::serve(|stream| {
            let (mut bytes, mut lines) = (vec![0; 64 << 10], 0);
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                lines += bytes[..count].split(|&b| b == b'\n').count() - 1;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
                if stream.write_all(&answer.repeat(lines / 3)).is_err() {
                    return;
                }
                lines %= 3;
            }
        })
    }

    /// `serve` has a connection until it ends it.
    fn serve(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let alive = Arc::new(AtomicBool::new(true));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let serve = Arc::new(serve);
        let (is_alive, all) = (alive.clone(), connections.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if !is_alive.load(Ordering::SeqCst) {
                    return;
                }
                all.lock().unwrap().push(stream.try_clone().unwrap());
                let serve = serve.clone();
                thread::spawn(move || {
                    serve(&mut stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { address, alive, connections }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.alive.store(false, Ordering::SeqCst);
        for c in self.connections.lock().unwrap().drain(..) {
            let _ = c.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(self.address);
    }
}

fn read_head(reader: &mut BufReader<TcpStream>) -> bool {
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(count) if count > 0 && line.trim_end().is_empty() => return true,
            Ok(count) if count > 0 => {}
            _ => return false,
        }
    }
}
