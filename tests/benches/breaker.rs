//! What a circuit breaker costs a call that it lets through; the goal is less than 100 ns.
//! `cargo bench -p agentapi-tests --bench breaker`; it prints and asserts nothing, since machines differ.
use agentapi_runtime::resilience::breaker::{Breaker, Permit, Settings};
use criterion::{Criterion, criterion_group, criterion_main};
use std::{hint::black_box, sync::Arc, time::Duration};

fn breaker(criterion: &mut Criterion) {
    let (now, settings) = (Duration::from_secs(1), Settings::default());
    let closed = Arc::new(Breaker::new(settings));
    criterion.bench_function("closed: admit and success", |bencher| {
        bencher.iter(|| black_box(closed.admit(black_box(now))).map(Permit::succeeded));
    });
    let open = Arc::new(Breaker::new(Settings { failures: 1, ..settings }));
    if let Ok(permit) = open.admit(now) {
        permit.failed(now);
    }
    criterion.bench_function("open: refusal", |bencher| {
        bencher.iter(|| black_box(open.admit(black_box(now))).is_err());
    });
}

criterion_group!(benches, breaker);
criterion_main!(benches);
