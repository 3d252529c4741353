//! Introspection of two servers as of one.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::server::{Handler, schema_of};

/// A reply to which the extension's part is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    Commands,
    Schema,
}

impl Merge {
    /// What is added to the reply of this command.
    pub(super) fn of(command: &str) -> Option<Self> {
        match command {
            "query-commands" => Some(Self::Commands),
            "query-qmp-schema" => Some(Self::Schema),
            _ => None,
        }
    }

    /// Adds the extension's part. The extension answers commands of its own names itself, so these
    /// descriptions stand for QEMU's; of types that both have, one is enough.
    pub(super) fn into(self, reply: &mut Value, extension: &dyn Handler) {
        let Value::Array(theirs) = reply else { return };
        let ours = match self {
            Self::Commands => extension
                .commands()
                .iter()
                .map(|spec| json!({"name": spec.name}))
                .collect(),
            Self::Schema => schema_of(extension, &[]),
        };
        let replaced: HashSet<&str> = extension.commands().iter().map(|spec| spec.name).collect();
        theirs.retain(|entry| {
            let name = entry["name"].as_str();
            !name.is_some_and(|name| replaced.contains(name))
        });
        let known: HashSet<&str> = theirs
            .iter()
            .filter_map(|entry| entry["name"].as_str())
            .collect();
        let new: Vec<Value> = ours
            .into_iter()
            .filter(|entry| {
                let name = entry["name"].as_str();
                !name.is_some_and(|name| known.contains(name))
            })
            .collect();
        theirs.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::{
        QmpError,
        server::{CommandSpec, TypeSpec},
    };

    struct Extension;

    impl Handler for Extension {
        fn commands(&self) -> &[CommandSpec] {
            &[CommandSpec {
                name: "query-tier",
                returns: TypeSpec::Uint,
                ..CommandSpec::PLAIN
            }]
        }

        fn handle(&self, _: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
            Ok(Value::Null)
        }
    }

    #[test]
    fn each_name_stands_once_when_both_have_it() {
        let int = json!({"name": "int", "meta-type": "builtin", "json-type": "int"});
        let mut schema = json!([{"name": "stop", "meta-type": "command"}, int]);
        let mut commands = json!([{"name": "query-tier"}, {"name": "stop"}]);

        Merge::Schema.into(&mut schema, &Extension);
        Merge::Commands.into(&mut commands, &Extension);

        let names: Vec<_> = schema.as_array().unwrap().iter().collect();
        let names: Vec<_> = names.iter().map(|entry| &entry["name"]).collect();
        assert_eq!(names, ["stop", "int", "query-tier", "query-tier.arguments"]);
        assert_eq!(commands, json!([{"name": "stop"}, {"name": "query-tier"}]));
    }
}
