//! QMP, the QEMU machine protocol: codec, client, server side and typed commands.
#![forbid(unsafe_code)]

pub mod client;
pub mod codec;
pub mod commands;
mod error;
pub mod event;
pub mod hmp;
mod message;
pub mod server;
mod text;

pub use client::Client;
pub use error::{ErrorClass, QmpError};
pub use event::{Event, EventKind};
pub use server::Server;

/// The longest path of a unix socket, in bytes (`sun_path` less its closing NUL).
pub const MAX_SOCKET_PATH: usize = 107;
