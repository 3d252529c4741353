//! What a client gets for a command: an answer in JSON, or an error as QEMU words its own.

use qmp::QmpError;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// What a client gets.
pub(crate) type Answer = Result<Value, QmpError>;

/// An answer in JSON.
pub(crate) fn value(answer: impl Serialize) -> Answer {
    serde_json::to_value(answer).map_err(|error| QmpError::generic(error.to_string()))
}

/// Why an order can't be carried out.
pub(crate) fn refusal(error: &dyn std::error::Error) -> QmpError {
    QmpError::generic(sentence(&error.to_string()))
}

/// An error's text as QEMU begins its own.
pub(crate) fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

/// A command's arguments as their type. They have been checked against its specification.
pub(crate) fn typed<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, QmpError> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|error| QmpError::generic(format!("Invalid arguments: {error}")))
}
