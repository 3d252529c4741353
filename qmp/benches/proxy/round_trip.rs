//! A command's round trip through the proxy beside the direct one, in pairs.
//!
//! Each pair is one command each way, so both meet the same machine at the same moment; on a noisy one
//! the ratio of two separate measurements says nothing.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use qmp::{Client, Proxy, client, proxy};

use crate::{
    NoExtension,
    peers::{Plain, STATUS, instant_server},
    support::live::Live,
};

const ROUNDS: usize = 5;
const PAIRS: usize = 4000;
const WARM_UP: usize = 500;

/// Prints a table: server and round, the medians of both ways, and what the proxy adds.
pub(crate) fn measure() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    println!("round trip, medians of {PAIRS} pairs of commands\n");
    println!(
        "{:<24} {:>11} {:>11} {:>9} {:>7}",
        "server", "direct", "proxy", "added", "ratio"
    );
    instant_server(&path("instant"));
    pairs("instant", &path("instant"), &path("instant"), &path("p0"));

    let monitors = [path("first"), path("second")];
    if let Some(_qemu) = Live::start(&[&monitors[0], &monitors[1]]) {
        pairs("QEMU", &monitors[0], &monitors[1], &path("p1"));
    }
}

/// Measures a server that has two sockets, the second of them for the proxy.
fn pairs(name: &str, first: &Path, second: &Path, proxied: &Path) {
    let options = client::Options {
        oob: true,
        ..client::Options::default()
    };
    let (upstream, _) = Client::connect(second, &options).expect("a server");
    let upstream = Arc::new(upstream);
    let _proxy = Proxy::bind(proxied, upstream, Arc::new(NoExtension), proxy::options());
    let mut ways = [Plain::connect(first), Plain::connect(proxied)];
    for _ in 0..WARM_UP {
        ways.iter_mut().for_each(|way| way.ask(STATUS));
    }
    for round in 1..=ROUNDS {
        let mut times = [Vec::with_capacity(PAIRS), Vec::with_capacity(PAIRS)];
        for _ in 0..PAIRS {
            for (way, times) in ways.iter_mut().zip(&mut times) {
                let begin = Instant::now();
                way.ask(STATUS);
                times.push(begin.elapsed());
            }
        }
        let [direct, proxy] = times.map(median);
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        println!(
            "{:<24} {:>8.1} µs {:>8.1} µs {:>+6.1} µs {:>7.2}",
            format!("{name}, round {round}"),
            micros(direct),
            micros(proxy),
            micros(proxy) - micros(direct),
            micros(proxy) / micros(direct)
        );
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
