//! What a run prints and keeps.

pub mod files;
pub mod html;
pub mod summary;
pub mod text;
pub mod threshold;
pub mod verdict;
