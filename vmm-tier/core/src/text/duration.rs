//! Durations as people write them: `30s`, `5m`, `250ns`.

use std::time::Duration;

/// A duration that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no duration: write a number with ns, us, ms, s, m or h, such as 30s or 5m")]
pub struct ParseDurationError(String);

/// Reads a duration; a number alone is seconds.
///
/// # Errors
/// If the text is none, or none that is longer than nothing.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let error = || ParseDurationError(text.to_owned());
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let nanos: u64 = match &trimmed[digits.len()..] {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "" | "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(error()),
    };
    let number: f64 = digits.trim_end().parse().map_err(|_| error())?;
    let seconds = number * (nanos as f64 / 1e9);
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| error())?;
    let is_something = duration > Duration::ZERO && duration < Duration::from_secs(1 << 32);
    is_something.then_some(duration).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_when_it_has_a_unit_is_that_long() {
        for (text, nanos) in [
            ("30", 30_000_000_000),
            ("1us", 1_000),
            ("250 ns", 250),
            ("1.5s", 1_500_000_000),
            ("2m", 120_000_000_000),
            ("1h", 3_600_000_000_000),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_nanos(nanos), "{text}");
        }
    }

    #[test]
    fn duration_when_it_is_none_is_refused() {
        for text in ["", "s", "0", "-1s", "1d", "1e40s", "nan", "0.1ns"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
