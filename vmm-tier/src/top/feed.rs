//! Where figures come from: a thread that asks a socket once a second, and connects again when it is lost.

use std::{
    cell::Cell,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use qmp::{
    Client, ErrorClass,
    client::{ExecuteError, Options},
};
use serde_json::{Value, json};

use super::figures::{list, text};
use crate::log::with_causes;

/// How often figures are asked for.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// The longest wait for a connection or a reply. Who waits for longer has lost sight of the VMs anyway.
const PATIENCE: Duration = Duration::from_secs(5);
/// A heat map looks at every page: it is asked for again after so many times as long as it took, and not
/// before [`HEAT_EVERY`].
const HEAT_PAUSE: u32 = 50;
const HEAT_EVERY: Duration = Duration::from_secs(3);
/// How far back the history goes that is asked for at the begin.
pub(super) const HISTORY_S: u64 = 3600;

/// What a feed tells.
#[derive(Debug)]
pub(super) enum News {
    /// What `query-host` told.
    Host(Value),
    /// What `query-host-history` told, of the host.
    History(Value),
    /// What `query-tier` told.
    Agent(Value),
    /// What `query-tier-heatmap` told.
    Heat(Value),
    /// There are no figures, and why.
    Lost(String),
    /// There is no heat map, and why.
    NoHeat(String),
}

/// The rows and columns of a heat map that is wanted.
pub(super) type HeatSize = Option<(u16, u16)>;

/// A thread that asks a socket. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Feed {
    heat: Sender<HeatSize>,
    pub(super) news: Receiver<News>,
}

impl Feed {
    /// Begins to ask the socket at `path`. If `pid` is given, only that process is asked.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub(super) fn start(path: &Path, pid: Option<u32>) -> io::Result<Self> {
        let (heat, wanted) = bounded(4);
        let (sender, news) = bounded(4);
        let asker = Asker {
            path: path.to_owned(),
            pid,
            news: sender,
            wanted,
            heat: None,
            heat_due: Instant::now(),
        };
        let thread = thread::Builder::new().name("feed".to_owned());
        thread.spawn(move || asker.run())?;
        Ok(Self { heat, news })
    }

    /// Asks for heat maps of this size from now on, or for none.
    pub(super) fn want_heat(&self, size: HeatSize) {
        // Who has four sizes to look at yet will be told again.
        if let Err(TrySendError::Disconnected(_)) = self.heat.try_send(size) {
            tracing::debug!("the feed has ended");
        }
    }
}

/// Asks the daemon or agent at a socket once.
///
/// # Errors
/// Why it gave no figures.
pub(super) fn ask_once(path: &Path) -> anyhow::Result<News> {
    Ok(Connection::open(path, None)?.ask()?)
}

/// Nobody reads the news any more.
struct Ended;

struct Asker {
    path: PathBuf,
    pid: Option<u32>,
    news: Sender<News>,
    wanted: Receiver<HeatSize>,
    heat: HeatSize,
    heat_due: Instant,
}

impl Asker {
    fn run(mut self) {
        // Ended: nobody reads the news any more.
        let _ = self.ask_again_and_again();
    }

    fn ask_again_and_again(&mut self) -> Result<(), Ended> {
        loop {
            let why = match Connection::open(&self.path, self.pid) {
                Ok(connection) => self.ask_until_lost(&connection)?,
                Err(error) => format!("{error:#}"),
            };
            self.tell(News::Lost(why))?;
            self.wait(Instant::now() + EVERY)?;
        }
    }

    /// Asks once a second until a question has no answer; tells why.
    fn ask_until_lost(&mut self, connection: &Connection) -> Result<String, Ended> {
        let mut knows_history = false;
        self.heat_due = Instant::now();
        loop {
            let asked = Instant::now();
            let told = match connection.ask() {
                Ok(told) => told,
                Err(error) => return Ok(with_causes(&error)),
            };
            let first = match &told {
                News::Host(host) if !knows_history => Some(first_vm(host)),
                _ => None,
            };
            self.tell(told)?;
            if let Some(first) = first {
                knows_history = true;
                if let Ok(history) = connection.history(first.as_deref()) {
                    self.tell(News::History(history))?;
                }
            }
            self.ask_for_heat(connection)?;
            // A slow socket is not asked without a pause.
            self.wait(asked + EVERY)?;
        }
    }

    fn ask_for_heat(&mut self, connection: &Connection) -> Result<(), Ended> {
        let Some((rows, columns)) = self.heat else {
            return Ok(());
        };
        let begin = Instant::now();
        if begin < self.heat_due {
            return Ok(());
        }
        let told = match connection.heat(rows, columns) {
            Ok(heat) => News::Heat(heat),
            Err(error) => News::NoHeat(with_causes(&error)),
        };
        self.heat_due = Instant::now() + HEAT_EVERY.max(begin.elapsed() * HEAT_PAUSE);
        self.tell(told)
    }

    fn tell(&self, news: News) -> Result<(), Ended> {
        self.news.send(news).map_err(|_| Ended)
    }

    /// Waits until then, or until another heat map is wanted.
    fn wait(&mut self, until: Instant) -> Result<(), Ended> {
        loop {
            match self.wanted.recv_deadline(until) {
                Ok(size) if size == self.heat => {}
                Ok(size) => {
                    self.heat = size;
                    self.heat_due = Instant::now();
                    if size.is_some() {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Ended),
            }
        }
    }
}

fn first_vm(host: &Value) -> Option<String> {
    let first = list(host, "vms").first()?;
    text(first, "name").map(str::to_owned)
}

/// A connection to a daemon or an agent.
struct Connection {
    client: Client,
    /// Whether it is an agent: it has refused the daemon's command.
    is_agent: Cell<bool>,
}

impl Connection {
    fn open(path: &Path, pid: Option<u32>) -> anyhow::Result<Self> {
        let options = Options {
            connect_timeout: PATIENCE,
            greeting_timeout: PATIENCE,
            command_timeout: PATIENCE,
            event_capacity: 1,
            ..Options::default()
        };
        let (client, _events) = Client::connect(path, &options)?;
        if let Some(pid) = pid.filter(|&pid| pid != client.peer().pid) {
            anyhow::bail!(
                "{} is served by process {}, and not by the agent, process {pid}",
                path.display(),
                client.peer().pid
            );
        }
        let is_agent = Cell::new(false);
        Ok(Self { client, is_agent })
    }

    /// Asks a daemon for the host's figures, or an agent for its VM's.
    fn ask(&self) -> Result<News, ExecuteError> {
        let ask = |command| self.client.execute_raw(command, None);
        if self.is_agent.get() {
            return ask("query-tier").map(News::Agent);
        }
        match ask("query-host").map(News::Host) {
            Err(ExecuteError::Refused { error, .. })
                if error.class == ErrorClass::CommandNotFound =>
            {
                self.is_agent.set(true);
                ask("query-tier").map(News::Agent)
            }
            told => told,
        }
    }

    /// The history of the host. With a VM's name it has that VM's too, and without a name all VMs'.
    fn history(&self, name: Option<&str>) -> Result<Value, ExecuteError> {
        let arguments = match name {
            Some(name) => json!({"name": name, "since-s": HISTORY_S}),
            None => json!({"since-s": HISTORY_S}),
        };
        self.client
            .execute_raw("query-host-history", Some(arguments))
    }

    fn heat(&self, rows: u16, columns: u16) -> Result<Value, ExecuteError> {
        let arguments = json!({"rows": rows, "columns": columns});
        self.client
            .execute_raw("query-tier-heatmap", Some(arguments))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use qmp::{
        QmpError, Server,
        server::{self, CommandSpec, Handler, MemberSpec, TypeSpec},
    };
    use serde_json::Map;

    use super::*;

    /// A daemon or an agent.
    struct Player(Vec<CommandSpec>);

    impl Player {
        fn of(commands: &[&'static str]) -> Self {
            const ROWS: MemberSpec = MemberSpec::needed("rows", TypeSpec::Uint, "rows");
            const COLUMNS: MemberSpec = MemberSpec::needed("columns", TypeSpec::Uint, "columns");
            const NAME: MemberSpec = MemberSpec::optional("name", TypeSpec::String, "a VM");
            const SINCE: MemberSpec = MemberSpec::optional("since-s", TypeSpec::Uint, "seconds");
            let spec = |&name: &&'static str| CommandSpec {
                name,
                doc: "A command.",
                args: match name {
                    "query-tier-heatmap" => &[ROWS, COLUMNS],
                    "query-host-history" => &[NAME, SINCE],
                    _ => &[],
                },
                ..CommandSpec::PLAIN
            };
            Self(commands.iter().map(spec).collect())
        }
    }

    impl Handler for Player {
        fn commands(&self) -> &[CommandSpec] {
            &self.0
        }

        fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
            Ok(match name {
                "query-host" => json!({"vms": [{"name": "vm1"}]}),
                _ => json!({"asked": name, "with": arguments}),
            })
        }
    }

    fn served(folder: &Path, commands: &[&'static str]) -> (PathBuf, Server) {
        let path = folder.join("socket");
        let player = Arc::new(Player::of(commands));
        let server = Server::bind(&path, player, server::Options::default()).unwrap();
        (path, server)
    }

    fn next(feed: &Feed) -> News {
        feed.news.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn daemon_when_it_ends_and_begins_again_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let commands = ["query-host", "query-host-history"];
        let (path, server) = served(folder.path(), &commands);
        let feed = Feed::start(&path, None).unwrap();
        assert!(matches!(next(&feed), News::Host(_)));
        let News::History(history) = next(&feed) else {
            panic!("no history");
        };
        assert_eq!(history["with"], json!({"name": "vm1", "since-s": 3600}));
        drop(server);
        let why = loop {
            match next(&feed) {
                News::Lost(why) => break why,
                News::Host(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(why.contains("socket"), "{why}");
        let (_, _server) = served(folder.path(), &commands);
        while !matches!(next(&feed), News::Host(_)) {}
    }

    #[test]
    fn agent_when_a_heat_map_is_wanted_is_asked_for_it_and_not_as_often() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _server) = served(folder.path(), &["query-tier", "query-tier-heatmap"]);
        let feed = Feed::start(&path, Some(std::process::id())).unwrap();
        assert!(matches!(next(&feed), News::Agent(_)));
        feed.want_heat(Some((3, 4)));
        let heat = loop {
            match next(&feed) {
                News::Heat(heat) => break heat,
                News::Agent(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(heat["with"], json!({"rows": 3, "columns": 4}));
        assert!(matches!(next(&feed), News::Agent(_)), "none comes at once");
        let wrong = Feed::start(&path, Some(1)).unwrap();
        let News::Lost(why) = next(&wrong) else {
            panic!("another process was asked");
        };
        assert!(why.contains("and not by the agent, process 1"), "{why}");
    }
}
