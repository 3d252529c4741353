//! One message's bytes to a JSON value: strict, with QEMU's two liberties (single quotes and `\'`)
//! and its strictness about duplicate members.

use serde_json::{Map, Number, Value};

use super::{DecodeError, shorten};

/// Parses one message. The decoder has bounded its length and nesting, so recursion is bounded.
pub(super) fn message(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut parser = Parser { bytes, at: 0 };
    let value = parser.value()?;
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(DecodeError::Syntax("expecting end of message")),
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    /// The next byte that is not white space, not consumed.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at) == Some(&b' ') {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn value(&mut self) -> Result<Value, DecodeError> {
        match self.peek() {
            Some(b'{') => self.object(),
            Some(b'[') => self.array(),
            Some(b'"' | b'\'') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'a'..=b'z') => self.keyword(),
            _ => Err(DecodeError::Syntax("expecting value")),
        }
    }

    fn object(&mut self) -> Result<Value, DecodeError> {
        self.at += 1;
        let mut members = Map::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(members));
        }
        loop {
            if !matches!(self.peek(), Some(b'"' | b'\'')) {
                return Err(DecodeError::Syntax("key is not a string in object"));
            }
            let key = self.string()?;
            if self.peek() != Some(b':') {
                return Err(DecodeError::Syntax("missing : in object pair"));
            }
            self.at += 1;
            let value = self.value()?;
            if members.contains_key(&key) {
                return Err(DecodeError::DuplicateKey(shorten(&key)));
            }
            members.insert(key, value);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(members));
                }
                _ => return Err(DecodeError::Syntax("expected separator in dict")),
            }
        }
    }

    fn array(&mut self) -> Result<Value, DecodeError> {
        self.at += 1;
        let mut items = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(DecodeError::Syntax("expected separator in list")),
            }
        }
    }

    fn word(&mut self, accept: impl Fn(u8) -> bool) -> &'a str {
        let rest = &self.bytes[self.at..];
        let len = rest
            .iter()
            .position(|&byte| !accept(byte))
            .unwrap_or(rest.len());
        self.at += len;
        // Both callers accept ASCII only.
        str::from_utf8(&rest[..len]).unwrap_or_default()
    }

    fn keyword(&mut self) -> Result<Value, DecodeError> {
        match self.word(|byte| byte.is_ascii_lowercase()) {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "null" => Ok(Value::Null),
            word => Err(DecodeError::Keyword(shorten(word))),
        }
    }

    /// Integers stay exact in `i64` and `u64`; beyond both, and with a fraction or exponent, the
    /// nearest double is taken, as QEMU does.
    fn number(&mut self) -> Result<Value, DecodeError> {
        const BAD: DecodeError = DecodeError::Syntax("invalid number");
        let word = self.word(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
        let digits = word.strip_prefix('-').unwrap_or(word).as_bytes();
        // RFC 8259: a digit first, and nothing after a leading zero but a fraction or exponent.
        match digits {
            [b'0', b'0'..=b'9', ..] => return Err(BAD),
            [b'0'..=b'9', ..] => {}
            _ => return Err(BAD),
        }
        if digits.iter().all(u8::is_ascii_digit) {
            if let Ok(number) = word.parse::<i64>() {
                return Ok(Value::Number(number.into()));
            }
            if let Ok(number) = word.parse::<u64>() {
                return Ok(Value::Number(number.into()));
            }
        } else {
            // `str::parse` takes "1." and "1.e5", JSON doesn't.
            let dot = digits.iter().position(|&byte| byte == b'.');
            let after = dot.map(|at| digits.get(at + 1).is_some_and(u8::is_ascii_digit));
            if after == Some(false) {
                return Err(BAD);
            }
        }
        let number = word.parse::<f64>().ok().and_then(Number::from_f64);
        number.map(Value::Number).ok_or(BAD)
    }

    fn string(&mut self) -> Result<String, DecodeError> {
        const CUT: DecodeError = DecodeError::Syntax("premature end of string");
        let quote = self.bytes[self.at];
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = &self.bytes[self.at..];
            let len = rest
                .iter()
                .position(|&byte| byte == quote || byte == b'\\')
                .ok_or(CUT)?;
            let plain = str::from_utf8(&rest[..len])
                .map_err(|_| DecodeError::Syntax("invalid UTF-8 sequence in string"))?;
            if !plain.is_ascii() && plain.chars().any(is_noncharacter) {
                return Err(DecodeError::Syntax("invalid UTF-8 sequence in string"));
            }
            text.push_str(plain);
            self.at += len + 1;
            if rest[len] == quote {
                return Ok(text);
            }
            let escape = *self.bytes.get(self.at).ok_or(CUT)?;
            self.at += 1;
            text.push(match escape {
                b'"' | b'\'' | b'\\' | b'/' => char::from(escape),
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'u' => self.unicode()?,
                _ => return Err(DecodeError::Syntax("invalid escape sequence in string")),
            });
        }
    }

    /// A `\u` escape, the `\u` already consumed; a surrogate pair is one character.
    fn unicode(&mut self) -> Result<char, DecodeError> {
        const LONE: DecodeError = DecodeError::Syntax("escape is not a valid Unicode character");
        let first = self.hex4()?;
        let code = match first {
            0xD800..0xDC00 => {
                if self.bytes.get(self.at..self.at + 2) != Some(b"\\u") {
                    return Err(LONE);
                }
                self.at += 2;
                let second = self.hex4()?;
                if !(0xDC00..0xE000).contains(&second) {
                    return Err(LONE);
                }
                0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            }
            code => code,
        };
        char::from_u32(code)
            .filter(|&code| !is_noncharacter(code))
            .ok_or(LONE)
    }

    fn hex4(&mut self) -> Result<u32, DecodeError> {
        const BAD: DecodeError = DecodeError::Syntax("invalid hex escape in string");
        let digits = self.bytes.get(self.at..self.at + 4).ok_or(BAD)?;
        self.at += 4;
        digits.iter().try_fold(0, |code, &digit| {
            let digit = char::from(digit).to_digit(16).ok_or(BAD)?;
            Ok(code << 4 | digit)
        })
    }
}

/// Code points that Unicode keeps free for ever; QEMU refuses them (`util/unicode.c`), so a proxy
/// must not pass them on.
fn is_noncharacter(code: char) -> bool {
    let code = u32::from(code);
    (0xFDD0..0xFDF0).contains(&code) || code & 0xFFFE == 0xFFFE
}
