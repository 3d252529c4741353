//! Settings of the kernel that help, hinder or fight a tierer in user space.

use std::path::Path;

use serde::Serialize;
use tier_core::addr::NodeSet;

use crate::sysroot::{
    ParseError, SMALL_FILE, SysRoot, SysRootError, read_choice, read_text, read_value_optional,
};

/// The settings. `None` where this kernel does not have one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Knobs {
    /// `kernel.numa_balancing`: 0 off, bit 0 hint faults, bit 1 the kernel's own tiering.
    pub numa_balancing: Option<u32>,
    /// Whether reclaim demotes pages to a slower tier.
    pub demotion_enabled: Option<bool>,
    /// KSM: 0 stopped, 1 merging, 2 stopped and unmerged.
    pub ksm_run: Option<u32>,
    /// Transparent huge pages for anonymous memory: `always`, `madvise`, `never`.
    pub thp_enabled: Option<String>,
    /// Transparent huge pages for shared memory: `always`, `within_size`, `advise`, `never` …
    pub thp_shmem_enabled: Option<String>,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i32>,
    /// `kernel.perf_event_mlock_kb`.
    pub perf_event_mlock_kb: Option<u64>,
    /// `kernel.perf_event_max_sample_rate`, samples a second.
    pub perf_event_max_sample_rate: Option<u64>,
}

impl Knobs {
    /// Reads them all.
    ///
    /// # Errors
    /// [`SysRootError`] with the file that can't be read or understood.
    pub fn read(root: &SysRoot) -> Result<Self, SysRootError> {
        let kernel = root.proc("sys/kernel");
        let mm = root.sys("kernel/mm");
        let demotion: Option<String> = read_value_optional(&mm.join("numa/demotion_enabled"))?;
        Ok(Self {
            numa_balancing: read_value_optional(&kernel.join("numa_balancing"))?,
            demotion_enabled: demotion.map(|text| matches!(text.as_str(), "true" | "1")),
            ksm_run: read_value_optional(&mm.join("ksm/run"))?,
            thp_enabled: read_choice(&mm.join("transparent_hugepage/enabled"))?,
            thp_shmem_enabled: read_choice(&mm.join("transparent_hugepage/shmem_enabled"))?,
            perf_event_paranoid: read_value_optional(&kernel.join("perf_event_paranoid"))?,
            perf_event_mlock_kb: read_value_optional(&kernel.join("perf_event_mlock_kb"))?,
            perf_event_max_sample_rate: read_value_optional(
                &kernel.join("perf_event_max_sample_rate"),
            )?,
        })
    }
}

/// The nodes on which a process may have memory (its cpuset): `Mems_allowed_list` of its status.
///
/// # Errors
/// [`SysRootError`]; see [`SysRootError::is_process_gone`].
pub fn allowed_nodes(root: &SysRoot, pid: u32) -> Result<NodeSet, SysRootError> {
    allowed_by(&root.process(pid, "status"))
}

/// The same of this process.
///
/// # Errors
/// [`SysRootError`].
pub fn own_allowed_nodes(root: &SysRoot) -> Result<NodeSet, SysRootError> {
    allowed_by(&root.proc("self/status"))
}

fn allowed_by(path: &Path) -> Result<NodeSet, SysRootError> {
    let text = read_text(path, SMALL_FILE)?;
    for (index, line) in text.lines().enumerate() {
        if let Some(list) = line.strip_prefix("Mems_allowed_list:") {
            let nodes = list.trim().parse();
            return nodes.map_err(|_| ParseError::at(index, "no node list").in_file(path));
        }
    }
    Err(ParseError::at(0, "no Mems_allowed_list in it").in_file(path))
}
