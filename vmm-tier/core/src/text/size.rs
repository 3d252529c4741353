//! Sizes as people write them: `512M`, `20%`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, de};

/// An amount of memory: absolute, or a share of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// A share of the guest's memory, in percent, 0 to 100.
    Percent(f64),
}

impl Size {
    /// The size in bytes for a guest of `guest_bytes` bytes.
    pub fn bytes(self, guest_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (guest_bytes as f64 * percent / 100.0) as u64,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&human(*bytes)),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A size that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a size: write a number with K, M, G or T, such as 512M, or a share such as 20%"
)]
pub struct ParseSizeError(String);

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseSizeError(text.to_owned());
        let trimmed = text.trim();
        if let Some(percent) = trimmed.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| error())?;
            return (0.0..=100.0)
                .contains(&percent)
                .then_some(Self::Percent(percent))
                .ok_or_else(error);
        }
        let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match trimmed[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(error()),
        };
        let number: u64 = digits.trim().parse().map_err(|_| error())?;
        number
            .checked_mul(1 << shift)
            .map(Self::Bytes)
            .ok_or_else(error)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(bytes) => Ok(Self::Bytes(bytes)),
            Raw::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// `1.5 GiB`, `640 KiB`, `12 B`: at most three significant digits, binary units.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = UNITS[0];
    for next in UNITS {
        value /= 1024.0;
        unit = next;
        if value < 1024.0 {
            break;
        }
    }
    match value {
        v if v >= 100.0 || v.fract() == 0.0 => format!("{v:.0} {unit}"),
        v if v >= 10.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.2} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_when_well_formed_is_read() {
        let cases = [
            ("512M", Size::Bytes(512 << 20)),
            (" 4k ", Size::Bytes(4096)),
            ("2GiB", Size::Bytes(2 << 30)),
            ("4096", Size::Bytes(4096)),
            ("20%", Size::Percent(20.0)),
            ("0.5 %", Size::Percent(0.5)),
        ];
        for (text, size) in cases {
            assert_eq!(text.parse(), Ok(size), "{text}");
        }
        assert_eq!(Size::Percent(20.0).bytes(400 << 20), 80 << 20);
    }

    #[test]
    fn size_when_malformed_is_refused_with_a_hint() {
        for text in ["", "M", "12X", "-1", "101%", "NaN%", "99999999T", "1.5G"] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.to_string().contains("512M"), "{text}");
        }
    }

    #[test]
    fn human_when_given_bytes_keeps_three_digits() {
        let cases = [
            (12, "12 B"),
            (4096, "4 KiB"),
            (1536 << 20, "1.50 GiB"),
            (400 << 20, "400 MiB"),
            (11 << 19, "5.50 MiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }
}
