//! What commands have set, kept over a restart of the agent.
//!
//! The command line and the configuration are the base; what a command has set stands above them until
//! another command takes it back. It is kept in a file of the run directory, named for the VM. A
//! file that can't be understood is put aside with a warning, and is never a reason to fail.

mod document;
mod overrides;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tier_sys::sysroot::SysRoot;

pub(super) use self::document::name_of;
use self::document::{Document, Identity, StateFileError, VERSION};
pub(super) use self::overrides::{LimitOverride, Overrides, PolicyOverride, SettingKind};
use super::log_once::LogOnce;
use crate::log::with_causes;

/// One VM's state file.
pub(super) struct StateFile {
    path: PathBuf,
    vm: String,
    /// Whether the VM has a name of its own: what belongs to a mere pid ends with the process.
    is_named: bool,
    qemu: Identity,
    root: SysRoot,
    /// Another QEMU of the same name, whose file this is while it runs.
    rival: Option<Identity>,
    /// Why nothing can be written.
    trouble: LogOnce,
    /// Set when a file stands in the way that must not be replaced.
    is_blocked: bool,
    /// Set when what is set could not be written.
    is_unsaved: bool,
    written: Option<u64>,
    restored: Option<Restored>,
}

tier_core::report! {
    /// What was taken over from the state file.
    #[derive(Clone, Debug)]
    pub(super) struct Restored = "TierRestored" {
        /// What commands had set.
        what: Vec<SettingKind>,
        /// When the file was written, in seconds since 1970.
        written: u64,
        /// Whether the file was about this process of QEMU, or an earlier process of the VM's name.
        same_qemu: bool,
    }
}

tier_core::report! {
    /// The state file.
    #[derive(Clone, Debug)]
    pub(super) struct StateFileReport = "TierStateFile" {
        /// Where it is.
        #[metric(exempt = "text")]
        path: String,
        /// When the state file was written last, in seconds since 1970; absent while commands have set
        /// nothing.
        #[metric(gauge = "state_file_written_timestamp_seconds")]
        written: Option<u64>,
        /// Why it can't be written, if it can't.
        #[metric(
            presence = "state_file_failed",
            help = "Whether the state file can't be written"
        )]
        error: Option<String>,
    }
}

impl StateFile {
    /// Finds the VM's file and what it says; nothing is set if there is none.
    pub(super) fn open(
        run_dir: &Path,
        root: &SysRoot,
        vm: &str,
        is_named: bool,
        pid: u32,
    ) -> (Self, Overrides) {
        let mut saved = Self {
            path: run_dir.join("state").join(name_of(vm)),
            is_named,
            ..Self::nowhere(root, vm, pid)
        };
        document::remove_leftovers(root, &saved.path);
        let overrides = saved.read();
        (saved, overrides)
    }

    /// No file: for an agent that takes no commands.
    pub(super) fn nowhere(root: &SysRoot, vm: &str, pid: u32) -> Self {
        Self {
            path: PathBuf::new(),
            vm: vm.to_owned(),
            is_named: true,
            qemu: Identity::of(root, pid),
            root: root.clone(),
            rival: None,
            trouble: LogOnce::default(),
            is_blocked: false,
            is_unsaved: false,
            written: None,
            restored: None,
        }
    }

    fn read(&mut self) -> Overrides {
        match document::read(&self.path, &self.vm) {
            Ok(Some(document)) => self.take(document),
            Ok(None) => Overrides::default(),
            Err(error) => {
                self.put_aside(&error);
                Overrides::default()
            }
        }
    }

    /// What the file says once the other QEMU that had it is gone: it migrated to this one, or was slow
    /// to end. `None` if there is none, or it still runs.
    pub(super) fn take_over(&mut self) -> Option<Overrides> {
        self.rival.as_ref()?;
        if self.has_rival() {
            return None;
        }
        self.trouble.end();
        Some(self.read())
    }

    fn take(&mut self, document: Document) -> Overrides {
        let Document {
            qemu, written, set, ..
        } = document;
        let same_qemu = qemu == self.qemu;
        if !same_qemu && qemu.is_alive(&self.root) {
            self.rival = Some(qemu);
            self.has_rival();
            return Overrides::default();
        }
        if !same_qemu && !self.is_named {
            tracing::debug!(
                vm = self.vm,
                "the state file is about a process that is gone"
            );
            return Overrides::default();
        }
        let what = set.what();
        let words: Vec<_> = what.iter().map(|kind| kind.name()).collect();
        tracing::info!(
            vm = self.vm,
            what = ?words,
            written_s_ago = now().saturating_sub(written),
            same_qemu,
            "restored what commands had set: {}",
            self.path.display()
        );
        self.written = Some(written);
        self.restored = Some(Restored {
            what,
            written,
            same_qemu,
        });
        set
    }

    fn put_aside(&mut self, error: &StateFileError) {
        let why = with_causes(error);
        match error.put_aside() {
            Some(Ok(aside)) => tracing::warn!(
                vm = self.vm,
                "{why}; it is kept as {}, and the command line and the configuration are in force: \
                 set by commands again what is missing",
                aside.display()
            ),
            Some(Err(source)) => {
                self.is_blocked = true;
                let why = format!("{why}; it can't be put aside ({source}): remove it");
                self.complain(&why);
            }
            None => {
                self.is_blocked = true;
                self.complain(&why);
            }
        }
    }

    fn complain(&mut self, why: &str) {
        if self.trouble.is_news(why) {
            tracing::warn!(
                vm = self.vm,
                "what commands set is lost when the agent ends: {why}"
            );
        }
    }

    /// Whether another QEMU has the file, and complains if so.
    fn has_rival(&mut self) -> bool {
        self.rival.take_if(|rival| !rival.is_alive(&self.root));
        let Some(Identity { pid, .. }) = self.rival else {
            return false;
        };
        let vm = &self.vm;
        let why = format!(
            "QEMU {pid} has the name '{vm}' too: give each VM a name of its own, with --name"
        );
        self.complain(&why);
        true
    }

    /// Writes down what is set now.
    pub(super) fn save(&mut self, overrides: &Overrides) {
        // It stands in the way until it is removed.
        self.is_blocked &= !matches!(document::read(&self.path, &self.vm), Ok(None));
        self.is_unsaved = self.is_blocked;
        self.look_for_rival();
        if self.is_blocked || self.has_rival() {
            return;
        }
        let written = now();
        let done = if *overrides == Overrides::default() {
            document::remove(&self.path)
        } else {
            document::write(
                &self.path,
                &Document {
                    version: VERSION,
                    vm: self.vm.clone(),
                    qemu: self.qemu.clone(),
                    written,
                    set: overrides.clone(),
                },
            )
        };
        match done {
            Ok(()) => {
                self.written = (*overrides != Overrides::default()).then_some(written);
                if self.trouble.end() {
                    tracing::info!(vm = self.vm, "what commands set is kept again");
                }
            }
            Err(error) => {
                self.is_unsaved = true;
                self.complain(&with_causes(&error));
            }
        }
    }

    /// Writes down what is set if that failed the last time: a folder that was full may have room, a file
    /// in the way be gone.
    pub(super) fn try_again(&mut self, overrides: &Overrides) {
        if self.is_unsaved {
            self.save(overrides);
        }
    }

    /// Two QEMUs of one name may have started before either had a file: the first to write one has it.
    fn look_for_rival(&mut self) {
        if self.rival.is_some() {
            return;
        }
        let Ok(Some(Document { qemu, .. })) = document::read(&self.path, &self.vm) else {
            return;
        };
        if qemu != self.qemu && qemu.is_alive(&self.root) {
            self.rival = Some(qemu);
        }
    }

    /// The guest has ended: what was about a VM without a name will never apply again.
    pub(super) fn on_guest_gone(&mut self) {
        if !self.is_named && self.written.take().is_some() {
            // Nobody looks at it any more; it is a small file in a folder that is empty after a boot.
            let _ = document::remove(&self.path);
        }
    }

    /// The file, for `query-tier`.
    pub(super) fn report(&self) -> StateFileReport {
        StateFileReport {
            path: self.path.display().to_string(),
            written: self.written,
            error: self.trouble.now.clone(),
        }
    }

    /// What the file said at the agent's start, if it said anything.
    pub(super) const fn restored(&self) -> Option<&Restored> {
        self.restored.as_ref()
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}
