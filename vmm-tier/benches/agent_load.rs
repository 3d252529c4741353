//! What an agent costs at 10,000 sampled accesses a second: CPU time of its process, as a share of one core.
//!
//! The agent is the release build beside a process that plays QEMU; records come through a ring file, a
//! hot set of 8 MiB gets nine in ten of them. It moves nothing (a dry run on one node), but plans as ever.

#[path = "../tests/played/mod.rs"]
mod played;
#[path = "../tests/played/program.rs"]
mod program;
#[path = "../tests/played/ring.rs"]
mod ring;

use std::{
    env,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use played::{Agent, MIB, Qemu};
use ring::{SoftPmu, physical};
use tier_sys::{process, sysroot::SysRoot};

const RATES: [u32; 3] = [0, 10_000, 100_000];
const STEP: Duration = Duration::from_millis(10);
const WARM_UP: Duration = Duration::from_secs(4);
const MEASURED: Duration = Duration::from_secs(15);

fn main() {
    let mut filters = env::args().skip(1).filter(|word| !word.starts_with('-'));
    if !filters.all(|filter| "agent-load".contains(&filter)) {
        return;
    }
    println!(
        "{:>12} {:>12} {:>14}",
        "samples/s", "accepted/s", "of one core"
    );
    for rate in RATES {
        measure(rate);
    }
}

fn measure(rate: u32) {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let pages = (0..32 * MIB / 4096).map(|page| qemu.base() + page * 4096);
    let Some(pages) = physical(pages) else {
        println!("SKIPPED: frame numbers are for root only");
        return;
    };
    let mut pmu = SoftPmu::new(folder.path());
    let more = format!("[source]\nkind = 'ibs={}'\n", pmu.path.display());
    let mut agent = Agent::start_in(Arc::clone(&folder), &more);
    agent.client();

    let mut random = 1_u64;
    let mut feed = |time: Duration| {
        let (begin, mut written) = (Instant::now(), 0_u64);
        while begin.elapsed() < time {
            let due = (begin.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            let batch: Vec<u64> = (written..due)
                .map(|_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let draw = (random >> 33) as usize;
                    let range = if draw % 10 < 9 {
                        pages.len() / 4
                    } else {
                        pages.len()
                    };
                    pages[draw / 10 % range]
                })
                .collect();
            written += pmu.write(&batch) as u64;
            thread::sleep(STEP);
        }
    };
    feed(WARM_UP);
    let pid = agent.pid();
    let cpu = || {
        process::stat(&SysRoot::real(), pid)
            .expect("a running agent")
            .cpu_time
    };
    let mut accepted = || {
        agent.ask("query-tier", None)["source"]["accepted"]
            .as_u64()
            .unwrap_or(0)
    };
    let (before, begin, cpu_before) = (accepted(), Instant::now(), cpu());
    feed(MEASURED);
    let (used, elapsed) = (cpu() - cpu_before, begin.elapsed().as_secs_f64());
    println!(
        "{rate:>12} {:>12.0} {:>12.2} %",
        (accepted() - before) as f64 / elapsed,
        used.as_secs_f64() / elapsed * 100.0
    );
}
