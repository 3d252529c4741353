//! QMP, the QEMU machine protocol: codec, client, server side and typed commands.
//!
//! QMP is JSON over a socket. The server greets, the client ends the negotiation with
//! `qmp_capabilities`, then commands go one way and replies and events the other.
//!
//! - [`client`] connects to a QEMU (or to anything else that speaks QMP), with [`commands`] typed
//!   and others raw; its errors say what is wrong, where, and what to do.
//! - [`server`] gives a program of yours a control socket that `qmp-shell`, libvirt's and other
//!   clients can talk to: commands are described once ([`server::CommandSpec`]); from that their
//!   arguments are checked as QEMU checks them, introspection is answered and the reference is made
//!   ([`server::reference`]).
//! - [`proxy`] lets many clients share one QEMU monitor, with commands of yours added.
//! - [`codec`] is the wire under both: streaming, bounded, and back in step after any garbage.
//! - [`hmp`] reads the few human-readable texts that QMP has no typed form of.
//!
//! # Example
//! A server with one command, and a client that uses it:
//! ```
//! use std::sync::Arc;
//!
//! use qmp::{
//!     Client, QmpError, Server, client,
//!     server::{self, CommandSpec, Handler, MemberSpec, TypeSpec},
//! };
//! use serde_json::{Map, Value, json};
//!
//! struct Adder;
//!
//! impl Handler for Adder {
//!     fn commands(&self) -> &[CommandSpec] {
//!         const TO: MemberSpec = MemberSpec::needed("to", TypeSpec::Uint, "a number");
//!         const ADD_ONE: CommandSpec = CommandSpec {
//!             name: "add-one",
//!             doc: "Adds 1.",
//!             args: &[TO],
//!             returns: TypeSpec::Uint,
//!             ..CommandSpec::PLAIN
//!         };
//!         &[ADD_ONE]
//!     }
//!
//!     fn handle(&self, _name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
//!         let to = arguments["to"].as_u64().unwrap_or_default();
//!         let sum = to.checked_add(1).ok_or_else(|| QmpError::generic("that is too much"))?;
//!         Ok(json!(sum))
//!     }
//! }
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("control.sock");
//! let server = Server::bind(&path, Arc::new(Adder), server::Options::default())?;
//!
//! let (client, events) = Client::connect(&path, &client::Options::default())?;
//! assert_eq!(client.execute_raw("add-one", Some(json!({"to": 41})))?, json!(42));
//! let error = client.execute_raw("add-one", Some(json!({"to": "x"}))).unwrap_err();
//! assert!(error.to_string().contains("Invalid parameter type for 'to', expected: integer"));
//!
//! server.broadcast(&qmp::Event::now("ADDED", json!({"sum": 42})));
//! assert_eq!(events.recv()?.name, "ADDED");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod client;
pub mod codec;
pub mod commands;
mod error;
pub mod event;
mod fds;
pub mod hmp;
mod message;
pub mod proxy;
pub mod server;
mod text;

pub use client::Client;
pub use error::{ErrorClass, QmpError};
pub use event::{Event, EventKind};
pub use fds::MAX_FDS;
pub use proxy::Proxy;
pub use server::Server;

/// The longest path of a unix socket, in bytes (`sun_path` less its closing NUL).
pub const MAX_SOCKET_PATH: usize = 107;
