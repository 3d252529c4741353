//! Numbers and texts in payloads and traces: LEB128 varints, seven bits a byte, the lowest first.

use super::WireError;

/// The longest varint of 64 bits.
const MAX_BYTES: usize = 10;

/// Appends a number.
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a text with its length.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Maps small numbers of either sign to small numbers without one: 0, -1, 1, -2 … to 0, 1, 2, 3 …
#[must_use]
pub const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// The inverse of [`zigzag`].
#[must_use]
pub const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// Takes numbers off the front of a payload.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Bytes that were not taken yet.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.0.len()
    }

    /// One byte.
    ///
    /// # Errors
    /// [`WireError::Short`] at the end.
    pub fn byte(&mut self) -> Result<u8, WireError> {
        let (&first, rest) = self.0.split_first().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(first)
    }

    /// A number.
    ///
    /// # Errors
    /// [`WireError`] if it is cut or has more than 64 bits.
    pub fn number(&mut self) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for index in 0..MAX_BYTES {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // Nine bytes hold 63 bits; the tenth may add one.
            if index == MAX_BYTES - 1 && byte > 1 {
                break;
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::OutOfBounds("a number"))
    }

    /// A number that is at most `most`; `what` names it in the error.
    ///
    /// # Errors
    /// [`WireError`] if it is cut or greater.
    pub fn at_most(&mut self, most: u64, what: &'static str) -> Result<u64, WireError> {
        match self.number()? {
            value if value <= most => Ok(value),
            _ => Err(WireError::OutOfBounds(what)),
        }
    }

    /// A number of 32 bits that is at most `most`; `what` names it in the error.
    ///
    /// # Errors
    /// [`WireError`] if it is cut or greater.
    pub fn small(&mut self, most: u32, what: &'static str) -> Result<u32, WireError> {
        let value = self.at_most(u64::from(most), what)?;
        u32::try_from(value).map_err(|_| WireError::OutOfBounds(what))
    }

    /// A text of at most [`MAX_TEXT`](super::MAX_TEXT) bytes. What a terminal might take for more than a
    /// letter becomes a question mark: it will be printed.
    ///
    /// # Errors
    /// [`WireError`] if it is cut or longer.
    pub fn text(&mut self) -> Result<String, WireError> {
        let len = self.at_most(super::MAX_TEXT as u64, "a text's length")? as usize;
        let (text, rest) = self.0.split_at_checked(len).ok_or(WireError::Short)?;
        self.0 = rest;
        let shown = |&byte: &u8| {
            let plain = byte.is_ascii_graphic() || byte == b' ';
            if plain { char::from(byte) } else { '?' }
        };
        Ok(text.iter().map(shown).collect())
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`WireError::Trailing`] with the number of bytes left.
    pub const fn finish(self) -> Result<(), WireError> {
        match self.left() {
            0 => Ok(()),
            left => Err(WireError::Trailing(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_when_written_reads_back_the_same() {
        for value in [0, 1, 127, 128, 16_383, 16_384, 1 << 62, u64::MAX] {
            let mut out = Vec::new();
            put(&mut out, value);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.number(), Ok(value));
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn number_when_too_long_or_cut_is_refused() {
        assert_eq!(
            Reader::new(&[0xff; 20]).number(),
            Err(WireError::OutOfBounds("a number"))
        );
        assert_eq!(Reader::new(&[0x80, 0x80]).number(), Err(WireError::Short));
    }

    #[test]
    fn zigzag_when_undone_is_the_same() {
        for value in [0, 1, -1, 2, -2, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!((zigzag(-1), zigzag(1), zigzag(-2)), (1, 2, 3));
    }

    #[test]
    fn text_when_it_holds_control_characters_is_made_plain() {
        let mut out = Vec::new();
        put_text(&mut out, "6.12\x1b[2J\u{e9}");
        assert_eq!(Reader::new(&out).text().unwrap(), "6.12?[2J??");
    }
}
