//! What the benches share: a lean client, servers as child processes, medians; a loaded kernel.

pub mod http_client;
pub mod kernel;
pub mod servers;
