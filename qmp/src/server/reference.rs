//! The reference for people, made of the same descriptions that dispatch uses.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{CommandSpec, Handler, MemberSpec, ObjectSpec, TypeSpec};

/// The reference of `handler`'s commands, events and types, as Markdown: sections of the second
/// level, to stand under a title.
///
/// ```
/// use qmp::{
///     QmpError,
///     server::{CommandSpec, Handler, TypeSpec, reference},
/// };
/// use serde_json::{Map, Value, json};
///
/// struct Clock;
///
/// impl Handler for Clock {
///     fn commands(&self) -> &[CommandSpec] {
///         &[CommandSpec {
///             name: "query-uptime",
///             doc: "Tells for how many seconds this runs.",
///             returns: TypeSpec::Uint,
///             ..CommandSpec::PLAIN
///         }]
///     }
///
///     fn handle(&self, _name: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
///         Ok(json!(1))
///     }
/// }
///
/// assert!(reference(&Clock).contains("Returns: integer ≥ 0"));
/// ```
#[must_use]
pub fn reference(handler: &dyn Handler) -> String {
    let mut page = Page::default();
    page.line("## Commands");
    for command in handler.commands() {
        page.command(command);
    }
    if !handler.events().is_empty() {
        page.line("\n## Events");
    }
    for event in handler.events() {
        page.entry(event.name, event.doc);
        page.members("Data", event.data);
    }
    page.types();
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
    /// Named objects that were mentioned, and whether they are described already.
    named: BTreeMap<&'static str, (ObjectSpec, bool)>,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn entry(&mut self, name: &str, doc: &str) {
        self.line(&format!("\n### {name}\n\n{doc}"));
    }

    fn command(&mut self, command: &CommandSpec) {
        self.entry(command.name, command.doc);
        self.members("Arguments", command.args);
        let returns = self.kind(command.returns);
        match command.returns {
            TypeSpec::Object(object) if object.name.is_empty() => {
                self.line(&format!("\nReturns: {returns}. {}", object.doc));
                self.members("Members", object.members);
            }
            _ => self.line(&format!("\nReturns: {returns}")),
        }
        if command.oob {
            self.line("\nMay run out of band.");
        }
        if command.fds {
            self.line("\nTakes file descriptors (SCM_RIGHTS).");
        }
    }

    fn members(&mut self, title: &str, members: &[MemberSpec]) {
        if members.is_empty() {
            return;
        }
        self.line(&format!("\n{title}:\n"));
        self.list(0, members);
    }

    fn list(&mut self, depth: usize, members: &[MemberSpec]) {
        for member in members {
            let kind = self.kind(member.kind);
            let optional = if member.optional { ", optional" } else { "" };
            let indent = "  ".repeat(depth);
            let mut line = format!("{indent}- `{}` ({kind}{optional})", member.name);
            if !member.doc.is_empty() {
                let _ = write!(line, ": {}", member.doc);
            }
            self.line(&line);
            if let Some(object) = unnamed(member.kind) {
                self.list(depth + 1, object.members);
            }
        }
    }

    fn kind(&mut self, kind: TypeSpec) -> String {
        match kind {
            TypeSpec::String => "string".to_owned(),
            TypeSpec::Enum(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                words.join(" or ")
            }
            TypeSpec::Bool => "boolean".to_owned(),
            TypeSpec::Int => "integer".to_owned(),
            TypeSpec::Uint => "integer ≥ 0".to_owned(),
            TypeSpec::Number => "number".to_owned(),
            TypeSpec::Array(item) => format!("array of {}", self.kind(*item)),
            TypeSpec::Map(item) => format!("object, each member {}", self.kind(*item)),
            TypeSpec::Any => "any value".to_owned(),
            kind if kind == TypeSpec::NOTHING => "an empty object".to_owned(),
            TypeSpec::Object(object) if object.name.is_empty() => "object".to_owned(),
            TypeSpec::Object(object) => {
                self.named.entry(object.name).or_insert((*object, false));
                let anchor = object.name.to_lowercase();
                format!("[{}](#{anchor})", object.name)
            }
        }
    }

    /// The objects that were mentioned by name, and those that these mention.
    fn types(&mut self) {
        let mut first = true;
        loop {
            let next = self.named.values_mut().find(|(_, told)| !told);
            let Some((object, told)) = next else { return };
            *told = true;
            let object = *object;
            if std::mem::take(&mut first) {
                self.line("\n## Types");
            }
            self.entry(object.name, object.doc);
            self.members("Members", object.members);
        }
    }
}

/// The object without a name that `kind` is or holds.
fn unnamed(kind: TypeSpec) -> Option<&'static ObjectSpec> {
    match kind {
        TypeSpec::Array(item) | TypeSpec::Map(item) => unnamed(*item),
        TypeSpec::Object(object) => object.name.is_empty().then_some(object),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::{QmpError, server::EventSpec};

    const PLACE: ObjectSpec = ObjectSpec {
        name: "Place",
        doc: "Where something is.",
        members: &[MemberSpec::needed("node", TypeSpec::Int, "the node")],
    };

    const COMMANDS: &[CommandSpec] = &[CommandSpec {
        name: "move",
        doc: "Moves it.",
        args: &[
            MemberSpec::needed("to", TypeSpec::Object(&PLACE), "where to"),
            MemberSpec::optional("how", TypeSpec::Enum(&["slow", "fast"]), "how fast"),
        ],
        oob: true,
        ..CommandSpec::PLAIN
    }];
    const PART: ObjectSpec = ObjectSpec {
        name: "",
        doc: "",
        members: &[MemberSpec::needed("part", TypeSpec::Uint, "bytes")],
    };
    const EVENTS: &[EventSpec] = &[EventSpec {
        name: "MOVED",
        doc: "It was moved.",
        data: &[MemberSpec::needed(
            "parts",
            TypeSpec::Array(&TypeSpec::Object(&PART)),
            "",
        )],
    }];

    struct Movers;

    impl Handler for Movers {
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
    fn reference_tells_commands_events_and_the_types_they_name() {
        let expected = "\
## Commands

### move

Moves it.

Arguments:

- `to` ([Place](#place)): where to
- `how` (`slow` or `fast`, optional): how fast

Returns: an empty object

May run out of band.

## Events

### MOVED

It was moved.

Data:

- `parts` (array of object)
  - `part` (integer ≥ 0): bytes

## Types

### Place

Where something is.

Members:

- `node` (integer): the node
";
        assert_eq!(reference(&Movers), expected);
    }
}
