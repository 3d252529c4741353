//! What must hold for blocks and ranges to make a map.

use crate::addr::{BASE_PAGE, Hva};

use super::{LOWEST_GPA, MAX_RANGES, MapRange, RamBlock};

/// Parts that do not make a map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// A block's numbers contradict each other.
    #[error("RAM block '{name}' at {hva} is malformed: {what}")]
    Block {
        /// The block's name.
        name: String,
        /// The block's address.
        hva: Hva,
        /// What is wrong.
        what: &'static str,
    },
    /// Two blocks share addresses.
    #[error("RAM blocks '{first}' and '{second}' overlap in QEMU")]
    BlocksOverlap {
        /// The block at the lower address.
        first: String,
        /// The other.
        second: String,
    },
    /// A range's numbers contradict each other or its block.
    #[error("range at guest-physical {gpa:#x} is malformed: {what}")]
    Range {
        /// The range's first guest-physical address.
        gpa: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Two ranges share guest-physical addresses.
    #[error("two ranges overlap at guest-physical {gpa:#x}")]
    RangesOverlap {
        /// Where the second begins.
        gpa: u64,
    },
    /// More than [`MAX_RANGES`].
    #[error("{count} ranges are more than a guest can have ({MAX_RANGES})")]
    TooManyRanges {
        /// How many were given.
        count: usize,
    },
}

pub(super) fn blocks(blocks: &[RamBlock]) -> Result<(), MapError> {
    for block in blocks {
        let error = |what| {
            Err(MapError::Block {
                name: block.name.clone(),
                hva: block.hva,
                what,
            })
        };
        if !block.page_size.is_power_of_two() || block.page_size < BASE_PAGE {
            return error("its page size is not a power of two from 4096 up");
        }
        if !block.hva.0.is_multiple_of(block.page_size) {
            return error("its address is not a multiple of its page size");
        }
        if block.used > block.total {
            return error("more is in use than reserved");
        }
        // Room for rounding the end up to a page.
        if block
            .hva
            .0
            .checked_add(block.total)
            .and_then(|end| end.checked_add(block.page_size))
            .is_none()
        {
            return error("it ends past the address space");
        }
    }
    let mut sorted: Vec<&RamBlock> = blocks.iter().collect();
    sorted.sort_by_key(|block| block.hva);
    match sorted
        .windows(2)
        .find(|pair| pair[0].hva.0 + pair[0].total > pair[1].hva.0)
    {
        Some(pair) => Err(MapError::BlocksOverlap {
            first: pair[0].name.clone(),
            second: pair[1].name.clone(),
        }),
        None => Ok(()),
    }
}

pub(super) fn range(range: &MapRange, blocks: &[RamBlock]) -> Result<(), MapError> {
    let error = |what| {
        Err(MapError::Range {
            gpa: range.gpa.0,
            what,
        })
    };
    let Some(block) = blocks.get(range.block.0 as usize) else {
        return error("its block does not exist");
    };
    if range.len == 0 {
        return error("it is empty");
    }
    if [range.gpa.0, range.len, range.offset]
        .iter()
        .any(|n| !n.is_multiple_of(BASE_PAGE))
    {
        return error("it is not aligned to 4096");
    }
    if range.gpa.0 < LOWEST_GPA {
        return error("it begins below 1 MiB");
    }
    if range.gpa.0.checked_add(range.len).is_none() {
        return error("it ends past the address space");
    }
    if range
        .offset
        .checked_add(range.len)
        .is_none_or(|end| end > block.total)
    {
        return error("it ends past its block");
    }
    if block.hva.checked_add(range.offset) != Some(range.hva) {
        return error("its address is not its block's address plus its offset");
    }
    Ok(())
}
