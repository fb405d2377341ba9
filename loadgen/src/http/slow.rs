//! A reader that takes its time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;

/// Reads no faster than so many bytes per second, in steps of a tenth.
#[derive(Debug)]
pub struct Slow {
    sleep: Pin<Box<Sleep>>,
    per_step: usize,
    left: usize,
}

const STEP: Duration = Duration::from_millis(100);

impl Slow {
    pub fn new(bytes_per_second: u64) -> Self {
        let per_step = usize::try_from(bytes_per_second / 10).unwrap_or(usize::MAX).max(1);
        Self { sleep: Box::pin(tokio::time::sleep(STEP)), per_step, left: per_step }
    }

    /// How many bytes may be read now; tell [`Self::took`] how many were.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if self.left == 0 {
            ready!(self.sleep.as_mut().poll(cx));
            self.sleep.set(tokio::time::sleep(STEP));
            self.left = self.per_step;
        }
        Poll::Ready(self.left)
    }

    pub fn took(&mut self, bytes: usize) {
        self.left -= bytes;
    }
}
