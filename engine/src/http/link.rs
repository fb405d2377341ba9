//! One connection: its bytes, what it is busy with, and the sweep that ends idle and stuck ones.
//!
//! hyper's own header timeout makes a timer per request. Here a connection notes what it waits
//! for, in a cell; once a second the worker's sweep looks at all of them. So 10,000 idle
//! connections cost a walk over 10,000 cells a second, and a request costs no timer at all.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use slab::Slab;
use tokio::net::TcpStream;

use super::route::Surface;

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// The node, which has a request of it.
    Busy,
    /// Nothing: an event stream, until either side ends it.
    Stream,
}

/// A connection's state, shared by its bytes, its requests and the sweep. Thread: its worker's.
pub struct Link {
    pub surface: Surface,
    phase: Cell<Phase>,
    /// The sweep's tick at which the phase began.
    since: Cell<u64>,
    is_ended: Cell<bool>,
}

/// The links of one worker.
#[derive(Default)]
pub struct Links {
    open: RefCell<Slab<(Rc<Link>, Option<Waker>)>>,
    /// Seconds since the worker began.
    tick: Cell<u64>,
    is_draining: Cell<bool>,
}

/// How long a connection may stay in a phase, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub head_ticks: u64,
    pub idle_ticks: u64,
}

impl Links {
    pub fn open(self: &Rc<Self>, surface: Surface) -> OpenLink {
        let link = Rc::new(Link {
            surface,
            phase: Cell::new(Phase::Idle),
            since: Cell::new(self.tick.get()),
            is_ended: Cell::new(false),
        });
        let at = self.open.borrow_mut().insert((Rc::clone(&link), None));
        OpenLink { links: Rc::clone(self), link, at }
    }

    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// A second has gone by: ends the connections that waited too long. Returns how many.
    pub fn sweep(&self, patience: Patience) -> u64 {
        let tick = self.tick.get() + 1;
        self.tick.set(tick);
        let mut ended = 0;
        for (_, (link, waker)) in self.open.borrow().iter() {
            let limit = match link.phase.get() {
                Phase::Idle => patience.idle_ticks,
                Phase::Head => patience.head_ticks,
                Phase::Busy | Phase::Stream => continue,
            };
            // A tick more, because a phase begins anywhere within one.
            if tick > link.since.get() + limit && !link.is_ended.replace(true) {
                ended += 1;
                if let Some(waker) = waker {
                    waker.wake_by_ref();
                }
            }
        }
        ended
    }

    /// Ends idle connections now, and each other one behind the request that it is busy with.
    pub fn drain(&self) {
        self.is_draining.set(true);
        for (_, (_, waker)) in self.open.borrow().iter() {
            if let Some(waker) = waker {
                waker.wake_by_ref();
            }
        }
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    fn enter(&self, link: &Link, phase: Phase) {
        link.phase.set(phase);
        link.since.set(self.tick.get());
    }
}

/// A link that is registered until it is dropped.
pub struct OpenLink {
    links: Rc<Links>,
    link: Rc<Link>,
    at: usize,
}

impl OpenLink {
    pub fn handle(&self) -> LinkHandle {
        LinkHandle { links: Rc::clone(&self.links), link: Rc::clone(&self.link) }
    }
}

impl Drop for OpenLink {
    fn drop(&mut self) {
        self.links.open.borrow_mut().remove(self.at);
    }
}

/// What a connection's parts note their progress on.
#[derive(Clone)]
pub struct LinkHandle {
    links: Rc<Links>,
    link: Rc<Link>,
}

impl LinkHandle {
    pub fn surface(&self) -> Surface {
        self.link.surface
    }
    pub fn request_begins(&self) {
        self.link.phase.set(Phase::Busy);
    }
    pub fn request_ends(&self, is_stream: bool) {
        self.links.enter(&self.link, if is_stream { Phase::Stream } else { Phase::Idle });
    }
    fn bytes_came(&self) {
        if self.link.phase.get() == Phase::Idle {
            self.links.enter(&self.link, Phase::Head);
        }
    }
}

/// The connection's bytes.
pub struct LinkIo {
    pub io: TokioIo<TcpStream>,
    pub link: LinkHandle,
}

impl Read for LinkIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if polled.is_ready() {
            self.link.bytes_came();
        }
        polled
    }
}

impl Write for LinkIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }
}

/// Something of hyper's that can be told to end behind its current request.
pub trait Closing: Future {
    fn close(self: Pin<&mut Self>);
}

/// Drives a connection until it ends, is swept, or has drained.
pub struct Serving<C> {
    open: OpenLink,
    connection: Pin<Box<C>>,
    is_known: bool,
    was_closed: bool,
}

impl<C: Closing> Serving<C> {
    pub fn new(open: OpenLink, connection: C) -> Self {
        Self { open, connection: Box::pin(connection), is_known: false, was_closed: false }
    }
}

impl<C: Closing> Future for Serving<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_known {
            // A task's waker stays the same, so it is left with the sweep once.
            self.is_known = true;
            let waker = Some(cx.waker().clone());
            self.open.links.open.borrow_mut()[self.open.at].1 = waker;
        }
        if self.open.link.is_ended.get() {
            return Poll::Ready(());
        }
        if self.open.links.is_draining() && !self.was_closed {
            self.was_closed = true;
            self.connection.as_mut().close();
        }
        // How a connection ended is the client's affair; a request was answered or counted.
        self.connection.as_mut().poll(cx).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_ends_what_waits_too_long_and_nothing_else() {
        let links = Rc::new(Links::default());
        let patience = Patience { head_ticks: 2, idle_ticks: 5 };
        let open: Vec<_> = (0..4).map(|_| links.open(Surface::Public)).collect();
        open[1].handle().bytes_came();
        open[2].handle().request_begins();
        open[3].handle().request_begins();
        open[3].handle().request_ends(true);
        let ended = |open: &OpenLink| open.link.is_ended.get();
        let ticks: Vec<u64> = (0..8).map(|_| links.sweep(patience)).collect();
        assert_eq!(ticks, [0, 0, 1, 0, 0, 1, 0, 0]);
        assert_eq!(open.iter().map(ended).collect::<Vec<_>>(), [true, true, false, false]);
    }

    #[test]
    fn a_head_that_trickles_in_gets_no_more_time_by_its_bytes() {
        let links = Rc::new(Links::default());
        let patience = Patience { head_ticks: 2, idle_ticks: 5 };
        let open = links.open(Surface::Public);
        let mut ended = 0;
        for _ in 0..4 {
            open.handle().bytes_came();
            ended += links.sweep(patience);
        }
        assert_eq!(ended, 1);
    }
}
