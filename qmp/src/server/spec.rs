//! Commands described once: what checks the arguments, lists the commands and documents them.

use serde_json::{Map, Value};

use crate::QmpError;

/// A command of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommandSpec {
    /// The name on the wire.
    pub name: &'static str,
    /// What it does, for people.
    pub doc: &'static str,
    /// Its arguments; others are refused.
    pub args: &'static [ArgSpec],
    /// What it returns, for people.
    pub returns: &'static str,
}

/// An argument of a command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArgSpec {
    /// The member's name.
    pub name: &'static str,
    /// What it may hold.
    pub kind: ArgType,
    /// Whether it may be left out.
    pub optional: bool,
    /// What it means, with its unit.
    pub doc: &'static str,
}

/// What an argument may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgType {
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
    /// An object; its members are the handler's to check.
    Object,
    /// Anything.
    Any,
}

impl CommandSpec {
    /// Checks arguments as QEMU's input visitor does, and in its words: first what the
    /// description names, in its order, then what it doesn't.
    ///
    /// # Errors
    /// For the first argument that is missing, of another type, or unexpected.
    pub fn check(&self, arguments: &Map<String, Value>) -> Result<(), QmpError> {
        for arg in self.args {
            match arguments.get(arg.name) {
                Some(value) => arg.kind.check(arg.name, value)?,
                None if arg.optional => {}
                None => {
                    return Err(QmpError::generic(format!(
                        "Parameter '{}' is missing",
                        arg.name
                    )));
                }
            }
        }
        match arguments
            .keys()
            .find(|&key| self.args.iter().all(|arg| arg.name != key))
        {
            Some(key) => Err(QmpError::generic(format!(
                "Parameter '{key}' is unexpected"
            ))),
            None => Ok(()),
        }
    }
}

impl ArgType {
    fn check(self, name: &str, value: &Value) -> Result<(), QmpError> {
        let fits = match (self, value) {
            (Self::Any, _)
            | (Self::Bool, Value::Bool(_))
            | (Self::Number, Value::Number(_))
            | (Self::String, Value::String(_))
            | (Self::Object, Value::Object(_)) => true,
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
            Self::Object => "object",
            Self::Any => "any",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SPEC: CommandSpec = CommandSpec {
        name: "test",
        doc: "",
        args: &[
            ArgSpec {
                name: "path",
                kind: ArgType::String,
                optional: false,
                doc: "",
            },
            ArgSpec {
                name: "size",
                kind: ArgType::Uint,
                optional: true,
                doc: "",
            },
            ArgSpec {
                name: "mode",
                kind: ArgType::Enum(&["a", "b"]),
                optional: true,
                doc: "",
            },
            ArgSpec {
                name: "nodes",
                kind: ArgType::Array(&ArgType::Int),
                optional: true,
                doc: "",
            },
            ArgSpec {
                name: "rate",
                kind: ArgType::Number,
                optional: true,
                doc: "",
            },
            ArgSpec {
                name: "force",
                kind: ArgType::Bool,
                optional: true,
                doc: "",
            },
        ],
        returns: "",
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
            "path": "p", "size": u64::MAX, "mode": "b", "nodes": [0, -1], "rate": 0.5, "force": true
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
