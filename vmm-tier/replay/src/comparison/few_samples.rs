//! The note that there are too few samples to tell pages apart.

use std::time::Duration;

use super::report::Trace;

/// Samples for each page of DRAM, within what heat remembers, below which placement is mostly luck: with
/// fewer than two, a Poisson count's own spread is most of it.
const FEW: f64 = 2.0;

/// A note if samples are few for the largest DRAM that is replayed.
pub(super) fn note(
    trace: &Trace,
    samples: u64,
    fast_bytes: u64,
    half_life: Duration,
) -> Option<String> {
    let page_bytes = (trace.guest_bytes / u64::from(trace.pages.max(1))).max(1);
    let fast_pages = (fast_bytes / page_bytes).max(1) as f64;
    // An exponential decay remembers as much as its mean life.
    let memory = half_life.as_secs_f64() / std::f64::consts::LN_2;
    let part = (memory / trace.seconds.max(1e-9)).min(1.0);
    let each = samples as f64 * part / fast_pages;
    if each >= FEW {
        return None;
    }
    let better = (trace.period as f64 * each / FEW).floor().max(1.0);
    let what = match trace.period {
        1 => "the trace has no more".to_owned(),
        _ => format!("--period {better:.0} would bring enough"),
    };
    Some(format!(
        "few samples: {each:.1} for each page of the largest DRAM in the {memory:.0} s that heat remembers, so policies \
         that sample can tell little apart; {what}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(period: u64) -> Trace {
        Trace {
            seconds: 120.0,
            guest_bytes: 4096 * 1000,
            pages: 1000,
            period,
            ..Trace::default()
        }
    }

    #[test]
    fn note_when_samples_are_few_says_how_to_have_more() {
        let half_life = Duration::from_secs(10);
        // 14.4 of 120 s of 6000 samples are 721, for 1000 pages.
        let note = |period, samples| note(&trace(period), samples, 4_096_000, half_life);
        let few = note(4093, 6_000).unwrap();
        assert!(few.contains("0.7 for each page"), "{few}");
        assert!(few.contains("--period 1476"), "{few}");
        assert!(note(1, 6_000).unwrap().contains("no more"));
        assert_eq!(note(4093, 60_000), None);
    }
}
