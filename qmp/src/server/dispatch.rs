//! From a request to its reply, by the rules of QEMU's `qmp_dispatch` and monitor.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{CommandSpec, Handler, MemberSpec, ObjectSpec, TypeSpec, schema};
use crate::{ErrorClass, QmpError, codec::DecodeError, commands::VersionInfo};

const NEGOTIATE: CommandSpec = CommandSpec {
    name: "qmp_capabilities",
    doc: "Ends the negotiation; the first command of a connection.",
    args: &[MemberSpec::optional(
        "enable",
        TypeSpec::Array(&TypeSpec::Enum(&["oob"])),
        "the offered capabilities to switch on",
    )],
    ..CommandSpec::PLAIN
};

const QUERY_COMMANDS: CommandSpec = CommandSpec {
    name: "query-commands",
    doc: "Lists the commands.",
    returns: TypeSpec::Array(&TypeSpec::Object(&ObjectSpec {
        name: "CommandInfo",
        doc: "A command that there is.",
        members: &[MemberSpec::needed("name", TypeSpec::String, "its name")],
    })),
    ..CommandSpec::PLAIN
};

const QUERY_VERSION: CommandSpec = CommandSpec {
    name: "query-version",
    doc: "Tells the version of this server.",
    returns: TypeSpec::Object(&ObjectSpec {
        name: "VersionInfo",
        doc: "A version, as in the greeting.",
        members: &[
            MemberSpec::needed(
                "qemu",
                TypeSpec::Object(&ObjectSpec {
                    name: "VersionTriple",
                    doc: "A version in three parts.",
                    members: &[
                        MemberSpec::needed("major", TypeSpec::Int, "the first part"),
                        MemberSpec::needed("minor", TypeSpec::Int, "the second part"),
                        MemberSpec::needed("micro", TypeSpec::Int, "the third part"),
                    ],
                }),
                "the version",
            ),
            MemberSpec::needed("package", TypeSpec::String, "what the version is of"),
        ],
    }),
    ..CommandSpec::PLAIN
};

const QUERY_SCHEMA: CommandSpec = CommandSpec {
    name: "query-qmp-schema",
    doc: "Describes all commands and events, in the format of QEMU's SchemaInfo.",
    returns: TypeSpec::Array(&TypeSpec::Any),
    ..CommandSpec::PLAIN
};

/// What every server has by itself.
pub(super) const OWN: [CommandSpec; 4] = [NEGOTIATE, QUERY_COMMANDS, QUERY_SCHEMA, QUERY_VERSION];

/// The dialogue with one client.
pub(super) struct Session<'a> {
    handler: &'a dyn Handler,
    version: &'a VersionInfo,
    negotiated: bool,
}

/// A reply on the wire.
#[derive(Debug)]
pub(super) struct Reply {
    result: Result<Value, QmpError>,
    id: Option<Value>,
}

impl Serialize for Reply {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(rename = "return", skip_serializing_if = "Option::is_none")]
            value: Option<&'a Value>,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<&'a QmpError>,
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<&'a Value>,
        }

        let id = self.id.as_ref();
        let (value, error) = match &self.result {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        Wire { value, error, id }.serialize(serializer)
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(handler: &'a dyn Handler, version: &'a VersionInfo) -> Self {
        Self {
            handler,
            version,
            negotiated: false,
        }
    }

    pub(super) fn greeting(&self) -> Value {
        json!({"QMP": {"version": self.version, "capabilities": []}})
    }

    pub(super) fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// Every message and every error of the decoder has exactly one reply.
    pub(super) fn reply(&mut self, message: Result<Value, DecodeError>) -> Reply {
        let mut request = match message {
            Ok(Value::Object(request)) => request,
            Ok(_) => return Reply::error("QMP input must be a JSON object"),
            Err(error) => return Reply::error(&error.to_string()),
        };
        let id = request.remove("id");
        let result = self.run(request).map(|value| match value {
            Value::Null => json!({}),
            value => value,
        });
        Reply { result, id }
    }

    fn run(&mut self, request: Map<String, Value>) -> Result<Value, QmpError> {
        let (name, arguments) = split(request)?;
        if name == NEGOTIATE.name {
            return self.negotiate(&arguments);
        }
        if !self.negotiated {
            return Err(not_found(
                "Expecting capabilities negotiation with 'qmp_capabilities'".to_owned(),
            ));
        }
        if let Some(spec) = self
            .handler
            .commands()
            .iter()
            .find(|spec| spec.name == name)
        {
            spec.check(&arguments)?;
            return self.handler.handle(&name, arguments);
        }
        if name == QUERY_COMMANDS.name {
            QUERY_COMMANDS.check(&arguments)?;
            return Ok(self.names());
        }
        if name == QUERY_VERSION.name {
            QUERY_VERSION.check(&arguments)?;
            return Ok(json!(self.version));
        }
        if name == QUERY_SCHEMA.name {
            QUERY_SCHEMA.check(&arguments)?;
            return Ok(schema::of(self.handler, &OWN).into());
        }
        Err(QmpError::command_not_found(&name))
    }

    fn negotiate(&mut self, arguments: &Map<String, Value>) -> Result<Value, QmpError> {
        NEGOTIATE.check(arguments)?;
        if self.negotiated {
            return Err(not_found(
                "Capabilities negotiation is already complete, command ignored".to_owned(),
            ));
        }
        let enable = arguments.get("enable").and_then(Value::as_array);
        let unavailable: Vec<&str> = enable
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !unavailable.is_empty() {
            let text = format!("Capability {} not available", unavailable.join(", "));
            return Err(QmpError::generic(text));
        }
        self.negotiated = true;
        Ok(json!({}))
    }

    /// A handler's command of the same name stands for the server's own.
    fn names(&self) -> Value {
        let theirs = self.handler.commands();
        let own = OWN
            .iter()
            .filter(|own| theirs.iter().all(|spec| spec.name != own.name));
        theirs
            .iter()
            .chain(own)
            .map(|spec| json!({"name": spec.name}))
            .collect()
    }
}

impl Reply {
    /// An error without id.
    fn error(desc: &str) -> Self {
        Self {
            result: Err(QmpError::generic(desc)),
            id: None,
        }
    }
}

fn not_found(desc: String) -> QmpError {
    QmpError {
        class: ErrorClass::CommandNotFound,
        desc,
    }
}

/// Checks a request's members and takes command and arguments out (`qmp_dispatch_check_obj`).
fn split(request: Map<String, Value>) -> Result<(String, Map<String, Value>), QmpError> {
    let (mut name, mut arguments) = (None, Map::new());
    for (key, value) in request {
        match (key.as_str(), value) {
            ("execute", Value::String(value)) => name = Some(value),
            ("execute", _) => {
                return Err(QmpError::generic(
                    "QMP input member 'execute' must be a string",
                ));
            }
            ("arguments", Value::Object(value)) => arguments = value,
            ("arguments", _) => {
                return Err(QmpError::generic(
                    "QMP input member 'arguments' must be an object",
                ));
            }
            _ => {
                return Err(QmpError::generic(format!(
                    "QMP input member '{key}' is unexpected"
                )));
            }
        }
    }
    let name = name.ok_or_else(|| QmpError::generic("QMP input lacks member 'execute'"))?;
    Ok((name, arguments))
}
