//! What a run prints and keeps.

pub mod abort;
pub mod compare;
pub mod figures;
pub mod files;
pub mod html;
pub mod merge;
pub mod prometheus;
pub mod summary;
pub mod text;
pub mod threshold;
pub mod verdict;
