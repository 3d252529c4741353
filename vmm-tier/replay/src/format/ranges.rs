//! The guest's memory as a trace names it.

use tier_core::{
    map::MAX_RANGES,
    wire::{
        WireError,
        varint::{Reader, put},
    },
};

/// A run of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRange {
    /// Its first address.
    pub gpa: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The size of the pages that back it, in bytes: a power of two.
    pub page_size: u64,
}

impl TraceRange {
    /// Whether an address lies in it.
    #[must_use]
    pub const fn contains(&self, address: u64) -> bool {
        address >= self.gpa && address - self.gpa < self.len
    }

    /// The part from one address to another, which lie in it or at its ends.
    const fn part(&self, from: u64, to: u64) -> Self {
        Self {
            gpa: from,
            len: to - from,
            page_size: self.page_size,
        }
    }
}

/// What is wrong with ranges, if anything is.
pub(super) fn check(ranges: &[TraceRange]) -> Result<(), &'static str> {
    if ranges.len() > MAX_RANGES {
        return Err("the number of ranges");
    }
    let mut end = 0;
    for range in ranges {
        if range.gpa < end {
            return Err("the order of ranges");
        }
        if range.len == 0 || !range.page_size.is_power_of_two() || range.page_size < 4096 {
            return Err("a range's length or page size");
        }
        end = range.gpa.checked_add(range.len).ok_or("a range's end")?;
    }
    Ok(())
}

/// Writes ranges that were [checked](check).
pub(super) fn put_all(out: &mut Vec<u8>, ranges: &[TraceRange]) {
    put(out, ranges.len() as u64);
    let mut end = 0;
    for range in ranges {
        put(out, range.gpa - end);
        put(out, range.len);
        put(out, u64::from(range.page_size.trailing_zeros()));
        end = range.gpa + range.len;
    }
}

/// Reads ranges and checks them.
pub(super) fn read_all(reader: &mut Reader<'_>) -> Result<Vec<TraceRange>, WireError> {
    let count = reader.small(MAX_RANGES as u32, "the number of ranges")?;
    let mut ranges = Vec::new();
    let mut end = 0_u64;
    for _ in 0..count {
        let (gap, len) = (reader.number()?, reader.number()?);
        let shift = reader.small(62, "a page size")?;
        let gpa = end.checked_add(gap);
        let gpa = gpa.ok_or(WireError::OutOfBounds("a range's start"))?;
        let after = gpa.checked_add(len);
        end = after.ok_or(WireError::OutOfBounds("a range's end"))?;
        ranges.push(TraceRange {
            gpa,
            len,
            page_size: 1 << shift,
        });
    }
    check(&ranges).map_err(WireError::OutOfBounds)?;
    Ok(ranges)
}

/// The parts of `now` of which nothing is known. Both stand in order of address.
pub(super) fn unknown(now: &[TraceRange], known: &[TraceRange]) -> Vec<TraceRange> {
    let mut parts = Vec::new();
    for range in now {
        let (mut from, end) = (range.gpa, range.gpa + range.len);
        let after = known.partition_point(|other| other.gpa + other.len <= from);
        for other in known[after..].iter().take_while(|other| other.gpa < end) {
            if from < other.gpa {
                parts.push(range.part(from, other.gpa));
            }
            from = other.gpa + other.len;
        }
        if from < end {
            parts.push(range.part(from, end));
        }
    }
    parts
}

/// Adds ranges to those that are known, in order of address; nothing is added if they overlap or are too
/// many.
pub(super) fn join(known: &mut Vec<TraceRange>, more: &[TraceRange]) -> Result<(), &'static str> {
    let mut all = [known.as_slice(), more].concat();
    all.sort_by_key(|range| range.gpa);
    check(&all)?;
    *known = all;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(gpa: u64, end: u64) -> TraceRange {
        TraceRange {
            gpa,
            len: end - gpa,
            page_size: 4096,
        }
    }

    #[test]
    fn memory_when_some_of_it_is_known_is_new_in_between() {
        let known = [range(10, 20), range(30, 40), range(40, 50)];
        let now = [range(0, 5), range(15, 35), range(45, 60)];
        let new = unknown(&now, &known);
        assert_eq!(new, [range(0, 5), range(20, 30), range(50, 60)]);
        assert_eq!(unknown(&known, &known), []);
        assert_eq!(unknown(&now, &[]), now);
        let mut all = known.to_vec();
        join(&mut all, &new).unwrap();
        assert_eq!(unknown(&now, &all), []);
        assert!(all.is_sorted_by_key(|range| range.gpa) && all.len() == 6);
    }

    #[test]
    fn memory_when_it_overlaps_is_not_joined() {
        let mut known = vec![range(10, 20)];
        assert_eq!(
            join(&mut known, &[range(19, 30)]),
            Err("the order of ranges")
        );
        assert_eq!(known, [range(10, 20)]);
        let many: Vec<_> = (2..=MAX_RANGES as u64 + 1)
            .map(|i| range(i * 10, i * 10 + 1))
            .collect();
        assert_eq!(join(&mut known, &many), Err("the number of ranges"));
    }
}
