//! What a run prints and keeps.

pub mod summary;
pub mod text;
pub mod threshold;
pub mod verdict;
