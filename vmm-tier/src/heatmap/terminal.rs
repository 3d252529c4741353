//! A heat map of characters: heat by shade, tier by the kind of character, and by colour where there is
//! one.

use std::fmt::Write as _;

use tier_core::text::size::human;

use super::map::{Cell, HeatMap, Lies, rate};

/// Characters by heat, the coldest first, and the colour of the 256 that terminals know. The colours are
/// blue, grey and orange, which nearly everybody tells apart.
const KINDS: [(Lies, &str, [char; 5], u8); 3] = [
    (Lies::Fast, "DRAM", ['▁', '░', '▒', '▓', '█'], 33),
    (Lies::Both, "both", ['-', 'c', 'o', 'O', '@'], 250),
    (Lies::Slow, "slow", ['.', ':', '+', '*', '#'], 208),
];
/// Each shade begins at a quarter of the heat of the next.
const STEP: f64 = 4.0;
/// Lines around the drawing: three above, eight below, and the prompt.
const LINES_AROUND: u16 = 12;
const ROWS: (u16, u16) = (4, 48);
/// Cells stand in groups of so many.
const GROUP: u16 = 4;

/// What is drawn on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    pub(super) columns: u16,
    pub(super) rows: u16,
    pub(super) is_coloured: bool,
}

/// Draws the map that `ask` gives for a number of rows and columns.
///
/// # Errors
/// Those of `ask`.
pub(super) fn draw<E>(
    screen: Screen,
    ask: impl FnOnce(u32, u32) -> Result<HeatMap, E>,
) -> Result<String, E> {
    // Addresses of guests have ten digits and "0x" up to 1 TiB; longer ones take room that a wide
    // terminal has, and a narrow one loses one group of cells.
    let label = if screen.columns < 60 { 12 } else { 16 };
    let columns = (screen.columns.saturating_sub(label + 1) / GROUP).max(1) * GROUP;
    let rows = screen
        .rows
        .saturating_sub(LINES_AROUND)
        .clamp(ROWS.0, ROWS.1);
    let map = ask(rows.into(), columns.into())?;
    Ok(text(&map, screen.is_coloured, usize::from(label)))
}

fn text(map: &HeatMap, is_coloured: bool, label: usize) -> String {
    let hottest = map.hottest();
    let mut out = format!(
        "{} of RAM, {} a character\n",
        human(map.ram_bytes),
        human(map.cell_bytes())
    );
    let _ = writeln!(out, "hottest: {} accesses/s of 4 KiB\n", rate(hottest));
    for row in map.rows() {
        let start = row.first().map_or(0, |cell| cell.gpa);
        let address = format!("{start:#x}");
        let _ = write!(out, "{address:>label$} ");
        let mut last = None;
        for cell in row {
            let (letter, colour) = letter(cell, hottest);
            if is_coloured && colour != last {
                match colour {
                    Some(colour) => _ = write!(out, "\x1b[38;5;{colour}m"),
                    None => out.push_str("\x1b[0m"),
                }
                last = colour;
            }
            out.push(letter);
        }
        if last.is_some() {
            out.push_str("\x1b[0m");
        }
        // Blanks at the end of a line of a file are of no use; a coloured line ends otherwise.
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out + &legend(hottest, is_coloured)
}

/// The character of a cell, and its colour.
fn letter(cell: &Cell, hottest: f64) -> (char, Option<u8>) {
    let kind = cell.lies().and_then(|lies| {
        let mut kinds = KINDS.iter();
        kinds.find(|(of, ..)| *of == lies)
    });
    match kind {
        Some(&(_, _, letters, colour)) => (letters[shade(cell.rate, hottest)], Some(colour)),
        None => (' ', None),
    }
}

/// 0 for no access, 4 for the hottest.
fn shade(rate: f64, hottest: f64) -> usize {
    if rate.is_nan() || rate <= 0.0 {
        return 0;
    }
    (1..4)
        .rev()
        .find(|shade| rate >= from(*shade, hottest))
        .map_or(1, |shade| shade + 1)
}

/// The rate from which on the shade after `shade` is drawn.
fn from(shade: usize, hottest: f64) -> f64 {
    hottest / STEP.powi(4 - shade as i32)
}

/// What the characters mean: no wider than 40 columns.
fn legend(hottest: f64, is_coloured: bool) -> String {
    let mut out = "\n".to_owned();
    for (_, name, _, colour) in KINDS {
        match is_coloured {
            true => _ = write!(out, " \x1b[38;5;{colour}m{name}\x1b[0m"),
            false => _ = write!(out, " {name}"),
        }
    }
    out.push_str("  accesses/s of 4 KiB\n");
    for shade in (0..5).rev() {
        for (_, _, letters, colour) in KINDS {
            match is_coloured {
                true => _ = write!(out, "    \x1b[38;5;{colour}m{}\x1b[0m", letters[shade]),
                false => _ = write!(out, "    {}", letters[shade]),
            }
        }
        let meaning = match shade {
            0 => "none seen".to_owned(),
            _ if hottest <= 0.0 => "-".to_owned(),
            1 => format!("less than {}", rate(from(1, hottest))),
            _ => format!("{} and more", rate(from(shade - 1, hottest))),
        };
        let _ = writeln!(out, "  {meaning}");
    }
    out + " blank: no page is present\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RAM of 3 GiB that ends beyond the hole below 4 GiB: a hot start in DRAM, cold DRAM, hot slow
    /// memory, a mixture, and memory that was never touched.
    fn map(rows: u32, columns: u32) -> HeatMap {
        let cells = rows * columns;
        let cell = |number: u32| {
            let part = f64::from(number) / f64::from(cells);
            let (rate, fast_share) = match part {
                p if p < 0.1 => (64.0 * (1.0 - 9.0 * p), Some(1.0)),
                p if p < 0.3 => (0.0, Some(1.0)),
                p if p < 0.5 => (64.0 * p * p, Some(0.0)),
                p if p < 0.6 => (2.0, Some(0.5)),
                p if p < 0.8 => (0.0, Some(0.1)),
                _ => (0.0, None),
            };
            let offset = u64::from(number) * (3 << 30) / u64::from(cells);
            let hole = if offset >= 2 << 30 { 2 << 30 } else { 0 };
            Cell {
                gpa: offset + hole,
                rate,
                fast_share,
            }
        };
        HeatMap {
            rows,
            columns,
            ram_bytes: 3 << 30,
            cells: (0..cells).map(cell).collect(),
        }
    }

    fn drawn(columns: u16, rows: u16, is_coloured: bool) -> String {
        let screen = Screen {
            columns,
            rows,
            is_coloured,
        };
        draw(screen, |rows, columns| Ok::<_, ()>(map(rows, columns))).unwrap()
    }

    #[test]
    fn drawing_when_the_terminal_has_80_columns_looks_so() {
        insta::assert_snapshot!(drawn(80, 24, false));
    }

    #[test]
    fn drawing_when_the_terminal_has_40_columns_fits() {
        let text = drawn(40, 20, false);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(40), "{text}");
        assert!(text.lines().count() < 20, "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn drawing_when_coloured_has_the_same_characters() {
        for (columns, rows) in [(32, 1), (40, 20), (80, 24), (400, 200)] {
            let plain = drawn(columns, rows, false);
            let coloured = drawn(columns, rows, true);
            assert!(coloured.contains("\x1b[38;5;208m#"), "{coloured}");
            assert!(coloured.ends_with("present\n"));
            let mut bare = String::new();
            let mut pieces = coloured.split("\x1b[");
            bare.push_str(pieces.next().unwrap());
            pieces.for_each(|piece| bare.push_str(piece.split_once('m').unwrap().1));
            let trimmed = |text: &str| {
                text.lines()
                    .map(|line| line.trim_end().to_owned())
                    .collect::<Vec<_>>()
            };
            assert_eq!(trimmed(&bare), trimmed(&plain));
            // Whatever follows is in the terminal's own colour.
            for line in coloured.lines().filter(|line| line.contains("\x1b[")) {
                let last = line.rsplit_once("\x1b[").unwrap().1;
                assert!(last.starts_with("0m"), "{line:?}");
            }
            assert!(!plain.contains('\x1b'));
        }
    }

    #[test]
    fn drawing_when_nothing_was_seen_or_heats_are_no_numbers_draws_the_tiers() {
        for heat in [0.0, f64::NAN, f64::NEG_INFINITY] {
            let cold = |rows, columns| {
                let mut map = map(rows, columns);
                map.cells.iter_mut().for_each(|cell| cell.rate = heat);
                Ok::<_, ()>(map)
            };
            let screen = Screen {
                columns: 80,
                rows: 24,
                is_coloured: false,
            };
            let text = draw(screen, cold).unwrap();
            assert!(text.contains("hottest: 0 accesses/s"), "{text}");
            assert!(text.contains("▁▁▁▁"), "{text}");
            assert!(text.contains("...."), "{text}");
        }
    }
}
