//! From a message to bytes: one line of ASCII, as QEMU writes it.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;

/// The message as one line of ASCII JSON with no line ending.
///
/// # Errors
/// When `message` can't be JSON (a map with keys that are not strings).
pub fn encode_line(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(128);
    message.serialize(&mut serde_json::Serializer::with_formatter(
        &mut line, Ascii,
    ))?;
    Ok(line)
}

/// The message as one line of ASCII JSON ended by CR LF: the server's side of the wire, which
/// libvirt splits at CR LF.
///
/// # Errors
/// As [`encode_line`].
pub fn encode_crlf(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = encode_line(message)?;
    line.extend_from_slice(b"\r\n");
    Ok(line)
}

/// Compact JSON whose strings are ASCII: QMP promises it of the server.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !(' '..='~').contains(&c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let mut chars = rest[at..].chars();
            if let Some(special) = chars.next() {
                for unit in special.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}
