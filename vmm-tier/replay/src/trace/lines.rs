//! Traces that are lines of text.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use tier_core::time::Time;

use super::{
    Counts, TraceError,
    csv::{self, CsvLine},
    format::{Input, read_line},
    lackey::{self, LackeyLine},
};
use crate::machine::Access;

/// Accesses handed on at a time.
const BLOCK: usize = 8192;
/// The longest line that is looked at: 64-bit numbers take less.
const LONGEST: usize = 4096;

/// How lines are written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Syntax {
    Csv,
    /// Each access takes this many nanoseconds.
    Lackey(u64),
}

impl Syntax {
    pub(super) fn lackey(step: Duration) -> Self {
        Self::Lackey(u64::try_from(step.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// See the [module](self).
pub(super) struct Lines {
    path: PathBuf,
    input: Input,
    syntax: Syntax,
    line: Vec<u8>,
    number: u64,
    position: u64,
    last: Option<u64>,
    counts: Counts,
    /// Whether the line that was read last has an end.
    has_end: bool,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("path", &self.path)
            .field("syntax", &self.syntax)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Lines {
    pub(super) fn new(path: &Path, input: Input, syntax: Syntax) -> Self {
        Self {
            path: path.to_owned(),
            input,
            syntax,
            line: Vec::new(),
            number: 0,
            position: 0,
            last: None,
            counts: Counts::default(),
            has_end: true,
        }
    }

    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// Whether the file may have been cut.
    pub(super) fn doubt(&self) -> Option<String> {
        let Self {
            number, position, ..
        } = self;
        (!self.has_end).then(|| {
            format!(
                "line {number} has no end at byte {position}, the last of the file: if that was cut, its last access \
                 may be another"
            )
        })
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, TraceError> {
        let wanted = out.len() + BLOCK;
        while out.len() < wanted {
            let start = self.position;
            let read = read_line(&mut self.input, LONGEST, &mut self.line);
            let bytes = read.map_err(|source| TraceError::Read {
                path: self.path.clone(),
                offset: self.position,
                source,
            })?;
            if bytes == 0 {
                return match self.counts.accesses {
                    0 => Err(TraceError::NoAccess {
                        path: self.path.clone(),
                        bytes: self.position,
                    }),
                    _ => Ok(false),
                };
            }
            self.number += 1;
            self.position += bytes as u64;
            self.has_end = bytes > self.line.len();
            let access = self.access().map_err(|reason| TraceError::Line {
                path: self.path.clone(),
                line: self.number,
                offset: start,
                reason,
            })?;
            if let Some(access) = access {
                self.last = Some(access.at.0);
                self.counts.accesses += 1;
                out.push(access);
            }
        }
        Ok(true)
    }

    /// The access that the line tells of, if it does.
    fn access(&mut self) -> Result<Option<Access>, String> {
        let line = match self.line.as_slice() {
            [line @ .., b'\r'] => line,
            line => line,
        };
        match self.syntax {
            Syntax::Csv => match csv::line(line) {
                CsvLine::Access(access) => match self.last {
                    Some(last) if access.at.0 < last => Err(format!(
                        "time goes back: {} ns stands behind {last} ns; sort the lines by time (sort -s -n -t, -k1,1)",
                        access.at.0
                    )),
                    _ => Ok(Some(access)),
                },
                CsvLine::Nothing => {
                    self.counts.other_lines += 1;
                    Ok(None)
                }
                CsvLine::Broken(_) if self.names_columns(line) => {
                    self.counts.other_lines += 1;
                    Ok(None)
                }
                CsvLine::Broken(reason) => Err(reason),
            },
            Syntax::Lackey(step) => match lackey::line(line) {
                LackeyLine::Access(address, kind) => {
                    let at = self.last.map_or(Some(0), |last| last.checked_add(step));
                    let at =
                        at.ok_or("the clock has no room for that many steps of that length")?;
                    Ok(Some(Access {
                        at: Time(at),
                        address,
                        len: 1,
                        weight: 1,
                        kind,
                    }))
                }
                LackeyLine::Fetch => {
                    self.counts.fetches += 1;
                    Ok(None)
                }
                LackeyLine::Other => {
                    self.counts.other_lines += 1;
                    Ok(None)
                }
                LackeyLine::Broken(reason) => Err(reason),
            },
        }
    }

    /// Whether the line is the first but for comments, and begins with a word.
    fn names_columns(&self, line: &[u8]) -> bool {
        self.number == self.counts.other_lines + 1 && csv::is_header(line)
    }
}
