//! The thread that looks at processes: who is there, how long virtual CPUs ran, and what the kernel says
//! that QEMUs hold.
//!
//! Once a second it reads `stat` of each known QEMU. It looks for QEMUs that nobody told of, and at the
//! hugetlb pools, every ten seconds. What a QEMU holds on the fast nodes is in `numa_maps`,
//! for which the kernel walks page tables: these reads take a bounded share of the time, the one that was
//! read longest ago first.
//!
//! A process is known by its pid and its start. Files of `/proc` are found by pid alone, so a pidfd
//! would not spare the look at the start, and shares are decided once a second in any case.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tier_core::{addr::NodeSet, time::Time};
use tier_sys::{process, sysroot::SysRoot};

use super::{
    pools::{self, Holdings},
    qemu::{Qemu, holdings},
};
use crate::log::with_causes;

/// How often processes are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How often QEMUs are looked for, and how many times as long as it took at least.
const SEARCH_EVERY: Duration = Duration::from_secs(10);
const SEARCH_FACTOR: u32 = 100;
/// How often the memory of one QEMU is counted at most.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// The share of the time that counting memory may take, and for how long it may take all of it.
const COUNT_SHARE: f64 = 0.02;
const COUNT_BURST: Duration = Duration::from_millis(500);

/// A QEMU to look at.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) pid: u32,
    pub(super) start: u64,
    /// Where its guest's RAM lies, if its agent told.
    pub(super) ram: Option<Arc<[(u64, u64)]>>,
}

/// A process that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alive {
    pub(super) pid: u32,
    /// How long its virtual CPUs ran, all together, since it began.
    pub(super) ran: Duration,
}

/// What a QEMU holds on the fast nodes, by what the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) pid: u32,
    pub(super) start: u64,
    pub(super) holdings: Holdings,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Sighting {
    pub(super) at: Time,
    pub(super) alive: Vec<Alive>,
    /// Pid and start of those that have ended.
    pub(super) gone: Vec<(u32, u64)>,
    pub(super) held: Vec<Held>,
    /// All QEMUs that run, if they were looked for.
    pub(super) found: Option<Vec<Qemu>>,
    /// What the nodes' hugetlb pools have, in bytes by page size, if they were looked at.
    pub(super) hugetlb: Option<BTreeMap<u64, u64>>,
}

/// Looks at processes, and remembers when it did.
struct Looker {
    root: SysRoot,
    nodes: NodeSet,
    /// When the memory of each was counted last.
    counted: HashMap<(u32, u64), Time>,
    /// How long counting may take.
    allowance: f64,
    looked: Option<Time>,
    search_at: Time,
}

impl Looker {
    fn new(root: SysRoot, nodes: NodeSet) -> Self {
        Self {
            root,
            nodes,
            counted: HashMap::new(),
            allowance: COUNT_BURST.as_secs_f64(),
            looked: None,
            search_at: Time(0),
        }
    }

    fn look(&mut self, now: Time, watched: &[Watched]) -> Sighting {
        let mut seen = Sighting {
            at: now,
            ..Sighting::default()
        };
        for &Watched { pid, start, .. } in watched {
            match process::stat(&self.root, pid) {
                Ok(stat) if stat.start_ticks == start && stat.state != 'Z' => {
                    // A guest without KVM runs in QEMU's own time.
                    let ran = match stat.guest_time.is_zero() {
                        true => stat.cpu_time,
                        false => stat.guest_time,
                    };
                    seen.alive.push(Alive { pid, ran });
                }
                Ok(_) => seen.gone.push((pid, start)),
                Err(error) if error.is_process_gone() => seen.gone.push((pid, start)),
                Err(error) => tracing::debug!(pid, "not looked at: {}", with_causes(&error)),
            }
        }
        if now >= self.search_at {
            let begin = Instant::now();
            match Qemu::all(&self.root) {
                Ok(found) => seen.found = Some(found),
                Err(error) => tracing::debug!("no QEMU looked for: {}", with_causes(&error)),
            }
            match pools::hugetlb_on(&self.root, &self.nodes) {
                Ok(hugetlb) => seen.hugetlb = Some(hugetlb),
                Err(error) => {
                    tracing::debug!("hugetlb pools can't be read: {}", with_causes(&error));
                }
            }
            let pause = (begin.elapsed() * SEARCH_FACTOR).max(SEARCH_EVERY);
            self.search_at = now + pause;
        }
        self.count(now, watched, &mut seen);
        seen
    }

    /// Counts the memory of those that are due, as long as the allowance lasts.
    fn count(&mut self, now: Time, watched: &[Watched], seen: &mut Sighting) {
        let span = self.looked.map_or(EVERY, |looked| now.since(looked));
        self.looked = Some(now);
        let more = span.as_secs_f64() * COUNT_SHARE;
        self.allowance = (self.allowance + more).min(COUNT_BURST.as_secs_f64());
        let mut due: Vec<(Option<Time>, &Watched)> = watched
            .iter()
            .map(|it| (self.counted.get(&(it.pid, it.start)).copied(), it))
            .filter(|(counted, _)| counted.is_none_or(|at| now.since(at) >= COUNT_EVERY))
            .collect();
        due.sort_by_key(|(counted, _)| *counted);
        for (
            _,
            &Watched {
                pid,
                start,
                ref ram,
            },
        ) in due
        {
            if self.allowance <= 0.0 {
                break;
            }
            let begin = Instant::now();
            match holdings(&self.root, pid, &self.nodes, ram.as_deref()) {
                Ok(holdings) => seen.held.push(Held {
                    pid,
                    start,
                    holdings,
                }),
                Err(error) => {
                    tracing::debug!(pid, "memory not counted: {}", with_causes(&error));
                }
            }
            self.allowance -= begin.elapsed().as_secs_f64();
            self.counted.insert((pid, start), now);
        }
        let is_watched = |&(pid, start): &(u32, u64)| {
            watched.iter().any(|it| it.pid == pid && it.start == start)
        };
        if self.counted.len() > 2 * watched.len() {
            self.counted.retain(|it, _| is_watched(it));
        }
    }
}

/// The thread. Dropping it ends the thread, without waiting for a read under way.
#[derive(Debug)]
pub(super) struct Watcher {
    sightings: Receiver<Sighting>,
    list: Arc<Mutex<Vec<Watched>>>,
    _stop: Sender<()>,
}

impl Watcher {
    /// Starts the thread; it looks at memory on `nodes`.
    pub(super) fn start(root: SysRoot, nodes: NodeSet) -> io::Result<Self> {
        let (sender, sightings) = bounded(1);
        let (stop, stopped) = bounded::<()>(0);
        let list: Arc<Mutex<Vec<Watched>>> = Arc::default();
        let to_watch = Arc::clone(&list);
        thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(move || {
                let mut looker = Looker::new(root, nodes);
                loop {
                    // The lock is free again at once: the owner takes it too.
                    let watched = (to_watch.lock())
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone();
                    let sighting = looker.look(process::now(), &watched);
                    if sender.send(sighting).is_err() {
                        return;
                    }
                    if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })?;
        Ok(Self {
            sightings,
            list,
            _stop: stop,
        })
    }

    /// Where sightings arrive.
    pub(super) const fn sightings(&self) -> &Receiver<Sighting> {
        &self.sightings
    }

    /// Says what to look at from now on.
    pub(super) fn watch(&self, watched: Vec<Watched>) {
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = watched;
    }
}

#[cfg(test)]
mod tests {
    use tier_core::addr::NodeId;

    use super::{super::qemu::fake::FakeProc, *};

    fn watched(pid: u32) -> Watched {
        Watched {
            pid,
            start: 100,
            ram: None,
        }
    }

    fn at(s: u64) -> Time {
        Time(0) + Duration::from_secs(s)
    }

    #[test]
    fn look_when_a_process_ends_or_is_replaced_says_so() {
        let proc = FakeProc::new();
        for pid in [7, 8, 9] {
            proc.process(pid, "qemu-system-x86", 100, 250);
        }
        let nodes = [NodeId(0)].into_iter().collect();
        let mut looker = Looker::new(proc.root.clone(), nodes);
        let all = [watched(7), watched(8), watched(9)];
        let seen = looker.look(at(1), &all);
        assert_eq!((seen.alive.len(), seen.gone.len()), (3, 0));
        assert_eq!(seen.found.unwrap().len(), 3);
        assert_eq!(seen.alive[0].ran, Duration::from_millis(2500));

        proc.end(7);
        proc.process(8, "qemu-system-x86", 101, 0);
        let seen = looker.look(at(2), &all);
        assert_eq!(seen.gone, [(7, 100), (8, 100)]);
        assert!(
            seen.found.is_none(),
            "QEMUs are looked for every ten seconds"
        );
        assert_eq!(looker.look(at(12), &all).found.unwrap().len(), 2);
    }

    #[test]
    fn memory_when_it_was_counted_is_counted_again_after_five_seconds() {
        let proc = FakeProc::new();
        proc.process(7, "qemu-system-x86", 100, 0);
        proc.memory(7, &[(0x1_0000_0000, 10)]);
        let nodes = [NodeId(0)].into_iter().collect();
        let mut looker = Looker::new(proc.root.clone(), nodes);
        let mut held = |s| looker.look(at(s), &[watched(7)]).held;
        let expected = [Held {
            pid: 7,
            start: 100,
            holdings: Holdings::from([(pools::PoolId::Plain, 10 << 12)]),
        }];
        assert_eq!(held(1), expected);
        assert_eq!((held(2), held(5)), (vec![], vec![]));
        assert_eq!(held(6), expected);
    }

    #[test]
    fn memory_when_the_time_for_it_is_used_up_is_not_counted() {
        let proc = FakeProc::new();
        proc.process(7, "qemu-system-x86", 100, 0);
        proc.memory(7, &[(0x1_0000_0000, 10)]);
        let mut looker = Looker::new(proc.root.clone(), NodeSet::default());
        looker.allowance = -0.03;
        assert_eq!(looker.look(at(1), &[watched(7)]).held, []);
        assert_eq!(looker.look(at(2), &[watched(7)]).held.len(), 1);
    }

    #[test]
    fn thread_when_dropped_ends() {
        let proc = FakeProc::new();
        let watcher = Watcher::start(proc.root.clone(), NodeSet::default()).unwrap();
        watcher.watch(vec![watched(7)]);
        let gone = std::iter::repeat_with(|| watcher.sightings().recv().unwrap().gone);
        assert_eq!(gone.take(2).last().unwrap(), [(7, 100)]);
    }
}
