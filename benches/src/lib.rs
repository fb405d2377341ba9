//! What the benches share: a lean client, servers as child processes, medians; a loaded kernel; the
//! bare server, and a sale to redeem from; what the data lie on.

pub mod bare;
pub mod disk;
pub mod http_client;
pub mod kernel;
pub mod redeem;
pub mod servers;
