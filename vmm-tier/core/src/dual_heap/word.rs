//! The word that each page has: its tier and its key, or what it is instead.
//!
//! ```text
//! bit 31   bits 30..0
//! tier     a key, an f32 of at least 2^-62                     sampled, and may be taken
//! 0        0 · 1 · 2                                           untracked · fast, slow without a sample
//! 1        an index below 2^23                                 in the slow tier's front
//! bit 29   2^23 + bits 28..0 of an index into the side table   stands aside
//! ```
//! The bits of positive floats are in the floats' order, so words are too, within a tier.

use crate::heat::MIN_KEY;

/// Tells the tiers apart: set for the slow one.
pub(super) const SLOW: u32 = 1 << 31;

/// The least key, without a tier.
const LEAST: u32 = MIN_KEY.to_bits();

/// Index 0 of the side table. From here to `LEAST` there are 2^29 words for each value of bit 31.
const ASIDE: u32 = 1 << 23;
const ASIDE_SHIFT: u32 = 29;
const _: () = assert!(LEAST - ASIDE == 1 << ASIDE_SHIFT);

/// The most pages that can be tracked: each may stand aside, which a word can say of 2^30.
pub(super) const MAX_PAGES: u32 = 1 << (ASIDE_SHIFT + 1);

/// What a page's word says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Slot {
    /// Not tracked.
    Untracked,
    /// In the fast tier, without a sample.
    FastNever,
    /// In the slow tier, without a sample.
    SlowNever,
    /// In the fast tier, with this key.
    Fast(f32),
    /// In the slow tier, with this key, not in its front.
    Slow(f32),
    /// In the slow tier's front, at this index.
    Front(u32),
    /// In the side table, at this index.
    Aside(u32),
}

impl Slot {
    pub(super) const fn word(self) -> u32 {
        match self {
            Self::Untracked => 0,
            Self::FastNever => 1,
            Self::SlowNever => 2,
            Self::Fast(key) => key.to_bits(),
            Self::Slow(key) => SLOW | key.to_bits(),
            Self::Front(index) => SLOW | index,
            Self::Aside(index) => {
                let low = index & ((1 << ASIDE_SHIFT) - 1);
                (ASIDE + low) | ((index >> ASIDE_SHIFT) << 31)
            }
        }
    }

    #[inline]
    pub(super) const fn of(word: u32) -> Self {
        let low = word & !SLOW;
        match word {
            0 => Self::Untracked,
            1 => Self::FastNever,
            2 => Self::SlowNever,
            _ if low < ASIDE => Self::Front(low),
            _ if low < LEAST => Self::Aside((low - ASIDE) | ((word >> 31) << ASIDE_SHIFT)),
            _ if word < SLOW => Self::Fast(f32::from_bits(low)),
            _ => Self::Slow(f32::from_bits(low)),
        }
    }
}

/// The key in a word of either tier, or `None` if there is none.
#[inline]
pub(super) const fn key_of(word: u32) -> Option<f32> {
    let low = word & !SLOW;
    if low < LEAST {
        None
    } else {
        Some(f32::from_bits(low))
    }
}

/// A word of the same tier with another key.
#[inline]
pub(super) const fn with_key(word: u32, key: f32) -> u32 {
    (word & SLOW) | key.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_when_made_a_word_and_read_again_is_the_same() {
        let keys = [MIN_KEY, 1.0, 3.7e30, f32::MAX];
        let indices = [0, 1, (1 << 29) - 1, 1 << 29, MAX_PAGES - 1];
        let slots = [Slot::Untracked, Slot::FastNever, Slot::SlowNever]
            .into_iter()
            .chain(keys.map(Slot::Fast))
            .chain(keys.map(Slot::Slow))
            .chain([0, 1, (1 << 23) - 1].map(Slot::Front))
            .chain(indices.map(Slot::Aside));
        let words: Vec<u32> = slots
            .map(|slot| {
                assert_eq!(Slot::of(slot.word()), slot);
                slot.word()
            })
            .collect();
        let distinct: std::collections::HashSet<_> = words.iter().collect();
        assert_eq!(distinct.len(), words.len());
    }

    #[test]
    fn slow_words_when_compared_are_in_the_order_of_keys_and_above_all_others() {
        let rising = [MIN_KEY, 1.0, 1.5, f32::MAX].map(|key| Slot::Slow(key).word());
        assert!(rising.is_sorted());
        let others = [
            Slot::Fast(f32::MAX),
            Slot::Front((1 << 23) - 1),
            Slot::Aside(MAX_PAGES - 1),
            Slot::SlowNever,
        ];
        assert!(others.iter().all(|slot| slot.word() < rising[0]));
    }

    #[test]
    fn key_when_replaced_leaves_the_tier() {
        assert_eq!(
            Slot::of(with_key(Slot::Slow(1.0).word(), 2.0)),
            Slot::Slow(2.0)
        );
        assert_eq!(
            Slot::of(with_key(Slot::Fast(1.0).word(), 2.0)),
            Slot::Fast(2.0)
        );
        assert_eq!(key_of(Slot::Slow(3.0).word()), Some(3.0));
        for slot in [
            Slot::Untracked,
            Slot::SlowNever,
            Slot::Front(7),
            Slot::Aside(7),
        ] {
            assert_eq!(key_of(slot.word()), None);
        }
    }
}
