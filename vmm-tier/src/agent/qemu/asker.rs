//! The asker: the thread that talks to QEMU's monitor, so that the agent's thread never waits for QEMU.
//!
//! ```text
//!           ask(Job), at most one of a kind under way
//!  Agent ───────────────────────────────────────────────► asker ◄──► QEMU's monitor, /proc/PID/maps
//!    ▲                                                       │
//!    └────────────────────── Answer ─────────────────────────┘
//! ```
//!
//! The agent keeps what it wants to know as points in time. A wish that is renewed while the same
//! question is under way waits for that answer; so one wish of a kind waits at most, the newest.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam::channel::{Receiver, Sender, bounded};
use qmp::{
    Client,
    client::ExecuteError,
    commands::{
        MigrationInfo, QueryCpusFast, QueryKvm, QueryMigrate, QueryName, QueryStatus, StatusInfo,
    },
};
use tier_core::{constraints::Constraints, holds::Holds, map::GuestMemoryMap, nearness::Nearness};
use tier_sys::{constraints, holds, process::ProcessHandle, sysroot::SysRoot, topology::Topology};

use crate::discover::{self, DiscoverError, Discovered, Known};

/// How long QEMU may take to accept a connection, and to answer a command.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long QEMU may take for all commands of a discovery. A healthy QEMU takes milliseconds.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(2);
/// The same for the first discovery. Nothing waits for it but the start, and without it there is no
/// agent.
const FIRST_DISCOVERY_LIMIT: Duration = Duration::from_secs(30);
/// Kinds of questions. Each may be under way once, so neither channel is ever full.
const KINDS: usize = 4;

/// The connection to QEMU's monitor.
pub(in crate::agent) struct Monitor {
    pub(in crate::agent) client: Arc<Client>,
    pub(in crate::agent) events: Receiver<qmp::Event>,
    /// Events lost of which note was taken.
    pub(in crate::agent) events_lost: u64,
}

/// Where QEMU's monitor is, and how it is used.
pub(in crate::agent) struct Socket {
    pub(in crate::agent) path: PathBuf,
    /// Out-of-band commands are switched on, for clients of the proxy.
    pub(in crate::agent) oob: bool,
}

/// What is asked for.
pub(in crate::agent) enum Job {
    /// A connection, and everything that is needed to start.
    Begin,
    /// A connection in place of the one that was lost.
    Connect,
    /// Whether the guest runs.
    Status(Arc<Client>),
    /// Whether the guest migrates.
    Migration(Arc<Client>),
    /// The guest's memory map and CPUs; and whether QEMU is asked for all of it even if its lists are
    /// the same as before.
    Layout(Arc<Client>, bool),
}

/// A kind of question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::agent) enum Kind {
    Connect,
    Status,
    Migration,
    Layout,
}

/// What became of a job.
pub(in crate::agent) enum Answer {
    Begun(Box<anyhow::Result<Begun>>),
    Connected(anyhow::Result<Connected>),
    Status(Result<StatusInfo, ExecuteError>),
    Migration(Result<MigrationInfo, ExecuteError>),
    Layout(Box<Layout>),
}

/// A new connection, and what events would have told before it was there.
pub(in crate::agent) struct Connected {
    pub(in crate::agent) monitor: Monitor,
    pub(in crate::agent) status: Result<StatusInfo, ExecuteError>,
    pub(in crate::agent) migration: Result<MigrationInfo, ExecuteError>,
}

impl Connected {
    fn ask(monitor: Monitor) -> Self {
        Self {
            status: monitor.client.execute(&QueryStatus {}),
            migration: monitor.client.execute(&QueryMigrate {}),
            monitor,
        }
    }
}

/// What an agent must know to start.
pub(in crate::agent) struct Begun {
    pub(in crate::agent) connected: Connected,
    pub(in crate::agent) process: ProcessHandle,
    pub(in crate::agent) map: GuestMemoryMap,
    /// How long finding the map took.
    pub(in crate::agent) map_took: Duration,
    /// What QEMU calls the guest, if it was given a name.
    pub(in crate::agent) name: Option<String>,
    pub(in crate::agent) is_kvm: bool,
    /// The threads of the guest's CPUs.
    pub(in crate::agent) vcpus: Vec<u32>,
    /// How far nodes are from each other and from the guest's CPUs, if the kernel told.
    pub(in crate::agent) nearness: Option<Nearness>,
    /// What keeps its memory in place, if the kernel told.
    pub(in crate::agent) holds: Option<Holds>,
    /// What the host's administrator lets it have.
    pub(in crate::agent) constraints: Constraints,
}

/// The guest's layout.
pub(in crate::agent) struct Layout {
    pub(in crate::agent) found: Result<Discovered, DiscoverError>,
    /// The threads of the guest's CPUs, if QEMU told.
    pub(in crate::agent) vcpus: Option<Vec<u32>>,
    /// How far nodes are from each other and from the guest's CPUs, if the kernel told.
    pub(in crate::agent) nearness: Option<Nearness>,
    /// What keeps the guest's memory in place, if the kernel told.
    pub(in crate::agent) holds: Option<Holds>,
    /// What the host's administrator lets the guest have.
    pub(in crate::agent) constraints: Constraints,
    /// How long it took.
    pub(in crate::agent) took: Duration,
}

/// See the [module](self).
///
/// Dropping it does not wait for the thread, which may be waiting for QEMU: it ends after the job at
/// hand. It holds nothing but a socket.
pub(in crate::agent) struct Asker {
    jobs: Sender<Job>,
    answers: Receiver<Answer>,
    /// Questions without an answer yet, and whether an event has overtaken what the answer will say.
    under_way: BTreeMap<Kind, bool>,
}

impl Asker {
    /// Starts the thread, for tiers of so many nodes. It asks nothing by itself.
    pub(in crate::agent) fn start(
        socket: Socket,
        root: SysRoot,
        nodes: usize,
    ) -> std::io::Result<Self> {
        let (jobs, todo) = bounded(KINDS);
        let (results, answers) = bounded(KINDS);
        let mut thread = Thread {
            socket,
            root,
            nodes,
            known: Known::default(),
        };
        std::thread::Builder::new()
            .name("asker".to_owned())
            .spawn(move || {
                for job in todo {
                    if results.send(thread.carry_out(job)).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            jobs,
            answers,
            under_way: BTreeMap::new(),
        })
    }

    /// Where answers arrive; each must be given to [`Self::take`].
    pub(in crate::agent) const fn answers(&self) -> &Receiver<Answer> {
        &self.answers
    }

    /// Asks, unless a question of that kind is under way; whether it was asked.
    pub(in crate::agent) fn ask(&mut self, job: Job) -> bool {
        if self.is_asked(job.kind()) {
            return false;
        }
        self.under_way.insert(job.kind(), false);
        // The thread ends only after this sender; its loss shows where answers arrive.
        let _ = self.jobs.send(job);
        true
    }

    /// Whether a question of that kind is under way.
    pub(in crate::agent) fn is_asked(&self, kind: Kind) -> bool {
        self.under_way.contains_key(&kind)
    }

    /// Notes that an event is newer than what the question under way may have read.
    pub(in crate::agent) fn overtake(&mut self, kind: Kind) {
        if let Some(overtaken) = self.under_way.get_mut(&kind) {
            *overtaken = true;
        }
    }

    /// Notes that an answer has arrived; whether it is still true.
    pub(in crate::agent) fn take(&mut self, answer: &Answer) -> bool {
        self.under_way.remove(&answer.kind()) == Some(false)
    }
}

impl Job {
    const fn kind(&self) -> Kind {
        match self {
            Self::Begin | Self::Connect => Kind::Connect,
            Self::Status(_) => Kind::Status,
            Self::Migration(_) => Kind::Migration,
            Self::Layout(..) => Kind::Layout,
        }
    }
}

impl Answer {
    pub(in crate::agent) const fn kind(&self) -> Kind {
        match self {
            Self::Begun(_) | Self::Connected(_) => Kind::Connect,
            Self::Status(_) => Kind::Status,
            Self::Migration(_) => Kind::Migration,
            Self::Layout(_) => Kind::Layout,
        }
    }
}

/// What the thread owns.
struct Thread {
    socket: Socket,
    root: SysRoot,
    /// The number of the tiers' nodes.
    nodes: usize,
    known: Known,
}

impl Thread {
    fn carry_out(&mut self, job: Job) -> Answer {
        match job {
            Job::Begin => Answer::Begun(Box::new(self.begin())),
            Job::Connect => Answer::Connected(self.connect(PATIENCE).map(Connected::ask)),
            Job::Status(client) => Answer::Status(client.execute(&QueryStatus {})),
            Job::Migration(client) => Answer::Migration(client.execute(&QueryMigrate {})),
            Job::Layout(client, is_thorough) => {
                Answer::Layout(Box::new(self.layout(&client, is_thorough)))
            }
        }
    }

    fn begin(&mut self) -> anyhow::Result<Begun> {
        let monitor = self.connect(qmp::client::Options::default().greeting_timeout)?;
        let client = &monitor.client;
        let pid = client.peer().pid;
        let process = ProcessHandle::open(pid)
            .with_context(|| format!("QEMU's process {pid} can't be watched"))?;
        let (root, known) = (&self.root, &mut self.known);
        let Discovered {
            map,
            elapsed,
            pools,
            ..
        } = discover::discover_within(FIRST_DISCOVERY_LIMIT, client, root, known)
            .with_context(|| format!("the memory map of QEMU {pid} can't be read"))?;
        let name = client.execute(&QueryName {}).ok();
        // A QEMU without KVM support does not know the command.
        let kvm = client.execute(&QueryKvm {});
        let vcpus = vcpus(client, PATIENCE).unwrap_or_default();
        Ok(Begun {
            process,
            holds: holds::read(root, pid, map.total_bytes()).ok(),
            constraints: constraints::read(root, pid, &pools),
            map,
            map_took: elapsed,
            name: name.and_then(|reply| reply.name),
            is_kvm: kvm.is_ok_and(|kvm| kvm.enabled),
            nearness: self.nearness(pid, &vcpus),
            vcpus,
            connected: Connected::ask(monitor),
        })
    }

    /// Reads how far nodes are from each other and from the guest's CPUs. Where tiers have one node each
    /// it is of no use, and not read.
    fn nearness(&self, pid: u32, vcpus: &[u32]) -> Option<Nearness> {
        if self.nodes <= 2 {
            return None;
        }
        let topology = Topology::read(&self.root).ok()?;
        let cpus = topology.nodes_of_threads(&self.root, pid, vcpus);
        Some(topology.nearness(cpus))
    }

    fn connect(&self, greeting_timeout: Duration) -> anyhow::Result<Monitor> {
        let options = qmp::client::Options {
            connect_timeout: PATIENCE,
            greeting_timeout,
            command_timeout: PATIENCE,
            oob: self.socket.oob,
            ..qmp::client::Options::default()
        };
        let (client, events) = Client::connect(&self.socket.path, &options)?;
        Ok(Monitor {
            client: Arc::new(client),
            events,
            events_lost: 0,
        })
    }

    fn layout(&mut self, client: &Client, is_thorough: bool) -> Layout {
        let begin = Instant::now();
        if is_thorough {
            self.known.doubt_layout();
        }
        let found = discover::discover_within(DISCOVERY_LIMIT, client, &self.root, &mut self.known);
        // CPUs come and go without an event too. A QEMU that was too slow is not asked more.
        let left = DISCOVERY_LIMIT.saturating_sub(begin.elapsed());
        let vcpus = (!left.is_zero()).then(|| vcpus(client, left)).flatten();
        // Devices come and go without an event that all versions of QEMU send.
        let guest_bytes = found.as_ref().ok().map(|found| found.map.total_bytes());
        let pid = client.peer().pid;
        let holds = guest_bytes.and_then(|bytes| holds::read(&self.root, pid, bytes).ok());
        let nearness = vcpus.as_ref().and_then(|tids| self.nearness(pid, tids));
        Layout {
            found,
            vcpus,
            nearness,
            holds,
            constraints: constraints::read(&self.root, pid, &self.known.pools()),
            took: begin.elapsed(),
        }
    }
}

/// The threads of the guest's CPUs.
fn vcpus(client: &Client, patience: Duration) -> Option<Vec<u32>> {
    let cpus = client.execute_within(&QueryCpusFast {}, patience).ok()?;
    let tids = cpus.iter().map(|cpu| u32::try_from(cpu.thread_id));
    Some(tids.filter_map(Result::ok).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// An asker beside a QEMU that accepts connections and never says a word.
    fn beside_a_mute_qemu() -> (Asker, UnixListener, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = Socket { path, oob: false };
        let asker = Asker::start(socket, SysRoot::real(), 2).unwrap();
        (asker, listener, folder)
    }

    #[test]
    fn question_when_one_of_its_kind_is_under_way_is_not_asked_again() {
        let (mut asker, listener, _folder) = beside_a_mute_qemu();

        assert!(asker.ask(Job::Connect));

        assert!(!asker.ask(Job::Connect), "no greeting has come");
        let (qemu, _) = listener.accept().unwrap();
        drop(qemu);
        let answer = asker.answers().recv().unwrap();
        assert!(matches!(answer, Answer::Connected(Err(_))));
        assert!(asker.take(&answer));
        assert!(asker.ask(Job::Connect), "it was answered");
    }

    #[test]
    fn answer_when_an_event_came_meanwhile_is_out_of_date() {
        let (mut asker, listener, _folder) = beside_a_mute_qemu();
        asker.overtake(Kind::Connect);
        assert!(asker.ask(Job::Connect));
        asker.overtake(Kind::Connect);
        asker.overtake(Kind::Status);

        drop(listener.accept().unwrap());

        let answer = asker.answers().recv().unwrap();
        assert!(!asker.take(&answer));
    }

    #[test]
    fn asker_when_dropped_while_qemu_is_mute_does_not_wait() {
        let (mut asker, listener, _folder) = beside_a_mute_qemu();
        assert!(asker.ask(Job::Begin));
        let qemu = listener.accept().unwrap();

        // QEMU says nothing before this has returned.
        drop(asker);

        drop(qemu);
    }
}
