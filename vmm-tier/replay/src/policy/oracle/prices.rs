//! The price of DRAM in each epoch, by subgradients.

use super::problem::Problem;

/// Rounds of price finding. The prices then clear the demand to about a percent (tests).
const ROUNDS: u32 = 60;
/// Pages that the prices are found with at most, times epochs: more are sampled evenly, as their demand
/// is that of all in proportion.
const MOST_WORK: usize = 4 << 20;

/// Finds prices a byte for each epoch at which the pages together want about as much DRAM as there is.
/// Several, as pages are whole: those that fit best so far, the last ones, and the mean of the later
/// rounds (to which subgradients converge), that also somewhat higher and lower.
pub(super) fn find(problem: &Problem) -> Vec<Vec<f64>> {
    let epochs = problem.epochs();
    let every = (problem.pages() * epochs).div_ceil(MOST_WORK).max(1);
    let capacity = problem.fast_bytes / every as f64;
    // The free oracle's prices are where to begin: what the last page that fits is worth.
    let mut prices: Vec<f64> = (0..epochs)
        .map(|epoch| problem.clearing_price(epoch, every))
        .collect();
    let scale = prices.iter().sum::<f64>() / epochs.max(1) as f64;
    let mut best = prices.clone();
    let mut best_miss = f64::INFINITY;
    let mut way = Vec::new();
    let mut mean = vec![0.0; epochs];
    for round in 0..ROUNDS {
        let mut wanted = vec![0.0; epochs];
        for page in (0..problem.pages()).step_by(every) {
            problem.best_way(page, &prices, &mut way);
            let bytes = problem.bytes(page);
            for (wanted, &fast) in wanted.iter_mut().zip(&way) {
                *wanted += if fast { bytes } else { 0.0 };
            }
        }
        let miss: f64 = wanted.iter().map(|w| (w - capacity).abs()).sum();
        if miss < best_miss {
            (best_miss, best) = (miss, prices.clone());
        }
        let step = 0.5 * scale / f64::from(1 + round).sqrt();
        for (price, wanted) in prices.iter_mut().zip(wanted) {
            let excess = ((wanted - capacity) / capacity.max(1.0)).clamp(-1.0, 1.0);
            *price = (*price + step * excess).max(0.0);
        }
        if round >= ROUNDS / 2 {
            for (mean, price) in mean.iter_mut().zip(&prices) {
                *mean += price / f64::from(ROUNDS - ROUNDS / 2);
            }
        }
    }
    let scaled = |factor: f64| mean.iter().map(|price| price * factor).collect();
    vec![
        best,
        prices,
        scaled(0.8),
        scaled(0.95),
        scaled(1.0),
        scaled(1.05),
    ]
}
