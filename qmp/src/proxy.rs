//! Many clients on one QEMU monitor, beside the connection's owner.
//!
//! A QEMU monitor serves one client. The proxy serves as many as come, over a connection that a
//! program has already: to each of them it looks like that QEMU, with the commands and events of an
//! extension added.
//!
//! ```text
//! clients ──► reader threads ──► window (turns, bounded) ──► connection ──► QEMU
//!    ▲                                                           │
//!    └──────── queue of each client (bounded) ◄── reader thread ─┘
//! ```
//!
//! - Ids are rewritten on the way out and restored on the way back, whatever JSON they are.
//! - Replies of one client come in the order of its commands, those of the extension too; only
//!   out-of-band commands overtake, where QEMU and the client have negotiated it.
//! - File descriptors go on in the same message as their command (`getfd`, `add-fd`).
//! - No client delays another: each has few commands under way, takes its turn with the others, and
//!   is disconnected when it doesn't read.
//! - When QEMU leaves, clients get what came before (its `SHUTDOWN` event, say), and then are
//!   disconnected as QEMU itself would disconnect them.

mod merge;
mod upstream;
mod window;

use std::{
    path::Path,
    sync::{Arc, Weak},
};

use self::upstream::Upstream;
use crate::{
    client::{Client, Observer},
    codec::Limits,
    event::Event,
    server::{BindError, EventSender, Handler, Hub, Options, Server, Stats},
};

/// The proxy's socket. Dropping it disconnects its clients and removes its socket file; the
/// connection to QEMU stays.
///
/// ```
/// use std::sync::Arc;
///
/// use qmp::{
///     Client, Proxy, QmpError, Server, client, proxy,
///     server::{self, CommandSpec, Handler, TypeSpec},
/// };
/// use serde_json::{Map, Value, json};
///
/// /// Answers one command: its name.
/// struct Named([CommandSpec; 1]);
///
/// impl Handler for Named {
///     fn commands(&self) -> &[CommandSpec] {
///         &self.0
///     }
///
///     fn handle(&self, name: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
///         Ok(json!(name))
///     }
/// }
///
/// fn named(name: &'static str) -> Arc<Named> {
///     Arc::new(Named([CommandSpec { name, returns: TypeSpec::String, ..CommandSpec::PLAIN }]))
/// }
///
/// let folder = tempfile::tempdir()?;
/// # let qemu_path = folder.path().join("qemu.sock");
/// # let _qemu = Server::bind(&qemu_path, named("query-status"), server::Options::default())?;
/// let (client, _events) = Client::connect(&qemu_path, &client::Options::default())?;
///
/// let path = folder.path().join("proxy.sock");
/// let proxy = Proxy::bind(&path, Arc::new(client), named("query-tier"), proxy::options())?;
///
/// // QEMU serves one client at a time; the proxy serves both of these.
/// let (first, _) = Client::connect(&path, &client::Options::default())?;
/// let (second, _) = Client::connect(&path, &client::Options::default())?;
/// assert_eq!(first.execute_raw("query-status", None)?, json!("query-status"));
/// assert_eq!(second.execute_raw("query-tier", None)?, json!("query-tier"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Proxy {
    server: Server,
}

/// What a proxy's clients may do. Version and capabilities are QEMU's, whatever
/// [`Options`] say.
///
/// A message may be 64 KiB long: QEMU reads some hundred KiB a second, and while it reads one
/// client's message the others wait.
#[must_use]
pub fn options() -> Options {
    Options {
        max_clients: 64,
        limits: Limits {
            message_bytes: 64 << 10,
            tokens: 16 << 10,
            ..Limits::REQUESTS
        },
        ..Options::default()
    }
}

impl Proxy {
    /// Binds the socket at `path`, for its owner only (mode 0600), and serves it.
    ///
    /// The proxy becomes the connection's [observer](Client::observe): clients get QEMU's events in
    /// order with the replies, and the end closes the proxy. Out-of-band commands are offered if
    /// `upstream` has them switched on. What the connection's owner sends goes its own way.
    ///
    /// # Errors
    /// When the path is in use, is no socket, is too long, or can't be bound.
    pub fn bind(
        path: impl AsRef<Path>,
        upstream: Arc<Client>,
        extension: Arc<dyn Handler>,
        options: Options,
    ) -> Result<Self, BindError> {
        let relay = Arc::new(Upstream::new(upstream, Arc::clone(&extension)));
        let server = {
            let relay = Arc::clone(&relay);
            Server::bind_with(path.as_ref(), extension, Some(relay), options)?
        };
        let observer: Weak<Hub> = Arc::downgrade(server.hub());
        relay.client().observe(observer);
        if relay.client().closed().is_some() {
            // It ended before it was observed.
            server.hub().close();
        }
        Ok(Self { server })
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.server.path()
    }

    /// Sends an event of the extension to every negotiated client, as [`Server::broadcast`].
    pub fn broadcast(&self, event: &Event) {
        self.server.broadcast(event);
    }

    /// A handle that sends events of the extension.
    #[must_use]
    pub fn events(&self) -> EventSender {
        self.server.events()
    }

    /// What the proxy has seen.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.server.stats()
    }
}

impl Observer for Hub {
    fn event(&self, event: &Event) {
        self.broadcast(event);
    }

    fn closed(&self) {
        self.close();
    }
}
