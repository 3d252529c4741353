//! Addresses, nodes and sizes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A guest-physical address.
pub use vm_memory::GuestAddress as Gpa;

/// The smallest page that the kernel moves: 4 KiB.
pub const BASE_PAGE: u64 = 4096;
/// The size of a transparent huge page on `x86_64`.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Frames of 4 KiB in `bytes` bytes, at least one.
#[must_use]
pub fn frames(bytes: u64) -> f64 {
    (bytes / BASE_PAGE).max(1) as f64
}

/// Writes and reads a [`Gpa`] as a number, for `#[serde(with = "gpa_number")]`.
pub mod gpa_number {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Gpa;

    /// Writes the address as a number.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(gpa: &Gpa, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(gpa.0)
    }

    /// Reads the address from a number.
    ///
    /// # Errors
    /// If there is no such number.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Gpa, D::Error> {
        u64::deserialize(deserializer).map(Gpa)
    }
}

/// A virtual address in the QEMU process ("host virtual address").
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Hva(pub u64);

impl Hva {
    /// The address `bytes` further on, or `None` past the end of the address space.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// The address rounded down to a multiple of `size`, a power of two.
    #[must_use]
    pub const fn align_down(self, size: u64) -> Self {
        Self(self.0 & !(size - 1))
    }
}

impl fmt::Display for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number of a NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u16);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of NUMA nodes, written as the kernel writes it: `0`, `0,2-3`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeSet(Vec<NodeId>);

impl NodeSet {
    /// The nodes in rising order.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().copied()
    }

    /// Whether `node` is in the set.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.binary_search(&node).is_ok()
    }

    /// Whether the set has no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of nodes in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<T: IntoIterator<Item = NodeId>>(iter: T) -> Self {
        let mut nodes: Vec<_> = iter.into_iter().collect();
        nodes.sort_unstable();
        nodes.dedup();
        Self(nodes)
    }
}

/// A node list that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a node list such as '0' or '0,2-3'")]
pub struct ParseNodeSetError(String);

impl FromStr for NodeSet {
    type Err = ParseNodeSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseNodeSetError(text.to_owned());
        let number = |part: &str| part.trim().parse::<u16>().map_err(|_| error());
        let mut nodes = Vec::new();
        // The kernel writes an empty set as an empty line.
        for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            // MAX_NUMNODES is 1024 on x86_64 (CONFIG_NODES_SHIFT = 10).
            if first > last || last >= 1024 {
                return Err(error());
            }
            nodes.extend((first..=last).map(NodeId));
        }
        Ok(nodes.into_iter().collect())
    }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        while let Some(first) = rest.first() {
            let run = (1..rest.len())
                .find(|&i| rest[i].0 != first.0 + u16::try_from(i).unwrap_or(u16::MAX))
                .unwrap_or(rest.len());
            match run {
                1 => write!(f, "{first}")?,
                _ => write!(f, "{first}-{}", rest[run - 1])?,
            }
            rest = &rest[run..];
            if !rest.is_empty() {
                f.write_str(",")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_set_when_written_reads_back_the_same() {
        for text in ["0", "0,2-3", "1-2,5", ""] {
            assert_eq!(text.parse::<NodeSet>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn node_set_when_malformed_is_refused() {
        for text in ["x", "1-", "3-1", "0,,1", "-1", "0-70000", "1024"] {
            assert!(text.parse::<NodeSet>().is_err(), "{text}");
        }
    }
}
