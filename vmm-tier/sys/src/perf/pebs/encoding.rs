//! From `event=0xcd,umask=0x1,ldlat=3` and a PMU's format files to the words of `perf_event_attr`.

use std::{collections::BTreeMap, path::Path};

use crate::sysroot::{ParseError, SMALL_FILE, SysRootError, read_text};

/// More files than any PMU has formats; a guard against an absurd folder.
const MAX_FORMATS: usize = 256;

/// The words of an event's description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Encoding {
    pub(super) config: u64,
    pub(super) config1: u64,
    pub(super) config2: u64,
    /// Where the least latency stands in `config1`: lowest bit and width.
    latency: Option<(u32, u32)>,
}

impl Encoding {
    /// An event of Intel's lists, with the latency where all generations have it.
    pub(super) fn raw(config: u64) -> Self {
        Self {
            config,
            latency: (config & 0xffff == 0x01cd).then_some((0, 16)),
            ..Self::default()
        }
    }

    /// Sets the least latency, for an event that has one.
    pub(super) fn set_latency(&mut self, cycles: u16) {
        if let Some((low, width)) = self.latency {
            let mask = ones(width);
            self.config1 &= !(mask << low);
            self.config1 |= (u64::from(cycles) & mask) << low;
        }
    }
}

fn ones(width: u32) -> u64 {
    u64::MAX.checked_shr(64 - width.min(64)).unwrap_or(0)
}

/// Where a term's bits go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Format {
    /// 0 for `config`, 1 for `config1`, 2 for `config2`.
    word: usize,
    /// Lowest bit and width of each piece, the value's lowest bits first.
    pieces: Vec<(u32, u32)>,
}

/// Parses `config:0-7` or `config1:0-15` or `config:8-15,40-47`; `None` for a word that
/// this program does not set, or for a text that is no format.
fn parse_format(text: &str) -> Option<Format> {
    let (word, bits) = text.trim().split_once(':')?;
    let word = ["config", "config1", "config2"]
        .iter()
        .position(|name| *name == word)?;
    let piece = |piece: &str| {
        let (low, high) = piece.split_once('-').unwrap_or((piece, piece));
        let (low, high): (u32, u32) = (low.parse().ok()?, high.parse().ok()?);
        (low <= high && high < 64).then(|| (low, high - low + 1))
    };
    let pieces = bits.split(',').map(piece).collect::<Option<Vec<_>>>()?;
    Some(Format { word, pieces })
}

/// The formats of a PMU, by the terms' names.
#[derive(Clone, Debug)]
pub(super) struct Formats(BTreeMap<String, Format>);

impl Formats {
    /// Reads a `format` folder. A term without a file has the place that all of Intel's cores agree on.
    pub(super) fn read(folder: &Path) -> Result<Self, SysRootError> {
        let usual = [
            ("event", "config:0-7"),
            ("umask", "config:8-15"),
            ("ldlat", "config1:0-15"),
        ];
        let mut formats: BTreeMap<_, _> = usual
            .into_iter()
            .filter_map(|(name, text)| Some((name.to_owned(), parse_format(text)?)))
            .collect();
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self(formats)),
            Err(source) => {
                let path = folder.to_owned();
                return Err(SysRootError::Read { path, source });
            }
        };
        for entry in entries.take(MAX_FORMATS).filter_map(Result::ok) {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if let Some(format) = parse_format(&read_text(&entry.path(), SMALL_FILE)?) {
                formats.insert(name, format);
            }
        }
        Ok(Self(formats))
    }

    /// The words of an event such as `event=0xcd,umask=0x1,ldlat=3`; a term without a value is 1.
    pub(super) fn encode(&self, text: &str) -> Result<Encoding, ParseError> {
        let mut words = [0; 3];
        let mut latency = None;
        for term in text.trim().split(',') {
            let (name, value) = term.split_once('=').unwrap_or((term, "1"));
            let number = match value.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => value.parse(),
            };
            let number =
                number.map_err(|_| ParseError::at(0, format!("'{term}' has no number")))?;
            let format = self
                .0
                .get(name)
                .ok_or_else(|| ParseError::at(0, format!("no format is known for '{name}'")))?;
            let mut rest = number;
            for &(low, width) in &format.pieces {
                words[format.word] |= (rest & ones(width)) << low;
                rest = rest.checked_shr(width).unwrap_or(0);
            }
            if rest != 0 {
                return Err(ParseError::at(0, format!("'{term}' does not fit its bits")));
            }
            if let ("ldlat", 1, [piece]) = (name, format.word, &format.pieces[..]) {
                latency = Some(*piece);
            }
        }
        let [config, config1, config2] = words;
        Ok(Encoding {
            config,
            config1,
            config2,
            latency,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(files: &[(&str, &str)]) -> Formats {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Formats::read(folder.path()).unwrap()
    }

    #[test]
    fn encode_when_terms_stand_in_two_words_fills_both() {
        let encoding = formats(&[])
            .encode("event=0xcd,umask=0x1,ldlat=3\n")
            .unwrap();
        assert_eq!((encoding.config, encoding.config1), (0x1cd, 3));
        assert_eq!(encoding.config2, 0);
    }

    #[test]
    fn encode_when_a_field_lies_in_two_pieces_splits_the_value() {
        // Linux 6.13 and later on parts with a second umask.
        let formats = formats(&[("umask", "config:8-15,40-47\n"), ("any", "config:21\n")]);
        let encoding = formats.encode("event=0x1,umask=0x1234,any").unwrap();
        assert_eq!(encoding.config, 0x01 | 0x34 << 8 | 0x12 << 40 | 1 << 21);
    }

    #[test]
    fn encode_when_the_text_is_wrong_says_which_term() {
        let formats = formats(&[]);
        for (text, what) in [
            ("event=0xcd,color=3", "color"),
            ("event=much", "event=much"),
            ("event=0x1cd", "does not fit"),
            ("", "no format"),
        ] {
            let error = formats.encode(text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn parse_format_when_it_is_none_is_left_out() {
        for text in [
            "config9:0-7",
            "config:8-7",
            "config:0-64",
            "config:a",
            "config",
            "",
        ] {
            assert_eq!(parse_format(text), None, "{text}");
        }
    }

    #[test]
    fn set_latency_when_the_event_has_one_replaces_it() {
        let mut encoding = formats(&[]).encode("event=0xcd,umask=0x1,ldlat=3").unwrap();
        encoding.set_latency(190);
        assert_eq!(encoding.config1, 190);

        let mut stores = formats(&[]).encode("event=0xcd,umask=0x2").unwrap();
        stores.set_latency(190);
        assert_eq!(stores.config1, 0);

        let mut raw = Encoding::raw(0x1cd);
        raw.set_latency(60);
        assert_eq!(raw.config1, 60);
    }
}
