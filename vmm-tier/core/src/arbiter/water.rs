//! Water-filling: weighted max-min shares of an amount.

use super::curve::believable;

/// Who wants some of the amount.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Vessel {
    /// How fast it fills, above 0.
    pub(super) weight: f64,
    /// What it gets before others do, or after them where this is below 0.
    pub(super) head_start: f64,
    /// The most it takes, from 0 on.
    pub(super) room: f64,
}

impl Vessel {
    pub(super) fn new(weight: f64, room: f64) -> Self {
        Self {
            weight,
            head_start: 0.0,
            room: believable(room),
        }
    }

    fn at(&self, level: f64) -> f64 {
        (self.head_start + self.weight * level).clamp(0.0, self.room)
    }
}

/// Deals `amount`: each gets `head_start + weight · level`, but no less than 0 and no more than its
/// room, at the one level at which all is dealt. All rooms are full if the amount is greater than they
/// are.
///
/// With equal head starts this is weighted max-min fairness with capped demands (Sprumont's uniform
/// rule, Econometrica 1991): nobody can gain by another room than what it needs.
///
/// Takes a few passes over the vessels.
pub(super) fn fill(amount: f64, vessels: &[Vessel]) -> Vec<f64> {
    let amount = believable(amount);
    let rooms: f64 = vessels.iter().map(|vessel| vessel.room).sum();
    if rooms <= amount {
        return vessels.iter().map(|vessel| vessel.room).collect();
    }
    if amount == 0.0 {
        return vec![0.0; vessels.len()];
    }
    let level = level(amount, vessels);
    vessels.iter().map(|vessel| vessel.at(level)).collect()
}

/// The level at which the vessels, which have more room than that, hold `amount`.
///
/// What they hold is a rising function of the level in straight pieces: Newton's method jumps from piece
/// to piece, and halves the bracket where it would leave it.
fn level(amount: f64, vessels: &[Vessel]) -> f64 {
    const NEAR: f64 = 1e-12;
    let with_room = || vessels.iter().filter(|vessel| vessel.room > 0.0);
    let empty_at = |vessel: &Vessel| -vessel.head_start / vessel.weight;
    let full_at = |vessel: &Vessel| (vessel.room - vessel.head_start) / vessel.weight;
    let mut low = with_room().map(empty_at).fold(f64::INFINITY, f64::min);
    let mut high = with_room().map(full_at).fold(f64::NEG_INFINITY, f64::max);
    let mut level = low;
    loop {
        let (mut held, mut speed) = (0.0, 0.0);
        for vessel in vessels {
            let wants = vessel.head_start + vessel.weight * level;
            held += wants.clamp(0.0, vessel.room);
            speed += match wants >= 0.0 && wants < vessel.room {
                true => vessel.weight,
                false => 0.0,
            };
        }
        if (held - amount).abs() <= NEAR * amount {
            return level;
        }
        match held < amount {
            true => low = level,
            false => high = level,
        }
        let mut next = level + (amount - held) / speed;
        if !(next > low && next < high) {
            next = low + (high - low) / 2.0;
        }
        // No number lies between them any more.
        if next <= low || next >= high {
            return level;
        }
        level = next;
    }
}

/// Rounds amounts to whole pages: down, and then up again, one page each, where the most was lost, for
/// as long as `total` allows (the method of largest remainders). Of equal losses the first comes first.
/// No result is above `most`.
pub(super) fn whole_pages(amounts: &[f64], pages: &[u64], most: &[u64], total: u64) -> Vec<u64> {
    /// Rounding errors of sums are far smaller, and a page's part that matters is far greater.
    const SLACK: f64 = 1e-6;
    let mut rest = total;
    let mut lost: Vec<(f64, usize)> = Vec::with_capacity(amounts.len());
    let mut rounded: Vec<u64> = Vec::with_capacity(amounts.len());
    for (at, &amount) in amounts.iter().enumerate() {
        let exact = amount / pages[at] as f64;
        let whole = (exact + SLACK).floor();
        let bytes = (whole as u64).saturating_mul(pages[at]).min(most[at]);
        // Only errors of rounding could exceed the total.
        let bytes = bytes.min(rest / pages[at] * pages[at]);
        rest -= bytes;
        rounded.push(bytes);
        if exact > whole {
            lost.push((exact - whole, at));
        }
    }
    if rest == 0 {
        return rounded;
    }
    lost.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, at) in lost {
        let page = pages[at];
        if page <= rest && rounded[at].saturating_add(page) <= most[at] {
            rounded[at] += page;
            rest -= page;
        }
    }
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(amount: f64, vessels: &[(f64, f64, f64)]) -> Vec<f64> {
        let vessels: Vec<Vessel> = vessels
            .iter()
            .map(|&(weight, head_start, room)| Vessel {
                weight,
                head_start,
                room,
            })
            .collect();
        fill(amount, &vessels)
    }

    #[test]
    fn amount_when_one_needs_less_is_dealt_among_the_others_by_weight() {
        let vessels = [(1.0, 0.0, 10.0), (1.0, 0.0, 100.0), (2.0, 0.0, 100.0)];
        // 10, and 60 by 1:2.
        assert_eq!(filled(70.0, &vessels), [10.0, 20.0, 40.0]);
        assert_eq!(filled(300.0, &vessels), [10.0, 100.0, 100.0]);
        assert_eq!(filled(0.0, &vessels), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn amount_when_one_has_a_head_start_goes_there_first() {
        // The head start of 30 first; the other 30 evenly.
        let vessels = [(1.0, 30.0, 100.0), (1.0, 0.0, 100.0)];
        assert_eq!(filled(20.0, &vessels), [20.0, 0.0]);
        assert_eq!(filled(60.0, &vessels), [45.0, 15.0]);
        // Below 0: after the other.
        let vessels = [(1.0, -30.0, 100.0), (1.0, 0.0, 100.0)];
        assert_eq!(filled(60.0, &vessels), [15.0, 45.0]);
    }

    #[test]
    fn amounts_when_rounded_keep_their_total() {
        let pages = [4, 4, 4];
        assert_eq!(
            whole_pages(&[9.0, 9.5, 1.5], &pages, &[99; 3], 20),
            [8, 12, 0]
        );
        // A page of 64 does not fit in what is left.
        assert_eq!(whole_pages(&[60.0, 3.0], &[64, 1], &[99; 2], 63), [0, 3]);
        // 2.9999999999 pages are three.
        assert_eq!(whole_pages(&[12.0 - 1e-10], &[4], &[99], 12), [12]);
        assert_eq!(whole_pages(&[11.0], &[4], &[8], 12), [8]);
    }
}
