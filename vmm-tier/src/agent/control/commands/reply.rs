//! What a client gets for a command: an answer in JSON, or an error as QEMU words its own.

use qmp::QmpError;
use serde::Serialize;

use super::Answer;

/// An answer in JSON.
pub(super) fn value(answer: impl Serialize) -> Answer {
    serde_json::to_value(answer).map_err(|error| QmpError::generic(error.to_string()))
}

/// Why an order can't be carried out.
pub(super) fn refusal(error: &dyn std::error::Error) -> QmpError {
    QmpError::generic(sentence(&error.to_string()))
}

/// An error's text as QEMU begins its own.
pub(super) fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}
