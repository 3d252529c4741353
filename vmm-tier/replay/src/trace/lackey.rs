//! What valgrind prints with `--tool=lackey --trace-mem=yes`.
//!
//! ```text
//! ==1234== Command: ls        valgrind's own words
//! I  04001000,3               an instruction is fetched: 3 bytes
//!  L 1fff000718,8             a load of 8 bytes
//!  S 1fff000710,8             a store
//!  M 0421c7cc,4               a load and a store of the same bytes: counts as a store
//! ```
//!
//! Addresses are hexadecimal, and those of the program: virtual. Valgrind's words may be put before each
//! line by `--log-file` in a program that forks; only whole lines are read. There is no clock.

use tier_core::sample::AccessKind;

use super::csv::{hexadecimal, shown};

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LackeyLine {
    Access(u64, AccessKind),
    /// An instruction is fetched.
    Fetch,
    /// Words of valgrind, or nothing.
    Other,
    Broken(String),
}

/// Reads a line without its end.
#[inline]
pub(super) fn line(line: &[u8]) -> LackeyLine {
    let kind = match line {
        [b'I', b' ', b' ', ..] => None,
        [b' ', b'L', b' ', ..] => Some(AccessKind::Load),
        [b' ', b'S' | b'M', b' ', ..] => Some(AccessKind::Store),
        [] | [b'=', b'=', ..] | [b'-', b'-', ..] | [b'*', b'*', ..] => return LackeyLine::Other,
        _ => return broken(line),
    };
    let Some(comma) = line.iter().rposition(|&byte| byte == b',') else {
        return broken(line);
    };
    let size = &line[comma + 1..];
    let is_size = !size.is_empty() && size.iter().all(u8::is_ascii_digit);
    let address = hexadecimal(&line[3..comma]).filter(|&address| address < u64::MAX);
    match (address, kind) {
        (Some(_), None) if is_size => LackeyLine::Fetch,
        (Some(address), Some(kind)) if is_size => LackeyLine::Access(address, kind),
        _ => broken(line),
    }
}

#[cold]
fn broken(line: &[u8]) -> LackeyLine {
    LackeyLine::Broken(format!(
        "{} is no line of valgrind --tool=lackey --trace-mem=yes",
        shown(line)
    ))
}
