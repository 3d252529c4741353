//! The sources: what each delivers, how good it is, and the scale of its counts.
//!
//! Sources count different things: sampling intervals in which a page was used, or one access in N.
//! Heats are kept in the counts of the believed (*main*) source. Counts of another source are brought to
//! them by the ratio of both sources' counts a second in all, as both watch the same guest. The ratio is
//! at most 1, for a count that is multiplied would look more certain than it is. It is lower where the
//! source's addresses are less exact, for then cold pages get the heat of their neighbours. When another
//! source becomes the main source, all heats are brought to its counts by the same ratio.
//!
//! A replay can't tell what the ratio is worth, as it has one source.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    addr::BASE_PAGE,
    sample::{AccessSample, SampleAccount, SampleBatch, SourceKind},
    time::Time,
};

/// What a batch weighs in a source's running averages, at most.
const NEWEST: f64 = 0.2;

/// What became of a source's records, and how good its batches are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceStats {
    /// What became of its records since the start.
    pub account: SampleAccount,
    /// Share of the guest that a batch speaks for, 0 to 1, of late; `None` before the first batch. A
    /// source that samples accesses wherever they fall speaks for all of the guest.
    pub coverage: Option<f64>,
    /// How exact its addresses are, of late, weighted by accesses: 1 for a page of 4 KiB,
    /// 1 / (1 + log₂ n) for ranges of n such pages; `None` before it has counted an access.
    pub precision: Option<f64>,
    /// Age of a batch on arrival, of late: half of the time observed, and the delay; `None` before the
    /// first batch.
    pub staleness: Option<Duration>,
    /// Whether it tests pages, and finds each used or not, or counts accesses.
    pub tests_pages: bool,
}

#[derive(Clone, Debug, Default)]
struct Feed {
    stats: SourceStats,
    /// Counts a second over all pages, averaged over about a half-life.
    rate: f64,
    batches: u64,
}

/// The sources that have delivered, and the believed source.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceAccounts {
    feeds: BTreeMap<SourceKind, Feed>,
    pub(crate) main: Option<SourceKind>,
    /// The source in whose counts heats are kept.
    unit: Option<SourceKind>,
}

/// How a batch's counts become heat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    /// By what its counts are multiplied.
    pub(crate) counts: f64,
    /// By what all heats must be multiplied first.
    pub(crate) heats: Option<f64>,
}

impl SourceAccounts {
    pub(crate) fn account(&mut self, source: SourceKind) -> &mut SampleAccount {
        &mut self.feeds.entry(source).or_default().stats.account
    }

    /// The accounts of all sources as one.
    pub(crate) fn total(&self) -> SampleAccount {
        let mut total = SampleAccount::default();
        for feed in self.feeds.values() {
            total.add(&feed.stats.account);
        }
        total
    }

    pub(crate) fn stats(&self) -> impl Iterator<Item = (SourceKind, &SourceStats)> {
        self.feeds.iter().map(|(&kind, feed)| (kind, &feed.stats))
    }

    /// Takes note of how much a batch counts, and says what its counts are worth.
    pub(crate) fn scale(&mut self, batch: &SampleBatch, half_life: Duration) -> Scale {
        let feed = self.feeds.entry(batch.source).or_default();
        let counted: f64 = batch.samples.iter().map(counts).sum();
        let span = batch.span.as_secs_f64();
        if span > 0.0 {
            let newest = match feed.batches {
                0 => 1.0,
                _ => 1.0 - (-span / half_life.as_secs_f64()).exp2(),
            };
            feed.rate += (counted / span - feed.rate) * newest;
        }
        feed.batches += 1;
        let rate = feed.rate;
        let as_it_is = Scale {
            counts: 1.0,
            heats: None,
        };
        let rate_of = |kind: SourceKind| self.feeds.get(&kind).map_or(0.0, |feed| feed.rate);
        match (self.main, self.unit) {
            (Some(main), Some(unit)) if main == batch.source && main != unit => {
                // Nothing is known before it has counted something.
                if rate <= 0.0 {
                    return as_it_is;
                }
                self.unit = Some(main);
                let old = rate_of(unit);
                Scale {
                    heats: (old > 0.0).then(|| rate / old),
                    ..as_it_is
                }
            }
            (Some(main), None) if main == batch.source => {
                self.unit = Some(main);
                as_it_is
            }
            (_, Some(unit)) if unit != batch.source && rate > 0.0 => Scale {
                counts: (rate_of(unit) / rate).min(1.0) * self.exactness(batch.source, unit),
                heats: None,
            },
            _ => as_it_is,
        }
    }

    /// How exact a source is beside another, 1 at most.
    fn exactness(&self, source: SourceKind, other: SourceKind) -> f64 {
        let precision = |kind| self.feeds.get(&kind)?.stats.precision;
        match (precision(source), precision(other)) {
            (Some(mine), Some(theirs)) => (mine / theirs).min(1.0),
            _ => 1.0,
        }
    }

    /// Takes note of how good a batch was that came at `now` and spoke for this share of the guest.
    pub(crate) fn judge(&mut self, batch: &SampleBatch, now: Time, coverage: f64) {
        let Some(feed) = self.feeds.get_mut(&batch.source) else {
            return;
        };
        let stats = &mut feed.stats;
        stats.tests_pages = batch.tests > 0;
        stats.coverage = Some(average(stats.coverage, coverage.clamp(0.0, 1.0)));
        let (mut all, mut exact) = (0.0, 0.0);
        for sample in &batch.samples {
            let counted = counts(sample);
            all += counted;
            exact += match frames(sample) {
                1.0 => counted,
                frames => counted / (1.0 + frames.log2()),
            };
        }
        if all > 0.0 {
            stats.precision = Some(average(stats.precision, exact / all));
        }
        let late = (batch.span / 2 + now.since(batch.end)).as_secs_f64();
        let before = stats.staleness.map(|staleness| staleness.as_secs_f64());
        stats.staleness = Some(Duration::from_secs_f64(average(before, late).max(0.0)));
    }
}

/// A running average with one more value; the first value is the average.
fn average(before: Option<f64>, value: f64) -> f64 {
    before.map_or(value, |before| before + (value - before) * NEWEST)
}

fn frames(sample: &AccessSample) -> f64 {
    (sample.len as f64 / BASE_PAGE as f64).max(1.0)
}

/// Counts over all pages of a sample; none for a weight that is no count.
fn counts(sample: &AccessSample) -> f64 {
    let weight = f64::from(sample.weight);
    if weight > 0.0 && weight.is_finite() {
        weight * frames(sample)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::Hva,
        sample::{AccessKind, DropReason, SampleAddress},
    };

    const HALF_LIFE: Duration = Duration::from_secs(2);

    /// A batch of one second with `weight` counts on one page, or on a range of `frames` pages each.
    fn batch(source: SourceKind, weight: f32, frames: u64) -> SampleBatch {
        SampleBatch {
            source,
            end: Time(1_000_000_000),
            span: Duration::from_secs(1),
            tests: 0,
            period: 1,
            settled: true,
            map_generation: 1,
            samples: vec![AccessSample {
                address: SampleAddress::Host(Hva(0)),
                len: frames * BASE_PAGE,
                weight,
                kind: AccessKind::Any,
            }],
            account: SampleAccount::default(),
        }
    }

    fn scale(sources: &mut SourceAccounts, source: SourceKind, weight: f32) -> Scale {
        sources.scale(&batch(source, weight, 1), HALF_LIFE)
    }

    #[test]
    fn counts_when_another_source_counts_more_are_scaled_down() {
        let mut sources = SourceAccounts {
            main: Some(SourceKind::Damon),
            ..SourceAccounts::default()
        };
        let plain = Scale {
            counts: 1.0,
            heats: None,
        };
        assert_eq!(scale(&mut sources, SourceKind::Damon, 100.0), plain);
        let beside = scale(&mut sources, SourceKind::Ibs, 1000.0);
        assert!((beside.counts - 0.1).abs() < 1e-9, "{beside:?}");
    }

    #[test]
    fn counts_when_another_source_counts_less_are_not_blown_up() {
        let mut sources = SourceAccounts {
            main: Some(SourceKind::Ibs),
            ..SourceAccounts::default()
        };
        scale(&mut sources, SourceKind::Ibs, 1000.0);
        assert_eq!(scale(&mut sources, SourceKind::Guest, 10.0).counts, 1.0);
    }

    #[test]
    fn heats_when_another_source_becomes_the_main_one_are_brought_to_its_counts_once() {
        let mut sources = SourceAccounts {
            main: Some(SourceKind::Damon),
            ..SourceAccounts::default()
        };
        scale(&mut sources, SourceKind::Damon, 100.0);
        sources.main = Some(SourceKind::Ibs);
        assert_eq!(
            scale(&mut sources, SourceKind::Ibs, 0.0).heats,
            None,
            "it has counted nothing yet"
        );
        let first = scale(&mut sources, SourceKind::Ibs, 4000.0);
        let rate = 4000.0 * (1.0 - 0.5_f64.sqrt());
        assert!(
            (first.heats.unwrap() - rate / 100.0).abs() < 1e-6,
            "{first:?}"
        );
        assert_eq!(scale(&mut sources, SourceKind::Ibs, 4000.0).heats, None);
    }

    #[test]
    fn precision_when_ranges_are_long_falls() {
        let mut sources = SourceAccounts::default();
        for (source, frames, expected) in
            [(SourceKind::Ibs, 1, 1.0), (SourceKind::Damon, 128, 0.125)]
        {
            let batch = batch(source, 3.0, frames);
            sources.scale(&batch, HALF_LIFE);
            sources.judge(&batch, Time(1_250_000_000), 0.5);
            let stats = &sources.feeds[&source].stats;
            assert_eq!(
                (stats.precision, stats.coverage),
                (Some(expected), Some(0.5))
            );
            assert_eq!(stats.staleness, Some(Duration::from_millis(750)));
        }
    }

    #[test]
    fn figures_when_nothing_was_delivered_are_unknown() {
        let mut sources = SourceAccounts::default();
        let refused = sources.account(SourceKind::Ibs);
        refused.drop_records(DropReason::StaleMap, 7);
        let figures = |sources: &SourceAccounts| {
            let stats = &sources.feeds[&SourceKind::Ibs].stats;
            (stats.coverage, stats.precision, stats.staleness)
        };
        assert_eq!(figures(&sources), (None, None, None));

        // A batch that counts nothing says nothing of how exact addresses are.
        for (weight, precision) in [(0.0, None), (3.0, Some(1.0))] {
            let batch = batch(SourceKind::Ibs, weight, 1);
            sources.scale(&batch, HALF_LIFE);
            sources.judge(&batch, Time(1_250_000_000), 0.5);
            let staleness = Some(Duration::from_millis(750));
            assert_eq!(figures(&sources), (Some(0.5), precision, staleness));
        }
    }
}
