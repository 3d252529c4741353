//! The table of `x-query-ramblock` and HMP `info ramblock` (`ram_block_format` in QEMU's
//! `system/physmem.c`).

use super::excerpt;

/// The most rows that are read: QEMU has one a backend or ROM, some dozens in all.
const MAX_ROWS: usize = 65_536;

/// One RAM block: a piece of host memory that QEMU gives to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    /// The name, empty between `object-add` and `device_add` and between unplug and `object-del`.
    /// Two blocks may have one name.
    pub name: String,
    /// The host page size of the backend, in bytes.
    pub page_size: u64,
    /// The block's place in QEMU's own numbering of RAM. It is no guest-physical address.
    pub offset: u64,
    /// Bytes in use; less than `total` for a block that can grow.
    pub used: u64,
    /// Bytes reserved.
    pub total: u64,
    /// Where the block starts in QEMU's address space; `None` before QEMU 8.0.
    pub hva: Option<u64>,
    /// Whether the guest may only read it; `None` before QEMU 8.0.
    pub read_only: Option<bool>,
}

/// A text that is no table of RAM blocks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRamBlocksError {
    /// The first line doesn't name the columns that are known.
    #[error("'{text}' is not the header of a RAM block table")]
    Header {
        /// The start of the line, escaped.
        text: String,
    },
    /// A row doesn't fit the header.
    #[error("'{text}' in line {line} is not a row of a RAM block table")]
    Row {
        /// The line, the header being 1.
        line: usize,
        /// The start of the line, escaped.
        text: String,
    },
    /// More rows than any machine has.
    #[error("a RAM block table of more than {MAX_ROWS} rows")]
    TooLong,
}

/// Parses the table of RAM blocks, with or without the columns `HVA` and `RO`.
///
/// # Errors
/// When the header or a row is not as QEMU writes it; a table is read as a whole or not at all.
pub fn parse_ramblocks(text: &str) -> Result<Vec<RamBlock>, ParseRamBlocksError> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let columns: Vec<&str> = header.split_whitespace().take(9).collect();
    let with_hva = match columns[..] {
        ["Block", "Name", "PSize", "Offset", "Used", "Total"] => false,
        [
            "Block",
            "Name",
            "PSize",
            "Offset",
            "Used",
            "Total",
            "HVA",
            "RO",
        ] => true,
        _ => {
            return Err(ParseRamBlocksError::Header {
                text: excerpt(header),
            });
        }
    };
    let mut blocks = Vec::new();
    for (number, line) in (2..).zip(lines) {
        if line.trim().is_empty() {
            continue;
        }
        if blocks.len() == MAX_ROWS {
            return Err(ParseRamBlocksError::TooLong);
        }
        let block = row(line, with_hva);
        let error = || ParseRamBlocksError::Row {
            line: number,
            text: excerpt(line),
        };
        blocks.push(block.ok_or_else(error)?);
    }
    Ok(blocks)
}

/// Reads a row from its right end: the name stands first, may be empty and may hold spaces.
fn row(line: &str, with_hva: bool) -> Option<RamBlock> {
    let mut rest = line;
    let (mut hva, mut read_only) = (None, None);
    if with_hva {
        read_only = Some(match last_word(&mut rest)? {
            "ro" => true,
            "rw" => false,
            _ => return None,
        });
        hva = Some(hex(last_word(&mut rest)?)?);
    }
    let total = hex(last_word(&mut rest)?)?;
    let used = hex(last_word(&mut rest)?)?;
    let offset = hex(last_word(&mut rest)?)?;
    let unit = match last_word(&mut rest)? {
        "B" => 1_u64,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    let page_size = last_word(&mut rest)?
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)?;
    // A page size that is none would break every rounding downstream.
    if !page_size.is_power_of_two() || used > total {
        return None;
    }
    offset.checked_add(total)?;
    let name = rest.trim().to_owned();
    Some(RamBlock {
        name,
        page_size,
        offset,
        used,
        total,
        hva,
        read_only,
    })
}

fn last_word<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let trimmed = rest.trim_end();
    let start = trimmed.rfind(char::is_whitespace).map_or(0, |at| {
        at + trimmed[at..].chars().next().map_or(0, char::len_utf8)
    });
    let (before, word) = trimmed.split_at(start);
    *rest = before;
    (!word.is_empty()).then_some(word)
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}
