//! Parsers for the human-readable texts that QMP has no typed form of.

mod gpa2hva;
mod ramblock;

pub use gpa2hva::{Gpa2Hva, ParseGpa2HvaError, parse_gpa2hva};
pub use ramblock::{ParseRamBlocksError, RamBlock, parse_ramblocks};

/// The start of a hostile text, made fit for an error message.
fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}
