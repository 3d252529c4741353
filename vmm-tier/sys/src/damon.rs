//! DAMON through its sysfs interface: a kdamond of our own that watches one process.
//!
//! Slots (`kdamonds/N`) belong to whoever set them up. This module takes only slots that are off and
//! empty, writes down which ones it has (so that a later agent can clear up after one that was
//! killed), and never writes to any other. The number of slots can be changed only while nothing
//! runs, and changing it destroys all: it is done only when it was 0, and undone when all are empty.

mod admin;
mod settings;
mod slot_use;
mod slots;
pub mod source;
pub mod users;

use std::{io, path::Path, sync::Arc, time::Duration};

use tier_core::addr::Hva;

use crate::{
    process::{self, Stat},
    sysroot::{SysRoot, SysRootError},
};
use admin::{Admin, AdminFiles, SysfsFiles};
pub use settings::{DamonSettings, Operations, Pieces};
pub use slot_use::{SlotRecord, SlotUse};
pub use slots::Reclaimed;
use slots::Slots;

/// DAMON can't be used, or not as asked.
#[derive(Debug, thiserror::Error)]
pub enum DamonError {
    /// The kernel has no DAMON, or no sysfs interface to it.
    #[error(
        "this kernel has no DAMON ({path} is missing): use a kernel with CONFIG_DAMON_SYSFS and \
         CONFIG_DAMON_VADDR, such as Debian 13's"
    )]
    NotInKernel {
        /// What was looked for.
        path: String,
    },
    /// The kernel has DAMON, but can't watch virtual addresses with it.
    #[error(
        "this kernel's DAMON can't watch a process (it has {available}): use a kernel with \
         CONFIG_DAMON_VADDR"
    )]
    NoVirtualAddresses {
        /// What it has.
        available: String,
    },
    /// We may not write to DAMON's files.
    #[error("no permission to set up DAMON: run the agent as root")]
    NotPermitted {
        /// What was refused.
        source: SysRootError,
    },
    /// Every slot is taken.
    #[error(
        "all kdamonds are taken: {}. End their user (such as `damo stop`), or start vmm-tier before it",
        list(slots)
    )]
    AllTaken {
        /// The slots and who has them.
        slots: Vec<SlotUse>,
    },
    /// The kernel would not begin to watch.
    #[error(
        "kdamond {slot} can't watch process {pid}: it may have ended, or DAMON_RECLAIM or DAMON_LRU_SORT \
         has DAMON for itself (echo N > /sys/module/damon_reclaim/parameters/enabled, the same for \
         damon_lru_sort)"
    )]
    NotStarted {
        /// The slot.
        slot: u32,
        /// The process.
        pid: u32,
        /// The kernel's answer.
        source: SysRootError,
    },
    /// The kdamond is off: its target ended, or someone turned it off.
    #[error("kdamond {slot} is off: process {pid} ended, or someone else turned it off")]
    Ended {
        /// The slot.
        slot: u32,
        /// The process.
        pid: u32,
    },
    /// The run directory can't be used.
    #[error(
        "{path} can't be used to keep account of kdamonds: make it writable or choose another run directory"
    )]
    RunDirectory {
        /// The file or folder.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Another agent holds the lock of the kdamonds.
    #[error(
        "{path} was locked for {seconds} s: other agents on this host begin or end sampling, which is slow \
         where CPUs are busy; it is tried again"
    )]
    Locked {
        /// The lock.
        path: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The settings contradict each other or the kernel's limits.
    #[error("DAMON settings: {0}")]
    Settings(&'static str),
    /// A file of DAMON could not be read or written.
    #[error("DAMON's files do not behave as expected")]
    Files(#[from] SysRootError),
}

/// The first slots, and how many more there are.
fn list(slots: &[SlotUse]) -> String {
    const MOST: usize = 4;
    let mut text = slots
        .iter()
        .take(MOST)
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    if slots.len() > MOST {
        text.push(format!("and {} more", slots.len() - MOST));
    }
    text.join("; ")
}

/// DAMON's sysfs folder, and the run directory in which our slots are written down.
#[derive(Debug)]
pub struct Damon {
    admin: Admin,
    slots: Slots,
    root: SysRoot,
}

impl Damon {
    /// Looks for DAMON; changes nothing. `run_dir` (such as `/run/vmm-tier`) must be the same for all
    /// agents of a host.
    ///
    /// # Errors
    /// [`DamonError::NotInKernel`].
    pub fn open(root: &SysRoot, run_dir: &Path) -> Result<Self, DamonError> {
        let folder = root.sys("kernel/mm/damon/admin/kdamonds");
        Self::over(root, run_dir, Arc::new(SysfsFiles::new(folder)))
    }

    fn over(
        root: &SysRoot,
        run_dir: &Path,
        files: Arc<dyn AdminFiles>,
    ) -> Result<Self, DamonError> {
        let admin = Admin::new(files);
        admin.check_presence()?;
        Ok(Self {
            admin,
            slots: Slots::new(run_dir),
            root: root.clone(),
        })
    }

    /// Every slot and its use, ours and others', as far as it can be read.
    ///
    /// # Errors
    /// [`DamonError::Files`].
    pub fn kdamonds(&self) -> Result<Vec<SlotUse>, DamonError> {
        self.slots.uses(&self.admin, &self.root)
    }

    /// Ends and empties the kdamonds of agents that no longer run.
    ///
    /// # Errors
    /// [`DamonError`].
    pub fn reclaim_orphans(&self) -> Result<Vec<Reclaimed>, DamonError> {
        let _lock = self.slots.lock()?;
        let reclaimed = self.slots.reclaim_orphans(&self.admin, &self.root)?;
        self.slots.remove_slots(&self.admin)?;
        Ok(reclaimed)
    }

    /// Takes a free slot (after [`Damon::reclaim_orphans`]) and begins to watch `ranges` of a process.
    ///
    /// # Errors
    /// [`DamonError`]; then the slot is empty again.
    pub fn start(
        &self,
        pid: u32,
        ranges: &[(Hva, u64)],
        settings: &DamonSettings,
    ) -> Result<Kdamond, DamonError> {
        settings.check()?;
        let ranges = settings::sorted_ranges(ranges)?;
        let slot = {
            let _lock = self.slots.lock()?;
            self.slots.reclaim_orphans(&self.admin, &self.root)?;
            self.slots.take_free(&self.admin, &self.root, pid)?
        };
        // The slot is written down as ours, so the lock is others' from here on. Dropping the value
        // empties the slot again.
        let mut kdamond = Kdamond {
            admin: self.admin.clone(),
            slots: self.slots.clone(),
            root: self.root.clone(),
            slot,
            pid,
            thread: 0,
            ranges,
            settings: *settings,
            done: false,
        };
        kdamond.begin()?;
        Ok(kdamond)
    }
}

/// A kdamond of our own, watching. Dropping it turns it off and empties its slot.
#[derive(Debug)]
pub struct Kdamond {
    admin: Admin,
    slots: Slots,
    root: SysRoot,
    slot: u32,
    pid: u32,
    thread: u32,
    /// What is watched: (start, end), rising.
    ranges: Vec<(u64, u64)>,
    settings: DamonSettings,
    done: bool,
}

impl Kdamond {
    fn begin(&mut self) -> Result<(), DamonError> {
        let pieces = settings::in_pieces(&self.ranges, &self.settings);
        self.admin
            .configure(self.slot, self.pid, &pieces, &self.settings)?;
        if let Err(source) = self.admin.set_state(self.slot, "on") {
            return Err(DamonError::NotStarted {
                slot: self.slot,
                pid: self.pid,
                source,
            });
        }
        let Some(thread) = self.admin.thread(self.slot)? else {
            return Err(DamonError::Ended {
                slot: self.slot,
                pid: self.pid,
            });
        };
        self.thread = thread;
        self.slots.note_thread(self.slot, thread)
    }

    /// The slot's number.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The process that is watched.
    #[must_use]
    pub fn target(&self) -> u32 {
        self.pid
    }

    /// The kernel thread that watches.
    #[must_use]
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &DamonSettings {
        &self.settings
    }

    /// CPU time of the kernel thread so far; `None` if it is gone.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        self.thread_stat().map(|stat| stat.cpu_time)
    }

    fn thread_stat(&self) -> Option<Stat> {
        process::stat(&self.root, self.thread).ok()
    }

    /// Whether the kernel thread is there. Cheaper than [`Kdamond::is_running`], and never waits for
    /// another agent.
    #[must_use]
    pub fn is_thread_alive(&self) -> bool {
        self.thread_stat()
            .is_some_and(|stat| stat.comm.starts_with("kdamond"))
    }

    /// Whether it still watches. It ends by itself when the process ends.
    ///
    /// # Errors
    /// [`DamonError::Files`].
    pub fn is_running(&self) -> Result<bool, DamonError> {
        Ok(self.admin.thread(self.slot)? == Some(self.thread))
    }

    /// Watches other ranges of the same process from the next aggregation on.
    ///
    /// # Errors
    /// [`DamonError::Settings`], [`DamonError::Ended`], [`DamonError::Files`].
    pub fn update_ranges(&mut self, ranges: &[(Hva, u64)]) -> Result<(), DamonError> {
        let ranges = settings::sorted_ranges(ranges)?;
        // Whole ranges, no pieces: within them the regions stay as DAMON has learned them
        // (damon_set_regions).
        self.admin.update_ranges(self.slot, &ranges)?;
        self.commit()?;
        self.ranges = ranges;
        Ok(())
    }

    /// Takes other intervals and region counts from the next aggregation on. The operations stay.
    ///
    /// # Errors
    /// [`DamonError::Settings`], [`DamonError::Ended`], [`DamonError::Files`].
    pub fn update_settings(&mut self, settings: &DamonSettings) -> Result<(), DamonError> {
        settings.check()?;
        // What stands in the target's region list are the pieces that it began with: to commit those
        // would undo what DAMON has learned. Huge pages are where they are.
        if settings.pieces == Pieces::HugePages {
            let pieces = settings::in_pieces(&self.ranges, settings);
            self.admin.update_ranges(self.slot, &pieces)?;
        } else {
            self.admin.update_ranges(self.slot, &self.ranges)?;
        }
        self.admin.set_attributes(self.slot, settings)?;
        if let Err(error) = self.commit() {
            // A later commit of ranges must not take them along unnoticed.
            self.admin.set_attributes(self.slot, &self.settings)?;
            return Err(error);
        }
        self.settings = DamonSettings {
            operations: self.settings.operations,
            ..*settings
        };
        Ok(())
    }

    fn commit(&self) -> Result<(), DamonError> {
        match self.admin.set_state(self.slot, "commit") {
            Ok(()) => Ok(()),
            // Whether it runs can't be read either for as long as DAMON is busy.
            Err(error) if error.errno() == Some(libc::EBUSY) => Err(error.into()),
            Err(_) if !self.is_running()? => Err(DamonError::Ended {
                slot: self.slot,
                pid: self.pid,
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Turns it off and empties its slot.
    ///
    /// # Errors
    /// [`DamonError`]; the slot stays written down and a later agent will try again.
    pub fn stop(mut self) -> Result<(), DamonError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), DamonError> {
        if self.done {
            return Ok(());
        }
        self.done = true;
        self.slots.give_back(&self.admin, self.slot)
    }
}

impl Drop for Kdamond {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(
                slot = self.slot,
                error = &error as &dyn std::error::Error,
                "a kdamond could not be cleared away"
            );
        }
    }
}

#[cfg(test)]
mod tests;
