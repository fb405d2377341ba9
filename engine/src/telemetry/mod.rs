//! What operators see of a node: logs, and the figures that its parts count.

pub mod figures;
pub mod histogram;
pub mod logs;
