//! Introspection: commands and events as QEMU's `SchemaInfo` (`qapi/introspect.json`).
//!
//! QEMU gives its types numbers for names. Ours have words, so that both stand side by side in one
//! schema; types that are built in have QEMU's names.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{CommandSpec, Handler, MemberSpec, TypeSpec};

/// All that `handler` has, and those of `own` that it doesn't have itself.
pub(crate) fn of(handler: &dyn Handler, own: &[CommandSpec]) -> Vec<Value> {
    let mut types = Types::default();
    let mut schema = Vec::new();
    for command in with_own(handler, own) {
        let mut info = json!({
            "name": command.name,
            "meta-type": "command",
            "arg-type": types.object(format!("{}.arguments", command.name), command.args),
            "ret-type": types.name(&format!("{}.return", command.name), command.returns),
        });
        if command.oob {
            info["allow-oob"] = true.into();
        }
        schema.push(info);
    }
    for event in handler.events() {
        schema.push(json!({
            "name": event.name,
            "meta-type": "event",
            "arg-type": types.object(format!("{}.data", event.name), event.data),
        }));
    }
    schema.extend(types.infos.into_values());
    schema
}

/// A handler's command of the same name stands for the server's own.
pub(super) fn with_own<'a>(
    handler: &'a dyn Handler,
    own: &'a [CommandSpec],
) -> impl Iterator<Item = &'a CommandSpec> {
    let theirs = handler.commands();
    let own = own
        .iter()
        .filter(|own| theirs.iter().all(|spec| spec.name != own.name));
    theirs.iter().chain(own)
}

/// The types met so far, by name.
#[derive(Default)]
struct Types {
    infos: BTreeMap<String, Value>,
}

impl Types {
    /// The name of `kind`, which is described if it wasn't; `path` says where it stands, for types
    /// that have no name of their own.
    fn name(&mut self, path: &str, kind: TypeSpec) -> String {
        match kind {
            TypeSpec::String => self.builtin("str", "string"),
            TypeSpec::Bool => self.builtin("bool", "boolean"),
            TypeSpec::Int | TypeSpec::Uint => self.builtin("int", "int"),
            TypeSpec::Number => self.builtin("number", "number"),
            // QEMU has no type for objects with free names either.
            TypeSpec::Any | TypeSpec::Map(_) => self.builtin("any", "value"),
            TypeSpec::Enum(words) => {
                let members: Vec<Value> = words.iter().map(|word| json!({"name": word})).collect();
                let info = json!({"meta-type": "enum", "members": members, "values": words});
                self.put(path.to_owned(), info)
            }
            TypeSpec::Array(item) => {
                let item = self.name(path, *item);
                let info = json!({"meta-type": "array", "element-type": item});
                self.put(format!("[{item}]"), info)
            }
            TypeSpec::Object(spec) => {
                let name = if spec.name.is_empty() {
                    path
                } else {
                    spec.name
                };
                self.object(name.to_owned(), spec.members)
            }
        }
    }

    fn object(&mut self, name: String, members: &[MemberSpec]) -> String {
        if self.infos.contains_key(&name) {
            return name;
        }
        let members: Vec<Value> = members
            .iter()
            .map(|member| {
                let path = format!("{name}.{}", member.name);
                let mut info = json!({
                    "name": member.name,
                    "type": self.name(&path, member.kind),
                });
                if member.optional {
                    // QEMU marks them so; the value of a default is never told.
                    info["default"] = Value::Null;
                }
                info
            })
            .collect();
        self.put(name, json!({"meta-type": "object", "members": members}))
    }

    fn builtin(&mut self, name: &str, json_type: &str) -> String {
        let info = json!({"meta-type": "builtin", "json-type": json_type});
        self.put(name.to_owned(), info)
    }

    fn put(&mut self, name: String, info: Value) -> String {
        let mut members = Map::new();
        members.insert("name".to_owned(), name.as_str().into());
        if let Value::Object(rest) = info {
            members.extend(rest);
        }
        self.infos
            .entry(name.clone())
            .or_insert(Value::Object(members));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{EventSpec, ObjectSpec},
        *,
    };
    use crate::QmpError;

    const RANGE: TypeSpec = TypeSpec::Object(&ObjectSpec {
        name: "Range",
        doc: "A range.",
        members: &[
            MemberSpec::needed("start", TypeSpec::Uint, ""),
            MemberSpec::optional("tier", TypeSpec::Enum(&["fast", "slow"]), ""),
        ],
    });

    const COMMANDS: &[CommandSpec] = &[CommandSpec {
        name: "pin",
        args: &[MemberSpec::needed("range", RANGE, "")],
        returns: TypeSpec::Array(&RANGE),
        oob: true,
        ..CommandSpec::PLAIN
    }];
    const EVENTS: &[EventSpec] = &[EventSpec {
        name: "PINNED",
        doc: "",
        data: &[MemberSpec::needed(
            "failed",
            TypeSpec::Map(&TypeSpec::Uint),
            "",
        )],
    }];

    struct Tiers;

    impl Handler for Tiers {
        fn commands(&self) -> &[CommandSpec] {
            COMMANDS
        }

        fn events(&self) -> &[EventSpec] {
            EVENTS
        }

        fn handle(&self, _: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
            Ok(Value::Null)
        }
    }

    #[test]
    fn schema_has_each_type_once_in_qemus_format_when_it_is_used_twice() {
        let schema = of(&Tiers, &[]);

        let expected = json!([
            {"name": "pin", "meta-type": "command", "arg-type": "pin.arguments",
             "ret-type": "[Range]", "allow-oob": true},
            {"name": "PINNED", "meta-type": "event", "arg-type": "PINNED.data"},
            {"name": "PINNED.data", "meta-type": "object",
             "members": [{"name": "failed", "type": "any"}]},
            {"name": "Range", "meta-type": "object", "members": [
                {"name": "start", "type": "int"},
                {"name": "tier", "type": "Range.tier", "default": null}]},
            {"name": "Range.tier", "meta-type": "enum", "values": ["fast", "slow"],
             "members": [{"name": "fast"}, {"name": "slow"}]},
            {"name": "[Range]", "meta-type": "array", "element-type": "Range"},
            {"name": "any", "meta-type": "builtin", "json-type": "value"},
            {"name": "int", "meta-type": "builtin", "json-type": "int"},
            {"name": "pin.arguments", "meta-type": "object",
             "members": [{"name": "range", "type": "Range"}]},
        ]);
        assert_eq!(Value::Array(schema), expected);
    }
}
