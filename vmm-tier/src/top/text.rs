//! Text for terminals: nothing in it acts on the terminal, and it fits into a number of columns.

use std::fmt::Write as _;

use tier_core::text::size::human;
use unicode_width::UnicodeWidthChar as _;

/// What stands where a figure is not known.
pub(super) const UNKNOWN: &str = "–";
/// What stands for a character that would act on a terminal.
const HARMLESS: char = '\u{fffd}';
/// What stands at the end of a text that was cut.
const CUT: char = '…';

/// Whether a character acts on a terminal, or on the order of the characters around it.
fn acts(char: char) -> bool {
    let is_format = matches!(char,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    char.is_control() || is_format
}

/// A text in which each character takes columns, and none acts on the terminal. Combining marks are left out.
pub(super) fn harmless(text: &str) -> String {
    let shown = text.chars().filter_map(|char| match char {
        char if acts(char) => Some(HARMLESS),
        char if columns_of(char) == 0 => None,
        char => Some(char),
    });
    shown.collect()
}

/// JSON in which such characters are escaped: the same data, whatever shows it.
pub(super) fn harmless_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for char in json.chars() {
        match acts(char) && char != '\n' {
            false => out.push(char),
            true => char.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04x}");
            }),
        }
    }
    out
}

/// The columns that a character takes.
fn columns_of(char: char) -> usize {
    char.width().unwrap_or(0)
}

/// The columns that a harmless text takes.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// A harmless text of at most this many columns.
pub(super) fn cut(text: &str, most: usize) -> String {
    if columns(text) <= most {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut taken = 1;
    for char in text.chars() {
        taken += columns_of(char);
        if taken > most {
            break;
        }
        out.push(char);
    }
    if most > 0 {
        out.push(CUT);
    }
    out
}

/// A harmless text of exactly this many columns.
pub(super) fn fitted(text: &str, width: usize, is_right: bool) -> String {
    let text = cut(text, width);
    let blanks = " ".repeat(width - columns(&text));
    match is_right {
        true => blanks + &text,
        false => text + &blanks,
    }
}

/// Pieces in lines of at most `width` columns, a piece on one line if it fits.
pub(super) fn packed(pieces: &[String], width: usize) -> Vec<String> {
    const GAP: &str = "  ";
    let mut lines: Vec<String> = Vec::new();
    for piece in pieces {
        let piece = cut(piece, width);
        match lines.last_mut() {
            Some(line) if columns(line) + GAP.len() + columns(&piece) <= width => {
                line.push_str(GAP);
                line.push_str(&piece);
            }
            _ => lines.push(piece),
        }
    }
    lines
}

/// A text in lines of at most `width` columns, broken at blanks where there are any.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word.to_owned();
        loop {
            let line = lines.last_mut().expect("there is a line");
            let gap = usize::from(!line.is_empty());
            if columns(line) + gap + columns(&word) <= width {
                line.push_str(&" "[..gap]);
                line.push_str(&word);
                break;
            }
            if line.is_empty() {
                // A word that is longer than a line.
                let mut room = width;
                let fits = |char: &char| {
                    let left = room.checked_sub(columns_of(*char));
                    room = left.unwrap_or(0);
                    left.is_some()
                };
                let head: String = word.chars().take_while(fits).collect();
                if head.is_empty() {
                    // Not even a character fits.
                    break;
                }
                word = word[head.len()..].to_owned();
                line.push_str(&head);
            }
            lines.push(String::new());
        }
    }
    lines
}

/// Bytes; a figure that makes no sense is shown as it is.
pub(super) fn bytes(value: f64) -> String {
    // A cast saturates.
    match value < 0.0 {
        true => format!("-{}", human(-value as u64)),
        false => human(value as u64),
    }
}

/// A number with few digits.
pub(super) fn number(value: f64) -> String {
    // -0 is 0.
    let value = value + 0.0;
    match value.abs() {
        size if size >= 1e6 && value.fract() == 0.0 && size < 1e15 => format!("{value}"),
        size if size >= 1e6 => format!("{value:.2e}"),
        _ if value.fract() == 0.0 => format!("{value}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

/// A share, in percent.
pub(super) fn percent(share: f64) -> String {
    match share {
        share if (0.9995..=1.0).contains(&share) => "100 %".to_owned(),
        share if share.abs() < 100.0 => format!("{:.1} %", share * 100.0),
        share => format!("{} %", number(share * 100.0)),
    }
}

/// A time, with the unit that suits it.
pub(super) fn time(seconds: f64) -> String {
    match seconds.abs() {
        size if size < 9.95 => format!("{seconds:.1} s"),
        size if size < 120.0 => format!("{seconds:.0} s"),
        size if size < 7200.0 => format!("{:.0} min", seconds / 60.0),
        size if size < 172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{} d", number((seconds / 86_400.0).round())),
    }
}

/// A time as a clock shows it: `12:05`, `1:00:00`.
pub(super) fn clock(seconds: u64) -> String {
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    match minutes / 60 {
        0 => format!("{minutes:02}:{seconds:02}"),
        hours => format!("{hours}:{:02}:{seconds:02}", minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_when_it_would_act_on_the_terminal_is_harmless() {
        let cases = [
            ("\u{1b}[31mred\u{7}", "\u{fffd}[31mred\u{fffd}"),
            ("\u{9b}2J", "\u{fffd}2J"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\u{fffd}b\u{fffd}c\u{fffd}"),
            ("a\nb\tc\r", "a\u{fffd}b\u{fffd}c\u{fffd}"),
            ("a\u{301}\u{301}\u{301}", "a"),
            ("<img onerror=x>", "<img onerror=x>"),
            ("数据库", "数据库"),
            ("\u{e0041}x\u{feff}", "\u{fffd}x\u{fffd}"),
        ];
        for (name, shown) in cases {
            assert_eq!(harmless(name), shown, "{name:?}");
        }
    }

    #[test]
    fn json_when_escaped_is_the_same_data() {
        let value = serde_json::json!({"name": "a\u{1b}\u{9b}\u{202e}\u{e0041}\n数"});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let escaped = harmless_json(&text);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&escaped).unwrap(),
            value
        );
        assert!(
            !escaped.chars().any(|char| acts(char) && char != '\n'),
            "{escaped:?}"
        );
        assert!(escaped.contains("\\u202e"), "{escaped}");
    }

    #[test]
    fn text_when_cut_takes_no_more_columns() {
        assert_eq!(cut("database", 8), "database");
        assert_eq!(cut("database", 5), "data…");
        // Each of these takes two columns.
        assert_eq!(cut("数据库", 5), "数据…");
        assert_eq!(cut("数据库", 4), "数…");
        assert_eq!(
            (cut("ab", 1), cut("ab", 0)),
            ("…".to_owned(), String::new())
        );
        for width in 0..9 {
            for text in ["数据库", "database", "", "a数b"] {
                assert_eq!(
                    columns(&fitted(text, width, true)),
                    width,
                    "{text} in {width}"
                );
                assert_eq!(
                    columns(&fitted(text, width, false)),
                    width,
                    "{text} in {width}"
                );
            }
        }
    }

    #[test]
    fn pieces_when_packed_fill_lines_and_pass_over_none() {
        let pieces = ["one", "two", "three", "a piece that is too long"].map(str::to_owned);
        assert_eq!(packed(&pieces, 10), ["one  two", "three", "a piece t…"]);
        assert_eq!(packed(&[], 10), [""; 0]);
    }

    #[test]
    fn text_when_wrapped_has_all_its_words() {
        assert_eq!(
            wrapped("its pages are pinned", 9),
            ["its pages", "are", "pinned"]
        );
        assert_eq!(wrapped("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrapped("数据库", 3), ["数", "据", "库"]);
        assert_eq!(wrapped("数", 1), [""]);
        assert_eq!(wrapped("", 5), [""]);
    }

    #[test]
    fn figures_when_they_make_no_sense_are_short_all_the_same() {
        for value in [
            -5.0,
            0.0,
            1e300,
            -1e300,
            f64::MAX,
            f64::MIN_POSITIVE,
            0.333_333,
            1e15,
            123.4,
        ] {
            for text in [bytes(value), number(value), percent(value), time(value)] {
                assert!(text.len() <= 16, "{value}: {text}");
            }
        }
        assert_eq!(bytes(-5.0 * 1048576.0), "-5 MiB");
        assert_eq!(percent(0.9375), "93.8 %");
        assert_eq!(
            (time(0.5), time(14.2), time(300.0)),
            ("0.5 s".into(), "14 s".into(), "5 min".into())
        );
        assert_eq!(
            (clock(725), clock(3600)),
            ("12:05".to_owned(), "1:00:00".to_owned())
        );
    }
}
