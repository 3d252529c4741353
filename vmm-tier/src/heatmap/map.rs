//! The answer of `query-tier-heatmap`, checked.

use serde::Deserialize;
use serde_json::Value;

/// An agent's heat map.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct HeatMap {
    pub(super) rows: u32,
    pub(super) columns: u32,
    /// Guest RAM, which the cells divide among them.
    pub(super) ram_bytes: u64,
    /// The cells, row by row.
    pub(super) cells: Vec<Cell>,
}

/// An equal share of the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Cell {
    /// Its first guest-physical address.
    pub(super) gpa: u64,
    /// Accesses a second for each 4 KiB.
    pub(super) rate: f64,
    /// Share of its present bytes on the fast tier; `None` if nothing is present.
    pub(super) fast_share: Option<f64>,
}

/// Where the present pages of a cell lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// Three quarters or more are in DRAM.
    Fast,
    /// On both tiers.
    Both,
    /// Three quarters or more are on slow memory.
    Slow,
}

/// An answer that is no heat map.
#[derive(Debug, thiserror::Error)]
pub(super) enum MapError {
    /// Members are missing, or of another type.
    #[error("the answer has another form")]
    Form(#[from] serde_json::Error),
    /// Another number of cells than was asked for.
    #[error("it has {cells} cells in {rows} rows of {columns}")]
    Size {
        rows: u32,
        columns: u32,
        cells: usize,
    },
}

impl HeatMap {
    /// Reads an answer to a question for so many cells.
    ///
    /// # Errors
    /// If it is something else.
    pub(super) fn read(reply: Value, rows: u32, columns: u32) -> Result<Self, MapError> {
        let map: Self = serde_json::from_value(reply)?;
        let wanted = u64::from(rows) * u64::from(columns);
        if map.cells.len() as u64 != wanted || (map.rows, map.columns) != (rows, columns) {
            return Err(MapError::Size {
                rows: map.rows,
                columns: map.columns,
                cells: map.cells.len(),
            });
        }
        Ok(map)
    }

    /// The highest rate of a cell.
    pub(super) fn hottest(&self) -> f64 {
        self.cells.iter().map(|cell| cell.rate).fold(0.0, f64::max)
    }

    /// The cells, a row at a time; none if it has no column.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[Cell]> {
        self.cells.chunks(self.columns.max(1) as usize)
    }

    /// Bytes that a cell stands for.
    pub(super) fn cell_bytes(&self) -> u64 {
        self.ram_bytes / (self.cells.len() as u64).max(1)
    }
}

impl Cell {
    /// Where its present pages lie.
    pub(super) fn lies(&self) -> Option<Lies> {
        Some(match self.fast_share? {
            share if share >= 0.75 => Lies::Fast,
            share if share > 0.25 => Lies::Both,
            _ => Lies::Slow,
        })
    }
}

/// `12.3`, `0.0456`, `1234`: three digits.
pub(super) fn rate(rate: f64) -> String {
    if rate <= 0.0 || !rate.is_finite() {
        return "0".to_owned();
    }
    let before = rate.log10().floor() as i32;
    let decimals = usize::try_from(2 - before).unwrap_or(0).min(9);
    format!("{rate:.decimals$}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answer_when_it_is_no_map_of_that_size_is_refused() {
        let cell = json!({"gpa": 0, "rate": 1.5, "fast-share": null});
        let answer = |cells: usize| json!({"rows": 1, "columns": 2, "ram-bytes": 8192, "cells": vec![&cell; cells]});
        let map = HeatMap::read(answer(2), 1, 2).unwrap();
        assert_eq!((map.hottest(), map.cell_bytes()), (1.5, 4096));
        assert_eq!(map.cells[0].lies(), None);
        assert!(HeatMap::read(answer(3), 1, 2).is_err());
        assert!(HeatMap::read(answer(2), 2, 1).is_err());
        assert!(HeatMap::read(json!({"rows": 1}), 1, 2).is_err());
        assert!(HeatMap::read(json!([]), 0, 0).is_err());
    }

    #[test]
    fn rate_when_written_has_three_digits() {
        let written = [1234.5, 12.345, 0.045_61, 0.0, f64::NAN].map(rate);
        assert_eq!(written, ["1234", "12.3", "0.0456", "0", "0"]);
    }
}
