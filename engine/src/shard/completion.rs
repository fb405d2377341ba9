//! Completions: what happens once a record is durable.
//!
//! Thread: the journal's. It runs them in the order of the records, after the sync, so that a
//! reply leaves, and a freed unit can be sold again, only behind its durable record (I4, †Units).

use std::sync::Arc;

use super::port::{PortShared, ReplyTo};
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::journal::driver::CompletionSink;
use crate::kernel::command::Outcome;
use crate::stock::line::StockLines;
use crate::units::{ItemIndex, Quantity, Seq};

/// What a step left to do behind its record.
#[derive(Default)]
pub struct Completion {
    pub reply: Option<(ReplyTo, Outcome)>,
    pub stock: StockEffect,
    /// Anything rare: a slot's snapshot, a barrier's acknowledgement. Gets the sequence number of
    /// the last record before it.
    pub call: Option<Box<dyn FnOnce(Seq) + Send>>,
}

/// A step moves units of one item at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StockEffect {
    pub given_back: Option<(ItemIndex, Quantity)>,
    pub confirmed: Option<(ItemIndex, i64)>,
}

/// Runs completions, and wakes each port once per frame.
pub struct Completions {
    stock: Arc<StockLines>,
    ports: Arc<[PortShared]>,
    is_port_dirty: Vec<bool>,
}

impl Completions {
    pub fn new(stock: Arc<StockLines>, ports: Arc<[PortShared]>) -> Self {
        let is_port_dirty = vec![false; ports.len()];
        Self { stock, ports, is_port_dirty }
    }
}

impl CompletionSink for Completions {
    type Item = Completion;

    fn complete(&mut self, item: Completion, seq: Seq) {
        // A reversal's units are uncounted before they enter the line: "final" must fall first.
        if let Some((item, quantity)) = item.stock.confirmed {
            self.stock.confirm_durable(item, quantity);
        }
        if let Some((item, quantity)) = item.stock.given_back {
            self.stock.line(item).give_back(u64::from(quantity.get()));
        }
        if let Some((to, outcome)) = item.reply {
            crash_point!(CrashPoint::BeforeReply);
            self.ports[usize::from(to.port)].reply(to.ticket, outcome);
            self.is_port_dirty[usize::from(to.port)] = true;
        }
        if let Some(call) = item.call {
            call(seq);
        }
    }

    fn flush(&mut self) {
        for (port, is_dirty) in self.ports.iter().zip(&mut self.is_port_dirty) {
            if std::mem::take(is_dirty) {
                port.wake();
            }
        }
    }
}
