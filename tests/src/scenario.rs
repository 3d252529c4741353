//! What a scenario says: the emulated host, and runs of guests, agents, steps and checks.
//!
//! Scenarios are TOML files in `tests/scenarios`; units stand in the names of the keys.

use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

mod steps;

pub use steps::{Attempt, Check, Peer, Signal, Step};

/// One scenario: one boot of the emulated host, in which the runs follow one another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// The file's name without its ending.
    #[serde(default)]
    pub name: String,
    /// One line that says what is shown.
    pub title: String,
    /// The emulator is ended after this long, whatever happens.
    #[serde(default = "default_time_limit_s")]
    pub time_limit_s: u64,
    /// The emulated host.
    #[serde(default)]
    pub host: Host,
    /// What happens, in order.
    pub runs: Vec<Run>,
}

fn default_time_limit_s() -> u64 {
    300
}

/// The emulated host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Host {
    /// CPUs, all on node 0.
    pub cpus: u32,
    /// The memory nodes in order; node 0 holds the CPUs.
    pub nodes: Vec<Node>,
    /// A software PMU on the emulated CPUs. It slows them while it counts; without it there is none.
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
    /// Memory.
    pub mib: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// What backs the memory on the host.
    pub backend: Backend,
    /// Whether a reset starts the guest again; without it QEMU ends, as it should after a crash.
    pub may_reset: bool,
    /// How the agent in the guest reaches the host; without it the guest has no agent.
    pub agent: Option<GuestAgent>,
    /// The workload.
    pub work: Work,
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
            mib: 400,
            cpus: 1,
            backend: Backend::Memfd,
            may_reset: false,
            agent: None,
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
}

/// The workload: random updates, most of them to a hot set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Work {
    /// Working set.
    pub set_mib: u64,
    /// Hot set.
    pub hot_mib: u64,
    /// Where the hot set begins in the working set; absent: so that it ends at the end, which
    /// is touched last and spills to the slow node.
    pub hot_at_mib: Option<u64>,
    /// Distance between hot pages, in pages: 1 is contiguous.
    pub hot_stride: u64,
    /// Of 1000 updates, how many go to the hot set.
    pub hot_permille: u32,
    /// Transparent huge pages inside the guest.
    pub guest_thp: bool,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Work {
    /// The GUPS set-up of Demeter (SOSP'25), scaled down with its ratios kept.
    fn default() -> Self {
        Self {
            set_mib: 300,
            hot_mib: 32,
            hot_at_mib: None,
            hot_stride: 1,
            hot_permille: 900,
            guest_thp: false,
            seed: 1,
        }
    }
}

impl Work {
    /// The workload as words of the guest's kernel command line.
    #[must_use]
    pub fn command_line(&self) -> String {
        let mut words = format!(
            "lab.set_mib={} lab.hot_mib={} lab.hot_stride={} lab.hot_permille={} lab.thp={} lab.seed={}",
            self.set_mib,
            self.hot_mib,
            self.hot_stride,
            self.hot_permille,
            u8::from(self.guest_thp),
            self.seed,
        );
        if let Some(at) = self.hot_at_mib {
            words.push_str(&format!(" lab.hot_at_mib={at}"));
        }
        words
    }

    /// Reads the workload from a kernel command line; unknown words belong to others.
    ///
    /// # Errors
    /// When a value is no number, naming the word.
    pub fn from_command_line(line: &str) -> anyhow::Result<Self> {
        let mut work = Self::default();
        for word in line.split_whitespace() {
            let Some((key, value)) = word.strip_prefix("lab.").and_then(|w| w.split_once('='))
            else {
                continue;
            };
            let number: u64 = value.parse().with_context(|| format!("word '{word}'"))?;
            match key {
                "set_mib" => work.set_mib = number,
                "hot_mib" => work.hot_mib = number,
                "hot_stride" => work.hot_stride = number,
                "hot_permille" => work.hot_permille = u32::try_from(number)?,
                "thp" => work.guest_thp = number != 0,
                "seed" => work.seed = number,
                "hot_at_mib" => work.hot_at_mib = Some(number),
                _ => bail!("word '{word}' of the command line is unknown"),
            }
        }
        Ok(work)
    }
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
            for guest in &run.guests {
                let work = &guest.work;
                let reach = work.hot_mib * work.hot_stride + work.hot_at_mib.unwrap_or(0);
                if work.hot_stride == 0 || reach > work.set_mib || work.set_mib >= guest.mib {
                    bail!(
                        "run {}: the hot set must fit the working set, and that the guest",
                        run.name
                    );
                }
            }
        }
        Ok(())
    }
}

impl Scenario {
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
    fn work_when_written_to_a_command_line_reads_back_equal() {
        let work = Work {
            set_mib: 100,
            hot_mib: 8,
            hot_at_mib: Some(12),
            hot_stride: 4,
            hot_permille: 750,
            guest_thp: true,
            seed: 99,
        };

        let line = format!("console=ttyS0 quiet {}", work.command_line());
        let read = Work::from_command_line(&line).unwrap();

        assert_eq!(format!("{read:?}"), format!("{work:?}"));
    }

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
