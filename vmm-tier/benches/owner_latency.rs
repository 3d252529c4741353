//! How soon an agent obeys beside a QEMU that is slow or says nothing, and what it costs beside a guest
//! that rests. One of these guests has 64 GiB in 4 KiB pages: a file of 1 GiB, mapped 64 times.
//!
//! QEMU is played. Each figure of the first table is of an agent of its own, which is just asking QEMU
//! for the guest's layout. `VMM_TIER_PROGRAM` names another build to measure.

#[path = "../tests/played/mod.rs"]
mod played;
#[path = "../tests/played/program.rs"]
mod program;
#[path = "../tests/played/ring.rs"]
mod ring;

use std::{
    collections::BTreeMap,
    env, fs,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use played::{Agent, MIB, Qemu, event};
use qmp::{Client, client};
use ring::{SoftPmu, physical};
use serde_json::{Value, json};
use tier_sys::process::ProcessHandle;
use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

const GIB: u64 = 1 << 30;

/// How long a slow QEMU takes for each command.
const SLOW: Duration = Duration::from_secs(2);
/// A reply that takes longer is given up.
const GIVEN_UP: Duration = Duration::from_secs(120);
/// How long an agent is left alone, and how long its CPU time is measured after that.
const SHORT: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(20));
/// The same at rest. The first discovery of 64 GiB takes a second or more, and so the second waits for
/// half a minute. Later discoveries come every 10 s.
const LONG: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60));

#[derive(Clone, Copy)]
enum Manner {
    Prompt,
    Slow,
    Mute,
}

impl Manner {
    fn apply(self, qemu: &Qemu) {
        match self {
            Self::Prompt => {}
            Self::Slow => *qemu.delay.lock().expect("no panic") = SLOW,
            Self::Mute => qemu.hangs.store(true, Ordering::Relaxed),
        }
    }
}

fn main() {
    let mut filters = env::args().skip(1).filter(|word| !word.starts_with('-'));
    if !filters.all(|filter| "owner-latency".contains(&filter)) {
        return;
    }
    println!(
        "{:<28} {:>14} {:>14} {:>14} {:>14}",
        "QEMU", "query-tier", "tier-pause", "SIGTERM", "at the start"
    );
    let manners = [
        (Manner::Prompt, "answers at once"),
        (Manner::Slow, "takes 2 s for each command"),
        (Manner::Mute, "never answers"),
    ];
    for (manner, name) in manners {
        let times = [
            command(manner, "query-tier"),
            command(manner, "tier-pause"),
            signal(manner),
            signal_at_start(manner),
        ];
        let [query, pause, signal, start] =
            times.map(|time| format!("{:.1} ms", time.as_secs_f64() * 1e3));
        println!("{name:<28} {query:>14} {pause:>14} {signal:>14} {start:>14}");
    }
    println!(
        "\n{:<28} {:>14}   its threads, and how often each wakes up",
        "agent beside a guest", "of one core"
    );
    let paused = |reply: &Value| reply["state"] == "paused";
    show(
        "paused",
        &cpu(
            &Qemu::new(),
            "",
            Some("tier-pause"),
            SHORT,
            thread::sleep,
            paused,
        ),
    );
    let blind = |reply: &Value| reply["state"] == "blind";
    show(
        "without a source",
        &cpu(&Qemu::new(), "", None, SHORT, thread::sleep, blind),
    );
    match at_rest() {
        Some(shares) => show("at rest, of 64 GiB", &shares),
        None => println!("SKIPPED: frame numbers are for root only"),
    }
}

/// What a thread takes in some time, or in a second.
#[derive(Clone, Copy, Default)]
struct Use {
    /// Seconds of CPU time.
    cpu: f64,
    /// Times that it waited, and so was woken.
    wakes: f64,
}

/// Prints the shares of a core that the threads take, in percent.
fn show(name: &str, threads: &BTreeMap<String, Use>) {
    let all: f64 = threads.values().map(|thread| thread.cpu).sum();
    let threads: Vec<String> = threads
        .iter()
        .filter(|(_, thread)| thread.cpu >= 0.000_005)
        .map(|(name, Use { cpu, wakes })| format!("{name} {:.3} ({wakes:.1}/s)", cpu * 100.0))
        .collect();
    println!(
        "{name:<28} {:>12.3} %   {}",
        all * 100.0,
        threads.join(", ")
    );
}

/// What an agent's threads take in a second beside a guest of 64 GiB in 4 KiB pages, while a source
/// delivers 1000 samples a second of some of them.
fn at_rest() -> Option<BTreeMap<String, Use>> {
    let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    file.set_len(GIB).expect("a file in memory");
    let file = Arc::new(file);
    let regions: Vec<MmapRegion> = (0..64)
        .map(|_| {
            let file = FileOffset::from_arc(Arc::clone(&file), 0);
            let region = MmapRegion::from_file(file, GIB as usize).expect("room for addresses");
            let slice = region.as_volatile_slice();
            for page in (0..GIB as usize).step_by(4096) {
                slice.write_obj(1_u8, page).expect("within the region");
            }
            region
        })
        .collect();
    let dimms = regions.iter().map(|region| (region.as_ptr() as u64, GIB));
    let qemu = Arc::new(Qemu::with_dimms(dimms.collect()));
    let folder = tempfile::tempdir().expect("a folder");
    // All but the guest's first MiB, which is not all RAM.
    let ram = (qemu.base() + MIB..qemu.base() + 32 * MIB).step_by(4096);
    let pages = physical(ram)?;
    let mut accessed = pages.chunks_exact(10).cycle();
    let mut pmu = SoftPmu::new(folder.path());
    let more = format!("[source]\nkind = 'ibs={}'\n", pmu.path.display());
    let deliver = |time: Duration| {
        let begin = Instant::now();
        while begin.elapsed() < time {
            pmu.write(accessed.next().expect("a cycle"));
            thread::sleep(Duration::from_millis(10));
        }
    };
    let samples = |reply: &Value| reply["state"] == "running" && reply["source"]["accepted"] != 0;
    Some(cpu(&qemu, &more, None, LONG, deliver, samples))
}

/// An agent that asks `qemu` for the layout, once QEMU has its manner.
fn asking(manner: Manner) -> (Arc<Qemu>, qmp::Server, Agent, Client) {
    let folder = tempfile::tempdir().expect("a folder");
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] != 0);
    let options = client::Options {
        command_timeout: GIVEN_UP,
        ..client::Options::default()
    };
    let (client, _) = Client::connect(agent.control(), &options).expect("a control socket");
    // Its own pace may keep it from asking for the layout in the first second.
    thread::sleep(Duration::from_secs(2));
    manner.apply(&qemu);
    let asked = qemu.asked.load(Ordering::Relaxed);
    let reset = json!({"guest": true, "reason": "guest-reset"});
    server.broadcast(&event("RESET", reset));
    agent.wait_for(|| (qemu.asked.load(Ordering::Relaxed) > asked).then_some(()));
    (qemu, server, agent, client)
}

fn command(manner: Manner, name: &str) -> Duration {
    let (qemu, _server, _agent, client) = asking(manner);
    let _released = qemu.released();
    let begin = Instant::now();
    // An agent that is too late says that it is busy.
    let _ = client.execute_raw(name, None);
    begin.elapsed()
}

fn signal(manner: Manner) -> Duration {
    let (qemu, _server, agent, client) = asking(manner);
    let _released = qemu.released();
    drop(client);
    until_ended(&agent)
}

fn signal_at_start(manner: Manner) -> Duration {
    let folder = tempfile::tempdir().expect("a folder");
    let qemu = Qemu::new();
    manner.apply(&qemu);
    let _server = qemu.serve(&folder.path().join("qmp"));
    let _released = qemu.released();
    let mut agent = Agent::start(folder);
    agent.wait_for(|| (qemu.asked.load(Ordering::Relaxed) > 0).then_some(()));
    until_ended(&agent)
}

fn until_ended(agent: &Agent) -> Duration {
    let process = ProcessHandle::open(agent.pid()).expect("a running agent");
    let begin = Instant::now();
    agent.terminate();
    let _ = process.wait_for_exit(GIVEN_UP);
    begin.elapsed()
}

/// What the threads of an agent with `more` in its configuration take in a second after `order`, once it
/// knows where all of the guest's memory lies; `pass` lets time pass. At the end `query-tier` must say
/// what `does` wants.
fn cpu(
    qemu: &Arc<Qemu>,
    more: &str,
    order: Option<&str>,
    (warm_up, measured): (Duration, Duration),
    mut pass: impl FnMut(Duration),
    does: impl Fn(&Value) -> bool,
) -> BTreeMap<String, Use> {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start_in(folder, more);
    // The guest's first MiB is not all RAM.
    let bytes = 31 * MIB + qemu.more_dimms.iter().map(|dimm| dimm.1).sum::<u64>();
    agent.ask_until(|reply| reply["tiers"][0]["bytes"].as_u64() >= Some(bytes));
    if let Some(order) = order {
        agent.ask(order, None);
    }
    pass(warm_up);
    let (before, begin) = (uses(agent.pid()), Instant::now());
    pass(measured);
    let (after, wall) = (uses(agent.pid()), begin.elapsed().as_secs_f64());
    // Else something else was measured.
    agent.ask_until(does);
    let mut threads: BTreeMap<String, Use> = BTreeMap::new();
    for (thread, after) in after {
        let before = before.get(&thread).copied().unwrap_or_default();
        let sum = threads.entry(thread.0).or_default();
        sum.cpu += (after.cpu - before.cpu) / wall;
        sum.wakes += (after.wakes - before.wakes) / wall;
    }
    threads
}

/// What each thread of a process took so far, by its name and number: CPU time to the nanosecond
/// (`schedstat`).
fn uses(pid: u32) -> BTreeMap<(String, String), Use> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a running agent");
    let uses = threads.flatten().filter_map(|thread| {
        let read = |file| fs::read_to_string(thread.path().join(file)).ok();
        let nanos: f64 = read("schedstat")?.split(' ').next()?.parse().ok()?;
        let status = read("status")?;
        let mut lines = status.lines();
        let wakes = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        let taken = Use {
            cpu: nanos * 1e-9,
            wakes: wakes.trim().parse().ok()?,
        };
        let number = thread.file_name().to_string_lossy().into_owned();
        Some(((read("comm")?.trim_end().to_owned(), number), taken))
    });
    uses.collect()
}
