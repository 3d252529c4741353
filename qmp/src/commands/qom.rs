//! QEMU's object tree, and the monitor itself.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Command, Empty, plain_commands};
use crate::text::words;

plain_commands! {
    /// The names of all commands.
    QueryCommands = "query-commands" -> Vec<CommandInfo>;
}

/// A command that the server has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// Its name.
    pub name: String,
}

words! {
    /// A capability of a connection.
    Capability {
        /// Out-of-band commands.
        Oob = "oob",
    }
}

/// Ends the negotiation. [`Client::connect`](crate::client::Client::connect) sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QmpCapabilities {
    /// The offered capabilities to switch on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub enable: Vec<Capability>,
}

impl Command for QmpCapabilities {
    const NAME: &'static str = "qmp_capabilities";
    type Return = Empty;
}

/// Reads a property of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QomGet {
    /// The object: `/objects/ram0`, `/machine`.
    pub path: String,
    /// The property: `size`, `hugetlbsize`.
    pub property: String,
}

impl QomGet {
    /// The command for one property of the object at `path`.
    #[must_use]
    pub fn new(path: impl Into<String>, property: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            property: property.into(),
        }
    }
}

impl Command for QomGet {
    const NAME: &'static str = "qom-get";
    type Return = Value;
}

/// Lists the properties of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QomList {
    /// The object: `/objects`.
    pub path: String,
}

impl Command for QomList {
    const NAME: &'static str = "qom-list";
    type Return = Vec<ObjectProperty>;
}

/// A property of an object; children are properties of type `child<TYPE>`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ObjectProperty {
    /// Its name.
    pub name: String,
    /// Its type.
    pub r#type: String,
}
