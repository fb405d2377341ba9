//! ns per decision of the kernel, at sizes that fit a cache and that do not.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mimalloc::MiMalloc;
use onrush_benches::kernel::{BATCH_LEN, Bench, Tally};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    group.throughput(Throughput::Elements(BATCH_LEN as u64));
    for (members, items) in [(10_000, 1), (10_000, 1_000), (100_000, 1_000), (1_000_000, 1_000)] {
        let mut bench = Bench::new(members, items, 1);
        let name = BenchmarkId::new(format!("{items} items"), members);
        group.bench_function(name, |b| {
            let bench = std::cell::RefCell::new(&mut bench);
            let mut tally = Tally::default();
            b.iter_batched_ref(
                || {
                    let mut commands = Vec::new();
                    bench.borrow_mut().commands(BATCH_LEN, &mut commands);
                    commands
                },
                |commands| bench.borrow_mut().run(commands, &mut tally),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
