//! What is measured each second, all of it independent of the agent under test.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tier_sys::{
    hugetlb::{self, NodePool},
    sysroot::SysRoot,
};

use serde_json::Value;

use super::monitor::Monitor;
use super::pmu::{Pmu, Truth};
use super::{Reporter, agent, guest, locked};
use crate::event::{Event, GuestSample, NodeFacts, PoolSample, ProcessCosts, Sample};
use crate::sys::pages_on_nodes;

/// Scheduler ticks a second in /proc (USER_HZ is 100 on x86-64).
const TICKS: f64 = 100.0;

/// What there is to watch, shared between the steps and the sampler.
#[derive(Debug, Default)]
pub struct Board {
    /// Guests by name.
    pub guests: BTreeMap<String, Arc<Mutex<guest::Watch>>>,
    /// Agents by name of their guest.
    pub agents: BTreeMap<String, agent::Watch>,
    /// The software PMU, if the host has one.
    pub pmu: Option<Arc<Pmu>>,
    /// The host daemon, while it runs.
    pub host: Option<HostWatch>,
    /// Whether to measure how much of each guest's memory lies on node 0.
    pub watches_dram: bool,
    /// The share of each guest's hot set on node 0, as measured last.
    pub shares: BTreeMap<String, f64>,
}

const SECOND: Duration = Duration::from_secs(1);

/// The share of a CPU that measuring takes at most. With 24 guests it took 0.3 s each second, and the guests and
/// their agents had to wait for it.
const MOST_CPU: f64 = 0.1;

/// The thread that measures; dropping it ends it.
#[derive(Debug)]
pub struct Sampler {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Measures from now on: each second, or as often as takes a tenth of the time.
    #[must_use]
    pub fn start(board: &Arc<Mutex<Board>>, reporter: &Reporter) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (board, reporter, ended) = (Arc::clone(board), reporter.clone(), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            let mut next = Instant::now();
            let mut truths = BTreeMap::new();
            while !ended.load(Ordering::Relaxed) {
                let began = cpu_time_of_thread();
                let sample = measure(&board, &mut truths, &reporter);
                reporter.tell(&Event::Sample(sample));
                let took = cpu_time_of_thread().saturating_sub(began);
                next += SECOND.max(took.mul_f64(1.0 / MOST_CPU));
                let now = Instant::now();
                if next < now {
                    next = now; // a slow second is not made up for
                }
                std::thread::sleep(next - now);
            }
        });
        Self {
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn measure(
    board: &Mutex<Board>,
    truths: &mut BTreeMap<String, Truth>,
    reporter: &Reporter,
) -> Sample {
    let began = Instant::now();
    let mut sample = Sample {
        t: reporter.t(),
        free_kib: nodes().iter().map(|node| node.free_kib).collect(),
        // Not `sum`: of nothing it is -0.0.
        kdamond_cpu_s: kdamond_threads()
            .iter()
            .filter_map(|&p| cpu_seconds(p))
            .fold(0.0, |sum, seconds| sum + seconds),
        ..Sample::default()
    };
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    sample.migrated_pages = counter(&vmstat, "pgmigrate_success");
    sample.migrate_failed_pages = counter(&vmstat, "pgmigrate_fail");
    sample.kernel_promoted_pages = counter(&vmstat, "pgpromote_success");
    let mut board = locked(board);
    let nodes = sample.free_kib.len();
    sample.pools = pools();
    let pmu = board.pmu.clone();
    sample.pmu = pmu.as_ref().map(|pmu| pmu.counts());
    truths.retain(|name, _| board.guests.contains_key(name));
    for (name, watch) in &board.guests {
        let entry = sample.guests.entry(name.clone()).or_default();
        let mut watch = locked(watch);
        entry.updates_per_s = watch.updates_per_s();
        entry.gap_ms = watch.gap_ms.take();
        if let Err(error) = watch.translate() {
            reporter.log("lab", format!("guest {name}: {error:#}"));
        }
        place(&watch, nodes, entry);
        if board.watches_dram {
            entry.dram_bytes = dram_bytes(watch.pid, watch.ram);
        }
        if let Some(pmu) = &pmu {
            let truth = truths.entry(name.clone()).or_default();
            entry.accesses = truth.look(pmu, watch.pid, watch.ram);
        }
    }
    board.shares = sample
        .guests
        .iter()
        .filter_map(|(name, guest)| Some((name.clone(), guest.share()?)))
        .collect();
    for (name, agent) in &mut board.agents {
        if let Some(found) = agent.sample() {
            sample.guests.entry(name.clone()).or_default().agent = Some(found);
        }
    }
    if let Some(host) = &mut board.host {
        sample.host_cpu_s = cpu_seconds(host.pid);
        sample.host = host.ask();
    }
    sample.took_ms = began.elapsed().as_secs_f64() * 1000.0;
    sample
}

/// How long the calling thread has run on a CPU.
fn cpu_time_of_thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The host daemon.
#[derive(Debug)]
pub struct HostWatch {
    pid: u32,
    socket: PathBuf,
    monitor: Option<Monitor>,
}

impl HostWatch {
    /// Watches the daemon of this process and socket.
    #[must_use]
    pub const fn new(pid: u32, socket: PathBuf) -> Self {
        Self {
            pid,
            socket,
            monitor: None,
        }
    }

    /// What it says of the host; `None` if it does not answer in time.
    fn ask(&mut self) -> Option<Value> {
        if self.monitor.is_none() {
            self.monitor = Monitor::connect(&self.socket, Duration::from_millis(500)).ok();
        }
        let reply = self.monitor.as_mut()?.execute("query-host", Value::Null);
        if reply.is_err() {
            self.monitor = None;
        }
        reply.ok()
    }
}

/// Bytes of a guest's memory on node 0, as the kernel says; `None` when its QEMU has gone. A process that ends
/// has no mappings for a while.
fn dram_bytes(pid: u32, ram: (u64, u64)) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/numa_maps")).ok()?;
    (!text.is_empty()).then(|| node_0_bytes(&text, ram))
}

/// Bytes on node 0 of the mappings that begin within `ram` (its start and bytes) or up to a MiB before,
/// where the firmware's part of the memory is. Lines of numa_maps(5) count pages of
/// `kernelpagesize_kB`.
fn node_0_bytes(numa_maps: &str, ram: (u64, u64)) -> u64 {
    let (start, bytes) = ram;
    let within = start.saturating_sub(1 << 20)..start.saturating_add(bytes);
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let words: Vec<&str> = words.collect();
        let value = |key: &str| {
            words
                .iter()
                .find_map(|word| word.strip_prefix(key)?.parse().ok())
        };
        let page_kib: u64 = value("kernelpagesize_kB=")?;
        let pages: u64 = value("N0=")?;
        within
            .contains(&address)
            .then_some((pages * page_kib) << 10)
    };
    numa_maps.lines().filter_map(of_line).sum()
}

/// Counts the hot pages on each node; a QEMU that has gone has none.
fn place(watch: &guest::Watch, nodes: usize, entry: &mut GuestSample) {
    if watch.hot_pages.is_empty() {
        return;
    }
    let Ok(found) = pages_on_nodes(watch.pid, &watch.hot_pages) else {
        return;
    };
    entry.hot_pages = vec![0; nodes];
    for node in found {
        match usize::try_from(node)
            .ok()
            .and_then(|n| entry.hot_pages.get_mut(n))
        {
            Some(count) => *count += 1,
            None => entry.hot_absent += 1,
        }
    }
}

/// The folder of a node's pool of pages of `page_mib` MiB.
#[must_use]
pub fn pool_folder(node: usize, page_mib: u64) -> PathBuf {
    let kib = page_mib << 10;
    format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{kib}kB").into()
}

/// The pool of each node, of the smallest pages of which there are any; empty if there are none.
fn pools() -> Vec<PoolSample> {
    let pools = hugetlb::read(&SysRoot::real()).unwrap_or_default();
    let pool = pools.into_iter().find(|pool| pool.pages > 0);
    let nodes = pool.map(|pool| pool.nodes);
    let sample = |own: NodePool| PoolSample {
        total: own.pages,
        free: own.free,
        surplus: own.surplus,
    };
    nodes.unwrap_or_default().into_iter().map(sample).collect()
}

/// All memory nodes in order.
#[must_use]
pub fn nodes() -> Vec<NodeFacts> {
    let mut found = Vec::new();
    for node in 0.. {
        let path = format!("/sys/devices/system/node/node{node}/meminfo");
        let Ok(text) = fs::read_to_string(path) else {
            break;
        };
        found.push(NodeFacts {
            node,
            total_kib: node_value(&text, "MemTotal:"),
            free_kib: node_value(&text, "MemFree:"),
        });
    }
    found
}

/// Counters of /proc/vmstat that tell what memory management did.
const VMSTAT: [&str; 7] = [
    "numa",
    "pgpromote",
    "pgdemote",
    "pgmigrate",
    "thp_migration",
    "thp_split",
    "pgscan",
];

/// The counters of /proc/vmstat that matter here.
#[must_use]
pub fn vmstat() -> BTreeMap<String, u64> {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines()
        .filter(|line| VMSTAT.iter().any(|start| line.starts_with(start)))
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// How far the counters have gone since, without those that stand still.
#[must_use]
pub fn vmstat_since(before: &BTreeMap<String, u64>) -> Value {
    vmstat()
        .into_iter()
        .filter_map(|(name, now)| {
            let gone = now.saturating_sub(before.get(&name).copied().unwrap_or(0));
            (gone > 0).then(|| (name, gone.into()))
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A value of a node's meminfo: "Node 0 MemFree:  1234 kB".
fn node_value(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(key))
        .find_map(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// A counter of /proc/vmstat; 0 when this kernel has none of the name.
fn counter(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(key)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

/// User and system time of a process with all its threads; `None` when it has gone.
#[must_use]
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    cpu_of_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// What a process costs; `None` when it has gone.
#[must_use]
pub fn process_costs(pid: u32) -> Option<ProcessCosts> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let now: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let cpu_s = cpu_of_stat(&stat)?;
    // Field 22: when it started, in ticks since the boot.
    let (_, rest) = stat.rsplit_once(')')?;
    let start: u64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    let existed = now - start as f64 / TICKS;
    Some(ProcessCosts {
        memory_kib: node_value(&rollup, "Pss:"),
        cpu_s,
        cpu_share: if existed > 0.0 { cpu_s / existed } else { 0.0 },
    })
}

/// Fields 14 and 15 of proc_pid_stat(5); the name in parentheses may hold anything.
fn cpu_of_stat(text: &str) -> Option<f64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS)
}

/// The kernel threads of DAMON.
#[must_use]
pub fn kdamond_threads() -> Vec<u32> {
    processes_named(|name| name.starts_with("kdamond"))
}

/// Processes whose name fulfils `wanted`.
#[must_use]
pub fn processes_named(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if wanted(name.trim()) {
            found.push(pid);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_value_when_read_from_meminfo_is_in_kib() {
        let text = "Node 0 MemTotal:         440012 kB\nNode 0 MemFree:          220001 kB\n";

        assert_eq!(node_value(text, "MemFree:"), 220_001);
        assert_eq!(node_value(text, "Active:"), 0);
    }

    #[test]
    fn node_0_bytes_are_those_of_the_guests_memory_alone() {
        let maps = "555500000000 default heap anon=9 dirty=9 N0=9 kernelpagesize_kB=4\n\
                    7f0000000000 bind:0-1 file=/memfd:pc.ram dirty=3 N0=2 N1=1 kernelpagesize_kB=4\n\
                    7f0000200000 prefer:0 file=/x huge dirty=2 N0=2 kernelpagesize_kB=2048\n\
                    7f0000400000 default file=/lib/x mapped=5 N0=5 kernelpagesize_kB=4\n";

        assert_eq!(
            node_0_bytes(maps, (0x7f00_0010_0000, 3 << 20)),
            (2 << 12) + (2 << 21)
        );
    }

    #[test]
    fn counter_when_names_share_a_beginning_takes_the_whole_name() {
        let text = "pgmigrate_success_x 3\npgmigrate_success 12\npgmigrate_fail 1\n";

        assert_eq!(counter(text, "pgmigrate_success"), 12);
    }

    #[test]
    fn costs_of_this_process_are_told() {
        let costs = process_costs(std::process::id()).unwrap();

        assert!(costs.memory_kib > 0 && costs.cpu_share >= 0.0, "{costs:?}");
        assert_eq!(process_costs(u32::MAX), None);
    }

    #[test]
    fn cpu_when_the_name_holds_a_parenthesis_is_still_found() {
        let text = "77 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1";

        assert_eq!(cpu_of_stat(text), Some(2.0));
    }
}
