//! A line of the sketch: sixteen slots in one cache line, each a count and what names its page.
//!
//! ```text
//! slot  31                        r        0
//!       │ key: f32 without sign,  │ remain-│      0: empty
//!       │ cut to 32 − r bits      │ der    │
//! ```
//!
//! Positive floats are in the order of their bits, so the lesser slot has the lesser key.

use crate::heat::normal_or_zero;

/// Slots in a line.
pub(super) const WAYS: usize = 16;
/// The most bits that a remainder may take: eight of a key's mantissa are left.
pub(super) const MAX_REMAINDER_BITS: u32 = 16;

/// A slot whose page was forgotten: empty, and yet not as if it had never been used.
pub(super) const LEFT: u32 = 1;

/// Slots are used from the first to the last, and one that was used never becomes 0 again: so the last one
/// says whether the line ever was full.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [u32; WAYS]);

impl Line {
    pub(super) const EMPTY: Self = Self([0; WAYS]);

    /// Whether all slots are in use or were at some time. Until then no page was turned away.
    #[inline]
    pub(super) fn was_full(&self) -> bool {
        self.0[WAYS - 1] != 0
    }

    /// The slot of a page. Looks at all of them, four or eight at once: no more than one can be it, so
    /// the loop need not end early.
    #[inline]
    pub(super) fn find(&self, remainder: u32, form: Form) -> Option<usize> {
        let mut found = 0u32;
        for (way, &slot) in (1u32..).zip(&self.0) {
            let is_it = (slot & form.mask == remainder) & (slot & !form.mask != 0);
            found |= way & u32::from(is_it).wrapping_neg();
        }
        (found as usize).checked_sub(1)
    }

    /// The slot with the least key, an empty one if there is one; or one whose key differs from the least
    /// in the last three bits of its mantissa only.
    #[inline]
    pub(super) fn least(&self) -> (usize, u32) {
        // The number of the slot in the place of bits that do not matter, so that the least is found and
        // known in one go.
        const WAY: u32 = WAYS as u32 - 1;
        let numbered = (0u32..).zip(&self.0).map(|(way, &slot)| slot & !WAY | way);
        let way = (numbered.fold(u32::MAX, u32::min) & WAY) as usize;
        (way, self.0[way])
    }
}

/// How a slot is divided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) mask: u32,
}

impl Form {
    /// For remainders of 1 to [`MAX_REMAINDER_BITS`] bits.
    pub(super) const fn new(remainder_bits: u32) -> Self {
        Self {
            mask: (1 << remainder_bits) - 1,
        }
    }

    #[inline]
    pub(super) fn key(self, slot: u32) -> f32 {
        f32::from_bits((slot & !self.mask) >> 1)
    }

    /// A slot with this key, cut to the bits that there are: rounded up with the probability that keeps
    /// the mean of many, for a `random` number of 32 bits. A key that has no more bits stays itself.
    /// [`LEFT`] if the key is 0.
    #[inline]
    pub(super) fn slot(self, key: f32, remainder: u32, random: u32) -> u32 {
        // Two greatest keys less than what rounding may carry into infinity.
        let key = normal_or_zero(f64::from(key)).min(GREATEST);
        if key == 0.0 {
            return LEFT;
        }
        let wide = (key.to_bits() << 1) + (random & self.mask);
        (wide & !self.mask) | remainder
    }
}

/// A quarter of the greatest `f32`.
const GREATEST: f32 = f32::MAX / 4.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_when_cut_keeps_the_mean_and_what_fits() {
        let form = Form::new(16);
        // 8 bits of mantissa: above 512 the step is 2.
        let key = |random| form.key(form.slot(513.0, 0xffff, random));
        assert_eq!((key(0), key(u32::MAX)), (512.0, 514.0));
        let mean = (0..65_536).map(|r| f64::from(key(r))).sum::<f64>() / 65_536.0;
        assert_eq!(mean, 513.0);
        for fits in [1.0, 3.5, 1024.0, f32::MIN_POSITIVE] {
            assert_eq!(form.key(form.slot(fits, 77, u32::MAX)), fits);
        }
        assert_eq!(form.slot(0.0, 77, u32::MAX), LEFT);
        assert_eq!(form.key(LEFT), 0.0);
        assert!(form.key(form.slot(f32::MAX, 0, u32::MAX)).is_finite());
    }

    #[test]
    fn line_when_asked_finds_its_pages_and_its_least() {
        let form = Form::new(6);
        let mut line = Line::EMPTY;
        for (way, slot) in line.0.iter_mut().enumerate() {
            let remainder = 63 - way as u32;
            *slot = form.slot(100.0 - way as f32, remainder, 0);
        }
        assert_eq!(line.find(63, form), Some(0));
        assert_eq!(line.find(50, form), Some(13));
        assert_eq!(line.find(5, form), None);
        let (way, slot) = line.least();
        assert_eq!((way, form.key(slot)), (15, 85.0));
        line.0[3] = 0;
        assert_eq!(line.least(), (3, 0));
        // With one bit of remainder the way takes three of the key's 23 bits of mantissa.
        let form = Form::new(1);
        let keys = [1.5, 1.0, 1.0 + f32::EPSILON, 1.25];
        for (slot, key) in line.0.iter_mut().zip(keys.iter().cycle()) {
            *slot = form.slot(*key, 1, 0);
        }
        let (way, slot) = line.least();
        assert!(way % 4 == 1 && form.key(slot) == 1.0);
        line.0[7] = 0;
        assert_eq!(line.least(), (7, 0));
        assert_eq!(
            line.find(0, form),
            None,
            "an empty slot has no remainder of 0"
        );
        line.0[3] = LEFT;
        assert_eq!(line.least(), (3, LEFT));
        assert_eq!(Line([LEFT; WAYS]).find(1, form), None);
        assert!(line.was_full() && !Line::EMPTY.was_full());
    }
}
