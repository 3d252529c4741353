//! Commands and events described once: what checks the arguments, answers introspection and makes
//! the reference.

use serde_json::{Map, Value};

use crate::QmpError;

/// A command of a server.
///
/// ```
/// use qmp::server::{CommandSpec, MemberSpec, TypeSpec};
///
/// const RENAME: CommandSpec = CommandSpec {
///     name: "set-name",
///     doc: "Gives the guest a name.",
///     args: &[MemberSpec::needed("name", TypeSpec::String, "the new name")],
///     ..CommandSpec::PLAIN
/// };
/// assert_eq!(RENAME.returns, TypeSpec::NOTHING);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommandSpec {
    /// The name on the wire.
    pub name: &'static str,
    /// What it does, for people.
    pub doc: &'static str,
    /// Its arguments; others are refused.
    pub args: &'static [MemberSpec],
    /// What it returns.
    pub returns: TypeSpec,
    /// Whether `exec-oob` may run it beside a command under way. It then must be quick and wait
    /// for nothing.
    pub oob: bool,
    /// Whether it takes the file descriptors that came with it.
    pub fds: bool,
}

/// An event of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventSpec {
    /// The name on the wire, upper case.
    pub name: &'static str,
    /// When it comes, for people.
    pub doc: &'static str,
    /// The members of its data.
    pub data: &'static [MemberSpec],
}

/// A member of an object: of a command's arguments, of what it returns, of an event's data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemberSpec {
    /// The member's name.
    pub name: &'static str,
    /// What it may hold.
    pub kind: TypeSpec,
    /// Whether it may be left out.
    pub optional: bool,
    /// What it means, with its unit.
    pub doc: &'static str,
}

/// An object whose members are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObjectSpec {
    /// The name in the schema and the reference, `TierInfo`. One name stands for one description.
    /// Empty, the name is made of where the object stands.
    pub name: &'static str,
    /// What it is, for people.
    pub doc: &'static str,
    /// Its members.
    pub members: &'static [MemberSpec],
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum TypeSpec {
    /// A string.
    String,
    /// A string out of a closed set.
    Enum(&'static [&'static str]),
    /// `true` or `false`.
    Bool,
    /// A whole number that fits `i64`.
    Int,
    /// A whole number that fits `u64`.
    Uint,
    /// Any number.
    Number,
    /// An array of one type.
    Array(&'static Self),
    /// An object with these members and no others.
    Object(&'static ObjectSpec),
    /// An object whose members have any names and one type, such as a count for each class.
    Map(&'static Self),
    /// Anything.
    Any,
}

impl CommandSpec {
    /// A command without arguments that returns nothing: what a description starts from.
    pub const PLAIN: Self = Self {
        name: "",
        doc: "",
        args: &[],
        returns: TypeSpec::NOTHING,
        oob: false,
        fds: false,
    };
}

impl MemberSpec {
    /// A member that must be there.
    #[must_use]
    pub const fn needed(name: &'static str, kind: TypeSpec, doc: &'static str) -> Self {
        Self {
            name,
            kind,
            optional: false,
            doc,
        }
    }

    /// A member that may be left out.
    #[must_use]
    pub const fn optional(name: &'static str, kind: TypeSpec, doc: &'static str) -> Self {
        Self {
            name,
            kind,
            optional: true,
            doc,
        }
    }
}

impl CommandSpec {
    /// Checks arguments as QEMU's input visitor does, and in its words: first what the
    /// description names, in its order, then what it doesn't.
    ///
    /// # Errors
    /// For the first argument that is missing, of another type, or unexpected.
    pub fn check(&self, arguments: &Map<String, Value>) -> Result<(), QmpError> {
        check_members(self.args, "", arguments)
    }
}

/// Checks an object's members; `path` stands before their names in an error.
fn check_members(
    members: &[MemberSpec],
    path: &str,
    object: &Map<String, Value>,
) -> Result<(), QmpError> {
    for member in members {
        let name = || format!("{path}{}", member.name);
        match object.get(member.name) {
            Some(value) => member.kind.check(&name(), value)?,
            None if member.optional => {}
            None => {
                let text = format!("Parameter '{}' is missing", name());
                return Err(QmpError::generic(text));
            }
        }
    }
    let known = |key: &str| members.iter().any(|member| member.name == key);
    match object.keys().find(|key| !known(key)) {
        Some(key) => Err(QmpError::generic(format!(
            "Parameter '{path}{key}' is unexpected"
        ))),
        None => Ok(()),
    }
}

impl TypeSpec {
    /// What a command returns that has nothing to tell.
    pub const NOTHING: Self = Self::Object(&ObjectSpec {
        name: "Nothing",
        doc: "An object without members.",
        members: &[],
    });

    fn check(self, name: &str, value: &Value) -> Result<(), QmpError> {
        let fits = match (self, value) {
            (Self::Any, _)
            | (Self::Bool, Value::Bool(_))
            | (Self::Number, Value::Number(_))
            | (Self::String, Value::String(_)) => true,
            (Self::Int, Value::Number(number)) => number.is_i64(),
            (Self::Uint, Value::Number(number)) => {
                if number.is_i64() && !number.is_u64() {
                    return Err(QmpError::generic(format!(
                        "Parameter '{name}' expects uint64"
                    )));
                }
                number.is_u64()
            }
            (Self::Enum(words), Value::String(word)) => {
                if !words.contains(&word.as_str()) {
                    let text = format!("Parameter '{name}' does not accept value '{word}'");
                    return Err(QmpError::generic(text));
                }
                true
            }
            (Self::Array(item), Value::Array(values)) => {
                for (index, value) in values.iter().enumerate() {
                    item.check(&format!("{name}[{index}]"), value)?;
                }
                true
            }
            (Self::Object(spec), Value::Object(object)) => {
                check_members(spec.members, &format!("{name}."), object)?;
                true
            }
            (Self::Map(item), Value::Object(object)) => {
                for (key, value) in object {
                    item.check(&format!("{name}.{key}"), value)?;
                }
                true
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let expected = self.name();
        let text = format!("Invalid parameter type for '{name}', expected: {expected}");
        Err(QmpError::generic(text))
    }

    /// The JSON type in QEMU's words.
    fn name(self) -> &'static str {
        match self {
            Self::String | Self::Enum(_) => "string",
            Self::Bool => "boolean",
            Self::Int | Self::Uint => "integer",
            Self::Number => "number",
            Self::Array(_) => "array",
            Self::Object(_) | Self::Map(_) => "object",
            Self::Any => "any",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SPEC: CommandSpec = CommandSpec {
        args: &[
            MemberSpec::needed("path", TypeSpec::String, ""),
            MemberSpec::optional("size", TypeSpec::Uint, ""),
            MemberSpec::optional("mode", TypeSpec::Enum(&["a", "b"]), ""),
            MemberSpec::optional("nodes", TypeSpec::Array(&TypeSpec::Int), ""),
            MemberSpec::optional("rate", TypeSpec::Number, ""),
            MemberSpec::optional("force", TypeSpec::Bool, ""),
            MemberSpec::optional("range", TypeSpec::Object(&RANGE), ""),
            MemberSpec::optional("weights", TypeSpec::Map(&TypeSpec::Uint), ""),
        ],
        ..CommandSpec::PLAIN
    };
    const RANGE: ObjectSpec = ObjectSpec {
        name: "Range",
        doc: "",
        members: &[MemberSpec::needed("start", TypeSpec::Uint, "")],
    };

    fn check(arguments: Value) -> Result<(), String> {
        let Value::Object(arguments) = arguments else {
            panic!("an object")
        };
        SPEC.check(&arguments).map_err(|error| error.desc)
    }

    #[test]
    fn arguments_pass_when_each_has_its_type() {
        let arguments = json!({
            "path": "p", "size": u64::MAX, "mode": "b", "nodes": [0, -1], "rate": 0.5, "force": true,
            "range": {"start": 1}, "weights": {"a": 1, "b": 2}
        });

        assert_eq!(check(arguments), Ok(()));
        assert_eq!(check(json!({"path": "p", "rate": 1})), Ok(()));
    }

    #[test]
    fn error_is_qemus_own_when_an_argument_is_wrong() {
        for (arguments, text) in [
            (json!({}), "Parameter 'path' is missing"),
            (
                json!({"path": 1}),
                "Invalid parameter type for 'path', expected: string",
            ),
            (json!({"path": "p", "x": 1}), "Parameter 'x' is unexpected"),
            (
                json!({"path": "p", "size": -1}),
                "Parameter 'size' expects uint64",
            ),
            (
                json!({"path": "p", "size": 1.5}),
                "Invalid parameter type for 'size', expected: integer",
            ),
            (
                json!({"path": "p", "mode": "c"}),
                "Parameter 'mode' does not accept value 'c'",
            ),
            (
                json!({"path": "p", "nodes": [0, "1"]}),
                "Invalid parameter type for 'nodes[1]', expected: integer",
            ),
            (
                json!({"path": "p", "range": {}}),
                "Parameter 'range.start' is missing",
            ),
            (
                json!({"path": "p", "range": {"start": 1, "end": 2}}),
                "Parameter 'range.end' is unexpected",
            ),
            (
                json!({"path": "p", "weights": {"a": "b"}}),
                "Invalid parameter type for 'weights.a', expected: integer",
            ),
            (
                json!({"path": "p", "force": "on"}),
                "Invalid parameter type for 'force', expected: boolean",
            ),
        ] {
            assert_eq!(
                check(arguments.clone()),
                Err(text.to_owned()),
                "{arguments}"
            );
        }
    }
}
