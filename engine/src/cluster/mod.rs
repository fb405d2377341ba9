//! Nodes that share one mall: which node owns which slots, and which of them can be reached.
//!
//! ```text
//! map     slots ─► nodes, from the settings; checked whole; never changes while a node runs
//! route   a request's slot ─► here, there, or a refusal: pure
//! nodes   what the parts of a node know of the others: their health, their journals
//! claims  slots ─► journals, durable: a map is believed only where it agrees with them; pure
//! ```
//! Without a `[cluster]` section a node is alone: it owns every slot, and nothing here is asked on
//! a request's way. The bytes between nodes are `http`'s part, the rows of claims `persist`'s.

pub mod claims;
pub mod map;
pub mod nodes;
pub mod route;
