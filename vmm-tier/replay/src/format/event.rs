//! What stands between accesses: the ends of batches, marks, and memory that came.

use std::{collections::BTreeMap, time::Duration};

use tier_core::{
    sample::{DropReason, SampleAccount, SourceKind},
    time::Time,
    wire::{
        WireError,
        varint::{Reader, put, put_text},
    },
};

use super::{
    MAX_TEXT,
    ranges::{self, TraceRange},
};

/// Sources by their number in traces: new ones go to the end. A source that is gone keeps its number,
/// with its name as the error.
const SOURCES: [Result<SourceKind, &str>; 7] = [
    Ok(SourceKind::Damon),
    Ok(SourceKind::Ibs),
    Ok(SourceKind::Pebs),
    Ok(SourceKind::Guest),
    Err("kvm-faults"),
    Err("host-faults"),
    Ok(SourceKind::Replay),
];
/// Reasons by their number in traces: new ones go to the end.
const REASONS: [DropReason; 12] = [
    DropReason::Malformed,
    DropReason::ForeignTarget,
    DropReason::NotGuestRam,
    DropReason::StaleMap,
    DropReason::QueueFull,
    DropReason::Paused,
    DropReason::NoAddress,
    DropReason::WrongMode,
    DropReason::Unmapped,
    DropReason::Hostile,
    DropReason::RateLimited,
    DropReason::OutOfSequence,
];

/// No source loses more in a batch; whoever adds up batches of a file must not overflow.
const MOST_LOST: u64 = 1 << 32;

pub(super) fn source_number(kind: SourceKind) -> u64 {
    position(&SOURCES, &Ok(kind))
}

/// The source with this number; the name of one that is gone as the error.
pub(super) fn source(number: u64) -> Option<Result<SourceKind, &'static str>> {
    SOURCES.get(usize::try_from(number).ok()?).copied()
}

/// The number of something that a test knows to be in the table.
fn position<T: PartialEq>(table: &[T], thing: &T) -> u64 {
    let found = table.iter().position(|other| other == thing);
    found.unwrap_or(table.len()) as u64
}

/// Where a batch of a live source ended: its samples are the accesses since the batch before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchEnd {
    /// Who observed.
    pub source: SourceKind,
    /// When the observation ended.
    pub end: Time,
    /// How long was observed.
    pub span: Duration,
    /// How often each page was tested; 0 for a source that counts accesses.
    pub tests: u32,
    /// The accesses that one count stands for.
    pub period: u64,
    /// Whether the source had found its pace.
    pub settled: bool,
    /// What the source lost and dropped. Its `samples` are those that were dropped.
    pub account: SampleAccount,
}

/// Something that changed, for people and for reports: a phase of the workload, a new memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub at: Time,
    /// What, in at most [`MAX_TEXT`] bytes of ASCII.
    pub text: String,
}

/// What stands between two accesses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A batch ended.
    Batch(BatchEnd),
    /// Something changed.
    Mark(Mark),
    /// The guest was given memory of which the trace did not tell so far. Memory that it loses is not
    /// told of: it is no longer accessed.
    Plugged(Vec<TraceRange>),
}

/// A text as a trace has it: short, and of letters that a terminal shows as they are.
pub(super) fn plain(text: &str) -> String {
    let shown = |letter: char| {
        let is_plain = letter.is_ascii_graphic() || letter == ' ';
        if is_plain { letter } else { '?' }
    };
    text.chars().take(MAX_TEXT).map(shown).collect()
}

/// Nanoseconds, 584 years at most.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Mark {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put(out, self.at.0);
        put_text(out, &plain(&self.text));
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            at: Time(reader.number()?),
            text: reader.text()?,
        })
    }
}

impl Event {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Batch(batch) => {
                out.push(0);
                put(out, source_number(batch.source));
                put(out, batch.end.0);
                put(out, nanos(batch.span));
                put(out, u64::from(batch.tests));
                put(out, batch.period);
                put(out, u64::from(batch.settled));
                put_account(out, &batch.account);
            }
            Self::Mark(mark) => {
                out.push(1);
                mark.put(out);
            }
            Self::Plugged(ranges) => {
                out.push(2);
                ranges::put_all(out, ranges);
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.byte()? {
            0 => {
                let number = reader.number()?;
                let known = source(number).ok_or(WireError::OutOfBounds("a source"))?;
                let gone = |_| WireError::OutOfBounds("a batch is of kvm-faults or host-faults");
                let source = known.map_err(gone)?;
                Ok(Self::Batch(BatchEnd {
                    source,
                    end: Time(reader.number()?),
                    span: Duration::from_nanos(reader.number()?),
                    tests: reader.small(u32::MAX, "the number of tests")?,
                    period: reader.number()?.max(1),
                    settled: reader.at_most(1, "whether a source is settled")? == 1,
                    account: read_account(reader, MOST_LOST)?,
                }))
            }
            1 => Ok(Self::Mark(Mark::read(reader)?)),
            2 => Ok(Self::Plugged(ranges::read_all(reader)?)),
            _ => Err(WireError::OutOfBounds("the kind of an event")),
        }
    }
}

pub(super) fn put_account(out: &mut Vec<u8>, account: &SampleAccount) {
    put(out, account.lost);
    put(out, account.throttled);
    put(out, account.dropped.len() as u64);
    for (reason, &n) in &account.dropped {
        put(out, position(&REASONS, reason));
        put(out, n);
    }
}

/// The account of what was lost and dropped, none of its numbers above `most`.
pub(super) fn read_account(reader: &mut Reader<'_>, most: u64) -> Result<SampleAccount, WireError> {
    let lost = reader.at_most(most, "a number of losses")?;
    let throttled = reader.at_most(most, "a number of losses")?;
    let count = reader.small(REASONS.len() as u32, "the number of drop reasons")?;
    let mut dropped = BTreeMap::new();
    let mut samples = 0_u64;
    for _ in 0..count {
        let number = reader.small(REASONS.len() as u32 - 1, "a drop reason")?;
        let n = reader.at_most(most, "a number of drops")?;
        samples = samples
            .checked_add(n)
            .ok_or(WireError::OutOfBounds("a number of drops"))?;
        if dropped.insert(REASONS[number as usize], n).is_some() {
            return Err(WireError::OutOfBounds("a drop reason"));
        }
    }
    Ok(SampleAccount {
        samples,
        accepted: 0,
        dropped,
        lost,
        throttled,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_when_it_exists_has_a_number_in_traces() {
        for kind in SourceKind::ALL {
            assert_eq!(source(source_number(kind)), Some(Ok(kind)));
        }
        assert_eq!(source(SOURCES.len() as u64), None);
    }

    #[test]
    fn reason_when_it_exists_has_a_number_in_traces() {
        // `OutOfSequence` is the last there is.
        assert_eq!(REASONS.len(), DropReason::OutOfSequence as usize + 1);
        for reason in REASONS {
            assert!((position(&REASONS, &reason) as usize) < REASONS.len());
        }
    }
}
