//! The inbox and the stock line, alone and with two threads at them.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use onrush::kernel::command::Command;
use onrush::shard::inbox::{Inboxes, Request};
use onrush::shard::port::ReplyTo;
use onrush::stock::line::StockLine;
use onrush::units::{ItemIndex, KeyHash, MemberId};

const BATCH: u64 = 256;

fn request(number: u64) -> Request {
    Request {
        command: Command::Redeem {
            member: MemberId::new(number),
            key: KeyHash::new(u128::from(number)),
            item: ItemIndex::new(0),
            quantity: 1,
            hold: false,
        },
        reply_to: ReplyTo { port: 0, ticket: number as u32 },
    }
}

fn inbox(c: &mut Criterion) {
    let mut group = c.benchmark_group("inbox");
    group.throughput(Throughput::Elements(BATCH));
    let inboxes = Inboxes::new(1, 4096);
    group.bench_function("push and pop a batch of 256", |b| {
        b.iter(|| {
            for number in 0..BATCH {
                inboxes.push(black_box(request(number))).expect("there is room");
            }
            while let Some(request) = inboxes.get(0).pop() {
                black_box(request);
            }
        });
    });
    group.finish();
}

fn stock(c: &mut Criterion) {
    let mut group = c.benchmark_group("stock line");
    group.throughput(Throughput::Elements(BATCH));
    for contenders in [0usize, 1] {
        let line = Arc::new(StockLine::default());
        line.give_back(u64::MAX / 2);
        let is_over = Arc::new(AtomicBool::new(false));
        let others: Vec<_> = (0..contenders)
            .map(|_| {
                let (line, is_over) = (Arc::clone(&line), Arc::clone(&is_over));
                std::thread::spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        black_box(line.try_take(1));
                    }
                })
            })
            .collect();
        group.bench_function(BenchmarkId::new("take 256 units", contenders), |b| {
            b.iter(|| {
                for _ in 0..BATCH {
                    black_box(line.try_take(1));
                }
            });
        });
        is_over.store(true, Ordering::Relaxed);
        for other in others {
            other.join().expect("a contender ends");
        }
    }
    group.finish();
}

criterion_group!(benches, inbox, stock);
criterion_main!(benches);
