//! The client's side of HTTP/1.1 (requests as prepared bytes, answers parsed in place) and HTTP/2.

pub mod answer;
pub mod once;
pub mod slow;
pub mod stream;
pub mod target;
pub mod tls;
pub mod two;

pub use answer::{Answer, AnswerReader, BadAnswer};
pub use target::Target;
