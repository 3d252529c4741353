//! What people in the guest are told, on the standard error.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// Writes a line. A line that can't be written is lost: the host hears of trouble too.
pub(crate) fn log(words: impl Display) {
    let _ = writeln!(io::stderr(), "guest-agent: {words}");
}
