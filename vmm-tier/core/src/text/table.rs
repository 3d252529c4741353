//! Tables in plain text, and numbers in them.

use std::fmt::Write as _;

/// Lays out rows in columns two blanks apart, without blanks at the end of a line.
pub fn table(rows: &[Vec<String>], is_right: impl Fn(usize) -> bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = match is_right(column) {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `938`, `12.3 k`, `3.84 G`: three digits, decimal units.
pub fn count(number: u64) -> String {
    if number < 10_000 {
        return number.to_string();
    }
    let mut value = number as f64;
    let mut unit = "";
    for next in ["k", "M", "G", "T", "P", "E"] {
        value /= 1000.0;
        unit = next;
        if value < 999.5 {
            break;
        }
    }
    match value {
        v if v >= 99.95 => format!("{v:.0} {unit}"),
        v if v >= 9.995 => format!("{v:.1} {unit}"),
        v => format!("{v:.2} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_when_large_keeps_three_digits() {
        let cases = [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0 k"),
            (938_400, "938 k"),
            (999_700, "1.00 M"),
            (3_840_000_000, "3.84 G"),
        ];
        for (number, text) in cases {
            assert_eq!(count(number), text);
        }
    }
}
