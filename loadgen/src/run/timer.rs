//! A timer as fine as the kernel's.
//!
//! tokio's timers count in milliseconds: a request planned in between would be sent up to a
//! millisecond late, every time. A timerfd wakes within some tens of microseconds.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub struct Timer {
    fd: AsyncFd<OwnedFd>,
}

impl Timer {
    /// Must be called within a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: the timer owns the descriptor from here on, open and unchanged until its drop.
        Ok(Self { fd: unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }? })
    }

    /// Units: nanoseconds; 0 returns at once.
    pub async fn sleep(&self, ns: u64) -> io::Result<()> {
        if ns == 0 {
            return Ok(());
        }
        let value = Timespec {
            tv_sec: (ns / 1_000_000_000).cast_signed(),
            tv_nsec: (ns % 1_000_000_000).cast_signed(),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        rustix::time::timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        let mut count = [0u8; 8];
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?)) {
                Ok(read) => {
                    // Spent: it fires again only after it is set again.
                    ready.clear_ready();
                    return read.map(|_| ());
                }
                Err(_would_block) => {}
            }
        }
    }
}
