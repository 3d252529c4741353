//! From a request to its reply, by the rules of QEMU's `qmp_dispatch` and monitor.

use std::sync::Arc;

use rustix::fd::OwnedFd;
use serde_json::{Map, Value, json};

use super::{
    CommandSpec, Hub, MemberSpec, ObjectSpec, TypeSpec,
    peer::{Back, Peer},
    relay::Call,
    schema,
};
use crate::{ErrorClass, QmpError, codec::DecodeError, commands::VersionInfo, message::Reply};

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
    hub: &'a Hub,
    peer: &'a Arc<Peer>,
}

/// A message from a client, looked at.
#[derive(Debug)]
pub(super) struct Request {
    id: Option<Value>,
    /// It asks to overtake what is under way.
    oob: bool,
    call: Result<Call, QmpError>,
}

impl Request {
    pub(super) fn is_oob(&self) -> bool {
        self.oob
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(hub: &'a Hub, peer: &'a Arc<Peer>) -> Self {
        Self { hub, peer }
    }

    pub(super) fn peer(&self) -> &'a Arc<Peer> {
        self.peer
    }

    pub(super) fn greeting(&self) -> Value {
        let relay = self.hub.relay.as_deref();
        let mut capabilities = Vec::new();
        if self.hub.offers_oob() {
            capabilities.push("oob");
        }
        json!({"QMP": {"version": relay.map_or(self.version(), |relay| &relay.greeting().version),
                       "capabilities": capabilities}})
    }

    fn version(&self) -> &VersionInfo {
        &self.hub.options.version
    }

    /// Looks at a message. File descriptors that came before its end go with it if it is a command
    /// that takes some.
    pub(super) fn parse(
        &self,
        message: Result<Value, DecodeError>,
        fds: &mut Vec<OwnedFd>,
    ) -> Request {
        let mut request = match message {
            Ok(Value::Object(request)) => request,
            Ok(_) => return Request::bad("QMP input must be a JSON object"),
            Err(error) => return Request::bad(&error.to_string()),
        };
        let id = request.remove("id");
        let oob = request.contains_key("exec-oob") && !request.contains_key("execute");
        let mut call = split(request, self.peer.is_oob());
        if let Ok(call) = &mut call
            && !fds.is_empty()
            && self.takes_fds(&call.name)
        {
            call.fds = std::mem::take(fds);
        }
        Request { id, oob, call }
    }

    fn takes_fds(&self, name: &str) -> bool {
        match self.spec(name) {
            Some(spec) => spec.fds,
            None => {
                let relay = self.hub.relay.as_deref();
                relay.is_some_and(|relay| relay.takes_fds(name))
            }
        }
    }

    fn spec(&self, name: &str) -> Option<&'a CommandSpec> {
        let commands = self.hub.handler.commands();
        commands.iter().find(|spec| spec.name == name)
    }

    /// Carries a request out; every one has exactly one reply. `false` ends the connection.
    pub(super) fn serve(&self, request: Request) -> bool {
        let Request { id, oob, call } = request;
        let call = match call {
            Ok(call) if self.is_relayed(&call.name) => return self.forward(call, id),
            call => call,
        };
        // Replies come in order: first those of commands that were sent on.
        if !oob && self.hub.relay.is_some() && !self.peer.pending(false).wait_idle() {
            return false;
        }
        let mut negotiated = None;
        let result = call.and_then(|call| self.run(call, &mut negotiated));
        let result = result.map(|value| match value {
            Value::Null => json!({}),
            value => value,
        });
        let reply = Reply { result, id };
        match negotiated {
            Some(oob) => self.peer.push_negotiated(oob, &reply),
            None => self.peer.push(&reply),
        }
    }

    /// Whether the server behind this one has to answer.
    fn is_relayed(&self, name: &str) -> bool {
        self.hub.relay.is_some()
            && self.peer.is_negotiated()
            && name != NEGOTIATE.name
            && self.spec(name).is_none()
    }

    fn forward(&self, call: Call, id: Option<Value>) -> bool {
        let Some(relay) = &self.hub.relay else {
            return false;
        };
        let most = self.hub.options.commands_under_way;
        // Who doesn't read its replies is not read either.
        self.peer.wait_until_it_reads()
            && Back::begin(self.peer, id, call.oob, most)
                .is_some_and(|back| relay.forward(call, back))
    }

    fn run(&self, call: Call, negotiated: &mut Option<bool>) -> Result<Value, QmpError> {
        let Call {
            name,
            arguments,
            oob,
            fds,
        } = call;
        if !self.peer.is_negotiated() && name != NEGOTIATE.name {
            return Err(not_found(
                "Expecting capabilities negotiation with 'qmp_capabilities'".to_owned(),
            ));
        }
        let theirs = self.spec(&name);
        let spec = theirs.or_else(|| OWN.iter().find(|own| own.name == name));
        let spec = spec.ok_or_else(|| QmpError::command_not_found(&name))?;
        if oob && !spec.oob {
            let text = format!("The command {name} does not support OOB");
            return Err(QmpError::generic(text));
        }
        spec.check(&arguments)?;
        if theirs.is_some() && name != NEGOTIATE.name {
            return match spec.fds {
                true => self.hub.handler.handle_with_fds(&name, arguments, fds),
                false => {
                    let connection = self.peer.connection();
                    (self.hub.handler).handle_for(connection, &name, arguments)
                }
            };
        }
        match name.as_str() {
            "qmp_capabilities" => {
                *negotiated = Some(self.negotiate(&arguments)?);
                Ok(json!({}))
            }
            "query-commands" => {
                let commands = schema::with_own(&*self.hub.handler, &OWN);
                Ok(commands.map(|spec| json!({"name": spec.name})).collect())
            }
            "query-qmp-schema" => Ok(schema::of(&*self.hub.handler, &OWN).into()),
            _ => Ok(json!(self.version())),
        }
    }

    /// Whether out-of-band commands are to be switched on.
    fn negotiate(&self, arguments: &Map<String, Value>) -> Result<bool, QmpError> {
        if self.peer.is_negotiated() {
            return Err(not_found(
                "Capabilities negotiation is already complete, command ignored".to_owned(),
            ));
        }
        let enable = arguments.get("enable").and_then(Value::as_array);
        // The check has let nothing but "oob" pass.
        let oob = enable.is_some_and(|enable| !enable.is_empty());
        if oob && !self.hub.offers_oob() {
            return Err(QmpError::generic("Capability oob not available"));
        }
        Ok(oob)
    }
}

impl Request {
    /// One that can't be understood; the error has no id.
    fn bad(desc: &str) -> Self {
        Self {
            id: None,
            oob: false,
            call: Err(QmpError::generic(desc)),
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
fn split(request: Map<String, Value>, allow_oob: bool) -> Result<Call, QmpError> {
    let input = |text: String| QmpError::generic(format!("QMP input {text}"));
    let (mut command, mut arguments) = (None::<(String, bool)>, Map::new());
    for (key, value) in request {
        let oob = key == "exec-oob";
        match (key.as_str(), value) {
            ("execute", value) | ("exec-oob", value) if !oob || allow_oob => {
                let Value::String(name) = value else {
                    return Err(input(format!("member '{key}' must be a string")));
                };
                if let Some((_, other)) = command {
                    let other = if other { "exec-oob" } else { "execute" };
                    return Err(input(format!("member '{key}' clashes with '{other}'")));
                }
                command = Some((name, oob));
            }
            ("arguments", Value::Object(value)) => arguments = value,
            ("arguments", _) => {
                return Err(input("member 'arguments' must be an object".to_owned()));
            }
            _ => return Err(input(format!("member '{key}' is unexpected"))),
        }
    }
    let (name, oob) = command.ok_or_else(|| input("lacks member 'execute'".to_owned()))?;
    Ok(Call {
        name,
        arguments,
        oob,
        fds: Vec::new(),
    })
}
