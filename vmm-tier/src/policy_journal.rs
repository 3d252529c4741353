//! Policies of shared memory that an agent replaces, written down before it does.
//!
//! A policy stays with the file when the agent that set it is gone. Its record lets the next agent of
//! the guest, or `vmm-tier doctor --repair`, put back what was there, and nothing else: a policy that is
//! neither of those the agent sets is somebody else's, and stays.
//!
//! What a dead agent left is read and restored under a lock, and the next agent does that before it
//! begins: so nobody restores by a record that an agent has replaced by its own. The record of an agent
//! that runs needs no lock: nobody else touches it.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tier_core::{addr::NodeSet, tiers::Tiers};
use tier_sys::{
    file_lock::FileLock,
    knobs,
    maps::{self, Mapping},
    mempolicy::{MempolicyError, Policy, PolicyRun, SharedRange},
    process::Identity,
    sysroot::{SysRoot, SysRootError},
};

use crate::record_file::{self, Record};

/// The folder of the records in the run directory.
const FOLDER: &str = "policies";
/// The file of the lock in the run directory.
const LOCK: &str = "policies.lock";
/// How long others may have the lock: each restores the policies of the guests of dead agents.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// The most runs of different policies that the guest's memory may have at first. A memory backend has
/// one.
const MOST_RUNS: usize = 4096;
/// How often the mappings are looked up again because they change meanwhile.
const MOST_LOOKS: u32 = 3;
/// How far apart a range's policies are read before the first is replaced, in bytes.
const READ_STEP: u64 = tier_core::addr::HUGE_PAGE;

/// Why policies can't be written down, set or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyJournalError {
    #[error("{path} can't be written: make its folder writable, or name another run-dir")]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(
        "the record {path} of replaced NUMA policies is damaged: {reason}; the guest's memory keeps its policies until \
         the guest ends, then remove the file"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("others restore the NUMA policies that agents left just now: {path} is locked")]
    Locked { path: PathBuf },
    #[error("agent {agent} runs and has replaced NUMA policies of this guest: {path}")]
    InUse { agent: u32, path: PathBuf },
    #[error("the mappings of process {pid} can't be read")]
    Maps { pid: u32, source: SysRootError },
    #[error(transparent)]
    Policy(#[from] MempolicyError),
    #[error("the guest's memory has more than {MOST_RUNS} NUMA policies already")]
    ManyRuns,
    #[error(
        "the agent could not set the NUMA policy {policy} again, as its cpuset has not all nodes of it: widen \
         cpuset.mems of its control group (systemd: AllowedMemoryNodes=)"
    )]
    NotAllowed { policy: Policy },
}

/// Takes the lock under which the records of dead agents are restored. Gives up after `timeout`.
pub(crate) fn lock(run_dir: &Path, timeout: Duration) -> Result<FileLock, PolicyJournalError> {
    let path = run_dir.join(LOCK);
    FileLock::take(&path, timeout).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => PolicyJournalError::Locked { path },
        _ => unwritable(&path, source),
    })
}

/// A range of a file in which policies are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ReplacedRange {
    /// The file.
    device: (u32, u32),
    inode: u64,
    /// Where the range begins in the file, in bytes.
    pub(crate) offset: u64,
    /// The length in bytes.
    pub(crate) bytes: u64,
    /// Policies are replaced in pieces of this size, in bytes.
    pub(crate) piece_bytes: u64,
    /// What was there at first: runs that cover the range, in rising order.
    original: Vec<PolicyRun>,
}

impl ReplacedRange {
    fn end(&self) -> u64 {
        self.offset + self.bytes
    }

    /// Whether the parts fit together; holds for every range that [`PolicyJournal::begin`] made.
    fn is_valid(&self) -> bool {
        let mut at = self.offset;
        let covers = self.original.iter().all(|run| {
            let is_next = run.offset == at && run.bytes > 0;
            let end = run.offset.checked_add(run.bytes);
            at = end.unwrap_or(0);
            is_next && end.is_some()
        });
        let end = self.offset.checked_add(self.bytes);
        covers
            && end == Some(at)
            && self.bytes > 0
            && self.piece_bytes.is_power_of_two()
            && self.piece_bytes >= READ_STEP
    }

    fn is_of(&self, mapping: &Mapping) -> bool {
        (mapping.device, mapping.inode) == (self.device, self.inode)
    }

    /// A policy that was there at first and names other nodes than these.
    fn not_within(&self, allowed: &NodeSet) -> Option<&Policy> {
        let mut policies = self.original.iter().map(|run| &run.policy);
        policies.find(|policy| policy.nodes().iter().any(|node| !allowed.contains(node)))
    }

    /// What was there at first, in a part of the range.
    pub(crate) fn original_in(
        &self,
        part: Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, &Policy)> {
        let runs = self.original.iter().map(move |run| {
            let end = part.end.min(run.offset + run.bytes);
            (part.start.max(run.offset)..end, &run.policy)
        });
        runs.filter(|(own, _)| !own.is_empty())
    }

    /// What was at `offset` at first.
    pub(crate) fn original_at(&self, offset: u64) -> Option<&Policy> {
        let after = self.original.partition_point(|run| run.offset <= offset);
        let run = self.original.get(after.checked_sub(1)?)?;
        (offset - run.offset < run.bytes).then_some(&run.policy)
    }
}

/// What was restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Restored {
    /// Bytes whose policies are as they were.
    pub(crate) bytes: u64,
    /// Bytes to which somebody else has given a policy since, which stays.
    pub(crate) foreign_bytes: u64,
}

impl std::ops::AddAssign for Restored {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.foreign_bytes += other.foreign_bytes;
    }
}

/// Which policies an agent replaces, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PolicyRecord {
    version: u64,
    /// The VM's name.
    pub(crate) vm: String,
    agent: Identity,
    qemu: Identity,
    /// The policies that the agent sets.
    pub(crate) fast: Policy,
    pub(crate) slow: Policy,
    ranges: Vec<ReplacedRange>,
}

/// Where the replaced policies of one VM are written down.
#[derive(Clone, Debug)]
pub(crate) struct PolicyJournal {
    run_dir: PathBuf,
    path: PathBuf,
    root: SysRoot,
    record: PolicyRecord,
}

impl PolicyJournal {
    /// The journal of the VM in the file `name` of the run directory. Nothing is written yet.
    pub(crate) fn new(
        run_dir: &Path,
        root: &SysRoot,
        vm: &str,
        name: &str,
        pid: u32,
        tiers: &Tiers,
    ) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            path: run_dir.join(FOLDER).join(name),
            root: root.clone(),
            record: PolicyRecord {
                version: PolicyRecord::VERSION,
                vm: vm.to_owned(),
                agent: Identity::of(root, std::process::id()),
                qemu: Identity::of(root, pid),
                fast: Policy::preferring(tiers.fast.clone()),
                slow: Policy::preferring(tiers.slow.clone()),
                ranges: Vec::new(),
            },
        }
    }

    /// The policies that are set.
    pub(crate) const fn record(&self) -> &PolicyRecord {
        &self.record
    }

    /// The range of a file, mapped by `mapping`, in which policies may be replaced now: what was there
    /// is on record.
    pub(crate) fn begin(
        &mut self,
        mapping: &Mapping,
        shared: &SharedRange,
        (offset, bytes): (u64, u64),
        piece_bytes: u64,
    ) -> Result<ReplacedRange, PolicyJournalError> {
        let mut range = ReplacedRange {
            device: mapping.device,
            inode: mapping.inode,
            offset,
            bytes,
            piece_bytes,
            original: Vec::new(),
        };
        let same = |known: &&ReplacedRange| {
            known.is_of(mapping)
                && (known.offset, known.bytes) == (offset, bytes)
                && known.piece_bytes == piece_bytes
        };
        if let Some(known) = self.record.ranges.iter().find(same) {
            return Ok(known.clone());
        }
        // The guest's layout has changed: what was replaced under the old layout goes back first.
        let touches = |known: &ReplacedRange| {
            known.is_of(mapping) && known.offset < offset + bytes && offset < known.end()
        };
        let mut ranges = self.record.ranges.clone();
        for old in ranges.extract_if(.., |known| touches(known)) {
            self.record.restore_range(&self.root, &old, mapping)?;
        }
        if count_runs(&ranges) > MOST_RUNS / 2 {
            // Memory that was unplugged is gone with its policies.
            let mapped = self.record.mappings(&self.root)?;
            ranges.retain(|known| mapped.iter().any(|mapping| known.is_of(mapping)));
        }
        let original = shared.policies(READ_STEP, MOST_RUNS - count_runs(&ranges))?;
        range.original = original.ok_or(PolicyJournalError::ManyRuns)?;
        self.check_allowed(&range)?;
        ranges.push(range.clone());
        let record = PolicyRecord {
            ranges,
            ..self.record.clone()
        };
        self.write(&record)
            .map_err(|source| unwritable(&self.path, source))?;
        self.record = record;
        Ok(range)
    }

    /// What is replaced must be the agent's to set again: the kernel drops nodes that are not in the
    /// cpuset of who sets a policy, or refuses the policy (mm/mempolicy.c, `mpol_set_nodemask`).
    fn check_allowed(&self, range: &ReplacedRange) -> Result<(), PolicyJournalError> {
        let Ok(allowed) = knobs::own_allowed_nodes(&self.root) else {
            return Ok(());
        };
        match range.not_within(&allowed) {
            Some(policy) => Err(PolicyJournalError::NotAllowed {
                policy: policy.clone(),
            }),
            None => Ok(()),
        }
    }

    fn write(&self, record: &PolicyRecord) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        if text.len() as u64 > PolicyRecord::MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        record_file::write(&self.path, &text, 0o600)
    }

    /// Restores what an agent left that was killed. `None` if none did.
    pub(crate) fn repair(&self) -> Result<Option<Restored>, PolicyJournalError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let _lock = lock(&self.run_dir, LOCK_TIMEOUT)?;
        let Some(record) = read(&self.path)? else {
            return Ok(None);
        };
        if record.is_agent_alive(&self.root) {
            return Err(PolicyJournalError::InUse {
                agent: record.agent.pid,
                path: self.path.clone(),
            });
        }
        record.restore(&self.root, &self.path).map(Some)
    }

    /// The agent ends: restores what it replaced.
    pub(crate) fn end(&mut self) -> Result<Restored, PolicyJournalError> {
        if self.record.ranges.is_empty() {
            return Ok(Restored::default());
        }
        let restored = self.record.restore(&self.root, &self.path)?;
        self.record.ranges.clear();
        Ok(restored)
    }
}

impl Record for PolicyRecord {
    const VERSION: u64 = 1;
    /// The largest record that is written and read. A guest has some ranges, of some hundred bytes each.
    const MAX_BYTES: u64 = 4 << 20;

    fn version(&self) -> u64 {
        self.version
    }
}

impl PolicyRecord {
    /// Whether the agent that wrote it still runs.
    pub(crate) fn is_agent_alive(&self, root: &SysRoot) -> bool {
        self.agent.is_alive(root)
    }

    /// Whether a policy is one that the agent sets.
    pub(crate) fn is_own(&self, policy: &Policy) -> bool {
        *policy == self.fast || *policy == self.slow
    }

    /// Restores the policies and removes the record, which is at `path`. Where the guest has ended, its
    /// memory is gone with its policies. The record of a dead agent: only under the [`lock`].
    pub(crate) fn restore(
        &self,
        root: &SysRoot,
        path: &Path,
    ) -> Result<Restored, PolicyJournalError> {
        let mut restored = Restored::default();
        let mut trouble = None;
        if self.qemu.is_alive(root) {
            let mut mappings = self.mappings(root)?;
            for range in &self.ranges {
                let mut again = 0..MOST_LOOKS;
                // Memory that was unplugged is gone.
                while let Some(mapping) = mappings.iter().find(|mapping| range.is_of(mapping)) {
                    match self.restore_range(root, range, mapping) {
                        Ok(part) => {
                            restored += part;
                            break;
                        }
                        // The mapping was cut, joined or removed just now.
                        Err(MempolicyError::Open { source, .. })
                            if source.kind() == io::ErrorKind::NotFound
                                && again.next().is_some() =>
                        {
                            mappings = self.mappings(root)?;
                        }
                        // The other ranges can be restored all the same.
                        Err(error) => {
                            trouble = trouble.or(Some(error));
                            break;
                        }
                    }
                }
            }
        }
        if let Some(error) = trouble {
            return Err(error.into());
        }
        // An agent of an older version, which takes no lock, may have restored them meanwhile, and have
        // written down what it replaces.
        if read(path).is_ok_and(|found| found.is_some_and(|found| found != *self)) {
            return Ok(restored);
        }
        record_file::remove(path).map_err(|source| unwritable(path, source))?;
        Ok(restored)
    }

    /// The mappings of the files by QEMU; none if it has ended.
    fn mappings(&self, root: &SysRoot) -> Result<Vec<Mapping>, PolicyJournalError> {
        let pid = self.qemu.pid;
        let inodes: BTreeSet<u64> = self.ranges.iter().map(|range| range.inode).collect();
        match maps::read(root, pid, |mapping| inodes.contains(&mapping.inode)) {
            Ok(mappings) => Ok(mappings),
            Err(error) if error.is_process_gone() => Ok(Vec::new()),
            Err(source) => Err(PolicyJournalError::Maps { pid, source }),
        }
    }

    fn restore_range(
        &self,
        root: &SysRoot,
        range: &ReplacedRange,
        mapping: &Mapping,
    ) -> Result<Restored, MempolicyError> {
        let pid = self.qemu.pid;
        let shared = SharedRange::map(root, pid, mapping, range.offset, range.bytes)?;
        let mut restored = Restored::default();
        for run in &range.original {
            // Runs of own policies, which one call restores.
            let mut own: Option<(u64, u64)> = None;
            let mut at = run.offset;
            let end = run.offset + run.bytes;
            while at < end {
                let into = (at - range.offset) % range.piece_bytes;
                let bytes = (range.piece_bytes - into).min(end - at);
                let now = shared.policy(at)?;
                if self.is_own(&now) {
                    own = Some(own.map_or((at, bytes), |(start, before)| (start, before + bytes)));
                } else {
                    if now != run.policy {
                        restored.foreign_bytes += bytes;
                    }
                    restored.bytes += put_back(&shared, own.take(), &run.policy)?;
                }
                at += bytes;
            }
            restored.bytes += put_back(&shared, own, &run.policy)?;
        }
        Ok(restored)
    }
}

fn count_runs(ranges: &[ReplacedRange]) -> usize {
    ranges.iter().map(|range| range.original.len()).sum()
}

/// Sets the policy of start and length, if there are any. Returns the length.
fn put_back(
    shared: &SharedRange,
    own: Option<(u64, u64)>,
    policy: &Policy,
) -> Result<u64, MempolicyError> {
    let Some((start, bytes)) = own else {
        return Ok(0);
    };
    shared.set(start, bytes, policy)?;
    Ok(bytes)
}

fn unwritable(path: &Path, source: io::Error) -> PolicyJournalError {
    PolicyJournalError::Unwritable {
        path: path.to_owned(),
        source,
    }
}

/// The records that agents left in the run directory, each with its path.
pub(crate) fn records(run_dir: &Path) -> Vec<(PathBuf, Result<PolicyRecord, PolicyJournalError>)> {
    record_file::all(&run_dir.join(FOLDER), read)
}

fn read(path: &Path) -> Result<Option<PolicyRecord>, PolicyJournalError> {
    let damaged = |reason: String| PolicyJournalError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let Some(record) = record_file::read::<PolicyRecord>(path).map_err(damaged)? else {
        return Ok(None);
    };
    let is_valid = record.ranges.iter().all(ReplacedRange::is_valid);
    match is_valid && count_runs(&record.ranges) <= MOST_RUNS {
        true => Ok(Some(record)),
        false => Err(damaged("its ranges contradict each other".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_when_policies_of_it_are_looked_at_in_part_gives_those_of_the_part() {
        let policy = |nodes: &str| Policy::preferring(nodes.parse().unwrap());
        let run = |offset, nodes| PolicyRun {
            offset,
            bytes: 4 * READ_STEP,
            policy: policy(nodes),
        };
        let range = ReplacedRange {
            device: (0, 1),
            inode: 7,
            offset: 4 * READ_STEP,
            bytes: 8 * READ_STEP,
            piece_bytes: READ_STEP,
            original: vec![run(4 * READ_STEP, "0"), run(8 * READ_STEP, "1")],
        };
        assert!(range.is_valid());
        let part = |from: u64, to: u64| {
            let found = range.original_in(from * READ_STEP..to * READ_STEP);
            let told = found.map(|(own, policy)| {
                let (start, end) = (own.start / READ_STEP, own.end / READ_STEP);
                (start, end, policy.nodes().to_string())
            });
            told.collect::<Vec<_>>()
        };
        assert_eq!(part(5, 7), [(5, 7, "0".to_owned())]);
        let both = [(6, 8, "0".to_owned()), (8, 9, "1".to_owned())];
        assert_eq!(part(6, 9), both);
        assert_eq!(range.not_within(&"0-3".parse().unwrap()), None);
        let refused = range.not_within(&"0".parse().unwrap());
        assert_eq!(refused, Some(&policy("1")), "could not be set again");
    }
}
