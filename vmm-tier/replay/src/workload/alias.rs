//! Draws from any distribution in constant time: the alias method (Walker, 1977; built as by Vose,
//! 1991).

use std::hint::select_unpredictable;

use tier_core::random::{Random, scaled};

/// One of equally likely columns: itself, or another that is drawn in its stead.
#[derive(Clone, Copy, Debug)]
struct Column {
    /// Below this, of 2^32, it is the column itself.
    own: u32,
    other: u32,
}

/// Most items that [`Alias::of_scattered`] looks at one by one: a fifth of a second.
const MOST_ITEMS: u32 = 1 << 23;

/// A distribution over 0 .. n.
#[derive(Clone, Debug)]
pub(super) struct Alias {
    columns: Vec<Column>,
}

impl Alias {
    /// Numbers are drawn in proportion to their weights: at least one, none negative, not all 0.
    pub(super) fn new(weights: &[f64]) -> Self {
        let mean = weights.iter().sum::<f64>() / weights.len() as f64;
        let mut shares: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
        let mut columns: Vec<Column> = (0..weights.len() as u32)
            .map(|other| Column {
                own: u32::MAX,
                other,
            })
            .collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..weights.len() as u32).partition(|&i| shares[i as usize] < 1.0);
        // A column that is too small is filled up by one that is too large, which may become too small.
        while let (Some(&under), Some(&over)) = (small.last(), large.last()) {
            small.pop();
            let share = shares[under as usize];
            columns[under as usize] = Column {
                own: (share * 2_f64.powi(32)) as u32,
                other: over,
            };
            shares[over as usize] -= 1.0 - share;
            if shares[over as usize] < 1.0 {
                large.pop();
                small.push(over);
            }
        }
        Self { columns }
    }

    /// Zipf's law: the number of rank r (from 1 on) is drawn in proportion to r^-exponent. Ranks are the
    /// numbers, or, if `random` is given, scattered over them.
    pub(super) fn zipf(n: u32, exponent: f64, random: Option<&mut Random>) -> Self {
        let mut weights: Vec<f64> = zipf_weights(n, exponent).collect();
        if let Some(random) = random {
            random.shuffle(&mut weights);
        }
        Self::new(&weights)
    }

    /// Items are popular by Zipf's law and lie scattered over `n` numbers, `each` to one in the mean:
    /// what is left of the law when each page holds many items. Where there are very many, fewer stand
    /// for them.
    pub(super) fn of_scattered(n: u32, each: u32, exponent: f64, random: &mut Random) -> Self {
        let items = (u64::from(n) * u64::from(each)).min(u64::from(MOST_ITEMS.max(n))) as u32;
        let mut weights = vec![0.0; n as usize];
        for weight in zipf_weights(items, exponent) {
            weights[random.below(u64::from(n)) as usize] += weight;
        }
        Self::new(&weights)
    }

    /// The number that belongs to these 64 random bits: uniform, all are used.
    #[inline]
    pub(super) fn pick(&self, bits: u64) -> u32 {
        let index = scaled((bits >> 32) as u32, self.columns.len() as u32);
        let Column { own, other } = self.columns[index as usize];
        // A branch here would be foretold wrong half of the time.
        select_unpredictable((bits as u32) < own, index, other)
    }
}

/// The weights of ranks 1 .. n by Zipf's law.
pub(super) fn zipf_weights(n: u32, exponent: f64) -> impl Iterator<Item = f64> {
    (1..=n).map(move |rank| f64::from(rank).powf(-exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_drawn_in_proportion_to_their_weights() {
        let weights = [5.0, 0.0, 1.0, 2.5, 0.5, 1.0];
        let alias = Alias::new(&weights);
        let mut random = Random::new(1);
        let mut drawn = [0_u32; 6];
        for _ in 0..1_000_000 {
            drawn[alias.pick(random.draw()) as usize] += 1;
        }
        for (count, weight) in drawn.iter().zip(weights) {
            // A standard deviation is at most 500.
            let expected = weight * 100_000.0;
            assert!((f64::from(*count) - expected).abs() < 2500.0, "{drawn:?}");
        }
        assert_eq!(drawn[1], 0);
    }

    #[test]
    fn columns_when_summed_up_are_the_weights() {
        let mut random = Random::new(1);
        let weights: Vec<f64> = zipf_weights(1000, 0.99).collect();
        let alias = Alias::zipf(1000, 0.99, None);
        let scattered = Alias::zipf(1000, 0.99, Some(&mut random));
        let total: f64 = weights.iter().sum();
        for (alias, sorted) in [(alias, true), (scattered, false)] {
            let mut shares = vec![0.0; 1000];
            for (index, column) in alias.columns.iter().enumerate() {
                let own = f64::from(column.own) / 2_f64.powi(32);
                shares[index] += own / 1000.0;
                shares[column.other as usize] += (1.0 - own) / 1000.0;
            }
            if !sorted {
                assert!(!shares.is_sorted_by(|a, b| a >= b));
                shares.sort_unstable_by(|a, b| b.total_cmp(a));
            }
            for (share, weight) in shares.iter().zip(&weights) {
                assert!((share - weight / total).abs() < 1e-9, "{share} {weight}");
            }
        }
    }

    #[test]
    fn one_number_when_alone_is_always_drawn() {
        let alias = Alias::new(&[3.0]);
        assert_eq!([0, u64::MAX].map(|bits| alias.pick(bits)), [0, 0]);
    }
}
