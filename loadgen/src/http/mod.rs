//! The client's side of HTTP/1.1: requests as prepared bytes, answers parsed in place.

pub mod answer;
pub mod once;
pub mod stream;
pub mod target;

pub use answer::{Answer, AnswerReader, BadAnswer};
pub use target::Target;
