//! What a scenario says: the emulated host, and runs of guests, agents, steps and checks.
//!
//! Scenarios are TOML files in `tests/scenarios`; units stand in the names of the keys.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

mod steps;

pub use lab_guest::Work;
pub use steps::{Attempt, Check, Peer, Signal, Step, Until};

/// One scenario: one boot of the emulated host, in which the runs follow one another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// The file's name without its ending.
    #[serde(default)]
    pub name: String,
    /// One line that says what is shown.
    pub title: String,
    /// How long it takes on the reference machine (see [`crate::patience`]), without packing.
    pub expect_s: u64,
    /// The emulated host.
    #[serde(default)]
    pub host: Host,
    /// What happens, in order.
    pub runs: Vec<Run>,
}

/// The emulated host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Host {
    /// CPUs, all on node 0.
    pub cpus: u32,
    /// The memory nodes in order; node 0 holds the CPUs.
    pub nodes: Vec<Node>,
    /// More for the kernel's command line.
    pub kernel_args: String,
    /// A software PMU on the emulated CPUs. It slows them while it counts; without it there is
    /// none.
    pub pmu: Option<Pmu>,
}

/// A software PMU: see the crate `softpmu`. It counts while a workload runs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pmu {
    /// One access in so many becomes a record.
    pub period: u64,
    /// The ring for records, a power of two.
    #[serde(default = "default_ring_kib")]
    pub ring_kib: u64,
}

fn default_ring_kib() -> u64 {
    1024
}

impl Default for Host {
    /// DRAM and a slow node, with latencies and bandwidths of the order of DDR5 and CXL.
    fn default() -> Self {
        Self {
            cpus: 2,
            kernel_args: String::new(),
            pmu: None,
            nodes: vec![
                Node {
                    mib: 448,
                    latency_ns: 80,
                    bandwidth_gib_s: 40,
                    distance: 10,
                },
                Node {
                    mib: 768,
                    latency_ns: 250,
                    bandwidth_gib_s: 16,
                    distance: 20,
                },
            ],
        }
    }
}

/// A memory node and what the HMAT says of it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Node {
    /// Size.
    pub mib: u64,
    /// Access latency from the CPUs (told, not emulated).
    pub latency_ns: u32,
    /// Bandwidth from the CPUs (told, not emulated).
    pub bandwidth_gib_s: u32,
    /// SLIT distance from node 0.
    pub distance: u32,
}

/// One run: fresh guests, steps, and the checks of what was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Run {
    /// Unique within the scenario.
    pub name: String,
    /// Kernel settings, written before the first step.
    #[serde(default)]
    pub knobs: Knobs,
    /// The guests that steps can start.
    #[serde(default)]
    pub guests: Vec<Guest>,
    /// What happens, in order; the run ends at the first step that fails.
    pub steps: Vec<Step>,
    /// What must hold of the measurements.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// Measure each second how much of each guest's memory lies on node 0. The kernel walks the page
    /// tables for it, which costs time.
    #[serde(default)]
    pub watch_dram: bool,
    /// The run must not get through its steps, but fail with an error that holds this text.
    #[serde(default)]
    pub fails_with: Option<String>,
}

/// Kernel settings of the emulated host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Knobs {
    /// `/proc/sys/kernel/numa_balancing`: 0 off, 2 memory tiering.
    pub numa_balancing: u8,
    /// `/sys/kernel/mm/numa/demotion_enabled`.
    pub demotion: bool,
    /// `/sys/kernel/mm/transparent_hugepage/enabled`; empty leaves the kernel's default.
    pub thp: String,
}

/// A guest of the emulated host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Guest {
    /// Unique within the run.
    pub name: String,
    /// How many such guests there are; more than one get the numbers from 01 on behind the name.
    pub count: u32,
    /// What runs in it.
    pub system: System,
    /// Memory.
    pub mib: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Most of an emulated CPU that each virtual CPU may take from the first touch on, in percent;
    /// absent: all.
    pub cpu_percent: Option<u32>,
    /// What backs the memory on the host.
    pub backend: Backend,
    /// The node to which QEMU binds the memory (`host-nodes`, `policy=bind`); absent: none.
    pub bind_node: Option<u32>,
    /// Whether a reset starts the guest again; without it QEMU ends, as it should after a crash.
    pub may_reset: bool,
    /// How the agent in the guest reaches the host; without it the guest has no agent.
    pub agent: Option<GuestAgent>,
    /// It has a balloon, which takes what QMP's `balloon` says.
    pub balloon: bool,
    /// Memory of a virtio-mem device, on shared memory, beside its own; none of it is plugged at first.
    pub virtio_mem_mib: u64,
    /// Nobody reads its serial port.
    pub unread: bool,
    /// More words for its command line.
    pub words: String,
    /// The workload.
    pub work: Work,
}

/// What runs in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Nothing but the workload: see the crate `lab-guest`. Starts at once and takes no interrupts.
    Bare,
    /// Linux, where an operating system is the point. Emulated, its timer alone takes much of the
    /// guest's time.
    Linux,
}

/// How the agent in a guest reaches the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestAgent {
    /// A virtio-serial port, which QEMU offers as `guest.sock` in the guest's folder.
    Serial,
    /// vsock: the guest has context id 3 and calls port 7420.
    Vsock,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            name: "guest".to_owned(),
            count: 1,
            system: System::Bare,
            mib: 400,
            cpus: 1,
            cpu_percent: None,
            backend: Backend::Memfd,
            bind_node: None,
            may_reset: false,
            agent: None,
            balloon: false,
            virtio_mem_mib: 0,
            unread: false,
            words: String::new(),
            work: Work::default(),
        }
    }
}

/// What backs a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// `memory-backend-memfd,share=on`.
    Memfd,
    /// `memory-backend-ram`: anonymous memory.
    Ram,
    /// `memory-backend-file,share=on` on `/dev/shm`.
    Shm,
    /// `memory-backend-memfd,share=on` of 2 MiB pages of the host's pool.
    Hugetlb,
    /// The same of 1 GiB pages.
    #[serde(rename = "hugetlb-1g")]
    Hugetlb1G,
}

impl Scenario {
    /// Reads `NAME.toml` from the folder of scenarios.
    ///
    /// # Errors
    /// When there is no such scenario (the error lists those there are) or the file is wrong.
    pub fn load(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let path = folder.join(format!("{name}.toml"));
        let Ok(text) = std::fs::read_to_string(&path) else {
            bail!(
                "no scenario '{name}' in {}; there are: {}",
                folder.display(),
                Self::names(folder).join(", ")
            );
        };
        let mut scenario: Self =
            toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        name.clone_into(&mut scenario.name);
        for run in &mut scenario.runs {
            run.guests = run.guests.iter().flat_map(Guest::each).collect();
        }
        scenario
            .validate()
            .with_context(|| format!("in {}", path.display()))?;
        Ok(scenario)
    }

    /// The names of all scenarios in a folder, sorted.
    #[must_use]
    pub fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_suffix(".toml")?.to_owned())
            })
            .collect();
        names.sort();
        names
    }

    fn validate(&self) -> anyhow::Result<()> {
        if self.host.nodes.is_empty() {
            bail!("a host needs a node");
        }
        for run in &self.runs {
            let mut names = BTreeSet::new();
            for guest in &run.guests {
                let place = || format!("run {}, guest {}", run.name, guest.name);
                guest.work.check().with_context(place)?;
                if guest.work.set_mib >= guest.mib && run.fails_with.is_none() {
                    bail!("{}: the working set must fit the guest", place());
                }
                if guest.agent.is_some() && guest.system != System::Linux {
                    bail!("{}: an agent needs system = \"linux\"", place());
                }
                let needs_driver = guest.balloon || guest.virtio_mem_mib > 0;
                if needs_driver && guest.system != System::Linux {
                    bail!(
                        "{}: a balloon or virtio-mem needs system = \"linux\"",
                        place()
                    );
                }
                if guest.system == System::Bare && guest.cpus > 1 {
                    bail!("{}: a bare guest has one CPU", place());
                }
                if !names.insert(&guest.name) {
                    bail!("{}: there are two of the name", place());
                }
            }
        }
        Ok(())
    }
}

impl Guest {
    /// The guests that this entry stands for.
    fn each(&self) -> Vec<Self> {
        if self.count == 1 {
            return vec![self.clone()];
        }
        let numbered = |n| Self {
            name: format!("{}{n:02}", self.name),
            count: 1,
            ..self.clone()
        };
        (1..=self.count).map(numbered).collect()
    }
}

impl Scenario {
    /// Whether a guest runs Linux.
    #[must_use]
    pub fn has_linux_guest(&self) -> bool {
        let mut guests = self.runs.iter().flat_map(|run| &run.guests);
        guests.any(|guest| guest.system == System::Linux)
    }

    /// Whether a guest is so.
    #[must_use]
    pub fn has_guest(&self, is_so: impl Fn(&Guest) -> bool) -> bool {
        self.runs.iter().flat_map(|run| &run.guests).any(is_so)
    }

    /// Whether a guest has an agent, and whether one of them is reached so.
    #[must_use]
    pub fn has_guest_agent(&self, by: Option<GuestAgent>) -> bool {
        let guests = self.runs.iter().flat_map(|run| &run.guests);
        let mut agents = guests.filter_map(|guest| guest.agent);
        agents.any(|agent| by.is_none_or(|by| by == agent))
    }
}

impl Run {
    /// The guest of this name, or the first for an empty name.
    #[must_use]
    pub fn guest(&self, name: &str) -> Option<&Guest> {
        if name.is_empty() {
            self.guests.first()
        } else {
            self.guests.iter().find(|guest| guest.name == name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_the_tree_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let names = Scenario::names(&folder);
        assert!(!names.is_empty());

        for name in names {
            let scenario = Scenario::load(&folder, &name).unwrap();
            // The emulated host gets it as JSON: both ways must agree.
            let json = serde_json::to_string(&scenario).unwrap();
            let again: Scenario = serde_json::from_str(&json).unwrap();
            assert_eq!(format!("{again:?}"), format!("{scenario:?}"));
        }
    }

    #[test]
    fn scenario_when_unknown_lists_the_known() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");

        let error = Scenario::load(&folder, "no-such").unwrap_err().to_string();

        assert!(error.contains("kernel-tiering"), "{error}");
    }
}
