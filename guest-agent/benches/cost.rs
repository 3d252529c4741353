//! What the agent costs: CPU time of the program itself while 10 000 page faults a second are to be told,
//! each of which it must look up in a page table. Hardware samples carry their address and cost less.

#[path = "../tests/host/mod.rs"]
mod host;

use std::{
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use host::{Faults, Host, PLENTY, Program};
use tier_core::wire::InGuest;

const RATE: usize = 10_000;
const TIME: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(50);

fn main() {
    let mut filters = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    if !filters.all(|filter| "guest-load".contains(&filter)) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let port = folder.path().join("port");
    let listener = UnixListener::bind(&port).expect("a socket");
    let program = Program::start(&port, folder.path(), "page-faults");
    let mut host = Host::accept(&listener);
    if host.hello().source == InGuest::Nothing {
        println!("SKIPPED: perf events of all processes can't be opened here");
        return;
    }
    host.welcome(PLENTY);
    let mut faults = Faults::default();
    let first = host.status();
    let (begin, mut steps) = (Instant::now(), 0);
    while begin.elapsed() < TIME {
        faults.touch(RATE * STEP.as_millis() as usize / 1000);
        steps += 1;
        std::thread::sleep((STEP * steps).saturating_sub(begin.elapsed()));
        host.read();
    }
    let last = host.status();
    let seconds = begin.elapsed().as_secs_f64();
    let a_second = |count: u64| count as f64 / seconds;
    println!(
        "guest-agent: {:.0} samples/s sent, {:.0} records/s without a frame, {:.0}/s lost: {:.2} % of a core",
        a_second(last.taken - first.taken),
        a_second(last.drops.no_address - first.drops.no_address),
        a_second(last.drops.lost - first.drops.lost),
        a_second(last.cpu_ns - first.cpu_ns) / 1e7,
    );
    assert_eq!(program.end(), Some(0));
}
