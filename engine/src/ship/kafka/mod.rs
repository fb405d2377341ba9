//! The log as a Kafka topic: the node ships to it, persist processes consume it.
//!
//! ```text
//!  journal on disk ─▶ JournalLog ─▶ shipper (driver, state machine) ─▶ topic, 33 partitions
//!                                        ▲ watermarks, rewind requests        │ consumer group
//!  database shards ──────────────────────┘   ◀── ShardWriter ◀── KafkaLog ◀── pump
//! ```
//! `message` is what stands in the topic; `shipper` the protocol of the sending end, without I/O,
//! `driver` its thread, and `outlet` where its messages leave; `pump` is the consuming end's
//! thread, `reading` what it reads and for whom, and `consume` the `Log` that each database shard's
//! writer reads; `topic` makes topics and checks them; `client` turns settings into librdkafka's;
//! `producer` is the producer of both sending threads.

pub mod client;
pub mod consume;
pub mod driver;
pub mod events;
pub mod message;
pub mod outlet;
pub mod producer;
pub mod pump;
pub mod read;
pub mod reading;
pub mod shipper;
pub mod teller;
pub mod topic;
