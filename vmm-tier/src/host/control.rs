//! The daemon's socket: what agents and operators say to it, in QMP.
//!
//! A connection's thread checks a command's arguments. Reports are answered by the [desk](super::desk)
//! and the history by the [recorder](super::recorder); other commands wait for the daemon's thread.
//! What a registration claims of its process is proven here: the daemon's thread reads nothing of `/proc`.

#[cfg(test)]
pub(super) mod answers;
#[cfg(test)]
mod reference;
mod spec;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use qmp::{
    QmpError,
    client::PeerCredentials,
    server::{CommandSpec, Connection, EventSender, EventSpec, Handler, Options, Server, Stats},
};
use rustix::process::geteuid;
use serde::Deserialize;
use serde_json::{Map, Value};
use tier_core::{
    addr::{BASE_PAGE, NodeId},
    arbiter::{MAX_VMS, Mode, Terms},
    text::size::Size,
};
use tier_sys::{process, sysroot::SysRoot};

use super::{
    desk::Desk,
    pools::PoolId,
    protocol::{Lease, Register, Report},
    qemu::Qemu,
    recorder::{QUERY_HOST_HISTORY, Recorder},
    report::{HostAdmission, HostInfo},
    settings::Grant,
};
use crate::reply::{Answer, refusal, typed, value};

/// Requests that may wait for the daemon's thread.
const QUEUE: usize = 64;
/// How long a client waits for it: a guard against a daemon that hangs.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection waits whose registration or report was refused: one that tries without end costs
/// no more than one that reports.
const PENALTY: Duration = Duration::from_millis(250);
/// The most clients: an agent for each VM, and operators.
const MOST_CLIENTS: usize = MAX_VMS + 64;

/// What operators may order by HTTP.
const ORDERS: [&str; 3] = ["host-set-vm", "host-set-mode", "host-drain"];

/// What a client asks of the daemon.
#[derive(Debug)]
pub(super) enum Order {
    Query,
    Register {
        connection: u64,
        uid: u32,
        qemu: Qemu,
        /// The process of the agent.
        agent_pid: u32,
        told: Register,
    },
    SetVm {
        name: String,
        set: Grant,
    },
    /// With neither set, back to the configuration.
    SetMode {
        mode: Option<Mode>,
        band: Option<f64>,
    },
    Admit {
        name: Option<String>,
        /// Where the VM is to be; `None` for where the VM of that name is.
        pool: Option<PoolId>,
        terms: Terms,
    },
    /// Leave DRAM down to a size.
    Drain(u64),
    /// Leave a node.
    DrainNode(NodeId),
    EndDrain,
}

/// What the daemon answers; the connection's thread makes the text of it.
#[derive(Debug)]
pub(super) enum Reply {
    Info(Box<HostInfo>),
    Lease(Lease),
    Admission(HostAdmission),
}

type Outcome = Result<Reply, QmpError>;

/// An order, and the way back to who gave it.
#[derive(Debug)]
pub(super) struct Request {
    order: Order,
    reply: Sender<Outcome>,
}

impl Request {
    /// Has the order carried out and sends what became of it; a client that has left gets nothing.
    pub(super) fn answer(self, carry_out: impl FnOnce(Order) -> Outcome) {
        let _ = self.reply.try_send(carry_out(self.order));
    }
}

/// The desk, as the threads share it.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedDesk(Arc<Mutex<Desk>>);

impl SharedDesk {
    pub(super) fn lock(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the socket offers.
#[cfg(test)]
pub(crate) fn commands() -> &'static [CommandSpec] {
    &spec::SPEC.commands
}

/// The socket and its threads. Dropping it removes the socket.
#[derive(Debug)]
pub(super) struct Control {
    /// Dropped first: clients that wait for an answer then get an error at once.
    requests: Receiver<Request>,
    server: Server,
    commands: Arc<Commands>,
}

impl Control {
    /// Serves at `path`.
    pub(super) fn serve(
        path: &Path,
        root: &SysRoot,
        desk: &SharedDesk,
        recorder: Arc<Recorder>,
    ) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(|| {
                format!("the socket's folder {} can't be made", folder.display())
            })?;
        }
        let (commands, requests) = Commands::new(root.clone(), desk.clone(), recorder);
        let options = Options {
            max_clients: MOST_CLIENTS,
            // A client that does not read may hold as much of a thousand clients' memory.
            queue_messages: 64,
            queue_bytes: 256 << 10,
            ..Options::default()
        };
        let commands = Arc::new(commands);
        let server = Server::bind(path, commands.clone(), options)
            .context("the daemon's socket can't be served")?;
        Ok(Self {
            requests,
            server,
            commands,
        })
    }

    /// What gives orders in the operator's name.
    pub(super) fn operator(&self) -> Operator {
        Operator(self.commands.clone())
    }

    /// Where requests arrive.
    pub(super) const fn requests(&self) -> &Receiver<Request> {
        &self.requests
    }

    /// Where events go out.
    pub(super) fn events(&self) -> EventSender {
        self.server.events()
    }

    pub(super) fn stats(&self) -> Stats {
        self.server.stats()
    }
}

/// Gives orders in the operator's name, for those who have proven to be the operator.
#[derive(Clone)]
pub(super) struct Operator(Arc<Commands>);

impl Operator {
    /// Carries out one of [`ORDERS`], as the socket does for root. It waits for the daemon's thread.
    ///
    /// # Errors
    /// If there is no such order, its arguments make no sense, or it is refused.
    pub(super) fn order(&self, name: &str, arguments: Map<String, Value>) -> Answer {
        let mut known = spec::SPEC.commands.iter();
        let spec = known.find(|spec| spec.name == name && ORDERS.contains(&name));
        let spec = spec.ok_or_else(|| QmpError::command_not_found(name))?;
        spec.check(&arguments)?;
        let peer = PeerCredentials {
            pid: std::process::id(),
            uid: self.0.owner,
            gid: 0,
        };
        // No connection of the server has this number.
        let connection = Connection {
            id: u64::MAX,
            peer: Some(peer),
        };
        self.0.handle_for(&connection, name, arguments)
    }
}

/// An operator, and where its orders arrive.
#[cfg(test)]
pub(super) fn tests_operator() -> (Operator, Receiver<Request>) {
    let (commands, requests) =
        Commands::new(SysRoot::real(), SharedDesk::default(), Arc::default());
    (Operator(Arc::new(commands)), requests)
}

/// The commands, as the server sees them.
#[derive(Debug)]
struct Commands {
    root: SysRoot,
    desk: SharedDesk,
    recorder: Arc<Recorder>,
    daemon: Sender<Request>,
    /// Who may give orders, besides root.
    owner: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SetVmArguments {
    name: String,
    weight: Option<f64>,
    guarantee_bytes: Option<u64>,
    cap_bytes: Option<u64>,
    goal: Option<f64>,
}

#[derive(Deserialize)]
struct ModeArguments {
    mode: Option<Mode>,
    band: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct AdmitArguments {
    name: Option<String>,
    guarantee_bytes: u64,
    cap_bytes: Option<u64>,
    page_bytes: Option<u64>,
    hugetlb_page_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct DrainArguments {
    bytes: Option<u64>,
    node: Option<u16>,
    cancel: Option<bool>,
}

impl Commands {
    /// The commands, and where what they ask arrives.
    fn new(root: SysRoot, desk: SharedDesk, recorder: Arc<Recorder>) -> (Self, Receiver<Request>) {
        let (daemon, requests) = bounded(QUEUE);
        let commands = Self {
            root,
            desk,
            recorder,
            daemon,
            owner: geteuid().as_raw(),
        };
        (commands, requests)
    }

    fn report(&self, connection: &Connection, arguments: Map<String, Value>) -> Answer {
        let report: Report = typed(arguments)?;
        let taken = self
            .desk
            .lock()
            .report(process::now(), connection.id, report);
        taken.map_or_else(
            |error| {
                thread::sleep(PENALTY);
                Err(refusal(&error))
            },
            value,
        )
    }

    /// The order that a registration gives, once it is proven.
    fn register(
        &self,
        connection: &Connection,
        arguments: Map<String, Value>,
    ) -> Result<Order, QmpError> {
        let told: Register = typed(arguments)?;
        if self.desk.lock().has(connection.id) {
            return Err(QmpError::generic(
                "This connection has registered a VM: each agent has a connection of its own",
            ));
        }
        let qemu = Qemu::prove(&self.root, told.pid, told.pid_start);
        Ok(Order::Register {
            connection: connection.id,
            uid: peer(connection)?.uid,
            agent_pid: peer(connection)?.pid,
            qemu: qemu.map_err(|error| refusal(&error))?,
            told,
        })
    }

    /// Whether who asks may give orders.
    fn permit(&self, connection: &Connection) -> Result<(), QmpError> {
        let (uid, owner) = (peer(connection)?.uid, self.owner);
        match uid == 0 || uid == owner {
            true => Ok(()),
            false => Err(QmpError::generic(format!(
                "User {uid} may not give orders: root and user {owner} may"
            ))),
        }
    }

    fn order(
        &self,
        connection: &Connection,
        name: &str,
        arguments: Map<String, Value>,
    ) -> Result<Order, QmpError> {
        match name {
            "query-host" => return Ok(Order::Query),
            "host-register" => {
                return self
                    .register(connection, arguments)
                    .inspect_err(|_| thread::sleep(PENALTY));
            }
            "host-admit" => {
                let AdmitArguments {
                    name,
                    guarantee_bytes,
                    cap_bytes,
                    page_bytes,
                    hugetlb_page_bytes,
                } = typed(arguments)?;
                let terms = Terms {
                    guarantee_bytes,
                    cap_bytes: cap_bytes.unwrap_or(u64::MAX),
                    weight: 1.0,
                    page_bytes: hugetlb_page_bytes.or(page_bytes).unwrap_or(BASE_PAGE),
                    goal: None,
                };
                let pool = hugetlb_page_bytes.map(|bytes| PoolId::of(Some(bytes)));
                return Ok(Order::Admit { name, pool, terms });
            }
            _ => self.permit(connection)?,
        }
        Ok(match name {
            "host-set-vm" => {
                let SetVmArguments {
                    name,
                    weight,
                    guarantee_bytes,
                    cap_bytes,
                    goal,
                } = typed(arguments)?;
                let set = Grant {
                    weight,
                    guarantee: guarantee_bytes.map(Size::Bytes),
                    cap: cap_bytes.map(Size::Bytes),
                    goal,
                };
                Order::SetVm { name, set }
            }
            "host-set-mode" => {
                let ModeArguments { mode, band } = typed(arguments)?;
                Order::SetMode { mode, band }
            }
            "host-drain" => {
                let DrainArguments {
                    bytes,
                    node,
                    cancel,
                } = typed(arguments)?;
                match (bytes, node, cancel.unwrap_or(false)) {
                    (bytes, None, false) => Order::Drain(bytes.unwrap_or(0)),
                    (None, Some(node), false) => Order::DrainNode(NodeId(node)),
                    (None, None, true) => Order::EndDrain,
                    _ => {
                        return Err(QmpError::generic(
                            "Parameters 'bytes', 'node' and 'cancel' exclude each other",
                        ));
                    }
                }
            }
            other => return Err(QmpError::command_not_found(other)),
        })
    }

    /// Has the daemon's thread carry an order out.
    fn ask(&self, order: Order) -> Outcome {
        let (reply, answer) = bounded(1);
        let late = || QmpError::generic("The daemon is busy: try again");
        let gone = || QmpError::generic("The daemon ends");
        self.daemon
            .send_timeout(Request { order, reply }, PATIENCE)
            .map_err(|error| if error.is_timeout() { late() } else { gone() })?;
        match answer.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(QmpError::generic(
                "The daemon is busy and may still carry this out: ask query-host for the state",
            )),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

/// Who asks, by what the kernel says.
fn peer(connection: &Connection) -> Result<PeerCredentials, QmpError> {
    connection.peer.ok_or_else(|| {
        QmpError::generic(
            "Your process has no id in the daemon's pid namespace: connect from there",
        )
    })
}

impl Handler for Commands {
    fn commands(&self) -> &[CommandSpec] {
        &spec::SPEC.commands
    }

    fn events(&self) -> &[EventSpec] {
        &spec::SPEC.events
    }

    fn handle(&self, name: &str, _arguments: Map<String, Value>) -> Answer {
        // The server calls `handle_for`.
        Err(QmpError::command_not_found(name))
    }

    fn handle_for(
        &self,
        connection: &Connection,
        name: &str,
        arguments: Map<String, Value>,
    ) -> Answer {
        match name {
            "host-report" => return self.report(connection, arguments),
            QUERY_HOST_HISTORY => return self.recorder.answer(arguments),
            _ => {}
        }
        let order = self.order(connection, name, arguments)?;
        let is_registration = matches!(order, Order::Register { .. });
        match self.ask(order) {
            Ok(Reply::Info(info)) => value(info),
            Ok(Reply::Lease(lease)) => value(lease),
            Ok(Reply::Admission(admission)) => value(admission),
            Err(error) => {
                if is_registration {
                    thread::sleep(PENALTY);
                }
                Err(error)
            }
        }
    }

    fn disconnected(&self, connection: &Connection) {
        self.desk.lock().end(connection.id);
    }

    /// Agents hear what is theirs in replies.
    fn gets_events(&self, connection: &Connection) -> bool {
        !self.desk.lock().has(connection.id)
    }
}
