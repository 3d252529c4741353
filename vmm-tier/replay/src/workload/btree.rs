//! A B-tree that is searched and grows.

use tier_core::{random::Random, sample::AccessKind};

use super::{
    Plan, Scale,
    alias::Alias,
    generator::{Pattern, line_in},
    keys::YCSB,
};

/// Children of a node that is half full, and of a full one.
const HALF_FULL: u32 = 64;
const FULL: u32 = 2 * HALF_FULL;
/// Keys of a leaf, with a record of 128 bytes each.
const KEYS: u32 = 32;
/// Lines of a leaf that an operation uses: the last steps of the search, and the record.
const LEAF_LINES: u32 = 5;
/// Those of them that an insert writes.
const WRITTEN: u32 = 2;
/// Operations of which one is an insert.
const INSERTS: u64 = 16;

/// Nodes above the leaves, level by level from the leaves' parents to the root.
fn levels_above(half: u32) -> Vec<u32> {
    let mut levels = vec![half.div_ceil(HALF_FULL)];
    while let Some(&nodes) = levels.last()
        && nodes > 1
    {
        levels.push(nodes.div_ceil(FULL));
    }
    levels
}

struct BTree {
    /// Popularity of the leaves of the full-grown tree.
    leaves: Alias,
    /// Leaves at the start. Leaf i splits into i and i + half.
    half: u32,
    /// Leaves that have split.
    split: u32,
    /// Inserts so far, and at the end of the run.
    inserted: u64,
    inserts: u64,
    /// The first page of each level, the root's first, the leaves' parents' last.
    levels: Vec<u32>,
    /// Pages of the current operation, in the same order, the leaf last.
    path: Vec<u32>,
    step: u32,
    steps: u32,
    is_insert: bool,
    bits: u64,
}

impl BTree {
    fn descend(&mut self, random: &mut Random) {
        self.bits = random.draw();
        self.is_insert = self.bits.is_multiple_of(INSERTS);
        let leaf = self.leaves.pick(random.draw());
        let (old, is_new) = if leaf < self.half {
            (leaf, false)
        } else {
            (leaf - self.half, leaf - self.half < self.split)
        };
        let above = self.levels.len();
        self.path[above] = if is_new { leaf } else { old };
        // Both halves of a leaf have one parent.
        let mut node = old / HALF_FULL;
        for level in (0..above).rev() {
            self.path[level] = self.levels[level] + node;
            node /= FULL;
        }
        if self.is_insert {
            self.inserted += 1;
            let split =
                u128::from(self.half) * u128::from(self.inserted) / u128::from(self.inserts);
            self.split = split.min(u128::from(self.half)) as u32;
        }
    }
}

impl Pattern for BTree {
    #[inline]
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind) {
        if self.step == 0 {
            self.descend(random);
        }
        let step = self.step;
        let page = self.path[(step as usize).min(self.path.len() - 1)];
        self.bits = self.bits.rotate_left(7);
        let writes = self.is_insert && step + WRITTEN >= self.steps;
        self.step = if step + 1 == self.steps { 0 } else { step + 1 };
        let kind = if writes {
            AccessKind::Store
        } else {
            AccessKind::Load
        };
        (line_in(page, self.bits), kind)
    }
}

/// An index of a database, loaded in bulk: leaves first, then level by level up to the root, so that the
/// hottest pages lie at the end. Each operation goes from the root to a leaf; keys are popular by Zipf's
/// law with YCSB's exponent and lie scattered, 32 to a leaf. One operation in 16 inserts; from the start
/// to the end of the run every leaf splits, and half of its keys go to a page that was not used before.
pub(super) fn btree(scale: &Scale, random: &mut Random) -> Plan {
    let above: u32 = levels_above(scale.pages / 2).iter().sum();
    let half = (scale.pages - above) / 2;
    let mut levels = Vec::new();
    let mut first = 2 * half;
    for nodes in levels_above(half) {
        levels.push(first);
        first += nodes;
    }
    levels.reverse();
    let steps = levels.len() as u32 + LEAF_LINES;
    let accesses = scale.rate_per_s.saturating_mul(u64::from(scale.seconds));
    let inserts = (accesses / u64::from(steps) / INSERTS).max(1);
    Plan::steady(BTree {
        leaves: Alias::of_scattered(2 * half, KEYS, YCSB, random),
        half,
        split: 0,
        inserted: 0,
        inserts,
        path: vec![0; levels.len() + 1],
        levels,
        step: 0,
        steps,
        is_insert: false,
        bits: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_when_the_tree_is_large_or_small_end_with_one_root() {
        assert_eq!(levels_above(16_384), [256, 2, 1]);
        assert_eq!(levels_above(8192), [128, 1]);
        assert_eq!(levels_above(64), [1]);
        assert_eq!(levels_above(1), [1]);
    }
}
