//! Lines `time_ns,address,kind`.
//!
//! The time is in nanoseconds of any clock and never goes back. The address is decimal, or hexadecimal
//! behind `0x`. The kind is `load`, `store` or `any`, or `l`, `r`, `s`, `w`, `a`; without one it is
//! `any`. The first line may name the columns. Comments begin with `#`.

use tier_core::{sample::AccessKind, time::Time};

use crate::machine::Access;

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CsvLine {
    Access(Access),
    /// A comment, or an empty line.
    Nothing,
    Broken(String),
}

/// Whether a line may be the one that names the columns: it begins with a letter.
pub(super) fn is_header(line: &[u8]) -> bool {
    let fields = line.split(|&byte| byte == b',').count();
    (2..=3).contains(&fields)
        && line
            .trim_ascii_start()
            .first()
            .is_some_and(u8::is_ascii_alphabetic)
}

/// Reads a line without its end.
pub(super) fn line(line: &[u8]) -> CsvLine {
    let line = line.trim_ascii();
    if line.is_empty() || line[0] == b'#' {
        return CsvLine::Nothing;
    }
    match access(line) {
        Ok(access) => CsvLine::Access(access),
        Err(reason) => CsvLine::Broken(reason),
    }
}

fn access(line: &[u8]) -> Result<Access, String> {
    let mut fields = line.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let time = fields.next().unwrap_or_default();
    let Some(address) = fields.next() else {
        return Err(format!("{} is no line 'time_ns,address,kind'", shown(line)));
    };
    let kind = fields.next().unwrap_or(b"any");
    if fields.next().is_some() {
        return Err(format!("{} has more than three fields", shown(line)));
    }
    let at = decimal(time).ok_or_else(|| format!("{} is no time in nanoseconds", shown(time)))?;
    let digits = address.strip_prefix(b"0x");
    let number = match digits.or_else(|| address.strip_prefix(b"0X")) {
        Some(digits) => hexadecimal(digits),
        None => decimal(address),
    };
    let address = number
        .filter(|&address| address < u64::MAX)
        .ok_or_else(|| format!("{} is no address such as 4096 or 0x1000", shown(address)))?;
    let kind = match kind.to_ascii_lowercase().as_slice() {
        b"load" | b"l" | b"r" | b"read" => AccessKind::Load,
        b"store" | b"s" | b"w" | b"write" => AccessKind::Store,
        b"any" | b"a" | b"" => AccessKind::Any,
        _ => return Err(format!("{} is none of load, store, any", shown(kind))),
    };
    Ok(Access {
        at: Time(at),
        address,
        len: 1,
        weight: 1,
        kind,
    })
}

/// Some of a text that may be anything, for people.
pub(super) fn shown(text: &[u8]) -> String {
    const MOST: usize = 40;
    let more = if text.len() > MOST { "…" } else { "" };
    format!("'{}{more}'", text[..text.len().min(MOST)].escape_ascii())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let digit = |digit: &u8| digit.is_ascii_digit().then(|| u64::from(digit - b'0'));
    number(digits, 10, digit)
}

pub(super) fn hexadecimal(digits: &[u8]) -> Option<u64> {
    number(digits, 16, |&digit| {
        char::from(digit).to_digit(16).map(u64::from)
    })
}

#[inline]
fn number(digits: &[u8], base: u64, digit: impl Fn(&u8) -> Option<u64>) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        number.checked_mul(base)?.checked_add(digit(byte)?)
    })
}
