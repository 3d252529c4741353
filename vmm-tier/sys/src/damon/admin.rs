//! The files below `kdamonds/`, by what they mean.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    DamonError, DamonSettings, Operations,
    slot_use::{SlotRecord, SlotUse},
};
use crate::{
    process,
    sysroot::{ParseError, SMALL_FILE, SysRoot, SysRootError, read_text, write_value},
};

/// More slots than anyone has; a guard against an absurd number in the file.
const MAX_SLOTS: u32 = 4096;
/// How long DAMON's files may be busy. Another agent's commit waits for the end of an aggregation, some
/// seconds for a guest at rest, and many agents may commit.
const BUSY_LIMIT: Duration = Duration::from_secs(10);
/// The same for turning a slot on, which the kernel also calls busy for as long as a module has DAMON
/// for itself.
const ON_BUSY_LIMIT: Duration = Duration::from_secs(2);
/// The same for a commit and what is written for it, which can be tried again later.
const COMMIT_BUSY_LIMIT: Duration = Duration::from_millis(200);
/// Schemes of one context that are looked at.
const MAX_SCHEMES: u32 = 64;

/// Files below `kdamonds/`, so that tests can stand in for the kernel.
pub(super) trait AdminFiles: fmt::Debug + Send + Sync {
    /// The trimmed text of a file.
    fn read(&self, file: &str) -> Result<String, SysRootError>;
    /// Writes a value to a file.
    fn write(&self, file: &str, value: &str) -> Result<(), SysRootError>;
    /// The same of what can be done later: gives up soon where DAMON is busy.
    fn write_or_give_up(&self, file: &str, value: &str) -> Result<(), SysRootError> {
        self.write(file, value)
    }
}

/// The kernel's.
#[derive(Debug)]
pub(super) struct SysfsFiles {
    folder: PathBuf,
}

impl SysfsFiles {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }
}

impl AdminFiles for SysfsFiles {
    fn read(&self, file: &str) -> Result<String, SysRootError> {
        let path = self.folder.join(file);
        Ok(while_busy(BUSY_LIMIT, || read_text(&path, SMALL_FILE))?
            .trim()
            .to_owned())
    }

    fn write(&self, file: &str, value: &str) -> Result<(), SysRootError> {
        let path = self.folder.join(file);
        let limit = match value {
            "on" => ON_BUSY_LIMIT,
            "commit" => COMMIT_BUSY_LIMIT,
            _ => BUSY_LIMIT,
        };
        while_busy(limit, || write_value(&path, value))
    }

    fn write_or_give_up(&self, file: &str, value: &str) -> Result<(), SysRootError> {
        let path = self.folder.join(file);
        while_busy(COMMIT_BUSY_LIMIT, || write_value(&path, value))
    }
}

/// DAMON's files share one lock that they only try to take: whoever comes while another agent commits
/// is told "busy". So does one who asks for what can't be had at all; hence the limit.
fn while_busy<T>(
    limit: Duration,
    mut call: impl FnMut() -> Result<T, SysRootError>,
) -> Result<T, SysRootError> {
    let begin = Instant::now();
    loop {
        match call() {
            Err(error) if error.errno() == Some(libc::EBUSY) && begin.elapsed() < limit => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// DAMON's files by what they mean.
#[derive(Clone, Debug)]
pub(super) struct Admin {
    files: Arc<dyn AdminFiles>,
}

impl Admin {
    pub(super) fn new(files: Arc<dyn AdminFiles>) -> Self {
        Self { files }
    }

    pub(super) fn check_presence(&self) -> Result<(), DamonError> {
        match self.files.read("nr_kdamonds") {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Err(DamonError::NotInKernel {
                path: "/sys/kernel/mm/damon/admin".to_owned(),
            }),
            Err(error) => Err(permission(error)),
        }
    }

    pub(super) fn slot_count(&self) -> Result<u32, DamonError> {
        Ok(self.number::<u32>("nr_kdamonds")?.min(MAX_SLOTS))
    }

    pub(super) fn set_slot_count(&self, count: u32) -> Result<(), DamonError> {
        self.write("nr_kdamonds", count)
    }

    fn number<T: std::str::FromStr>(&self, file: &str) -> Result<T, DamonError> {
        let text = self.files.read(file)?;
        text.parse().map_err(|_| {
            let error = ParseError {
                line: 1,
                what: format!("'{text}' is no number"),
            };
            DamonError::Files(error.in_file(&PathBuf::from(file)))
        })
    }

    fn write(&self, file: &str, value: impl fmt::Display) -> Result<(), DamonError> {
        self.files
            .write(file, &value.to_string())
            .map_err(permission)
    }

    /// The kernel thread of a slot; `None` while it is off.
    pub(super) fn thread(&self, slot: u32) -> Result<Option<u32>, DamonError> {
        let begin = Instant::now();
        while self.files.read(&format!("{slot}/state"))? == "on" {
            // -1 if it ended between the two reads, or if the lock was taken.
            let thread = u32::try_from(self.number::<i64>(&format!("{slot}/pid"))?);
            if thread.is_ok() || begin.elapsed() > BUSY_LIMIT {
                return Ok(thread.ok());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }

    pub(super) fn set_state(&self, slot: u32, state: &str) -> Result<(), SysRootError> {
        self.files.write(&format!("{slot}/state"), state)
    }

    /// Whether nothing is set up in a slot.
    pub(super) fn is_empty(&self, slot: u32) -> Result<bool, DamonError> {
        Ok(self.number::<u32>(&format!("{slot}/contexts/nr_contexts"))? == 0)
    }

    /// Throws away what is set up in a slot.
    pub(super) fn clear(&self, slot: u32) -> Result<(), DamonError> {
        self.write(&format!("{slot}/contexts/nr_contexts"), 0)
    }

    /// The process that a slot's only target is set to; `None` if there is none.
    pub(super) fn target(&self, slot: u32) -> Option<u32> {
        self.number(&format!("{slot}/contexts/0/targets/0/pid_target"))
            .ok()
    }

    pub(super) fn configure(
        &self,
        slot: u32,
        pid: u32,
        ranges: &[(u64, u64)],
        settings: &DamonSettings,
    ) -> Result<(), DamonError> {
        self.write(&format!("{slot}/contexts/nr_contexts"), 1)?;
        let available = self
            .files
            .read(&format!("{slot}/contexts/0/avail_operations"))?;
        let wanted: &[&str] = match settings.operations {
            Operations::Virtual => &["fvaddr", "vaddr"],
            Operations::Physical => &["paddr"],
        };
        let has = |name: &&&str| available.split_ascii_whitespace().any(|own| own == **name);
        let Some(operations) = wanted.iter().find(has) else {
            let available = available.replace('\n', ", ");
            return Err(DamonError::NoVirtualAddresses { available });
        };
        // The operations come first: the kernel checks targets against them.
        self.write(&format!("{slot}/contexts/0/operations"), operations)?;
        self.set_attributes(slot, settings)?;
        self.write(&format!("{slot}/contexts/0/targets/nr_targets"), 1)?;
        if settings.operations == Operations::Virtual {
            self.write(&format!("{slot}/contexts/0/targets/0/pid_target"), pid)?;
        }
        self.set_ranges(slot, ranges)
    }

    pub(super) fn set_attributes(
        &self,
        slot: u32,
        settings: &DamonSettings,
    ) -> Result<(), DamonError> {
        let folder = format!("{slot}/contexts/0/monitoring_attrs");
        self.write(
            &format!("{folder}/intervals/sample_us"),
            settings.sampling.as_micros(),
        )?;
        self.write(
            &format!("{folder}/intervals/aggr_us"),
            settings.aggregation.as_micros(),
        )?;
        self.write(
            &format!("{folder}/intervals/update_us"),
            settings.update.as_micros(),
        )?;
        // max first when both grow, min first when both shrink: the kernel refuses min > max.
        let max = format!("{folder}/nr_regions/max");
        let min = format!("{folder}/nr_regions/min");
        if self.number::<u64>(&max)? < settings.max_regions {
            self.write(&max, settings.max_regions)?;
            self.write(&min, settings.min_regions)
        } else {
            self.write(&min, settings.min_regions)?;
            self.write(&max, settings.max_regions)
        }
    }

    /// Sets the regions that the target begins with.
    pub(super) fn set_ranges(&self, slot: u32, ranges: &[(u64, u64)]) -> Result<(), DamonError> {
        self.write(&range_count(slot), ranges.len())?;
        self.fill_ranges(slot, ranges)
    }

    /// Sets the regions that the target has from the next commit on. Gives up soon where DAMON is busy.
    pub(super) fn update_ranges(&self, slot: u32, ranges: &[(u64, u64)]) -> Result<(), DamonError> {
        let count = ranges.len().to_string();
        let written = self.files.write_or_give_up(&range_count(slot), &count);
        written.map_err(permission)?;
        self.fill_ranges(slot, ranges)
    }

    fn fill_ranges(&self, slot: u32, ranges: &[(u64, u64)]) -> Result<(), DamonError> {
        for (index, (start, end)) in ranges.iter().enumerate() {
            let folder = format!("{slot}/contexts/0/targets/0/regions/{index}");
            self.write(&format!("{folder}/start"), start)?;
            self.write(&format!("{folder}/end"), end)?;
        }
        Ok(())
    }

    /// Who has a slot: what is set up in it, and `record`, which an agent of vmm-tier wrote down of it.
    pub(super) fn slot_use(
        &self,
        root: &SysRoot,
        slot: u32,
        record: Option<SlotRecord>,
    ) -> Result<SlotUse, DamonError> {
        let context = format!("{slot}/contexts/0");
        let used = !self.is_empty(slot)?;
        let text = |file: &str| self.files.read(&format!("{context}/{file}")).ok();
        let count = |file: &str| text(file).and_then(|text| text.parse::<u32>().ok());
        let operations = if used { text("operations") } else { None };
        let mut targets = Vec::new();
        // With physical addresses a target names no process.
        if operations.as_deref().is_some_and(|name| name != "paddr") {
            for target in 0..count("targets/nr_targets").unwrap_or(0).min(MAX_SCHEMES) {
                let Some(pid) = count(&format!("targets/{target}/pid_target")) else {
                    continue;
                };
                let name = process::stat(root, pid).map_or("gone".to_owned(), |s| s.comm);
                targets.push(format!("{pid} ({name})"));
            }
        }
        let schemes = count("schemes/nr_schemes").filter(|_| used).unwrap_or(0);
        let actions = (0..schemes.min(MAX_SCHEMES))
            .filter_map(|scheme| text(&format!("schemes/{scheme}/action")))
            .collect();
        Ok(SlotUse {
            slot,
            thread: self.thread(slot)?,
            operations,
            targets,
            actions,
            record,
        })
    }
}

/// The file that says how many regions the target of a slot has.
fn range_count(slot: u32) -> String {
    format!("{slot}/contexts/0/targets/0/regions/nr_regions")
}

/// An error of DAMON's files, told as missing permission where it is that.
fn permission(error: SysRootError) -> DamonError {
    match error.errno() {
        Some(libc::EACCES | libc::EPERM) => DamonError::NotPermitted { source: error },
        _ => DamonError::Files(error),
    }
}
