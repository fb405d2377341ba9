//! Opening a connection.

use std::io;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::http::Target;

/// Connects without Nagle's delay; gives up after `timeout`.
pub async fn connect(target: &Target, timeout: Duration) -> io::Result<TcpStream> {
    let socket = if target.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let stream = tokio::time::timeout(timeout, socket.connect(target.address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer to the connect"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Lifts this process's soft limit of open files to what `wanted` sockets need.
/// Errors: the hard limit, when it is lower.
pub fn raise_file_limit(wanted: u64) -> Result<(), u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let needed = wanted + 64;
    if limit.current.is_none_or(|now| now >= needed) {
        return Ok(());
    }
    if let Some(hard) = limit.maximum.filter(|&hard| hard < needed) {
        return Err(hard);
    }
    let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|_| limit.current.unwrap_or(0))
}
