//! What the proxy costs: a command's round trip direct and through it, and commands a second with
//! many clients.
//!
//! The server behind is a thread that answers at once, which makes the proxy's share as large as it
//! can be; the round trip is measured on a real QEMU too.

mod peers;
mod round_trip;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::{env, sync::Arc, thread, time::Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use qmp::{
    Client, Proxy, QmpError, client, proxy,
    server::{CommandSpec, Handler},
};
use serde_json::{Map, Value};

use self::peers::{Plain, STATUS, instant_server};

/// Adds nothing.
struct NoExtension;

impl Handler for NoExtension {
    fn commands(&self) -> &[CommandSpec] {
        &[]
    }

    fn handle(&self, name: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
        Err(QmpError::command_not_found(name))
    }
}

fn throughput(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let upstream = folder.path().join("upstream");
    instant_server(&upstream);
    let path = folder.path().join("proxy");
    let (client, _) = Client::connect(&upstream, &client::Options::default()).expect("a server");
    let _proxy = Proxy::bind(
        &path,
        Arc::new(client),
        Arc::new(NoExtension),
        proxy::options(),
    );
    let mut group = criterion.benchmark_group("commands-through-the-proxy");
    group.throughput(Throughput::Elements(1));
    for count in [1_usize, 8, 64] {
        let mut clients: Vec<_> = (0..count).map(|_| Plain::connect(&path)).collect();
        group.bench_function(BenchmarkId::new("clients", count), |bencher| {
            bencher.iter_custom(|commands| {
                let each = commands.div_ceil(count as u64);
                let begin = Instant::now();
                thread::scope(|scope| {
                    for client in &mut clients {
                        scope.spawn(move || (0..each).for_each(|_| client.ask(STATUS)));
                    }
                });
                // The time of as many commands as were asked for.
                begin
                    .elapsed()
                    .mul_f64(commands as f64 / (each * count as u64) as f64)
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    throughput(&mut criterion);
    // Criterion measures one thing after another; pairs need a loop of their own.
    let mut filters = env::args().skip(1).filter(|word| !word.starts_with('-'));
    if filters.all(|filter| "round-trip".contains(&filter)) {
        round_trip::measure();
    }
}
