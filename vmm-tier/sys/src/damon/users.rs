//! Who uses DAMON: kdamonds of its sysfs interface, and kernel modules that run it on their own.

use std::path::Path;

use crate::sysroot::{SysRoot, numbered_entries, read_optional, read_switch, read_value_optional};

/// DAMON and who uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DamonUsers {
    /// Whether there is a sysfs interface to it.
    pub has_sysfs: bool,
    /// The kdamonds of everybody.
    pub kdamonds: Vec<Kdamond>,
    /// Kernel modules that run DAMON on their own, such as `damon_reclaim`, and are enabled.
    pub modules: Vec<&'static str>,
}

/// A kdamond of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kdamond {
    /// Its number.
    pub number: u32,
    /// Whether it runs.
    pub is_running: bool,
    /// What its schemes do, such as `pageout`, `migrate_hot`, `stat`.
    pub actions: Vec<String>,
    /// What it looks at: `vaddr`, `fvaddr`, `paddr`.
    pub operations: Vec<String>,
    /// The processes that it watches.
    pub targets: Vec<u32>,
}

impl DamonUsers {
    /// Reads what sysfs tells. What can't be read is not there: another tool may remove folders
    /// meanwhile.
    #[must_use]
    pub fn read(root: &SysRoot) -> Self {
        let admin = root.sys("kernel/mm/damon/admin/kdamonds");
        let kdamonds = numbered_entries(&admin, "").unwrap_or_default();
        let modules = ["damon_reclaim", "damon_lru_sort", "damon_stat"];
        let enabled = |name: &&str| {
            read_switch(&root.sys(format!("module/{name}/parameters/enabled"))) == Some(true)
        };
        Self {
            has_sysfs: admin.is_dir(),
            kdamonds: kdamonds
                .iter()
                .map(|(number, path)| Kdamond::read(*number, path))
                .collect(),
            modules: modules.into_iter().filter(enabled).collect(),
        }
    }
}

impl Kdamond {
    /// What its schemes do to pages; `stat` only counts.
    #[must_use]
    pub fn acts(&self) -> Vec<&str> {
        let actions = self.actions.iter().map(String::as_str);
        let mut acts: Vec<&str> = actions.filter(|&action| action != "stat").collect();
        acts.dedup();
        acts
    }

    fn read(number: u32, path: &Path) -> Self {
        let mut kdamond = Self {
            number,
            is_running: read_optional(&path.join("state"))
                .ok()
                .flatten()
                .is_some_and(|state| state == "on"),
            actions: Vec::new(),
            operations: Vec::new(),
            targets: Vec::new(),
        };
        for (_, context) in numbered_entries(&path.join("contexts"), "").unwrap_or_default() {
            for (_, scheme) in numbered_entries(&context.join("schemes"), "").unwrap_or_default() {
                kdamond
                    .actions
                    .extend(read_optional(&scheme.join("action")).ok().flatten());
            }
            kdamond
                .operations
                .extend(read_optional(&context.join("operations")).ok().flatten());
            for (_, target) in numbered_entries(&context.join("targets"), "").unwrap_or_default() {
                let pid = read_value_optional(&target.join("pid_target"))
                    .ok()
                    .flatten();
                kdamond.targets.extend(pid.filter(|&pid: &u32| pid != 0));
            }
        }
        kdamond
    }
}
