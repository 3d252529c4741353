//! The part of the configuration that is about sources.

use std::{ops::RangeInclusive, time::Duration};

use serde::Deserialize;

use super::{ConfigError, percent, seconds};
use crate::source::SourceChoice;

/// Bounds of the share of one core for sampling.
const CPU_SHARE: RangeInclusive<f64> = 1e-4..=1.0;
/// Bounds of DAMON's sampling interval.
const SAMPLING: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
/// Bounds of DAMON's aggregation interval.
const AGGREGATION: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(100);

/// The table `[source]`, every key optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct SourceConfig {
    pub(super) kind: Option<String>,
    sampling_interval_ms: Option<f64>,
    aggregation_interval_ms: Option<f64>,
    max_regions: Option<u64>,
    quiet_factor: Option<u32>,
    cpu_percent: Option<f64>,
}

/// How DAMON watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DamonChoice {
    pub(crate) sampling: Duration,
    pub(crate) aggregation: Duration,
    pub(crate) max_regions: u64,
    pub(crate) quiet_factor: u32,
}

/// The sources that the operator wants.
pub(super) fn source_choice(kind: Option<&str>) -> Result<SourceChoice, ConfigError> {
    let Some(text) = kind else {
        return Ok(SourceChoice::auto());
    };
    Ok(text.parse()?)
}

/// The share of one core that a source which can choose its period may take.
pub(super) fn cpu_budget(source: &SourceConfig) -> Result<f64, ConfigError> {
    percent("source.cpu-percent", source.cpu_percent, 0.01, &CPU_SHARE)
}

/// DAMON's intervals and regions.
pub(super) fn damon_choice(source: &SourceConfig) -> Result<DamonChoice, ConfigError> {
    let sampling = seconds(
        "source.sampling-interval-ms",
        source.sampling_interval_ms.map(|ms| ms / 1000.0),
        Duration::from_millis(20),
        &SAMPLING,
    )?;
    let aggregation = seconds(
        "source.aggregation-interval-ms",
        source.aggregation_interval_ms.map(|ms| ms / 1000.0),
        Duration::from_millis(400),
        &AGGREGATION,
    )?;
    if aggregation < sampling * 4 {
        return Err(ConfigError::OutOfRange {
            key: "source.aggregation-interval-ms",
            value: format!("{} ms", aggregation.as_millis()),
            must: "at least 4 sampling intervals long: with fewer, hot and warm regions look alike"
                .to_owned(),
        });
    }
    let max_regions = source.max_regions.unwrap_or(2000);
    if !(20..=100_000).contains(&max_regions) {
        return Err(ConfigError::OutOfRange {
            key: "source.max-regions",
            value: max_regions.to_string(),
            must: "20 to 100000".to_owned(),
        });
    }
    let quiet_factor = source.quiet_factor.unwrap_or(10);
    if !(1..=100).contains(&quiet_factor) {
        return Err(ConfigError::OutOfRange {
            key: "source.quiet-factor",
            value: quiet_factor.to_string(),
            must: "1 to 100".to_owned(),
        });
    }
    Ok(DamonChoice {
        sampling,
        aggregation,
        max_regions,
        quiet_factor,
    })
}
