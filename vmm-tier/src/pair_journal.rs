//! Pairs of moves between hugetlb pools, written down before they begin.
//!
//! Between the two halves of a pair the pools differ from what the administrator has set. An agent that
//! is killed just then can't put that right. Its record lets the next agent of the guest, or `vmm-tier
//! doctor --repair`, move back what has no partner, and nothing else.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tier_core::{
    addr::{Hva, NodeId},
    moves::{Outcome, Page, PairedBatch},
};
use tier_sys::{
    file_lock::FileLock,
    hugetlb,
    pages::{self, PagesError},
    process::Identity,
    sysroot::{SysRoot, SysRootError},
};

use crate::record_file::{self, Record};

/// The folder of the records in the run directory.
const FOLDER: &str = "pairs";
/// The file of the lock in the run directory.
const LOCK: &str = "hugetlb.lock";

/// Why a pair can't be written down, or one that was left can't be undone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PairError {
    #[error("{path} can't be written: make its folder writable, or name another run-dir")]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(
        "the record {path} of a pair of moves is damaged: {reason}; compare nr_hugepages of the nodes with what \
             they should be, then remove the file"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("other agents move hugetlb pages just now: {path} is locked")]
    Locked { path: PathBuf },
    #[error("no hugetlb pool of {page_bytes} byte pages on node {node}")]
    NoPool { page_bytes: u64, node: NodeId },
    #[error("the hugetlb pools can't be read or set")]
    Pools(#[from] SysRootError),
    #[error("the pages of an unfinished pair can't be moved back")]
    Pages(#[from] PagesError),
    #[error(
        "{pages} pages of {page_bytes} bytes belong to node {slow} instead of node {fast} since a pair of moves did not \
         end, and can't be taken back now: free memory on node {fast}, and, if the guest has ended, pages of the pool \
         on node {slow}; then `vmm-tier doctor --repair`"
    )]
    StillAway {
        pages: u64,
        page_bytes: u64,
        fast: NodeId,
        slow: NodeId,
    },
}

/// Takes the lock under which agents move hugetlb pages: while it is held no pair is under way, and each
/// record in the run directory is of a pair that did not end. Gives up after `timeout`, or when
/// `is_over`.
pub(crate) fn lock(
    run_dir: &Path,
    timeout: Duration,
    is_over: impl Fn() -> bool,
) -> Result<FileLock, PairError> {
    let path = run_dir.join(LOCK);
    FileLock::take_unless(&path, timeout, is_over).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => PairError::Locked { path },
        _ => PairError::Unwritable { path, source },
    })
}

/// As [`lock`], for who only looks: makes no file where no agent has locked yet. `None` if there is
/// none, or if it can't be locked.
pub(crate) fn lock_if_used(run_dir: &Path, timeout: Duration) -> Option<FileLock> {
    let is_used = run_dir.join(LOCK).exists();
    is_used.then(|| lock(run_dir, timeout, || false).ok())?
}

/// What the pool of a node had before agents changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PoolBefore {
    pub(crate) node: u16,
    pub(crate) pages: u64,
}

/// A pair that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PairRecord {
    version: u64,
    /// The VM's name.
    pub(crate) vm: String,
    agent: Identity,
    qemu: Identity,
    page_bytes: u64,
    fast: PoolBefore,
    slow: PoolBefore,
    /// Addresses in QEMU of the pages that go down.
    demote: Vec<u64>,
    /// Addresses in QEMU of the pages that go up.
    promote: Vec<u64>,
    /// Pages that are being given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    giving_back: Option<GivingBack>,
}

/// Pages that go from the slow node's pool to the fast node's by two numbers, which are written one after the
/// other. After a kill between the two the slow node has pages too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct GivingBack {
    /// What the fast pool had before.
    fast_pages: u64,
    /// What it was to get.
    pages: u64,
}

impl Record for PairRecord {
    const VERSION: u64 = 1;
    /// A batch of thousands of pages.
    const MAX_BYTES: u64 = 1 << 20;

    fn version(&self) -> u64 {
        self.version
    }
}

/// Where the pairs of one VM are written down.
#[derive(Clone, Debug)]
pub(crate) struct PairJournal {
    path: PathBuf,
    vm: String,
    root: SysRoot,
    agent: Identity,
    qemu: Identity,
}

impl PairJournal {
    /// The journal of the VM in the file `name` of the run directory.
    pub(crate) fn new(run_dir: &Path, root: &SysRoot, vm: &str, name: &str, pid: u32) -> Self {
        Self {
            path: run_dir.join(FOLDER).join(name),
            vm: vm.to_owned(),
            root: root.clone(),
            agent: Identity::of(root, std::process::id()),
            qemu: Identity::of(root, pid),
        }
    }

    /// Writes a pair down that is about to begin.
    pub(crate) fn begin(&self, pair: &PairedBatch) -> Result<PairRecord, PairError> {
        let page_bytes = pair.demote.pages.first().map_or(0, |page| page.bytes);
        let (fast, slow) = (pair.promote.target, pair.demote.target);
        let addresses = |pages: &[Page]| pages.iter().map(|page| page.hva.0).collect();
        let [fast, slow] = pools_of(&self.root, page_bytes, [fast, slow])?;
        let record = PairRecord {
            version: PairRecord::VERSION,
            vm: self.vm.clone(),
            agent: self.agent.clone(),
            qemu: self.qemu.clone(),
            page_bytes,
            fast: fast.before(),
            slow: slow.before(),
            demote: addresses(&pair.demote.pages),
            promote: addresses(&pair.promote.pages),
            giving_back: None,
        };
        self.put(&record)?;
        Ok(record)
    }

    fn put(&self, record: &PairRecord) -> Result<(), PairError> {
        record.write(&self.path)
    }

    /// Corrects the record of a pair of which more pages went down than up: only these pages did.
    pub(crate) fn narrow(
        &self,
        record: PairRecord,
        demoted: Vec<Hva>,
        promoted: Vec<Hva>,
    ) -> Result<(), PairError> {
        let addresses = |pages: Vec<Hva>| pages.into_iter().map(|page| page.0).collect();
        let record = PairRecord {
            demote: addresses(demoted),
            promote: addresses(promoted),
            ..record
        };
        self.put(&record)
    }

    /// The pair has ended: as many pages went up as down. Where a page of the fast pool became free
    /// meanwhile, a promotion took that, and the pools are not as they were: they are set then. Returns
    /// how many pages that were.
    pub(crate) fn end(&self, record: &PairRecord) -> Result<u64, PairError> {
        let away = record.away(&self.root)?;
        let given_back = match away {
            0 => 0,
            away => record.give_back(&self.root, &self.path, away)?,
        };
        remove(&self.path)?;
        Ok(given_back)
    }

    /// Whether a pair was left that did not end.
    pub(crate) fn has_record(&self) -> bool {
        self.path.exists()
    }

    /// Whether the guest's QEMU still runs.
    pub(crate) fn is_guest_alive(&self) -> bool {
        self.qemu.is_alive(&self.root)
    }

    /// Moves back what a pair left that did not end, and returns how many pages. Only under the
    /// [`lock`].
    pub(crate) fn repair(&self) -> Result<u64, PairError> {
        let Some(record) = read(&self.path)? else {
            return Ok(0);
        };
        record.repair(&self.root, &self.path)
    }
}

/// The records that agents left in the run directory, each with its path.
pub(crate) fn records(run_dir: &Path) -> Vec<(PathBuf, Result<PairRecord, PairError>)> {
    record_file::all(&run_dir.join(FOLDER), read)
}

fn read(path: &Path) -> Result<Option<PairRecord>, PairError> {
    record_file::read(path).map_err(|reason| PairError::Damaged {
        path: path.to_owned(),
        reason,
    })
}

fn remove(path: &Path) -> Result<(), PairError> {
    record_file::remove(path).map_err(|source| PairError::Unwritable {
        path: path.to_owned(),
        source,
    })
}

/// The pool of a node.
struct Pool {
    node: NodeId,
    pages: u64,
    /// Pages of them beyond what was configured.
    surplus: u64,
    /// Free pages that are promised to nobody.
    spare: u64,
}

impl Pool {
    const fn before(&self) -> PoolBefore {
        PoolBefore {
            node: self.node.0,
            pages: self.pages,
        }
    }
}

/// Whether `pages` pages can be taken from a pool. Fewer pages than are used, or promised, would become surplus;
/// a number that is written makes surplus pages lasting.
const fn can_lose(pool: &Pool, pages: u64, other: &Pool) -> bool {
    pool.spare >= pages && pool.surplus == 0 && other.surplus == 0
}

/// The pools of the fast and the slow node, as they are now.
fn pools_of(
    root: &SysRoot,
    page_bytes: u64,
    [fast, slow]: [NodeId; 2],
) -> Result<[Pool; 2], PairError> {
    let pool = hugetlb::read_size(root, page_bytes)?;
    let on = |node: NodeId| -> Result<Pool, PairError> {
        let pool = pool.as_ref();
        let own =
            pool.and_then(|pool| Some((pool, pool.nodes.iter().find(|own| own.node == node)?)));
        let (pool, own) = own.ok_or(PairError::NoPool { page_bytes, node })?;
        Ok(Pool {
            node,
            pages: own.pages,
            surplus: own.surplus,
            spare: own.free.min(pool.available()),
        })
    };
    Ok([on(fast)?, on(slow)?])
}

impl PairRecord {
    /// Whether the agent that wrote it still runs.
    pub(crate) fn is_agent_alive(&self, root: &SysRoot) -> bool {
        self.agent.is_alive(root)
    }

    /// Moves back what has no partner and removes the record, which is at `path`. Returns how many pages
    /// went back. What others changed meanwhile stays. Only under the [`lock`].
    pub(crate) fn repair(&self, root: &SysRoot, path: &Path) -> Result<u64, PairError> {
        // Pools and pages are of one boot.
        if self.qemu.boot_id != Identity::of(root, std::process::id()).boot_id {
            remove(path)?;
            return Ok(0);
        }
        let finished = self.finish_giving_back(root, path)?;
        let went_back = match self.qemu.is_alive(root) {
            true => self.move_back(root, path)?,
            // Its pages are free.
            false => match self.away(root)? {
                0 => 0,
                away => self.give_back(root, path, away)?,
            },
        };
        remove(path)?;
        Ok(finished + went_back)
    }

    fn write(&self, path: &Path) -> Result<(), PairError> {
        let text = serde_json::to_vec(self).map_err(io::Error::from);
        let written = text.and_then(|text| record_file::write(path, &text, 0o600));
        written.map_err(|source| PairError::Unwritable {
            path: path.to_owned(),
            source,
        })
    }

    /// The record while these pages are given back.
    fn giving(&self, giving_back: Option<GivingBack>) -> Self {
        Self {
            giving_back,
            ..self.clone()
        }
    }

    /// Pages that the pools still lack on the fast node and have too many on the slow one.
    fn away(&self, root: &SysRoot) -> Result<u64, PairError> {
        let [fast, slow] = self.pools(root)?;
        Ok(self.away_of(fast.pages, slow.pages))
    }

    fn pools(&self, root: &SysRoot) -> Result<[Pool; 2], PairError> {
        let nodes = [self.fast.node, self.slow.node].map(NodeId);
        pools_of(root, self.page_bytes, nodes)
    }

    fn away_of(&self, fast_pages: u64, slow_pages: u64) -> u64 {
        let lacks = self.fast.pages.saturating_sub(fast_pages);
        let too_many = slow_pages.saturating_sub(self.slow.pages);
        lacks.min(too_many).min(self.demote.len() as u64)
    }

    /// Moves demoted pages back that have no partner, as far as the pools lack them.
    fn move_back(&self, root: &SysRoot, path: &Path) -> Result<u64, PairError> {
        let away = usize::try_from(self.away(root)?).unwrap_or(0);
        if away == 0 {
            return Ok(0);
        }
        let pid = self.qemu.pid;
        let on = |addresses: &[u64], node: u16| -> Result<Vec<Hva>, PairError> {
            let pages: Vec<Hva> = addresses.iter().copied().map(Hva).collect();
            let places = pages::query_nodes(pid, &pages)?;
            let places = pages.into_iter().zip(places);
            let there = places.filter(|(_, place)| place.node() == Some(NodeId(node)));
            Ok(there.map(|(page, _)| page).collect())
        };
        let down = on(&self.demote, self.slow.node)?;
        let up = on(&self.promote, self.fast.node)?;
        let alone = down.len().saturating_sub(up.len()).min(away);
        if alone == 0 {
            return Ok(0);
        }
        let page = |&hva: &Hva| Page {
            hva,
            bytes: self.page_bytes,
        };
        let back: Vec<Page> = down.iter().rev().take(alone).map(page).collect();
        let results = pages::move_pages(pid, NodeId(self.fast.node), &back, true)?;
        let moved = results
            .iter()
            .filter(|r| r.outcome == Outcome::Moved)
            .count();
        if moved < alone {
            return Err(self.still_away((alone - moved) as u64));
        }
        // A page that went onto a free page of the fast node left one on the slow node, and the pools as
        // they were.
        let left = self.away(root)?.min(moved as u64);
        if left > 0 {
            self.give_back(root, path, left)?;
        }
        Ok(moved as u64)
    }

    /// Pages of the slow node's pool that nobody uses become pages of the fast node's. Returns how many.
    fn give_back(&self, root: &SysRoot, path: &Path, away: u64) -> Result<u64, PairError> {
        let fast = NodeId(self.fast.node);
        let [own, other] = self.pools(root)?;
        if !can_lose(&other, away, &own) {
            return Err(self.still_away(away));
        }
        let begun = GivingBack {
            fast_pages: own.pages,
            pages: away,
        };
        self.giving(Some(begun)).write(path)?;
        // First what may fail: the kernel gives fewer pages where memory is short.
        hugetlb::set_pages(root, self.page_bytes, fast, own.pages + away)?;
        let [now, _] = self.pools(root)?;
        let gained = now.pages.saturating_sub(own.pages).min(away);
        if gained > 0 {
            self.take_from_slow(root, &other, gained)?;
        }
        self.giving(None).write(path)?;
        match away - gained {
            0 => Ok(away),
            left => Err(self.still_away(left)),
        }
    }

    /// Takes from the slow node what the fast node got already when its agent was killed. Returns how many
    /// pages.
    fn finish_giving_back(&self, root: &SysRoot, path: &Path) -> Result<u64, PairError> {
        let Some(begun) = self.giving_back else {
            return Ok(0);
        };
        let [own, other] = self.pools(root)?;
        let gained = own.pages.saturating_sub(begun.fast_pages);
        let lacks = self.fast.pages.saturating_sub(own.pages);
        let too_many = other.pages.saturating_sub(self.slow.pages);
        let left = too_many.saturating_sub(lacks).min(gained.min(begun.pages));
        if left > 0 {
            if !can_lose(&other, left, &own) {
                return Err(self.still_away(left));
            }
            self.take_from_slow(root, &other, left)?;
        }
        self.giving(None).write(path)?;
        Ok(left)
    }

    fn take_from_slow(&self, root: &SysRoot, slow: &Pool, pages: u64) -> Result<(), PairError> {
        let left = slow.pages.saturating_sub(pages);
        Ok(hugetlb::set_pages(root, self.page_bytes, slow.node, left)?)
    }

    fn still_away(&self, pages: u64) -> PairError {
        PairError::StillAway {
            pages,
            page_bytes: self.page_bytes,
            fast: NodeId(self.fast.node),
            slow: NodeId(self.slow.node),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tier_core::moves::{Direction, MoveBatch};

    use super::*;

    const HUGE: u64 = 2 << 20;

    /// A host with two pools of 2 MiB pages, this process, and QEMU as process 77.
    pub(crate) struct Host {
        folder: tempfile::TempDir,
        pub(crate) root: SysRoot,
    }

    impl Host {
        /// The pages of the fast and the slow node, and how many of them are free.
        pub(crate) fn new(fast: (u64, u64), slow: (u64, u64)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = SysRoot::at(folder.path());
            let host = Self { folder, root };
            host.put("proc/sys/kernel/random/boot_id", "b0");
            host.process(std::process::id(), 5);
            host.process(77, 9);
            for name in ["nr_hugepages", "resv_hugepages", "surplus_hugepages"] {
                host.put_global(name, 0);
            }
            host.set(0, fast);
            host.set(1, slow);
            host
        }

        fn put_global(&self, name: &str, value: u64) {
            let path = format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
            self.put(&path, &value.to_string());
        }

        /// So many free pages are promised.
        pub(crate) fn promise(&self, pages: u64) {
            self.put_global("resv_hugepages", pages);
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        /// The fast node has so many free pages of 4 KiB, and a watermark of one page.
        pub(crate) fn put_zones(&self, free: u64) {
            let text = format!(
                "Node 0, zone   Normal\n  pages free     {free}\n        min      1\n        low      1\n        \
                 high     1\n"
            );
            self.put("proc/zoneinfo", &text);
        }

        fn process(&self, pid: u32, start: u64) {
            let zeros = "0 ".repeat(17);
            let stat = format!("{pid} (qemu) S 1 {zeros} {start} 0 0 0\n");
            self.put(&format!("proc/{pid}/stat"), &stat);
        }

        fn pool(node: u16) -> String {
            format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB")
        }

        pub(crate) fn run_dir(&self) -> &Path {
            self.folder.path()
        }

        pub(crate) fn end_guest(&self) {
            std::fs::remove_dir_all(self.folder.path().join("proc/77")).unwrap();
        }

        pub(crate) fn end_all_processes(&self) {
            for pid in [77, std::process::id()] {
                std::fs::remove_dir_all(self.folder.path().join(format!("proc/{pid}"))).unwrap();
            }
        }

        pub(crate) fn set(&self, node: u16, (pages, free): (u64, u64)) {
            let folder = Self::pool(node);
            self.put(&format!("{folder}/nr_hugepages"), &pages.to_string());
            self.put(&format!("{folder}/free_hugepages"), &free.to_string());
            self.put(&format!("{folder}/surplus_hugepages"), "0");
            let free = |node| self.number(node, "free_hugepages");
            self.put_global("free_hugepages", free(0) + free(1));
        }

        fn number(&self, node: u16, name: &str) -> u64 {
            let path = self.folder.path().join(Self::pool(node)).join(name);
            std::fs::read_to_string(path).map_or(0, |text| text.trim().parse().unwrap())
        }

        pub(crate) fn set_surplus(&self, node: u16, surplus: u64) {
            let path = format!("{}/surplus_hugepages", Self::pool(node));
            self.put(&path, &surplus.to_string());
        }

        pub(crate) fn pages(&self, node: u16) -> u64 {
            self.number(node, "nr_hugepages")
        }

        pub(crate) fn journal(&self) -> PairJournal {
            PairJournal::new(self.folder.path(), &self.root, "vm", "vm.json", 77)
        }

        pub(crate) fn records(&self) -> Vec<(PathBuf, Result<PairRecord, PairError>)> {
            records(self.folder.path())
        }
    }

    pub(crate) fn pair(pages: u64) -> PairedBatch {
        let batch = |direction, target, from: u64| MoveBatch {
            id: 1,
            direction,
            target: NodeId(target),
            nearest: None,
            frame_bytes: HUGE,
            pages: (from..from + pages)
                .map(|n| Page {
                    hva: Hva(n * HUGE),
                    bytes: HUGE,
                })
                .collect(),
        };
        PairedBatch {
            demote: batch(Direction::Demote, 1, 100),
            promote: batch(Direction::Promote, 0, 200),
        }
    }

    #[test]
    fn pair_when_it_begins_is_on_record_and_when_it_ends_is_not() {
        let host = Host::new((44, 0), (156, 0));
        let journal = host.journal();
        assert_eq!(journal.repair().unwrap(), 0, "nothing was left");

        let record = journal.begin(&pair(3)).unwrap();

        assert_eq!((record.fast.pages, record.slow.pages), (44, 156));
        let found = host.records();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.as_ref().unwrap(), &record);
        assert!(record.is_agent_alive(&host.root));
        assert_eq!(journal.end(&record).unwrap(), 0);
        assert!(host.records().is_empty());
        assert_eq!(journal.end(&record).unwrap(), 0);
    }

    #[test]
    fn pages_away_when_others_change_the_pools_are_at_most_what_is_missing() {
        let host = Host::new((44, 0), (156, 0));
        let record = host.journal().begin(&pair(4)).unwrap();
        assert_eq!(record.away_of(44, 156), 0);
        assert_eq!(record.away_of(41, 159), 3);
        assert_eq!(record.away_of(34, 166), 4, "no more than went");
        assert_eq!(record.away_of(50, 160), 0, "somebody gave the node pages");
        assert_eq!(record.away_of(41, 157), 1, "somebody took two away");
    }

    #[test]
    fn repair_when_the_guest_is_gone_sets_the_pools_as_they_were_and_forgets_the_pair() {
        let host = Host::new((44, 0), (156, 0));
        host.journal().begin(&pair(4)).unwrap();
        // Killed after three of four went down; then the guest ended.
        host.set(0, (41, 41));
        host.set(1, (159, 159));
        host.end_guest();

        assert_eq!(host.journal().repair().unwrap(), 3);

        assert_eq!((host.pages(0), host.pages(1)), (44, 156));
        assert!(host.records().is_empty());
    }

    /// Three pages are still away after a repair, and the pools as they were before it.
    fn three_stay_away(host: &Host) {
        let error = host.journal().repair().unwrap_err();

        assert!(
            matches!(error, PairError::StillAway { pages: 3, .. }),
            "{error}"
        );
        assert_eq!((host.pages(0), host.pages(1)), (41, 159));
    }

    #[test]
    fn repair_when_others_use_the_pages_leaves_them_and_says_so() {
        let host = Host::new((44, 0), (156, 0));
        host.journal().begin(&pair(4)).unwrap();
        host.set(0, (41, 0));
        host.set(1, (159, 2));
        host.end_guest();

        three_stay_away(&host);
        assert_eq!(host.records().len(), 1, "for another try");
    }

    #[test]
    fn repair_when_free_pages_are_promised_leaves_them_and_says_so() {
        let host = Host::new((44, 0), (156, 0));
        host.journal().begin(&pair(4)).unwrap();
        host.set(0, (41, 0));
        host.set(1, (159, 3));
        host.promise(1);
        host.end_guest();

        three_stay_away(&host);
    }

    #[test]
    fn repair_when_the_fast_node_takes_no_pages_takes_none_of_the_slow_one() {
        // A file that says 65536 and can't be written.
        let fixed = Path::new("/proc/sys/kernel/ngroups_max");
        let pages = 65_536 + 3;
        let host = Host::new((pages, 0), (156, 0));
        host.journal().begin(&pair(4)).unwrap();
        host.set(1, (159, 159));
        let path = host.folder.path().join(Host::pool(0)).join("nr_hugepages");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(fixed, &path).unwrap();
        host.end_guest();

        let error = host.journal().repair().unwrap_err();

        assert!(matches!(error, PairError::Pools(_)), "{error}");
        assert_eq!(host.pages(1), 159);
        assert_eq!(host.records().len(), 1, "for another try");
    }

    #[test]
    fn repair_when_the_last_ended_between_the_two_pools_takes_the_pages_of_the_slow_one() {
        // A file that says 65536 and can't be written.
        let fixed = Path::new("/proc/sys/kernel/ngroups_max");
        let host = Host::new((44, 0), (65_536 - 3, 0));
        host.journal().begin(&pair(4)).unwrap();
        host.set(0, (41, 41));
        host.set(1, (65_536, 65_536));
        let path = host.folder.path().join(Host::pool(1)).join("nr_hugepages");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(fixed, &path).unwrap();
        host.end_guest();
        let error = host.journal().repair().unwrap_err();
        assert!(matches!(error, PairError::Pools(_)), "{error}");
        assert_eq!(host.pages(0), 44, "as far as it came");
        assert_eq!(host.records().len(), 1);

        std::fs::remove_file(&path).unwrap();
        host.set(1, (65_536, 65_536));
        assert_eq!(host.journal().repair().unwrap(), 3);
        assert_eq!((host.pages(0), host.pages(1)), (44, 65_536 - 3));
        assert!(host.records().is_empty());
    }

    #[test]
    fn repair_when_the_last_ended_before_or_after_both_pools_takes_no_page_twice() {
        for (fast, slow, went) in [(41, 159, 3), (44, 156, 0), (42, 159, 3)] {
            let host = Host::new((44, 0), (156, 0));
            let record = host.journal().begin(&pair(4)).unwrap();
            let begun = GivingBack {
                fast_pages: 41,
                pages: 3,
            };
            host.journal().put(&record.giving(Some(begun))).unwrap();
            host.set(0, (fast, fast));
            host.set(1, (slow, slow));
            host.end_guest();
            assert_eq!(host.journal().repair().unwrap(), went, "{fast} {slow}");
            assert_eq!((host.pages(0), host.pages(1)), (44, 156));
            assert!(host.records().is_empty());
        }
    }

    #[test]
    fn repair_when_a_node_has_surplus_pages_leaves_the_pools_and_says_so() {
        for node in [0, 1] {
            let host = Host::new((44, 0), (156, 0));
            host.journal().begin(&pair(4)).unwrap();
            host.set(0, (41, 41));
            host.set(1, (159, 9));
            host.set_surplus(node, 2);
            host.end_guest();

            three_stay_away(&host);
        }
    }

    #[test]
    fn repair_when_the_record_is_of_another_boot_only_forgets_it() {
        let host = Host::new((44, 0), (156, 0));
        host.journal().begin(&pair(4)).unwrap();
        host.put("proc/sys/kernel/random/boot_id", "b1");
        host.set(0, (41, 41));
        host.set(1, (159, 159));
        assert_eq!(host.journal().repair().unwrap(), 0);
        assert_eq!(host.pages(0), 41);
        assert!(host.records().is_empty());
    }

    #[test]
    fn repair_when_the_record_is_damaged_says_so_and_leaves_it() {
        for text in ["", "{", "{\"version\":9}", "[1,2]", "null"] {
            let host = Host::new((44, 0), (156, 0));
            host.put("pairs/vm.json", text);
            let error = host.journal().repair().unwrap_err();
            assert!(
                matches!(error, PairError::Damaged { .. }),
                "{text}: {error}"
            );
            assert!(host.records()[0].1.is_err());
        }
    }
}
