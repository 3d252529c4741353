//! The link: the thread that speaks with the host daemon, so that the agent's thread never waits for it.
//!
//! ```text
//!  agent ── facts, the newest wins ──► link ──► host-register, then host-report ──► daemon
//!        ◄── news, at most a few ─────      ◄── lease, or a refusal ───────────────
//! ```

use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use qmp::{
    Client,
    client::{ConnectError, ExecuteError, Options},
    codec::Limits,
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    host::protocol::{LEASE_MS, Lease, Register, Report},
    log::with_causes,
};

/// News that wait for the agent. The link waits if there are more.
const NEWS: usize = 8;
/// How long to wait before the first attempt to reach the daemon again; twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest such wait. A lease is longer, so a daemon that comes back finds shares that hold.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
const _: () = assert!(LONGEST_WAIT.as_millis() < LEASE_MS as u128 / 2);
/// How long to wait after the daemon refused the VM.
const REFUSED_WAIT: Duration = Duration::from_secs(10);
/// Characters of what the daemon says that are passed on.
const MOST_WORDS: usize = 400;
/// How long the daemon may take for a reply.
const PATIENCE: Duration = Duration::from_secs(3);
/// After so many reports that were refused in a row the VM registers again.
const MOST_REFUSALS: u32 = 3;

/// Which VM this is, as long as its QEMU runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Identity {
    pub(in crate::agent) name: String,
    pub(in crate::agent) pid: u32,
    /// In clock ticks after the boot.
    pub(in crate::agent) pid_start: u64,
    /// The agent's control socket, with its whole path.
    pub(in crate::agent) control: Option<String>,
}

/// What the agent knows at a moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) memory_bytes: u64,
    pub(super) page_bytes: u64,
    /// The share in force.
    pub(super) share_bytes: Option<u64>,
    /// The next report, without its number.
    pub(super) report: Report,
}

/// What the link tells the agent.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::agent) enum News {
    /// The daemon took the VM.
    Registered(Lease),
    /// The daemon answered a report.
    Reported(Lease),
    /// The daemon refused a report, and why.
    ReportRefused(String),
    /// The daemon refused the VM, and why.
    Refused(String),
    /// A reply of the daemon is no lease.
    Nonsense(String),
    /// The daemon can't be reached, or was lost, and why.
    Lost(String),
}

/// The agent's end of the link. Dropping it ends the link's thread, which the agent does not wait for.
#[derive(Debug)]
pub(super) struct LinkEnd {
    facts: Sender<Facts>,
    /// Takes back facts that newer facts replace.
    stale: Receiver<Facts>,
    news: Receiver<News>,
}

impl LinkEnd {
    /// Starts the thread.
    pub(super) fn start(socket: PathBuf, identity: Identity) -> io::Result<Self> {
        let (facts, new_facts) = bounded(1);
        let (tell, news) = bounded(NEWS);
        let stale = new_facts.clone();
        let link = Link {
            socket,
            identity,
            facts: new_facts,
            news: tell,
        };
        let run = move || link.run();
        thread::Builder::new()
            .name("host-link".to_owned())
            .spawn(run)?;
        Ok(Self { facts, stale, news })
    }

    /// Hands over what the agent knows now, in the place of what waits.
    pub(super) fn tell(&self, facts: Facts) {
        if let Err(TrySendError::Full(facts)) = self.facts.try_send(facts) {
            // The link may have taken it this very moment.
            let _ = self.stale.try_recv();
            let _ = self.facts.try_send(facts);
        }
    }

    /// Where news arrive.
    pub(super) const fn news(&self) -> &Receiver<News> {
        &self.news
    }
}

/// Why the daemon can't be reached, or is not spoken with any more.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("no host daemon serves {0}: start 'vmm-tier host', or name its socket")]
    NoDaemon(PathBuf),
    #[error("what serves {0} does not answer as a host daemon does")]
    NoAnswer(PathBuf),
    #[error("no permission to connect to {0}: run as root or as the user of the host daemon")]
    Forbidden(PathBuf),
    #[error("{path} is served by user {uid}: only root or the agent's own user is believed")]
    Stranger { path: PathBuf, uid: u32 },
    #[error("the host daemon at {path} was lost: {reason}")]
    Lost { path: PathBuf, reason: String },
    #[error("the socket can't be used")]
    Socket(#[source] ConnectError),
}

/// Why a session ended.
enum End {
    /// The agent ends.
    Told,
    /// The daemon refused the VM, or its reports.
    Refused,
    /// The daemon is gone. Whether it had taken the VM.
    Lost { was_registered: bool },
}

/// The agent's end is gone.
struct Gone;

/// See the [module](self).
struct Link {
    socket: PathBuf,
    identity: Identity,
    facts: Receiver<Facts>,
    news: Sender<News>,
}

impl Link {
    fn run(self) {
        let mut wait = FIRST_WAIT;
        loop {
            let rest = match self.session() {
                Err(Gone) | Ok(End::Told) => return,
                Ok(End::Refused) => REFUSED_WAIT,
                Ok(End::Lost { was_registered }) => {
                    let rest = if was_registered { FIRST_WAIT } else { wait };
                    wait = (rest * 2).min(LONGEST_WAIT);
                    rest
                }
            };
            // Agents that lost the same daemon don't come back all at once.
            let spread = Duration::from_millis(u64::from(self.identity.pid % 128));
            if self.rest(rest + spread).is_err() {
                return;
            }
        }
    }

    /// Waits, and lets what the agent tells go by.
    fn rest(&self, time: Duration) -> Result<(), Gone> {
        let until = Instant::now() + time;
        loop {
            match self.facts.recv_deadline(until) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Gone),
            }
        }
    }

    fn tell(&self, news: News) -> Result<(), Gone> {
        self.news.send(news).map_err(|_| Gone)
    }

    /// Speaks with the daemon until that ends.
    fn session(&self) -> Result<End, Gone> {
        let Ok(facts) = self.facts.recv() else {
            return Ok(End::Told);
        };
        let client = match connect(&self.socket) {
            Ok(client) => client,
            Err(error) => {
                self.tell(News::Lost(with_causes(&error)))?;
                return Ok(End::Lost {
                    was_registered: false,
                });
            }
        };
        let register = Register {
            name: self.identity.name.clone(),
            pid: self.identity.pid,
            pid_start: self.identity.pid_start,
            memory_bytes: facts.memory_bytes,
            page_bytes: facts.page_bytes,
            limit_bytes: facts.report.limit_bytes,
            share_bytes: facts.share_bytes,
            control: self.identity.control.clone(),
        };
        match ask(&client, "host-register", &register) {
            Reply::Lease(lease) => self.tell(News::Registered(lease))?,
            Reply::Nonsense(why) => {
                self.tell(News::Nonsense(why))?;
                return Ok(End::Refused);
            }
            Reply::Refused(why) => {
                self.tell(News::Refused(why))?;
                return Ok(End::Refused);
            }
            Reply::Lost(why) => return self.lost(why, false),
        }
        self.report(&client)
    }

    /// Reports what the agent tells, until that ends.
    fn report(&self, client: &Client) -> Result<End, Gone> {
        let mut refusals = 0;
        for number in 1.. {
            let Ok(facts) = self.facts.recv() else {
                return Ok(End::Told);
            };
            let report = Report {
                number,
                ..facts.report
            };
            let news = match ask(client, "host-report", &report) {
                Reply::Lease(lease) => {
                    refusals = 0;
                    News::Reported(lease)
                }
                Reply::Nonsense(why) => {
                    refusals += 1;
                    News::Nonsense(why)
                }
                Reply::Refused(why) => {
                    refusals += 1;
                    News::ReportRefused(why)
                }
                Reply::Lost(why) => return self.lost(why, true),
            };
            self.tell(news)?;
            if refusals >= MOST_REFUSALS {
                return Ok(End::Refused);
            }
        }
        Ok(End::Told)
    }

    fn lost(&self, reason: String, was_registered: bool) -> Result<End, Gone> {
        let path = self.socket.clone();
        let error = LinkError::Lost { path, reason };
        self.tell(News::Lost(error.to_string()))?;
        Ok(End::Lost { was_registered })
    }
}

/// Connects to the daemon, and checks who it is.
fn connect(socket: &Path) -> Result<Client, LinkError> {
    let options = Options {
        connect_timeout: PATIENCE,
        greeting_timeout: PATIENCE,
        command_timeout: PATIENCE,
        // Nobody takes events: of a flood the last one is kept.
        event_capacity: 1,
        limits: Limits::REQUESTS,
        oob: false,
    };
    let path = || socket.to_owned();
    let (client, _) = Client::connect(socket, &options).map_err(|error| match error {
        ConnectError::NoSuchFile { .. } | ConnectError::NobodyServes { .. } => {
            LinkError::NoDaemon(path())
        }
        ConnectError::PermissionDenied { .. } => LinkError::Forbidden(path()),
        ConnectError::NoGreeting { .. }
        | ConnectError::NotQmp { .. }
        | ConnectError::NegotiationRefused { .. }
        | ConnectError::NegotiationTimedOut { .. }
        | ConnectError::ConnectTimedOut { .. }
        | ConnectError::Lost { .. } => LinkError::NoAnswer(path()),
        error => LinkError::Socket(error),
    })?;
    let uid = client.peer().uid;
    match uid == 0 || uid == rustix::process::geteuid().as_raw() {
        true => Ok(client),
        false => Err(LinkError::Stranger { path: path(), uid }),
    }
}

/// What became of a command.
enum Reply {
    Lease(Lease),
    Refused(String),
    Nonsense(String),
    Lost(String),
}

fn ask(client: &Client, command: &str, arguments: &impl Serialize) -> Reply {
    let arguments = serde_json::to_value(arguments).unwrap_or(Value::Null);
    match client.execute_raw(command, Some(arguments)) {
        Ok(value) => match serde_json::from_value(value) {
            Ok(lease) => Reply::Lease(lease),
            Err(error) => Reply::Nonsense(format!("the reply to {command} is no lease: {error}")),
        },
        Err(ExecuteError::Refused { error, .. }) => {
            Reply::Refused(error.desc.chars().take(MOST_WORDS).collect())
        }
        Err(ExecuteError::TimedOut { after, .. }) => {
            let seconds = after.as_secs();
            Reply::Lost(format!("no reply to {command} within {seconds} s"))
        }
        Err(ExecuteError::Closed { .. }) => {
            Reply::Lost("it closed the connection, or ended".to_owned())
        }
        Err(error) => Reply::Lost(with_causes(&error)),
    }
}
