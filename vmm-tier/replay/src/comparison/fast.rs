//! Sizes of DRAM as people write them: `512M`, `25%`, `1:16`.

use std::{fmt, str::FromStr};

use tier_core::addr::BASE_PAGE;
use tier_core::text::size::{ParseSizeError, Size};

/// How much DRAM a guest gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FastSize {
    /// Bytes, or a percentage of the guest's memory.
    Size(Size),
    /// Such a part of the guest's memory.
    Part { one: u64, of: u64 },
}

impl FastSize {
    /// Whole pages of 4 KiB of a guest of `guest_bytes` bytes, at most all of them.
    pub(crate) fn bytes(self, guest_bytes: u64) -> u64 {
        let bytes = match self {
            Self::Size(size) => size.bytes(guest_bytes),
            Self::Part { one, of } => {
                let part = u128::from(guest_bytes) * u128::from(one) / u128::from(of);
                u64::try_from(part).unwrap_or(u64::MAX)
            }
        };
        bytes.min(guest_bytes) / BASE_PAGE * BASE_PAGE
    }
}

impl fmt::Display for FastSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(f),
            Self::Part { one, of } => write!(f, "{one}:{of}"),
        }
    }
}

/// Neither a size nor a part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseFastSizeError {
    /// As other sizes.
    #[error("{0}, or a part such as 1:16")]
    Size(#[from] ParseSizeError),
    /// Not a part of a whole.
    #[error("'{0}' is not a part of the guest's memory: write 1:16 for a sixteenth")]
    Part(String),
}

impl FromStr for FastSize {
    type Err = ParseFastSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((one, of)) = text.split_once(':') else {
            return Ok(Self::Size(text.parse()?));
        };
        let parse = |text: &str| text.trim().parse::<u64>().ok();
        match (parse(one), parse(of)) {
            (Some(one), Some(of)) if one > 0 && one <= of => Ok(Self::Part { one, of }),
            _ => Err(ParseFastSizeError::Part(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_when_well_formed_is_whole_pages_of_the_guest() {
        let cases = [
            ("1:16", 8 << 20),
            ("25%", 32 << 20),
            ("5M", 5 << 20),
            ("1:3", 10_922 * 4096), // a third of 32768 pages
            ("1:1", 128 << 20),
            ("1T", 128 << 20),
        ];
        for (text, bytes) in cases {
            let size: FastSize = text.parse().unwrap();
            assert_eq!(size.bytes(128 << 20), bytes, "{text}");
            assert_eq!(size.to_string().parse(), Ok(size));
        }
    }

    #[test]
    fn size_when_malformed_is_refused_with_a_hint() {
        for text in ["", "1:", "0:4", "4:1", "1:0", "a:b", "1:2:3", "12X", "101%"] {
            let error = text.parse::<FastSize>().unwrap_err();
            assert!(error.to_string().contains("1:16"), "{text}: {error}");
        }
    }
}
