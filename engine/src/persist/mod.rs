//! Persist: from the log to database shards, behind the sale and never in its way.
//!
//! `writer` is one database shard's consumer: it reads its log, judges each record by the gap
//! rule, folds what is to be applied into rows (`apply`) and has the store commit them with the
//! watermarks in one transaction. `driver` runs the writers on the `persist` thread and publishes
//! how far they are (`status`). `store` is the seam between the two real stores; `embedded` puts
//! the default together: the journal itself as the log, `SQLite` files as database shards.

pub mod apply;
pub mod claims;
pub mod driver;
pub mod embedded;
pub mod lazy;
pub mod letters;
pub mod lost_tail;
pub mod mysql;
pub mod routes;
pub mod rows;
pub mod sqlite;
pub mod status;
pub mod store;
pub mod stores;
pub mod watch;
pub mod writer;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
