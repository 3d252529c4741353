//! The heat map of a guest: memory in guest-physical order, row by row, a block for each cell.
//!
//! The block tells heat and tier, with or without colours: memory in DRAM is shaded, memory on the slow
//! tier is a bar that grows. The scale is fixed, so two maps can be compared.

use serde_json::Value;

use super::{
    super::{
        app::Agent,
        figures::{list, number, shown},
        text::{bytes, cut, harmless, wrapped},
    },
    Line, Look, line, said,
};

/// Accesses a second to each 4 KiB at which the next block is used.
const BOUNDS: [f64; 4] = [0.01, 0.1, 1.0, 10.0];
/// Blocks of memory in DRAM and on the slow tier, the coldest first.
const FAST: [char; 5] = ['·', '░', '▒', '▓', '█'];
const SLOW: [char; 5] = ['.', '▁', '▂', '▃', '▅'];
/// The columns of the address before a row.
const ADDRESS: usize = 13;
/// Lines that are no rows: above and below the map.
const OTHERS: u16 = 6;
/// The most cells of a map: see `query-tier-heatmap`.
const MOST_CELLS: usize = 16_384;

/// The rows and columns of a map on a screen of this width and height.
pub(in super::super) fn size(width: u16, height: u16) -> (u16, u16) {
    let columns = width.saturating_sub(ADDRESS as u16 + 1).clamp(8, 256);
    let rows = height.saturating_sub(OTHERS).clamp(2, 64);
    (rows, columns)
}

/// The lines of the view.
pub(super) fn lines(
    agent: &Agent,
    vm: Option<&Value>,
    is_agent: bool,
    width: usize,
    room: usize,
) -> Vec<Line> {
    let tier = agent.tier.value.as_ref();
    let name = tier.or(vm).and_then(|of| said(of, "name"));
    let title = format!("HEAT  {}", name.unwrap_or_default());
    let mut lines = vec![line(cut(&title, width), Look::Title)];
    let control = vm.and_then(|vm| vm.get("control")).and_then(Value::as_str);
    let trouble = match (&agent.no_heat, &agent.tier.lost) {
        (Some(why), _) | (None, Some(why)) => Some(harmless(why)),
        _ if is_agent => None,
        _ if vm.is_none() => Some("no VM is selected".to_owned()),
        _ if control.is_none() => Some(
            "the daemon does not know the VM's control socket: only its agent has a heat map"
                .to_owned(),
        ),
        _ => None,
    };
    for why in trouble.iter().flat_map(|why| wrapped(why, width)) {
        lines.push(line(why, Look::Warning));
    }
    let Some(map) = &agent.heat else {
        if trouble.is_none() {
            lines.push(line("asking", Look::Faint));
        }
        return lines;
    };
    lines.extend(map_lines(map, width, room.saturating_sub(lines.len() + 3)));
    let mut legend = |label: &str, blocks: [char; 5], look| {
        let mut line: Line = vec![(format!("{label:5}"), Look::Plain)];
        let bounds = ["0", ".01", ".1", "1", "10"];
        for (block, bound) in blocks.into_iter().zip(bounds) {
            line.push((format!("  {block}"), look));
            line.push((format!(" {bound}"), Look::Plain));
        }
        lines.push(line);
    };
    legend("DRAM", FAST, Look::Fast);
    legend("slow", SLOW, Look::Slow);
    let unit = "accesses a second to each 4 KiB, at least; blank: not present";
    lines.push(line(cut(unit, width), Look::Faint));
    lines
}

/// The map, with the address of each row; no more than `room` lines.
fn map_lines(map: &Value, width: usize, room: usize) -> Vec<Line> {
    let columns = number(map, "columns").map_or(0, |columns| columns as usize);
    let cells = list(map, "cells");
    let cells = &cells[..cells.len().min(MOST_CELLS)];
    let fits = columns.min(width.saturating_sub(ADDRESS + 1));
    if columns == 0 || cells.is_empty() {
        return vec![line("the map is empty", Look::Faint)];
    }
    let each = number(map, "ram-bytes").map(|bytes| bytes / cells.len() as f64);
    let what = format!(
        "{} of RAM, {} a block",
        shown(map, "ram-bytes"),
        each.map_or("–".to_owned(), bytes)
    );
    let mut lines = vec![line(cut(&what, width), Look::Plain)];
    for row in cells.chunks(columns).take(room.saturating_sub(1)) {
        let address = row.first().and_then(|cell| cell.get("gpa")?.as_u64());
        let address = address.map_or("–".to_owned(), |address| format!("{address:#x}"));
        let mut line: Line = vec![(format!("{address:>ADDRESS$} "), Look::Faint)];
        for cell in &row[..row.len().min(fits)] {
            let (block, look) = block(cell);
            match line.last_mut() {
                Some((text, last)) if *last == look => text.push(block),
                _ => line.push((block.to_string(), look)),
            }
        }
        lines.push(line);
    }
    lines
}

/// The block of a cell.
fn block(cell: &Value) -> (char, Look) {
    let heat = number(cell, "rate").map_or(0, |rate| {
        BOUNDS.iter().take_while(|&&bound| rate >= bound).count()
    });
    match number(cell, "fast-share") {
        None => (' ', Look::Plain),
        Some(share) if share >= 0.5 => (FAST[heat], Look::Fast),
        Some(_) => (SLOW[heat], Look::Slow),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn block_tells_heat_and_tier_without_a_colour() {
        let of =
            |rate: f64, share: Option<f64>| block(&json!({"rate": rate, "fast-share": share})).0;
        assert_eq!(
            [0.0, 0.01, 0.5, 1.0, 1e300].map(|rate| of(rate, Some(1.0))),
            FAST
        );
        assert_eq!(
            [-1.0, 0.01, 0.5, 1.0, 10.0].map(|rate| of(rate, Some(0.1))),
            SLOW
        );
        assert_eq!(of(5.0, None), ' ');
        assert!(FAST.iter().all(|block| !SLOW.contains(block)));
        assert_eq!(block(&json!(3)).0, ' ');
    }

    #[test]
    fn map_when_it_makes_no_sense_is_no_larger_than_the_screen() {
        let cell = json!({"gpa": u64::MAX, "rate": 1e300, "fast-share": -1e300});
        for map in [
            json!({"columns": 1e300, "cells": [cell]}),
            json!({"columns": 0, "cells": [cell]}),
            json!({"columns": 1, "cells": vec![cell.clone(); 20_000], "ram-bytes": -5}),
            json!({"columns": 200, "cells": vec![cell; 20_000]}),
            json!({"cells": 3}),
            json!([]),
        ] {
            let lines = map_lines(&map, 40, 10);
            assert!(lines.len() <= 10 && !lines.is_empty(), "{}", lines.len());
        }
        for (width, height) in [(0, 0), (40, 20), (u16::MAX, u16::MAX)] {
            let (rows, columns) = size(width, height);
            assert!(usize::from(rows) * usize::from(columns) <= MOST_CELLS);
        }
    }
}
