//! `/proc/zoneinfo`: free pages of each node and the watermarks that guard them.

use std::collections::BTreeMap;

use tier_core::addr::NodeId;

use crate::sysroot::{ParseError, SysRoot, SysRootError, read_text};

/// Per CPU and zone there are six lines: 1 MiB is enough for some 1000 CPUs on 4 nodes.
const MAX_ZONEINFO: u64 = 8 << 20;

/// Free memory and watermarks of a node, summed over its zones, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeMarks {
    /// Free.
    pub free: u64,
    /// Free too, on the lists of single CPUs (`pagesets`), and not counted in `free`: up to an eighth of a zone
    /// since Linux 6.7 (`zone_highsize`, mm/page_alloc.c).
    pub cached: u64,
    /// Below this only the kernel's own emergency allocations are served.
    pub min: u64,
    /// Below this the kernel begins to reclaim.
    pub low: u64,
    /// Up to this it reclaims.
    pub high: u64,
    /// Up to this it demotes when it promotes itself; `None` before Linux 6.12's `promo` line.
    pub promo: Option<u64>,
}

/// Reads `/proc/zoneinfo`.
///
/// # Errors
/// [`SysRootError`].
pub fn read(root: &SysRoot) -> Result<BTreeMap<NodeId, NodeMarks>, SysRootError> {
    let path = root.proc("zoneinfo");
    parse(&read_text(&path, MAX_ZONEINFO)?).map_err(|error| error.in_file(&path))
}

/// Parses the text of a zoneinfo file (pages of 4 KiB).
///
/// # Errors
/// [`ParseError`] with the line.
pub fn parse(text: &str) -> Result<BTreeMap<NodeId, NodeMarks>, ParseError> {
    let mut nodes: BTreeMap<NodeId, NodeMarks> = BTreeMap::new();
    let mut current = None;
    for (index, line) in text.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("Node ") {
            let node = rest
                .split(',')
                .next()
                .and_then(|number| number.parse().ok());
            let node = NodeId(node.ok_or_else(|| ParseError::at(index, "no node number"))?);
            nodes.entry(node).or_default();
            current = Some(node);
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        // `pages free     2814`, then `      boost`, `min`, `low`, `high`, `promo` each with a number.
        let key = match words.next() {
            Some("pages") => words.next(),
            word => word,
        };
        let Some(marks) = current.and_then(|node| nodes.get_mut(&node)) else {
            continue;
        };
        let field = match key {
            Some("free") => &mut marks.free,
            Some("count:") => &mut marks.cached,
            Some("min") => &mut marks.min,
            Some("low") => &mut marks.low,
            Some("high") => &mut marks.high,
            Some("promo") => marks.promo.get_or_insert(0),
            _ => continue,
        };
        let pages: u64 = words
            .next()
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| ParseError::at(index, "no number of pages"))?;
        *field = field.saturating_add(pages.saturating_mul(4096));
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = include_str!("../tests/data/zoneinfo");

    #[test]
    fn parse_when_kernel_wrote_it_sums_the_zones_of_a_node() {
        let nodes = parse(REAL).unwrap();

        // The sums of the file's zones DMA, DMA32 and Normal, times 4096.
        assert_eq!(nodes.len(), 1);
        let marks = nodes[&NodeId(0)];
        assert!(marks.min < marks.low && marks.low < marks.high && marks.high < marks.free);
        assert!(marks.promo.is_some_and(|promo| promo > marks.high));
        // What the lists of all CPUs and zones hold.
        assert_eq!(marks.cached, (21286 + 16716) * 4096);
    }

    #[test]
    fn parse_when_two_nodes_and_no_promo_keeps_them_apart() {
        let text = "Node 0, zone   Normal\n  pages free     10\n        boost    0\n        min      1\n\
                    \x20       low      2\n        high     3\n  pagesets\n    cpu: 0\n              count:    7\n\
                    \x20             high:  186\n    cpu: 1\n              count:    8\nNode 1, zone  Movable\n\
                    \x20 pages free     20\n        min      4\n        low      5\n        high     6\n";

        let nodes = parse(text).unwrap();

        let kib4 = |n: u64| n * 4096;
        assert_eq!(
            nodes[&NodeId(0)],
            NodeMarks {
                free: kib4(10),
                cached: kib4(7 + 8),
                min: kib4(1),
                low: kib4(2),
                high: kib4(3),
                promo: None
            }
        );
        assert_eq!(nodes[&NodeId(1)].free, kib4(20));
    }

    #[test]
    fn parse_when_a_count_is_no_number_names_the_line() {
        let text = "Node 0, zone Normal\n  pages free x\n";
        assert_eq!(parse(text).unwrap_err().line, 2);
    }
}
