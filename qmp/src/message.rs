//! What a server sends: greeting, reply, event.

use serde_json::Value;

use crate::{ErrorClass, QmpError, client::Greeting, event::Event};

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
