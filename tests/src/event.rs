//! What the emulated host tells the developer's machine: one JSON object a line.

use std::collections::BTreeMap;

use lab_guest::PREFIX;
use serde::{Deserialize, Serialize};

/// One line of the protocol. Times `t` are seconds since the start of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
pub enum Event {
    /// The emulated host is up.
    Booted(HostFacts),
    /// A run begins.
    RunStarted {
        /// Its name.
        run: String,
    },
    /// Something takes time now.
    Progress {
        /// What.
        what: String,
    },
    /// A moment that others are measured from.
    Mark {
        /// When.
        t: f64,
        /// What.
        mark: Mark,
        /// The guest it concerns.
        guest: String,
    },
    /// A stretch of time with a name begins.
    Phase {
        /// When.
        t: f64,
        /// Its name.
        phase: String,
    },
    /// The measurements of one second.
    Sample(Sample),
    /// A step measured something that stands in the result as it is.
    Note {
        /// When.
        t: f64,
        /// What.
        name: String,
        /// The finding.
        value: serde_json::Value,
    },
    /// An agent ended.
    AgentEnd(AgentEnd),
    /// An attempt of the agent ended.
    Attempt(AttemptOutcome),
    /// What a look found.
    Look(Look),
    /// What guests and agents cost so far.
    Costs(Costs),
    /// A guest's workload compared its memory with its updates.
    Integrity {
        /// Which guest.
        guest: String,
        /// Whether all bytes are as they must be.
        ok: bool,
        /// Updates done in all.
        updates: u64,
    },
    /// A line that a program printed.
    Log {
        /// Which program.
        source: String,
        /// The line.
        line: String,
    },
    /// A run ended.
    RunEnded {
        /// Its name.
        run: String,
        /// Why it could not be finished; absent when it was.
        error: Option<String>,
    },
    /// All runs ended.
    Done,
    /// The emulated host could not do its work.
    Failed {
        /// Why.
        error: String,
    },
}

/// Moments that others are measured from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The guest's first process runs.
    GuestUp,
    /// The workload has touched its working set.
    WorkReady,
    /// The agent process was started.
    AgentStarted,
    /// The agent's control socket answers.
    AgentReady,
    /// The hot set moved.
    HotMoved,
    /// The agent was told to end, or ended.
    AgentEnded,
}

/// What the emulated host is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel: String,
    /// The inner VMM's version.
    pub inner_qemu: String,
    /// Per node: id, total and free KiB.
    pub nodes: Vec<NodeFacts>,
    /// Memory tiers: name → nodes, as the kernel made them from the HMAT.
    pub memory_tiers: BTreeMap<String, String>,
    /// What its clock said when its first process began: how fast this machine emulates.
    pub boot_s: f64,
}

/// A node as the kernel sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeFacts {
    /// Number.
    pub node: u32,
    /// MemTotal.
    pub total_kib: u64,
    /// MemFree.
    pub free_kib: u64,
}

/// The measurements of one second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sample {
    /// When.
    pub t: f64,
    /// How long the measuring itself took.
    #[serde(default)]
    pub took_ms: f64,
    /// Free memory of each node.
    pub free_kib: Vec<u64>,
    /// Pages that the kernel has migrated since boot, by whatever means.
    pub migrated_pages: u64,
    /// Migrations that the kernel failed to do since boot.
    pub migrate_failed_pages: u64,
    /// Promotions by kernel tiering since boot.
    pub kernel_promoted_pages: u64,
    /// CPU time of all kdamonds there are.
    pub kdamond_cpu_s: f64,
    /// The pool of 2 MiB pages of each node; empty if no node has such pages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolSample>,
    /// By name of the guest.
    pub guests: BTreeMap<String, GuestSample>,
    /// What the software PMU has written, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pmu: Option<PmuCounts>,
    /// What the host daemon answers to `query-host`, while there is one that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<serde_json::Value>,
    /// CPU time of the host daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_cpu_s: Option<f64>,
}

/// The note of a step that set the pools.
pub const POOLS_SET: &str = "pools-set";

/// A node's pool of hugetlb pages, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolSample {
    /// In the pool.
    pub total: u64,
    /// That nobody uses.
    pub free: u64,
    /// Beyond what was set.
    pub surplus: u64,
}

/// Records of the software PMU since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PmuCounts {
    /// Written.
    pub records: u64,
    /// The ring had no room.
    pub lost: u64,
}

/// Accesses to a guest's memory as the software PMU counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Accesses {
    /// To pages on node 0.
    pub fast: u64,
    /// To pages on other nodes.
    pub slow: u64,
}

/// One guest in one second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestSample {
    /// Pages of the hot set on each node, as move_pages(2) says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hot_pages: Vec<u64>,
    /// Pages of the hot set on no node (not present).
    #[serde(default)]
    pub hot_absent: u64,
    /// The workload's own count for the last second it reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updates_per_s: Option<f64>,
    /// The longest time in milliseconds in which a batch of accesses did not end, since the last sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
    /// Every access to its memory since the last sample, where there is a software PMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accesses: Option<Accesses>,
    /// Bytes of its memory on node 0, as the kernel says, where the run asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dram_bytes: Option<u64>,
    /// The agent beside it, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentSample>,
}

impl GuestSample {
    /// The share of the hot set on node 0; `None` before the hot set is known.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        let all = self.hot_pages.iter().sum::<u64>() + self.hot_absent;
        let fast = *self.hot_pages.first()?;
        (all > 0).then(|| fast as f64 / all as f64)
    }
}

/// An agent in one second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AgentSample {
    /// utime + stime.
    pub cpu_s: f64,
    /// `promoted-bytes` of `query-tier`; absent when the agent did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_bytes: Option<u64>,
    /// `demoted-bytes` of `query-tier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demoted_bytes: Option<u64>,
    /// `state` of `query-tier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// `hit-ratio` of `query-tier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<f64>,
    /// `half-life-s` of `query-tier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_life_s: Option<f64>,
}

/// How an agent ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AgentEnd {
    /// When.
    pub t: f64,
    /// The guest it served.
    pub guest: String,
    /// Exit code; absent after a signal.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The last lines it printed.
    pub last_lines: Vec<String>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttemptOutcome {
    /// The attempt's name.
    pub name: String,
    /// The command line.
    pub command: String,
    /// Exit code; absent after a signal or when it could not be started.
    pub code: Option<i32>,
    /// Whether it had to be ended.
    pub timed_out: bool,
    /// How long it took.
    pub seconds: f64,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error, verbatim.
    pub stderr: String,
    /// The state that `query-tier` told, when one was expected.
    pub state: Option<String>,
    /// The state that was expected.
    pub expected_state: Option<String>,
    /// kdamonds there were afterwards.
    pub kdamonds_left: u64,
    /// Whether its control socket was still there afterwards.
    pub socket_left: bool,
}

/// What guests and agents cost the emulated host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Costs {
    /// When.
    pub t: f64,
    /// By name of the guest.
    pub guests: BTreeMap<String, GuestCosts>,
}

/// What one guest costs, with the agent beside it. Absent where there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestCosts {
    /// QEMU's process, the guest's memory included.
    pub qemu: Option<ProcessCosts>,
    /// The agent's process.
    pub agent: Option<ProcessCosts>,
}

/// What a process costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProcessCosts {
    /// Its share of the memory it has mapped (`Pss`).
    pub memory_kib: u64,
    /// CPU time since its start.
    pub cpu_s: f64,
    /// The same over the time it has existed.
    pub cpu_share: f64,
}

/// What was there when a look step looked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Look {
    /// The step's name.
    pub name: String,
    /// When.
    pub t: f64,
    /// `/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds`.
    pub kdamonds: u64,
    /// Running kdamond threads.
    pub kdamond_threads: u64,
    /// Control sockets of agents that are not running.
    pub sockets: Vec<String>,
    /// Processes named vmm-tier that no step holds.
    pub processes: Vec<u32>,
}

/// What a guest tells on its console; written by [`lab_guest::Line`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "guest",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
pub enum GuestEvent {
    /// The guest runs and waits for `go`.
    Up,
    /// The working set is touched up to here.
    Touched {
        /// How far.
        mib: u64,
    },
    /// The hot pages of a working set that lies in one piece: page `n` of them is page
    /// `(first + n * stride) % of` of the set.
    Hot {
        /// Guest-physical address of the working set.
        base: u64,
        /// The first hot page.
        first: u64,
        /// How many there are.
        pages: u64,
        /// From one to the next, in pages.
        stride: u64,
        /// Pages of the working set.
        of: u64,
    },
    /// Guest-physical runs of the hot set: `[gpa, bytes]`. A list may come in parts.
    Runs {
        /// The runs.
        runs: Vec<[u64; 2]>,
        /// Whether this part begins a new list.
        first: bool,
        /// Whether this part ends the list.
        last: bool,
    },
    /// The working set has been touched.
    Ready,
    /// Updates done in the last second or so.
    Updates {
        /// How many.
        count: u64,
        /// In how many milliseconds.
        ms: u64,
        /// The longest of them in which a batch of accesses did not end.
        gap_ms: u64,
    },
    /// An order was carried out.
    Obeyed {
        /// Which.
        order: String,
    },
    /// The memory is compared up to here.
    Compared {
        /// How far.
        mib: u64,
    },
    /// The workload ended.
    Integrity {
        /// Whether the memory is what all updates made of it.
        ok: bool,
        /// Updates in all.
        updates: u64,
        /// What the updates say.
        expected: u64,
        /// What the memory says.
        found: u64,
    },
    /// The workload can't go on.
    Error {
        /// Why.
        error: String,
    },
}

/// Finds a workload's line on a console line; kernel messages and damaged lines give `None`.
#[must_use]
pub fn guest_event(console_line: &str) -> Option<GuestEvent> {
    let at = console_line.find(PREFIX)?;
    serde_json::from_str(console_line[at + PREFIX.len()..].trim_end()).ok()
}

#[cfg(test)]
mod tests {
    use lab_guest::Line;

    use super::*;

    #[test]
    fn guest_event_when_the_kernel_prints_too_takes_only_its_own_lines() {
        let line = "[    1.0] random: crng init done @lab {\"guest\":\"updates\",\"count\":5,\"ms\":1000,\"gap-ms\":7}\r";

        assert_eq!(
            guest_event(line),
            Some(GuestEvent::Updates {
                count: 5,
                ms: 1000,
                gap_ms: 7
            })
        );
        assert_eq!(guest_event("[ 1.0] Freeing unused kernel memory"), None);
        assert_eq!(guest_event("@lab {\"guest\":\"upd[ 2.0] oops"), None);
    }

    #[test]
    fn guest_lines_when_written_read_back_as_events() {
        let hot = lab_guest::HotSet::new(1, 3, Some(1), 4).unwrap();
        let line = |line: Line<'_>| guest_event(&line.to_string());

        assert_eq!(line(Line::Up), Some(GuestEvent::Up));
        assert_eq!(line(Line::Ready), Some(GuestEvent::Ready));
        assert_eq!(
            line(Line::Touched { mib: 3 }),
            Some(GuestEvent::Touched { mib: 3 })
        );
        assert_eq!(
            line(Line::Compared { mib: 3 }),
            Some(GuestEvent::Compared { mib: 3 })
        );
        assert_eq!(
            line(Line::Hot {
                base: 0x20_0000,
                hot
            }),
            Some(GuestEvent::Hot {
                base: 0x20_0000,
                first: 256,
                pages: 256,
                stride: 3,
                of: 1024
            })
        );
        assert_eq!(
            line(Line::Runs {
                runs: &[[1, 2], [3, 4]],
                first: true,
                last: false
            }),
            Some(GuestEvent::Runs {
                runs: vec![[1, 2], [3, 4]],
                first: true,
                last: false
            })
        );
        assert_eq!(
            line(Line::Obeyed {
                order: &lab_guest::Order::Idle
            }),
            Some(GuestEvent::Obeyed {
                order: "idle".to_owned()
            })
        );
        assert_eq!(
            line(Line::Integrity {
                ok: true,
                updates: 5,
                expected: u64::MAX,
                found: 7
            }),
            Some(GuestEvent::Integrity {
                ok: true,
                updates: 5,
                expected: u64::MAX,
                found: 7
            })
        );
        assert_eq!(
            line(Line::Error {
                error: &"say \"no\" \\ \n twice"
            }),
            Some(GuestEvent::Error {
                error: "say \"no\" \\ \n twice".to_owned()
            })
        );
    }

    #[test]
    fn share_when_pages_are_absent_counts_them_as_not_fast() {
        let sample = GuestSample {
            hot_pages: vec![60, 20],
            hot_absent: 20,
            ..GuestSample::default()
        };

        assert_eq!(sample.share(), Some(0.6));
        assert_eq!(GuestSample::default().share(), None);
    }

    #[test]
    fn event_when_written_as_a_line_reads_back_equal() {
        let event = Event::Sample(Sample {
            t: 1.5,
            free_kib: vec![1, 2],
            guests: BTreeMap::from([("guest".to_owned(), GuestSample::default())]),
            ..Sample::default()
        });

        let line = serde_json::to_string(&event).unwrap();

        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }
}
