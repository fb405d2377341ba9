//! What the benches share: a lean client, servers as child processes, medians.

pub mod http_client;
pub mod servers;
