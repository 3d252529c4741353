//! From bytes to messages, with QEMU's rules for getting back in step after an error.

use serde_json::Value;

use super::{DecodeError, Limits, MAX_NESTING, parse};

/// A streaming decoder: bytes in by [`push`](Self::push), messages out by
/// [`next_message`](Self::next_message), however the bytes were split.
///
/// # After an error
/// A byte that fits nowhere ends the message begun; the decoder then passes over everything up to
/// a bracket, comma, colon, line ending, or byte 0xFE or 0xFF, as QEMU does
/// (`qobject/json-lexer.c`). Unlike QEMU it tells one error for one broken message: what is left
/// of it on the same line is passed over in silence, except that an object is always taken for a
/// message, so that none is lost. A message beyond the limits is passed over up to its own end.
/// Byte 0xFF brings the decoder back to the beginning of a message from any state.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    /// Bytes not yet looked at: `input[at..]`.
    input: Vec<u8>,
    at: usize,
    /// The message begun, white space folded.
    message: Vec<u8>,
    state: State,
    /// Open minus closed braces and brackets of the message begun.
    braces: isize,
    brackets: isize,
    tokens: usize,
    /// The message begun broke a limit: follow it to its end, keep nothing.
    skipping: bool,
    /// A broken message was told of and its line has not ended.
    quiet: bool,
    /// Brackets that a broken message left open: as many closing ones are its rest.
    residue: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between tokens.
    Start,
    String {
        quote: u8,
        escaped: bool,
    },
    Number,
    Keyword,
    /// After a stray byte.
    Recovery,
}

/// What one byte did.
struct Step {
    /// The byte must be looked at again, in the new state.
    again: bool,
    output: Option<Result<Value, DecodeError>>,
}

impl Step {
    const NONE: Self = Self {
        again: false,
        output: None,
    };
}

impl Decoder {
    /// A decoder that holds no more than `limits` allow, plus what one [`push`](Self::push) brings.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let nesting = limits.nesting.min(MAX_NESTING);
        Self {
            limits: Limits { nesting, ..limits },
            input: Vec::new(),
            at: 0,
            message: Vec::new(),
            state: State::Start,
            braces: 0,
            brackets: 0,
            tokens: 0,
            skipping: false,
            quiet: false,
            residue: 0,
        }
    }

    /// Takes bytes as they came from the peer. Call [`next_message`](Self::next_message) until it
    /// gives `None` before the next `push`, or input piles up.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.drain(..self.at);
        self.at = 0;
        self.input.extend_from_slice(bytes);
    }

    /// The next complete message or error; `None` when more bytes are needed.
    ///
    /// Any JSON value is a message here (QEMU answers a bare number with an error of its own). A
    /// bare number or word is complete only with the byte that follows it.
    pub fn next_message(&mut self) -> Option<Result<Value, DecodeError>> {
        while let Some(&byte) = self.input.get(self.at) {
            let step = self.step(byte);
            self.at += usize::from(!step.again);
            if step.output.is_some() {
                return step.output;
            }
        }
        None
    }

    /// Whether a message has begun and not ended.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.skipping || !self.message.is_empty() || self.at < self.input.len()
    }

    fn step(&mut self, byte: u8) -> Step {
        match self.state {
            State::Start => self.start(byte),
            State::String { quote, escaped } => self.string(byte, quote, escaped),
            State::Number => match byte {
                b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E' => self.keep(byte),
                _ => Step {
                    again: true,
                    ..self.end_token()
                },
            },
            State::Keyword => match byte {
                b'a'..=b'z' => self.keep(byte),
                _ => Step {
                    again: true,
                    ..self.end_token()
                },
            },
            State::Recovery => match byte {
                b'{' | b'}' | b'[' | b']' | b',' | b':' | 0xFE | 0xFF => self.resume(),
                b'\t' => Step::NONE,
                0..0x20 => self.resume(),
                _ => Step::NONE,
            },
        }
    }

    fn resume(&mut self) -> Step {
        self.state = State::Start;
        Step {
            again: true,
            output: None,
        }
    }

    fn start(&mut self, byte: u8) -> Step {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                if self.message.is_empty() {
                    if matches!(byte, b'\r' | b'\n') {
                        self.in_step();
                    }
                    return Step::NONE;
                }
                // Kept, for it separates tokens; folded, for it costs nothing then.
                if self.message.last() == Some(&b' ') {
                    Step::NONE
                } else {
                    self.keep(b' ')
                }
            }
            b'{' | b'[' => {
                let count = if byte == b'{' {
                    &mut self.braces
                } else {
                    &mut self.brackets
                };
                *count += 1;
                if self.depth() > self.limits.nesting && !self.skipping {
                    return self.over(DecodeError::TooDeep {
                        limit: self.limits.nesting,
                    });
                }
                self.keep_token(byte)
            }
            b'}' | b']' => {
                if self.message.is_empty() && !self.skipping && self.residue > 0 {
                    self.residue -= 1;
                    self.quiet &= self.residue > 0;
                    return Step::NONE;
                }
                let count = if byte == b'}' {
                    &mut self.braces
                } else {
                    &mut self.brackets
                };
                *count -= 1;
                self.keep_token(byte)
            }
            b',' | b':' => self.keep_token(byte),
            b'"' | b'\'' => self.begin(
                State::String {
                    quote: byte,
                    escaped: false,
                },
                byte,
            ),
            b'-' | b'0'..=b'9' => self.begin(State::Number, byte),
            b'a'..=b'z' => self.begin(State::Keyword, byte),
            _ => self.stray(byte),
        }
    }

    fn string(&mut self, byte: u8, quote: u8, escaped: bool) -> Step {
        match byte {
            0..0x20 | 0xFE | 0xFF => self.stray(byte),
            _ if escaped => self.begin(
                State::String {
                    quote,
                    escaped: false,
                },
                byte,
            ),
            b'\\' => self.begin(
                State::String {
                    quote,
                    escaped: true,
                },
                byte,
            ),
            _ if byte == quote => self.keep_token(byte),
            _ => self.keep(byte),
        }
    }

    fn begin(&mut self, state: State, byte: u8) -> Step {
        self.state = state;
        self.keep(byte)
    }

    /// Appends a byte to the message begun.
    fn keep(&mut self, byte: u8) -> Step {
        if self.skipping {
            return Step::NONE;
        }
        if self.message.len() >= self.limits.message_bytes {
            return self.over(DecodeError::TooLong {
                limit: self.limits.message_bytes,
            });
        }
        self.message.push(byte);
        Step::NONE
    }

    /// Appends the last byte of a token.
    fn keep_token(&mut self, byte: u8) -> Step {
        let Step { output: None, .. } = self.keep(byte) else {
            // The limit fell on this very byte; the error stands for the token too.
            let limit = self.limits.message_bytes;
            self.state = State::Start;
            self.end_skipped();
            return Step {
                again: false,
                output: Some(Err(DecodeError::TooLong { limit })),
            };
        };
        self.end_token()
    }

    fn end_token(&mut self) -> Step {
        self.state = State::Start;
        if self.skipping {
            self.end_skipped();
            return Step::NONE;
        }
        self.tokens += 1;
        if self.tokens > self.limits.tokens {
            let step = self.over(DecodeError::TooManyTokens {
                limit: self.limits.tokens,
            });
            self.end_skipped();
            return step;
        }
        if self.is_open() {
            return Step::NONE;
        }
        let result = parse::message(&self.message);
        self.residue += self.depth();
        self.forget();
        let muted = self.quiet || self.residue > 0;
        match result {
            Ok(object @ Value::Object(_)) => {
                self.quiet &= self.residue > 0;
                Step {
                    again: false,
                    output: Some(Ok(object)),
                }
            }
            // The residue of this very message mutes what follows, not the error itself.
            Err(error) if !self.quiet => {
                self.quiet = self.residue > 0;
                Step {
                    again: false,
                    output: Some(Err(error)),
                }
            }
            Ok(value) if !muted => Step {
                again: false,
                output: Some(Ok(value)),
            },
            _ => Step::NONE,
        }
    }

    /// Whether the message begun needs more tokens; QEMU's test, so that `[}` ends at once.
    fn is_open(&self) -> bool {
        (self.braces > 0 || self.brackets > 0) && self.braces >= 0 && self.brackets >= 0
    }

    fn depth(&self) -> usize {
        self.braces.max(0).unsigned_abs() + self.brackets.max(0).unsigned_abs()
    }

    /// The message begun broke a limit.
    fn over(&mut self, error: DecodeError) -> Step {
        self.skipping = true;
        self.message = Vec::new();
        let output = (!self.quiet).then_some(Err(error));
        Step {
            again: false,
            output,
        }
    }

    /// Ends the passing-over if the message ended.
    fn end_skipped(&mut self) {
        if self.skipping && !self.is_open() {
            self.residue += self.depth();
            self.quiet |= self.residue > 0;
            self.forget();
        }
    }

    fn stray(&mut self, byte: u8) -> Step {
        // A peer that asks for a fresh start waits for the error, whatever came before.
        let fresh = byte >= 0xFE;
        let told = self.quiet || self.skipping;
        let output = (fresh || !told).then_some(Err(DecodeError::Stray { byte }));
        self.residue += self.depth();
        self.quiet = true;
        self.forget();
        self.state = State::Recovery;
        if fresh || (byte < 0x20 && byte != b'\t') {
            self.in_step();
        }
        Step {
            again: false,
            output,
        }
    }

    /// A line ended, or the peer asked for a fresh start: what follows is no rest of anything.
    fn in_step(&mut self) {
        self.quiet = false;
        self.residue = 0;
    }

    fn forget(&mut self) {
        self.message.clear();
        // One huge message must not pin its memory for the life of the connection.
        self.message.shrink_to(64 << 10);
        self.braces = 0;
        self.brackets = 0;
        self.tokens = 0;
        self.skipping = false;
    }
}
