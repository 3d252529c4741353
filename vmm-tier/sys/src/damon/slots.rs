//! Which slots are ours: a file a slot in the run directory, under one lock.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    DamonError,
    admin::Admin,
    slot_use::{SlotRecord, SlotUse},
};
use crate::{
    file_lock::FileLock,
    process::{self, Identity},
    sysroot::{SMALL_FILE, SysRoot, read_text, replace_file},
};

/// Slots that are made when there are none: for each guest one, and now and then a second, which looks
/// at a grid of pages. None can be added while one is in use. The kernel keeps some KiB for each.
const NEW_SLOTS: u32 = 512;
/// How long other agents may hold the lock: each does some file accesses.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the lock could not be had.
pub(super) fn not_locked(path: &Path, source: io::Error) -> DamonError {
    let path = path.display().to_string();
    match source.kind() {
        io::ErrorKind::WouldBlock => DamonError::Locked {
            path,
            seconds: LOCK_TIMEOUT.as_secs(),
        },
        _ => DamonError::RunDirectory { path, source },
    }
}

/// An orphan that was cleared away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaimed {
    /// What was written down of it.
    pub record: SlotRecord,
    /// Whether its kdamond still ran.
    pub was_running: bool,
}

/// The run directory.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    run_dir: PathBuf,
}

impl Slots {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
        }
    }

    fn folder(&self) -> PathBuf {
        self.run_dir.join("damon")
    }

    fn path(&self, slot: u32) -> PathBuf {
        self.folder().join(format!("{slot}.json"))
    }

    /// Says that it was vmm-tier who made the slots, in the boot whose id it holds.
    fn marker(&self) -> PathBuf {
        self.folder().join("created-slots")
    }

    pub(super) fn lock(&self) -> Result<FileLock, DamonError> {
        let error = |path: &Path| {
            let path = path.display().to_string();
            move |source: io::Error| DamonError::RunDirectory { path, source }
        };
        let folder = self.folder();
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(&folder)
            .map_err(error(&folder))?;
        let path = self.run_dir.join("damon.lock");
        FileLock::take(&path, LOCK_TIMEOUT).map_err(|source| not_locked(&path, source))
    }

    /// What is written down of a slot.
    pub(super) fn record(&self, slot: u32) -> Option<SlotRecord> {
        read_record(&self.path(slot)).filter(|record| record.slot == slot)
    }

    /// Every slot and its use, ours and others', as far as it can be read.
    pub(super) fn uses(&self, admin: &Admin, root: &SysRoot) -> Result<Vec<SlotUse>, DamonError> {
        (0..admin.slot_count()?)
            .map(|slot| admin.slot_use(root, slot, self.record(slot)))
            .collect()
    }

    fn write(&self, record: &SlotRecord) -> Result<(), DamonError> {
        let text = serde_json::to_string(record).map_err(|error| DamonError::RunDirectory {
            path: self.path(record.slot).display().to_string(),
            source: error.into(),
        })?;
        replace(&self.path(record.slot), &text)
    }

    fn forget(&self, slot: u32) -> Result<(), DamonError> {
        let path = self.path(slot);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DamonError::RunDirectory {
                    path: path.display().to_string(),
                    source,
                })
            }
            _ => Ok(()),
        }
    }

    /// Takes a slot that is off, empty and not written down, making slots if there are none. Writes
    /// it down before anything is set up in it.
    pub(super) fn take_free(
        &self,
        admin: &Admin,
        root: &SysRoot,
        target_pid: u32,
    ) -> Result<u32, DamonError> {
        let owner = Identity::read(root, std::process::id())?;
        if admin.slot_count()? == 0 {
            replace(&self.marker(), &owner.boot_id)?;
            admin.set_slot_count(NEW_SLOTS)?;
        }
        let mut slots = Vec::new();
        for slot in 0..admin.slot_count()? {
            let own = admin.slot_use(root, slot, self.record(slot))?;
            if !own.is_free() {
                slots.push(own);
                continue;
            }
            self.write(&SlotRecord {
                slot,
                thread: None,
                target_pid,
                owner_pid: owner.pid,
                owner_start: owner.start,
                boot_id: owner.boot_id,
            })?;
            return Ok(slot);
        }
        Err(DamonError::AllTaken { slots })
    }

    /// Writes down the kernel thread of a slot that has been turned on.
    pub(super) fn note_thread(&self, slot: u32, thread: u32) -> Result<(), DamonError> {
        match self.record(slot) {
            Some(record) => self.write(&SlotRecord {
                thread: Some(thread),
                ..record
            }),
            None => Ok(()),
        }
    }

    /// Turns a slot of ours off, empties it and forgets it; removes the slots if we made them and
    /// nobody uses any. The lock is taken only when the slot is empty: the kernel waits for a kdamond to
    /// end. Where others have the lock for long the slot is forgotten without it, so that it is not
    /// lost.
    pub(super) fn give_back(&self, admin: &Admin, slot: u32) -> Result<(), DamonError> {
        empty(admin, slot)?;
        let lock = self.lock();
        self.forget(slot)?;
        let _lock = lock?;
        self.remove_slots(admin)
    }

    /// Removes the slots if we made them and nobody uses any.
    pub(super) fn remove_slots(&self, admin: &Admin) -> Result<(), DamonError> {
        if !self.marker().exists() {
            return Ok(());
        }
        for slot in 0..admin.slot_count()? {
            let used = admin.thread(slot)?.is_some() || !admin.is_empty(slot)?;
            if used || self.path(slot).exists() {
                return Ok(());
            }
        }
        admin.set_slot_count(0)?;
        match std::fs::remove_file(self.marker()) {
            Ok(()) => Ok(()),
            Err(source) => {
                let path = self.marker().display().to_string();
                Err(DamonError::RunDirectory { path, source })
            }
        }
    }

    /// Clears away what dead agents left: only slots that are written down, whose agent is gone, and
    /// that still are as that agent left them.
    pub(super) fn reclaim_orphans(
        &self,
        admin: &Admin,
        root: &SysRoot,
    ) -> Result<Vec<Reclaimed>, DamonError> {
        let boot_id = process::boot_id(root)?;
        self.forget_old_marker(&boot_id);
        let count = admin.slot_count()?;
        let mut reclaimed = Vec::new();
        for (slot, path) in self.record_files() {
            let Some(record) = read_record(&path).filter(|record| record.slot == slot) else {
                // Records are replaced whole, so this is no half-written one of ours.
                tracing::warn!(path = %path.display(), "not a record of a kdamond: left alone");
                continue;
            };
            if record.boot_id != boot_id {
                self.forget(slot)?;
                continue;
            }
            if record.owner().is_alive(root) {
                continue;
            }
            let mut was_running = false;
            if slot < count {
                let thread = admin.thread(slot)?;
                let same_target = admin
                    .target(slot)
                    .is_none_or(|pid| pid == record.target_pid);
                // An agent that died before it wrote the thread down leaves its target as the sign.
                let same_thread =
                    record.thread.is_none() || thread.is_none() || thread == record.thread;
                if same_target && same_thread {
                    was_running = thread.is_some();
                    empty(admin, slot)?;
                }
            }
            self.forget(slot)?;
            reclaimed.push(Reclaimed {
                record,
                was_running,
            });
        }
        Ok(reclaimed)
    }

    /// A marker of an earlier boot says nothing about today's slots.
    fn forget_old_marker(&self, boot_id: &str) {
        let marker = self.marker();
        if read_text(&marker, SMALL_FILE).is_ok_and(|text| text.trim() != boot_id) {
            // If it stays, the worst is that empty slots are removed that someone else made.
            let _ = std::fs::remove_file(marker);
        }
    }

    fn record_files(&self) -> Vec<(u32, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(self.folder()) else {
            return Vec::new();
        };
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let slot = path
                    .file_name()?
                    .to_str()?
                    .strip_suffix(".json")?
                    .parse()
                    .ok()?;
                Some((slot, path))
            })
            .collect();
        files.sort_unstable();
        files
    }
}

/// Replaces a file that everybody may read.
fn replace(path: &Path, text: &str) -> Result<(), DamonError> {
    replace_file(path, text.as_bytes(), 0o644).map_err(|source| DamonError::RunDirectory {
        path: path.display().to_string(),
        source,
    })
}

fn read_record(path: &Path) -> Option<SlotRecord> {
    serde_json::from_str(&read_text(path, SMALL_FILE).ok()?).ok()
}

/// Turns a slot off and empties it.
fn empty(admin: &Admin, slot: u32) -> Result<(), DamonError> {
    if admin.thread(slot)?.is_some()
        && let Err(error) = admin.set_state(slot, "off")
    {
        // It may have ended by itself meanwhile, which the kernel answers with an error.
        if admin.thread(slot)?.is_some() {
            return Err(error.into());
        }
    }
    admin.clear(slot)
}
