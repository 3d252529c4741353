//! What a server sends: greeting, reply, event.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::{
    ErrorClass, QmpError,
    commands::{Capability, VersionInfo},
    event::Event,
};

/// What a server says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The server's version.
    pub version: VersionInfo,
    /// What it offers.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
}

/// A message from a server, sorted.
#[derive(Debug)]
pub(crate) enum FromServer {
    Greeting(Greeting),
    Reply(Reply),
    Event(Event),
    Unknown,
}

/// A reply: what the command gave or why it failed.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) id: Option<Value>,
    pub(crate) result: Result<Value, QmpError>,
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

impl FromServer {
    pub(crate) fn parse(message: Value) -> Self {
        let Value::Object(mut members) = message else {
            return Self::Unknown;
        };
        let id = members.remove("id");
        if let Some(value) = members.remove("return") {
            return Self::Reply(Reply {
                id,
                result: Ok(value),
            });
        }
        if let Some(error) = members.remove("error") {
            // A reply is settled by its id even if its error is odd.
            let error = serde_json::from_value(error).unwrap_or_else(|_| QmpError {
                class: ErrorClass::Other("unknown".to_owned()),
                desc: "the server sent an error without class or description".to_owned(),
            });
            return Self::Reply(Reply {
                id,
                result: Err(error),
            });
        }
        if members.contains_key("event") {
            let event = serde_json::from_value(Value::Object(members));
            return event.map_or(Self::Unknown, Self::Event);
        }
        let greeting = members.remove("QMP").map(serde_json::from_value);
        greeting
            .and_then(Result::ok)
            .map_or(Self::Unknown, Self::Greeting)
    }
}
