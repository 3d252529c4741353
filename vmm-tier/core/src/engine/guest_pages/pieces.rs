//! Pieces of shared guest memory: how much of each lies on which tier, and which tier it is bound to.
//!
//! A piece is bound to a tier once at least half of it is present and two thirds of that lie there. In
//! between it keeps what it has: so do pieces that the guest has given back, whose next pages are those
//! that matter. The pieces are as large as it takes for the kernel to keep few policies.

use std::ops::Range;

use crate::{
    addr::{HUGE_PAGE, Hva},
    dual_heap::Placement,
    map::GuestMemoryMap,
    moves::Page,
    rebind::{
        Area, Binding, BlockRebinding, BlockState, RebindReport, Rebinding, Rebound, why_not,
    },
    settings::Tier,
    time::Time,
};

/// About how many pieces a guest has at most; each area may have one more. For each the kernel may keep
/// a policy: 336 bytes (`struct mempolicy`, `struct sp_node`).
const MOST_PIECES: u64 = 8192;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Piece {
    /// Bytes of pages on the tiers.
    fast: u64,
    slow: u64,
    bound: Option<Tier>,
    /// Somebody else has set a policy.
    is_foreign: bool,
    /// It failed, and is not tried before.
    rests_until: Time,
}

impl Piece {
    /// The tier to which a piece of `bytes` bytes is to be bound, if it is not.
    fn wants(&self, bytes: u64, now: Time) -> Option<Tier> {
        let present = self.fast + self.slow;
        if present * 2 < bytes || self.is_foreign || self.rests_until > now {
            return None;
        }
        let tier = match (self.fast * 3 >= present * 2, self.slow * 3 >= present * 2) {
            (true, _) => Tier::Fast,
            (_, true) => Tier::Slow,
            _ => return None,
        };
        (self.bound != Some(tier)).then_some(tier)
    }
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    area: Area,
    block: usize,
    /// The number of its first piece.
    first: usize,
}

impl Placed {
    fn pieces(&self) -> Range<usize> {
        let count = self.area.bytes.div_ceil(self.area.piece_bytes) as usize;
        self.first..self.first + count
    }

    /// Start and length of the piece of this number.
    fn piece(&self, number: usize) -> (Hva, u64) {
        let at = (number - self.first) as u64 * self.area.piece_bytes;
        let bytes = self.area.piece_bytes.min(self.area.bytes - at);
        (Hva(self.area.start.0 + at), bytes)
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// By rising address.
    areas: Vec<Placed>,
    pieces: Vec<Piece>,
    policies_set: u64,
}

impl Pieces {
    /// The pieces of a map, without pages. What pieces of the same areas were bound to stays known.
    pub(crate) fn succeeded_by(&self, map: &GuestMemoryMap) -> Self {
        let mut new = Self {
            policies_set: self.policies_set,
            ..Self::default()
        };
        let areas: Vec<_> = areas(map).collect();
        let total: u64 = areas.iter().map(|(area, _)| area.bytes).sum();
        let piece_bytes = (total / MOST_PIECES).next_power_of_two().max(HUGE_PAGE);
        for (area, block) in areas {
            let area = Area {
                piece_bytes,
                ..area
            };
            let first = new.pieces.len();
            let placed = Placed { area, block, first };
            let known = self.areas.iter().find(|old| old.area == area);
            for number in placed.pieces() {
                let old = known.map(|old| &self.pieces[old.first + number - first]);
                new.pieces.push(Piece {
                    fast: 0,
                    slow: 0,
                    ..old.cloned().unwrap_or_default()
                });
            }
            new.areas.push(placed);
        }
        new
    }

    /// A page went from one placement to another. It counts for the piece in which it begins.
    pub(crate) fn replace(&mut self, page: Page, old: Placement, new: Placement) {
        if old == new {
            return;
        }
        let Some(piece) = self.number_at(page.hva) else {
            return;
        };
        let piece = &mut self.pieces[piece];
        match old {
            Placement::Fast => piece.fast -= page.bytes,
            Placement::Slow => piece.slow -= page.bytes,
            Placement::Untracked => {}
        }
        match new {
            Placement::Fast => piece.fast += page.bytes,
            Placement::Slow => piece.slow += page.bytes,
            Placement::Untracked => {}
        }
    }

    fn number_at(&self, hva: Hva) -> Option<usize> {
        let after = self.areas.partition_point(|own| own.area.start <= hva);
        let own = self.areas.get(after.checked_sub(1)?)?;
        let at = hva.0 - own.area.start.0;
        (at < own.area.bytes).then(|| own.first + (at / own.area.piece_bytes) as usize)
    }

    /// The bindings that are due, each a run of pieces as long as can be; at most `most`. Looks at every
    /// piece.
    pub(crate) fn due(&self, now: Time, most: usize) -> Vec<Binding> {
        let mut due: Vec<Binding> = Vec::new();
        for own in &self.areas {
            for number in own.pieces() {
                let (start, bytes) = own.piece(number);
                let Some(tier) = self.pieces[number].wants(bytes, now) else {
                    continue;
                };
                let is_next = |last: &Binding| {
                    (last.area, last.tier) == (own.area, tier)
                        && last.start.0 + last.bytes == start.0
                };
                let is_full = due.len() == most;
                match due.last_mut() {
                    Some(last) if is_next(last) => last.bytes += bytes,
                    _ if is_full => return due,
                    _ => due.push(Binding {
                        area: own.area,
                        start,
                        bytes,
                        tier,
                    }),
                }
            }
        }
        due
    }

    /// Takes what became of bindings; what failed rests until `again_at`.
    pub(crate) fn take(&mut self, report: &RebindReport, again_at: Time) {
        for (binding, rebound) in &report.results {
            self.policies_set += u64::from(*rebound == Rebound::Bound);
            let own = self.areas.iter().find(|own| own.area == binding.area);
            // The layout may have changed meanwhile.
            let Some(own) = own.copied() else { continue };
            for number in own.pieces() {
                let (start, _) = own.piece(number);
                if start < binding.start || start.0 - binding.start.0 >= binding.bytes {
                    continue;
                }
                let piece = &mut self.pieces[number];
                match rebound {
                    Rebound::Bound => piece.bound = Some(binding.tier),
                    Rebound::Foreign => (piece.bound, piece.is_foreign) = (None, true),
                    Rebound::Failed => (piece.bound, piece.rests_until) = (None, again_at),
                }
            }
        }
    }

    /// What users see. `is_on`: whether it is asked for.
    pub(crate) fn report(&self, map: Option<&GuestMemoryMap>, is_on: bool) -> Rebinding {
        let mut report = Rebinding {
            fast_bytes: 0,
            slow_bytes: 0,
            foreign_bytes: 0,
            policies_set: self.policies_set,
            blocks: Vec::new(),
        };
        let blocks = map.map_or(&[][..], GuestMemoryMap::blocks);
        let mut is_bound = vec![false; blocks.len()];
        for own in &self.areas {
            for number in own.pieces() {
                let (_, bytes) = own.piece(number);
                let piece = &self.pieces[number];
                match piece.bound {
                    Some(Tier::Fast) => report.fast_bytes += bytes,
                    Some(Tier::Slow) => report.slow_bytes += bytes,
                    None if piece.is_foreign => report.foreign_bytes += bytes,
                    None => {}
                }
                if let Some(is_bound) = is_bound.get_mut(own.block) {
                    *is_bound |= piece.bound.is_some();
                }
            }
        }
        let blocks = blocks.iter().zip(is_bound).map(|(block, is_bound)| {
            let reason = why_not(block.backing);
            BlockRebinding {
                name: block.name.clone(),
                address: block.hva,
                rebind: match reason {
                    Some(_) => BlockState::Cannot,
                    None if !is_on => BlockState::Off,
                    None if is_bound => BlockState::Bound,
                    None => BlockState::Waiting,
                },
                reason,
            }
        });
        report.blocks = blocks.collect();
        report
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.areas.capacity() * size_of::<Placed>() + self.pieces.capacity() * size_of::<Piece>()
    }

    /// Whether these pages, with their placements, are those that were counted.
    pub(crate) fn check(
        &self,
        pages: impl Iterator<Item = (Page, Placement)>,
    ) -> Result<(), String> {
        let mut found = Self {
            areas: self.areas.clone(),
            pieces: vec![Piece::default(); self.pieces.len()],
            policies_set: 0,
        };
        for (page, placement) in pages {
            found.replace(page, Placement::Untracked, placement);
        }
        let bytes = |piece: &Piece| (piece.fast, piece.slow);
        let own = self.pieces.iter().map(bytes);
        match own.eq(found.pieces.iter().map(bytes)) {
            true => Ok(()),
            false => Err("the bytes of pieces are not those of their pages".to_owned()),
        }
    }
}

/// The memory of a map that can be bound, by rising address, and the number of its block. An area is
/// aligned to 2 MiB within its block, and so are huge pages of shared memory.
fn areas(map: &GuestMemoryMap) -> impl Iterator<Item = (Area, usize)> + '_ {
    let ranges = map.unique_hva_ranges();
    ranges.into_iter().filter_map(|range| {
        let block = map.block(range.block);
        if why_not(block.backing).is_some() {
            return None;
        }
        let offset = range.start.0.checked_sub(block.hva.0)?;
        let start = offset.next_multiple_of(HUGE_PAGE);
        let end = (offset + range.len) / HUGE_PAGE * HUGE_PAGE;
        let area = Area {
            start: Hva(block.hva.0 + start),
            bytes: end.checked_sub(start).filter(|&bytes| bytes > 0)?,
            piece_bytes: HUGE_PAGE,
        };
        Some((area, range.block.0 as usize))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        addr::{BASE_PAGE, Gpa},
        map::{Backing, BlockIndex, MapRange, RamBlock},
    };

    const MIB: u64 = 1 << 20;
    /// Not a multiple of 2 MiB, as the kernel places memfds.
    const BASE: u64 = 0x7f00_0000_3000;

    /// A guest of blocks of these bytes and backings, each in an address space of its own. The first
    /// begins 1 MiB into its block, as main memory does.
    fn map(blocks: &[(u64, Backing)]) -> GuestMemoryMap {
        let mut gpa = MIB;
        let (mut all, mut ranges) = (Vec::new(), Vec::new());
        for (number, &(bytes, backing)) in blocks.iter().enumerate() {
            let hva = Hva(BASE + number as u64 * (1 << 40));
            let offset = if number == 0 { MIB } else { 0 };
            all.push(RamBlock {
                name: format!("ram{number}"),
                hva,
                used: bytes,
                total: bytes,
                page_size: BASE_PAGE,
                backing: Some(backing),
            });
            ranges.push(MapRange {
                gpa: Gpa(gpa),
                len: bytes - offset,
                block: BlockIndex(number as u32),
                offset,
                hva: Hva(hva.0 + offset),
            });
            gpa += bytes;
        }
        GuestMemoryMap::new(1, all, ranges).unwrap()
    }

    fn pieces(blocks: &[(u64, Backing)]) -> Pieces {
        Pieces::default().succeeded_by(&map(blocks))
    }

    /// `bytes` bytes of pages from `hva` went from one placement to another.
    fn replace(pieces: &mut Pieces, hva: u64, bytes: u64, old: Placement, new: Placement) {
        for at in (hva..hva + bytes).step_by(BASE_PAGE as usize) {
            let page = Page {
                hva: Hva(at),
                bytes: BASE_PAGE,
            };
            pieces.replace(page, old, new);
        }
    }

    fn place(pieces: &mut Pieces, hva: u64, bytes: u64, new: Placement) {
        replace(pieces, hva, bytes, Placement::Untracked, new);
    }

    fn all(due: &[Binding], rebound: Rebound) -> RebindReport {
        RebindReport {
            results: due.iter().map(|&binding| (binding, rebound)).collect(),
        }
    }

    /// What is due, and is taken for bound.
    fn bind(pieces: &mut Pieces) -> Vec<(u64, u64, Tier)> {
        let due = pieces.due(Time(0), 64);
        pieces.take(&all(&due, Rebound::Bound), Time(0));
        let told = |binding: &Binding| (binding.start.0 - BASE, binding.bytes, binding.tier);
        due.iter().map(told).collect()
    }

    #[test]
    fn memory_when_its_pages_lie_on_one_tier_is_bound_in_runs() {
        let mut pieces = pieces(&[(16 * MIB, Backing::Shmem)]);
        place(&mut pieces, BASE + MIB, 7 * MIB, Placement::Fast);
        place(&mut pieces, BASE + 8 * MIB, 8 * MIB, Placement::Slow);

        // From the first 2 MiB on that are whole.
        let expected = [
            (2 * MIB, 6 * MIB, Tier::Fast),
            (8 * MIB, 8 * MIB, Tier::Slow),
        ];
        assert_eq!(bind(&mut pieces), expected);
        assert_eq!(bind(&mut pieces), []);
        let report = pieces.report(Some(&map(&[(16 * MIB, Backing::Shmem)])), true);
        assert_eq!(
            (report.fast_bytes, report.slow_bytes, report.policies_set),
            (6 * MIB, 8 * MIB, 2)
        );
        assert_eq!(report.blocks[0].rebind, BlockState::Bound);
    }

    #[test]
    fn piece_when_given_back_or_mixed_keeps_what_it_has() {
        let mut pieces = pieces(&[(4 * MIB, Backing::Shmem)]);
        let start = BASE + 2 * MIB;
        place(&mut pieces, start, 2 * MIB, Placement::Fast);
        assert_eq!(bind(&mut pieces).len(), 1);

        replace(&mut pieces, start, MIB, Placement::Fast, Placement::Slow);
        assert_eq!(bind(&mut pieces), [], "half and half");
        replace(
            &mut pieces,
            start + MIB,
            MIB,
            Placement::Fast,
            Placement::Untracked,
        );
        replace(
            &mut pieces,
            start,
            64 * BASE_PAGE,
            Placement::Slow,
            Placement::Untracked,
        );
        assert_eq!(bind(&mut pieces), [], "few pages are left");
        place(&mut pieces, start, 64 * BASE_PAGE, Placement::Slow);
        assert_eq!(bind(&mut pieces), [(2 * MIB, 2 * MIB, Tier::Slow)]);
    }

    #[test]
    fn pieces_of_a_large_guest_when_made_are_few() {
        let guest = [(1 << 40, Backing::Shmem), (64 << 30, Backing::Shmem)];
        let pieces = pieces(&guest);
        assert!(pieces.pieces.len() as u64 <= MOST_PIECES + 2);
        assert_eq!(pieces.areas[0].area.piece_bytes, 256 * MIB);
        assert_eq!(pieces.number_at(Hva(BASE)), None, "below the first area");
        assert_eq!(pieces.number_at(Hva(BASE + (1 << 40))), Some(4096));
    }

    #[test]
    fn piece_that_failed_or_has_another_policy_when_it_is_due_rests() {
        let mut pieces = pieces(&[(8 * MIB, Backing::Shmem)]);
        place(&mut pieces, BASE + 2 * MIB, 6 * MIB, Placement::Slow);
        let due = pieces.due(Time(0), 64);
        let part = |at: u64, rebound| {
            let start = Hva(BASE + at);
            let bytes = 2 * MIB;
            (
                Binding {
                    start,
                    bytes,
                    ..due[0]
                },
                rebound,
            )
        };
        let report = RebindReport {
            results: vec![
                part(2 * MIB, Rebound::Bound),
                part(4 * MIB, Rebound::Failed),
                part(6 * MIB, Rebound::Foreign),
            ],
        };

        pieces.take(&report, Time(10));

        assert_eq!(pieces.due(Time(9), 64), []);
        let due = pieces.due(Time(10), 64);
        assert_eq!(due, [part(4 * MIB, Rebound::Bound).0]);
        let report = pieces.report(None, true);
        assert_eq!(report.foreign_bytes, 2 * MIB);
    }

    #[test]
    fn blocks_when_they_cant_be_bound_say_why() {
        let guest = [
            (4 * MIB, Backing::Anonymous),
            (4 * MIB, Backing::Hugetlb),
            (4 * MIB, Backing::Shmem),
        ];
        let mut pieces = pieces(&guest);
        for number in 0..3 {
            place(&mut pieces, BASE + (number << 40), 4 * MIB, Placement::Fast);
        }
        assert_eq!(bind(&mut pieces).len(), 1, "the shared block alone");
        let report = pieces.report(Some(&map(&guest)), true);
        let states: Vec<_> = report.blocks.iter().map(|block| block.rebind).collect();
        assert_eq!(
            states,
            [BlockState::Cannot, BlockState::Cannot, BlockState::Bound]
        );
        let hugetlb = report.blocks[1].reason.unwrap();
        assert!(
            hugetlb.starts_with("hugetlbfs has no shared policy"),
            "{hugetlb}"
        );
        let off = pieces.report(Some(&map(&guest)), false);
        assert_eq!(off.blocks[2].rebind, BlockState::Off);
    }

    #[test]
    fn pieces_when_the_layout_changes_keep_what_they_are_bound_to() {
        let mut pieces = pieces(&[(8 * MIB, Backing::Shmem)]);
        place(&mut pieces, BASE + 2 * MIB, 6 * MIB, Placement::Fast);
        assert_eq!(bind(&mut pieces).len(), 1);

        let more = [(8 * MIB, Backing::Shmem), (4 * MIB, Backing::Shmem)];
        let mut pieces = pieces.succeeded_by(&map(&more));
        place(&mut pieces, BASE + 2 * MIB, 6 * MIB, Placement::Fast);

        assert_eq!(bind(&mut pieces), []);
        assert_eq!(pieces.report(None, true).fast_bytes, 6 * MIB);
        assert_eq!(pieces.report(None, true).policies_set, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a model that counts the pages of each piece anew: what is due is exactly the pieces
        /// that want another tier, in runs that can't be longer, and never more runs than are asked for.
        #[test]
        fn bindings_when_pages_move_at_random_cover_exactly_the_pieces_that_want_them(
            moves in prop::collection::vec((0..24_u64, 0..3_u64, 0..3_u8), 1..200),
            most in 1..6_usize,
        ) {
            const PART: u64 = HUGE_PAGE / 4;
            let guest = [(10 * MIB, Backing::Shmem), (4 * MIB, Backing::Shmem)];
            let mut pieces = pieces(&guest);
            // Of both blocks, a quarter of a piece each, from 2 MiB into the first.
            let parts = 4 * (4 + 2);
            let hva = |part: u64| match part < 16 {
                true => BASE + 2 * MIB + part * PART,
                false => BASE + (1 << 40) + (part - 16) * PART,
            };
            let mut model = vec![Placement::Untracked; parts];
            let mut bound = vec![None; parts / 4];
            for (first, count, new) in moves {
                let new = [Placement::Untracked, Placement::Fast, Placement::Slow][usize::from(new)];
                for part in first..(first + 1 + count * 2).min(parts as u64) {
                    replace(&mut pieces, hva(part), PART, model[part as usize], new);
                    model[part as usize] = new;
                }
                // Of four quarters, a piece needs two that are there, and two thirds of them alike.
                let wants: Vec<Option<Tier>> = (0..parts / 4).map(|piece| {
                    let own = &model[piece * 4..piece * 4 + 4];
                    let on = |tier| own.iter().filter(|&&part| part == tier).count();
                    let (fast, slow) = (on(Placement::Fast), on(Placement::Slow));
                    let wants = match (fast, slow) {
                        (2.., 0) | (3, 1) => Some(Tier::Fast),
                        (2, 1) => Some(Tier::Fast),
                        (0, 2..) | (1, 3) => Some(Tier::Slow),
                        (1, 2) => Some(Tier::Slow),
                        _ => None,
                    };
                    wants.filter(|_| wants != bound[piece])
                }).collect();

                let due = pieces.due(Time(0), most);

                prop_assert!(due.len() <= most);
                let mut covered = vec![None; parts / 4];
                for binding in &due {
                    prop_assert!(binding.bytes > 0 && binding.bytes.is_multiple_of(HUGE_PAGE));
                    for (piece, covered) in covered.iter_mut().enumerate() {
                        let at = hva(piece as u64 * 4);
                        if (binding.start.0..binding.start.0 + binding.bytes).contains(&at) {
                            prop_assert_eq!(*covered, None);
                            *covered = Some(binding.tier);
                        }
                    }
                }
                for pair in due.windows(2) {
                    let touch = pair[0].start.0 + pair[0].bytes == pair[1].start.0;
                    prop_assert!(!touch || pair[0].tier != pair[1].tier, "two runs that are one");
                }
                let is_all = due.len() < most;
                for (piece, (covered, wants)) in covered.iter().zip(&wants).enumerate() {
                    let is_left = !is_all && covered.is_none();
                    prop_assert!(covered == wants || is_left, "piece {piece}");
                    bound[piece] = covered.or(bound[piece]);
                }
                pieces.take(&all(&due, Rebound::Bound), Time(0));
                let bytes = |tier| bound.iter().filter(|&&own| own == Some(tier)).count() as u64 * HUGE_PAGE;
                let report = pieces.report(None, true);
                prop_assert_eq!(report.fast_bytes, bytes(Tier::Fast));
                prop_assert_eq!(report.slow_bytes, bytes(Tier::Slow));
            }
        }
    }
}
