//! Sets the NUMA policies of the guest's shared memory, so that the next pages come from a tier.
//!
//! The file behind a mapping of QEMU is mapped for the time of a job, without any right. What was there
//! is [written down](crate::policy_journal) first, and restored when the agent ends.

use std::{ops::Range, path::Path};

use tier_core::{
    addr::Hva,
    rebind::{Area, Binding, RebindReport, Rebound},
    settings::Tier,
    tiers::Tiers,
};
use tier_sys::{
    maps::{self, Mapping},
    mempolicy::{MempolicyError, Policy, SharedRange},
    sysroot::SysRoot,
};

use super::done::Done;
use crate::{
    agent::state_file::name_of,
    log::with_causes,
    policy_journal::{PolicyJournal, PolicyJournalError, ReplacedRange},
};

/// Why the policies of an area can't be set.
#[derive(Debug, thiserror::Error)]
enum RebindError {
    #[error("what an earlier agent left could not be restored: {0}")]
    Blocked(String),
    #[error("the memory at {at} is a private mapping, whose policy only QEMU can set: share=on shares it", at = .0.start)]
    Private(Area),
    #[error("the memory at {at} is not mapped in one piece", at = .0.start)]
    InPieces(Area),
    #[error(
        "the kernel made another policy of {wanted}: {found}; let the agent's cpuset have all nodes of the tiers"
    )]
    NotAsAsked { wanted: Policy, found: Policy },
    #[error(transparent)]
    Journal(#[from] PolicyJournalError),
    #[error(transparent)]
    Policy(#[from] MempolicyError),
}

/// See the [module](self).
pub(in crate::agent) struct Rebinder {
    root: SysRoot,
    pid: u32,
    journal: PolicyJournal,
    /// Why nothing may be set.
    blocked: Option<String>,
}

impl Rebinder {
    pub(in crate::agent) fn new(
        run_dir: &Path,
        root: &SysRoot,
        vm: &str,
        pid: u32,
        tiers: &Tiers,
    ) -> Self {
        Self {
            root: root.clone(),
            pid,
            journal: PolicyJournal::new(run_dir, root, vm, &name_of(vm), pid, tiers),
            blocked: None,
        }
    }

    /// Restores the policies that an agent left that was killed.
    pub(super) fn repair(&mut self) {
        match self.journal.repair() {
            Ok(None) => {}
            Ok(Some(restored)) => tracing::info!(
                bytes = restored.bytes,
                foreign_bytes = restored.foreign_bytes,
                "an agent was killed that had replaced NUMA policies of guest memory: they are as they were"
            ),
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!("NUMA policies of guest memory stay replaced: {error}");
                self.blocked = Some(error);
            }
        }
    }

    /// The agent ends.
    pub(super) fn leave(&mut self) {
        match self.journal.end() {
            Ok(restored) if restored.foreign_bytes > 0 => tracing::info!(
                bytes = restored.foreign_bytes,
                "somebody else has set NUMA policies of guest memory since: they stay"
            ),
            Ok(_) => {}
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!("NUMA policies of guest memory stay replaced: {error}");
            }
        }
    }

    /// Sets policies. What an earlier agent left and could not be restored so far is tried again before:
    /// that agent may have ended since.
    pub(super) fn carry_out(&mut self, bindings: &[Binding]) -> Done {
        if self.blocked.is_some() {
            self.blocked = self.journal.repair().err().map(|error| with_causes(&error));
        }
        let mut report = RebindReport::default();
        let mut trouble = None;
        for of_area in bindings.chunk_by(|a, b| a.area == b.area) {
            let before = report.results.len();
            if let Err(error) = self.bind(of_area, &mut report) {
                trouble = Some(with_causes(&error));
                report.results.truncate(before);
                let failed = of_area.iter().map(|&binding| (binding, Rebound::Failed));
                report.results.extend(failed);
            }
        }
        Done::Rebound(report, trouble)
    }

    /// Sets policies of one area.
    fn bind(&mut self, bindings: &[Binding], report: &mut RebindReport) -> Result<(), RebindError> {
        if let Some(reason) = &self.blocked {
            return Err(RebindError::Blocked(reason.clone()));
        }
        let Some(Binding { area, .. }) = bindings.first().copied() else {
            return Ok(());
        };
        let end = area.start.0 + area.bytes;
        let mappings = maps::read(&self.root, self.pid, |mapping| {
            mapping.start.0 < end && area.start < mapping.end
        });
        let mappings = mappings.map_err(|source| PolicyJournalError::Maps {
            pid: self.pid,
            source,
        })?;
        let (mapping, offset) = file_of(area, &mappings)?;
        let shared = SharedRange::map(&self.root, self.pid, mapping, offset, area.bytes)?;
        let place = (offset, area.bytes);
        let range = self
            .journal
            .begin(mapping, &shared, place, area.piece_bytes)?;
        for binding in bindings {
            let start = offset + (binding.start.0 - area.start.0);
            let own = self.own_parts(&shared, &range, start..start + binding.bytes)?;
            let policy = match binding.tier {
                Tier::Fast => &self.journal.record().fast,
                Tier::Slow => &self.journal.record().slow,
            };
            for (part, is_own) in own {
                let bytes = part.end - part.start;
                let part_of = Binding {
                    start: Hva(binding.start.0 + (part.start - start)),
                    bytes,
                    ..*binding
                };
                if !is_own {
                    report.results.push((part_of, Rebound::Foreign));
                    continue;
                }
                shared.set(part.start, bytes, policy)?;
                let found = shared.policy(part.start)?;
                if found != *policy {
                    for (own, original) in range.original_in(part) {
                        shared.set(own.start, own.end - own.start, original)?;
                    }
                    let wanted = policy.clone();
                    return Err(RebindError::NotAsAsked { wanted, found });
                }
                report.results.push((part_of, Rebound::Bound));
            }
        }
        Ok(())
    }

    /// Cuts a part of a range, whole pieces, into runs: those whose policies are what was there at first
    /// or what the agent sets, and those to which somebody else has given another.
    fn own_parts(
        &self,
        shared: &SharedRange,
        range: &ReplacedRange,
        part: Range<u64>,
    ) -> Result<Vec<(Range<u64>, bool)>, RebindError> {
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        let mut at = part.start;
        while at < part.end {
            let next = part.end.min(at + range.piece_bytes);
            let now = shared.policy(at)?;
            let is_own = self.journal.record().is_own(&now) || range.original_at(at) == Some(&now);
            match runs.last_mut() {
                Some((run, own)) if *own == is_own => run.end = next,
                _ => runs.push((at..next, is_own)),
            }
            at = next;
        }
        Ok(runs)
    }
}

/// The mapping in which an area begins, and where the area begins in its file. The mappings that follow,
/// if the kernel has cut it, go on in the file as in memory.
fn file_of(area: Area, mappings: &[Mapping]) -> Result<(&Mapping, u64), RebindError> {
    let first = mappings.iter().find(|mapping| mapping.contains(area.start));
    let first = first.ok_or(RebindError::InPieces(area))?;
    let is_same = |mapping: &&Mapping| {
        (mapping.device, mapping.inode) == (first.device, first.inode)
            && mapping.offset == first.offset.wrapping_add(mapping.start.0 - first.start.0)
    };
    let end = area.start.0 + area.bytes;
    let rest = mappings
        .iter()
        .filter(|mapping| mapping.start >= first.start);
    let mut covered = first.start;
    for mapping in rest.take_while(is_same) {
        if mapping.start > covered {
            break;
        }
        if !mapping.permissions.ends_with('s') {
            return Err(RebindError::Private(area));
        }
        covered = mapping.end;
    }
    if covered.0 < end {
        return Err(RebindError::InPieces(area));
    }
    Ok((first, first.offset + (area.start.0 - first.start.0)))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{BufRead as _, BufReader},
        process::{Child, Command, Stdio},
    };

    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
    use tier_core::addr::NodeSet;
    use tier_sys::numa_maps;
    use vm_memory::{FileOffset, MmapRegion};

    use super::*;
    use crate::policy_journal;

    const MIB: u64 = 1 << 20;
    const BYTES: u64 = 16 * MIB;
    /// What the process that is killed is told: pid and address of the memory, and the run directory.
    const ORDER: &str = "VMM_TIER_TEST_REBIND";

    /// Memory of this process, shared as QEMU shares its guest's.
    struct Memory {
        region: MmapRegion,
        file: File,
        run_dir: tempfile::TempDir,
    }

    impl Memory {
        fn new() -> Option<Self> {
            let root = SysRoot::real();
            if !root.process(std::process::id(), "numa_maps").exists() {
                eprintln!("SKIPPED: this kernel has no NUMA policies (CONFIG_NUMA)");
                return None;
            }
            let file = File::from(memfd_create("rebind", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(BYTES).unwrap();
            let shared = FileOffset::new(file.try_clone().unwrap(), 0);
            let memory = Self {
                region: MmapRegion::from_file(shared, BYTES as usize).unwrap(),
                file,
                run_dir: tempfile::tempdir().unwrap(),
            };
            match memory.shared() {
                Ok(_) => Some(memory),
                Err(error @ MempolicyError::Open { .. }) => {
                    eprintln!("SKIPPED: {error}");
                    None
                }
                Err(error) => panic!("{error}"),
            }
        }

        fn start(&self) -> Hva {
            Hva(self.region.as_ptr() as u64)
        }

        fn mapping(&self) -> Mapping {
            let own = |mapping: &Mapping| mapping.contains(self.start());
            let found = maps::read(&SysRoot::real(), std::process::id(), own);
            found.unwrap().remove(0)
        }

        fn shared(&self) -> Result<SharedRange, MempolicyError> {
            let root = SysRoot::real();
            SharedRange::map(&root, std::process::id(), &self.mapping(), 0, BYTES)
        }

        /// The policies of each 2 MiB, as `numa_maps` writes them.
        fn policies(&self) -> Vec<String> {
            let shared = self.shared().unwrap();
            let at = (0..BYTES).step_by(2 * MIB as usize);
            at.map(|at| shared.policy(at).unwrap().to_string())
                .collect()
        }

        /// What the kernel shows of the first page's policy.
        fn shown(&self) -> String {
            let root = SysRoot::real();
            let own = |start| start == self.start();
            let found = numa_maps::read(&root, std::process::id(), own);
            found.unwrap().remove(0).policy
        }

        fn rebinder(&self) -> Rebinder {
            rebinder(self.run_dir.path(), std::process::id())
        }

        fn binding(&self, offset: u64, bytes: u64, tier: Tier) -> Binding {
            binding(self.start(), offset, bytes, tier)
        }

        fn records(&self) -> usize {
            policy_journal::records(self.run_dir.path()).len()
        }
    }

    /// Of a host whose tiers are both node 0: this host may have no other.
    fn rebinder(run_dir: &Path, pid: u32) -> Rebinder {
        let node: NodeSet = "0".parse().unwrap();
        let tiers = Tiers {
            fast: node.clone(),
            slow: node,
            fast_latency_ns: 80.0,
            slow_latency_ns: 250.0,
        };
        Rebinder::new(run_dir, &SysRoot::real(), "vm", pid, &tiers)
    }

    fn binding(start: Hva, offset: u64, bytes: u64, tier: Tier) -> Binding {
        let area = Area {
            start,
            bytes: BYTES,
            piece_bytes: 2 * MIB,
        };
        let start = Hva(start.0 + offset);
        Binding {
            area,
            start,
            bytes,
            tier,
        }
    }

    fn bind_policy() -> Policy {
        // linux/mempolicy.h: MPOL_BIND is 2.
        serde_json::from_str(r#"{"mode": 2, "nodes": [0]}"#).unwrap()
    }

    fn results(done: Done) -> Vec<(u64, Rebound)> {
        let Done::Rebound(report, trouble) = done else {
            panic!("{done:?}")
        };
        assert_eq!(trouble, None);
        let told = |(binding, rebound): &(Binding, Rebound)| (binding.bytes / MIB, *rebound);
        report.results.iter().map(told).collect()
    }

    const NEAR: &str = "prefer (many):0";

    #[test]
    fn policies_when_the_agent_ends_are_as_they_were() {
        let Some(memory) = Memory::new() else { return };
        // QEMU has bound the second half.
        let shared = memory.shared().unwrap();
        shared.set(8 * MIB, 8 * MIB, &bind_policy()).unwrap();
        let before = memory.policies();
        let mut rebinder = memory.rebinder();
        rebinder.repair();

        let bindings = [
            memory.binding(0, 2 * MIB, Tier::Fast),
            memory.binding(6 * MIB, 4 * MIB, Tier::Slow),
        ];
        let done = results(rebinder.carry_out(&bindings));

        assert_eq!(done, [(2, Rebound::Bound), (4, Rebound::Bound)]);
        assert_eq!(memory.shown(), NEAR);
        let bind = "bind:0";
        let expected = [NEAR, "default", "default", NEAR, NEAR, bind, bind, bind];
        assert_eq!(memory.policies(), expected);
        assert_eq!(memory.records(), 1);
        // Once more, over what is bound already.
        let all = [memory.binding(0, BYTES, Tier::Fast)];
        assert_eq!(results(rebinder.carry_out(&all)), [(16, Rebound::Bound)]);

        rebinder.leave();

        assert_eq!(memory.policies(), before);
        assert_eq!(memory.records(), 0);
    }

    #[test]
    fn policy_when_somebody_else_sets_it_meanwhile_stays() {
        let Some(memory) = Memory::new() else { return };
        let mut rebinder = memory.rebinder();
        let first = [memory.binding(0, 8 * MIB, Tier::Fast)];
        assert_eq!(results(rebinder.carry_out(&first)), [(8, Rebound::Bound)]);
        let shared = memory.shared().unwrap();
        shared.set(2 * MIB, 4 * MIB, &bind_policy()).unwrap();

        let done = results(rebinder.carry_out(&[memory.binding(0, 8 * MIB, Tier::Slow)]));

        let expected = [
            (2, Rebound::Bound),
            (4, Rebound::Foreign),
            (2, Rebound::Bound),
        ];
        assert_eq!(done, expected);
        rebinder.leave();
        let policies = memory.policies();
        assert_eq!(policies[..4], ["default", "bind:0", "bind:0", "default"]);
    }

    /// No test of its own: the agent that [`policies_when_the_agent_is_killed_are_restored_by_the_next`]
    /// starts, and kills.
    #[test]
    fn agent_that_is_killed() {
        let Ok(order) = std::env::var(ORDER) else {
            return eprintln!("SKIPPED: the agent that another test starts and kills");
        };
        let mut words = order.splitn(3, ' ');
        let mut word = || words.next().unwrap();
        let (pid, start) = (word().parse().unwrap(), Hva(word().parse().unwrap()));
        let mut rebinder = rebinder(Path::new(word()), pid);
        rebinder.repair();
        let done = rebinder.carry_out(&[binding(start, 0, 12 * MIB, Tier::Fast)]);
        println!("done {:?}", results(done));
        std::thread::sleep(std::time::Duration::from_secs(600));
    }

    /// An agent in a process of its own, which has bound 12 MiB of the memory.
    fn killable_agent(memory: &Memory) -> Child {
        let name = "agent::page_work::rebinder::tests::agent_that_is_killed";
        let order = format!(
            "{} {} {}",
            std::process::id(),
            memory.start().0,
            memory.run_dir.path().display()
        );
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(ORDER, order)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let told = output
            .lines()
            .map(Result::unwrap)
            .find(|line| line.contains("done"));
        let told = told.expect("the agent binds");
        assert!(told.contains("(12, Bound)"), "{told}");
        child
    }

    #[test]
    fn policies_when_the_agent_is_killed_are_restored_by_the_next() {
        let Some(memory) = Memory::new() else { return };
        let mut agent = killable_agent(&memory);
        assert_eq!(memory.shown(), NEAR);
        let mut next = memory.rebinder();
        next.repair();
        let done = next.carry_out(&[memory.binding(0, BYTES, Tier::Slow)]);
        assert!(
            matches!(&done, Done::Rebound(_, Some(why)) if why.contains("runs")),
            "while the first agent runs: {done:?}"
        );

        agent.kill().unwrap();
        agent.wait().unwrap();
        // The guest gives memory back, and takes it again.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&memory.file, punch, 0, 4 * MIB).unwrap();
        assert_eq!(memory.shown(), NEAR, "policies outlive the agent");
        assert_eq!(memory.records(), 1);
        // The agent that was started too early restores them before it sets its own.
        let area = memory.binding(12 * MIB, 4 * MIB, Tier::Slow);
        assert_eq!(results(next.carry_out(&[area])), [(4, Rebound::Bound)]);
        assert_eq!(memory.policies()[..6], ["default"; 6]);
        next.leave();
        let mut next = memory.rebinder();
        next.repair();

        assert_eq!(memory.policies(), ["default"; 8]);
        assert_eq!(memory.shown(), "default");
        assert_eq!(memory.records(), 0);
        let done = next.carry_out(&[memory.binding(0, BYTES, Tier::Slow)]);
        assert_eq!(results(done), [(16, Rebound::Bound)]);
        next.leave();
        assert_eq!(memory.policies(), ["default"; 8]);
    }

    #[test]
    fn policies_when_one_range_can_not_be_restored_are_restored_in_the_others() {
        let Some(memory) = Memory::new() else { return };
        let mut rebinder = memory.rebinder();
        rebinder.carry_out(&[memory.binding(0, BYTES, Tier::Fast)]);
        let (path, _) = policy_journal::records(memory.run_dir.path()).remove(0);
        let good = std::fs::read_to_string(&path).unwrap();
        // Another range before it, which begins within a page: that can't be mapped.
        let mut record: serde_json::Value = serde_json::from_str(&good).unwrap();
        let mut odd = record["ranges"][0].clone();
        odd["offset"] = 1.into();
        odd["original"][0]["offset"] = 1.into();
        let ranges = record["ranges"].as_array_mut().unwrap();
        ranges.insert(0, odd);
        std::fs::write(&path, record.to_string()).unwrap();
        let read = || policy_journal::records(memory.run_dir.path()).remove(0).1;

        let error = read().unwrap().restore(&SysRoot::real(), &path);

        assert!(error.is_err(), "{error:?}");
        assert_eq!(memory.policies(), ["default"; 8]);
        assert!(path.exists());
        std::fs::write(&path, good).unwrap();
        rebinder.leave();
        assert_eq!(memory.records(), 0);
    }

    #[test]
    fn area_when_the_layout_changes_is_restored_before_it_is_read_again() {
        let Some(memory) = Memory::new() else { return };
        let mut rebinder = memory.rebinder();
        let first = memory.binding(0, 8 * MIB, Tier::Fast);
        rebinder.carry_out(&[first]);

        // The guest has grown: the pieces are larger.
        let area = Area {
            piece_bytes: 4 * MIB,
            ..first.area
        };
        let second = Binding {
            area,
            start: Hva(area.start.0 + 8 * MIB),
            ..first
        };
        assert_eq!(
            results(rebinder.carry_out(&[second])),
            [(8, Rebound::Bound)]
        );

        assert_eq!(memory.policies()[..4], ["default"; 4]);
        rebinder.leave();
        assert_eq!(memory.policies(), ["default"; 8]);
    }

    #[test]
    fn area_when_it_cant_be_bound_says_why() {
        let Some(memory) = Memory::new() else { return };
        let mapping = |start, end, offset, permissions: &str| Mapping {
            start: Hva(start),
            end: Hva(end),
            permissions: permissions.to_owned(),
            offset,
            device: (0, 1),
            inode: 7,
            name: "/memfd:ram (deleted)".to_owned(),
        };
        let area = Area {
            start: Hva(0x20_0000),
            bytes: 0x40_0000,
            piece_bytes: 2 * MIB,
        };
        // The kernel has cut the mapping.
        let whole = [
            mapping(0x10_0000, 0x30_0000, 0, "rw-s"),
            mapping(0x30_0000, 0x60_0000, 0x20_0000, "rw-s"),
        ];
        let (first, offset) = file_of(area, &whole).unwrap();
        assert_eq!((first, offset), (&whole[0], 0x10_0000));
        let private = whole.clone().map(|own| Mapping {
            permissions: "rw-p".to_owned(),
            ..own
        });
        let hole = [
            whole[0].clone(),
            mapping(0x40_0000, 0x60_0000, 0x30_0000, "rw-s"),
        ];
        let skip = [
            whole[0].clone(),
            mapping(0x30_0000, 0x60_0000, 0x40_0000, "rw-s"),
        ];
        for (mappings, says) in [
            (&private[..], "share=on"),
            (&hole, "in one piece"),
            (&skip, "in one piece"),
            (&whole[..1], "in one piece"),
            (&[], "in one piece"),
        ] {
            let error = file_of(area, mappings).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        // A run directory that can't be written: nothing is set that could not be restored.
        std::fs::write(memory.run_dir.path().join("policies"), "a file").unwrap();
        let mut rebinder = memory.rebinder();
        let done = rebinder.carry_out(&[memory.binding(0, BYTES, Tier::Fast)]);
        let Done::Rebound(report, Some(why)) = done else {
            panic!("{done:?}")
        };
        assert!(why.contains("can't be written"), "{why}");
        assert_eq!(report.results[0].1, Rebound::Failed);
        assert_eq!(memory.policies(), ["default"; 8]);
    }
}
