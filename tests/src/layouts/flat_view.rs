//! QEMU's whole view of guest-physical memory, from the text of `info mtree -f`.

/// A piece of memory that the CPUs see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) gpa: u64,
    pub(super) len: u64,
    /// The memory region's name, without its path.
    pub(super) region: String,
    /// Where the piece begins in the region.
    pub(super) offset: u64,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.gpa.saturating_add(self.len)
    }

    /// The part from `gpa` up, if any.
    pub(super) fn from(&self, gpa: u64) -> Option<Self> {
        let below = gpa.saturating_sub(self.gpa);
        (below < self.len).then(|| Self {
            gpa: self.gpa + below,
            len: self.len - below,
            region: self.region.clone(),
            offset: self.offset + below,
        })
    }
}

/// The last part of a region's name: `/objects/ram0` and `ram0` are the same.
pub(super) fn short_name(region: &str) -> &str {
    region.rsplit('/').next().unwrap_or(region)
}

/// The pieces of the address space `memory`: RAM, ROM and devices, sorted.
pub(super) fn parse(text: &str) -> Vec<Piece> {
    let wanted = |view: &&str| {
        view.lines()
            .any(|line| line.starts_with(" AS \"memory\", root: system"))
    };
    let view = text.split("FlatView #").find(wanted).unwrap_or_default();
    merged(view.lines().filter_map(piece).collect())
}

/// `  0000000000100000-000000001fffffff (prio 0, ram): m0 @0000000000100000 KVM`
fn piece(line: &str) -> Option<Piece> {
    let (range, rest) = line.trim_start().split_once(" (prio ")?;
    let (start, last) = range.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (gpa, last) = (hex(start)?, hex(last)?);
    let (_, name) = rest.split_once("): ")?;
    let (region, offset) = match name.split_once(" @") {
        Some((region, offset)) => (region, hex(offset.split(' ').next()?)?),
        None => (name.trim_end_matches(" KVM"), 0),
    };
    Some(Piece {
        gpa,
        len: last.checked_sub(gpa)?.checked_add(1)?,
        region: short_name(region.trim()).to_owned(),
        offset,
    })
}

/// The same pieces, with neighbours that follow each other in the same region joined.
pub(super) fn merged(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_by_key(|piece| piece.gpa);
    let mut out: Vec<Piece> = Vec::new();
    for piece in pieces {
        match out.last_mut() {
            Some(last)
                if last.end() == piece.gpa
                    && last.region == piece.region
                    && last.offset + last.len == piece.offset =>
            {
                last.len += piece.len;
            }
            _ => out.push(piece),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): /objects/ram0 KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  0000000000100000-000000007fffffff (prio 0, ram): /objects/ram0 @0000000000100000 KVM
  00000000fed00000-00000000fed003ff (prio 0, i/o): hpet
  0000000100000000-000000013fffffff (prio 0, ram): /objects/ram0 @0000000080000000 KVM
  0000000140000000-000000017fffffff (prio 0, ram): /objects/ram0 @00000000c0000000 KVM

FlatView #2
 AS "cpu-smm-0", root: memory
  0000000000000000-00000000000fffff (prio 0, ram): other
"#;

    #[test]
    fn pieces_when_a_text_has_several_views_are_those_of_memory_joined() {
        let pieces = parse(TEXT);

        let ram: Vec<_> = pieces
            .iter()
            .filter(|piece| piece.region == "ram0")
            .map(|piece| (piece.gpa, piece.len, piece.offset))
            .collect();
        assert_eq!(
            ram,
            [
                (0, 0xa_0000, 0),
                (0x10_0000, 0x7ff0_0000, 0x10_0000),
                (0x1_0000_0000, 0x8000_0000, 0x8000_0000),
            ]
        );
        assert_eq!(pieces.len(), 5);
    }

    #[test]
    fn part_when_a_piece_begins_lower_keeps_its_place_in_the_region() {
        let piece = &parse(TEXT)[0];

        let part = piece.from(0x8_0000).unwrap();

        assert_eq!(
            (part.gpa, part.len, part.offset),
            (0x8_0000, 0x2_0000, 0x8_0000)
        );
        assert_eq!(piece.from(0xa_0000), None);
    }
}
