//! `/proc/PID/numa_maps`: on which nodes the memory of each mapping lies, and by which policy.

use std::collections::BTreeMap;

use tier_core::addr::{Hva, NodeId};

use crate::{
    maps::each_line,
    sysroot::{ParseError, SysRoot, SysRootError, open},
};

/// A mapping's memory by node. numa_maps states only where a mapping starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingNodes {
    /// The first byte of the mapping.
    pub start: Hva,
    /// The policy that places the *next* page at its start: `default`, `bind:1`, `prefer (many):0` …
    /// Other parts of shared memory may have another one.
    pub policy: String,
    /// The mapped file; empty for anonymous memory.
    pub file: String,
    /// The size of a page in bytes.
    pub page_size: u64,
    /// Resident bytes on each node.
    pub bytes: BTreeMap<NodeId, u64>,
    /// Whether the backing is hugetlbfs.
    pub huge: bool,
}

/// Parses one line such as
/// `7f00 bind:1 file=/memfd:ram\040x dirty=3 N0=1 N1=2 kernelpagesize_kB=4`.
///
/// # Errors
/// What is wrong with the line.
fn parse_line(line: &str) -> Result<MappingNodes, &'static str> {
    let mut words = line.split_ascii_whitespace();
    let start = words.next().ok_or("an empty line")?;
    let start = Hva(u64::from_str_radix(start, 16).map_err(|_| "no address at the line's start")?);
    let mut policy = words
        .next()
        .ok_or("no policy behind the address")?
        .to_owned();
    let mut words = words.peekable();
    // Two modes have names of two words (mm/mempolicy.c, policy_modes).
    let is_second = |word: &&str| match policy.as_str() {
        "prefer" => word.starts_with("(many)"),
        "weighted" => word.starts_with("interleave"),
        _ => false,
    };
    if let Some(second) = words.next_if(is_second) {
        policy = format!("{policy} {second}");
    }
    let mut nodes = MappingNodes {
        start,
        policy,
        file: String::new(),
        page_size: 4096,
        bytes: BTreeMap::new(),
        huge: false,
    };
    let mut pages = Vec::new();
    for word in words {
        match word.split_once('=') {
            None if word == "huge" => nodes.huge = true,
            Some(("file", path)) => path.clone_into(&mut nodes.file),
            Some(("kernelpagesize_kB", size)) => {
                let size: u64 = size.parse().map_err(|_| "the page size is no number")?;
                nodes.page_size = size.checked_mul(1024).ok_or("the page size is too large")?;
            }
            Some((key, count)) => {
                let Some(node) = key.strip_prefix('N').and_then(|n| n.parse().ok()) else {
                    continue;
                };
                let count: u64 = count
                    .parse()
                    .map_err(|_| "a node's page count is no number")?;
                pages.push((NodeId(node), count));
            }
            None => {}
        }
    }
    // The page size stands behind the counts.
    for (node, count) in pages {
        let bytes = count
            .checked_mul(nodes.page_size)
            .ok_or("a node's page count is too large")?;
        nodes.bytes.insert(node, bytes);
    }
    Ok(nodes)
}

/// Parses the text of a numa_maps file.
///
/// # Errors
/// [`ParseError`] with the line.
pub fn parse(text: &str) -> Result<Vec<MappingNodes>, ParseError> {
    text.lines()
        .enumerate()
        .map(|(index, line)| parse_line(line).map_err(|what| ParseError::at(index, what)))
        .collect()
}

/// Reads the nodes of the mappings of a process whose start is in one of `starts` (rising order).
/// The kernel walks the page tables of every mapping for this: do it seldom.
///
/// # Errors
/// [`SysRootError`]; see [`SysRootError::is_process_gone`].
pub fn read(
    root: &SysRoot,
    pid: u32,
    keep: impl Fn(Hva) -> bool,
) -> Result<Vec<MappingNodes>, SysRootError> {
    let path = root.process(pid, "numa_maps");
    let mut found = Vec::new();
    each_line(open(&path)?, &path, |index, line| {
        let mapping = parse_line(line).map_err(|what| ParseError::at(index, what))?;
        if keep(mapping.start) {
            found.push(mapping);
        }
        Ok(true)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_when_two_nodes_hold_pages_counts_bytes_by_node() {
        let text = "7f00e8000000 bind:1 file=/memfd:ram\\040(deleted) dirty=100 N0=60 N1=40 kernelpagesize_kB=4\n\
                    7f0100000000 default file=/dev/hugepages/x huge dirty=2 N1=2 kernelpagesize_kB=2048\n";

        let found = parse(text).unwrap();

        assert_eq!(
            found[0].bytes,
            BTreeMap::from([(NodeId(0), 60 << 12), (NodeId(1), 40 << 12)])
        );
        assert_eq!((found[0].policy.as_str(), found[0].huge), ("bind:1", false));
        assert_eq!(found[1].bytes, BTreeMap::from([(NodeId(1), 4 << 20)]));
        assert!(found[1].huge);
    }

    #[test]
    fn parse_when_the_policy_has_two_words_takes_both() {
        let text = "1000 prefer (many):0 N0=1\n2000 weighted interleave:0-1 N1=1\n3000 prefer:1\n";

        let policies: Vec<_> = parse(text).unwrap().into_iter().map(|n| n.policy).collect();

        assert_eq!(
            policies,
            ["prefer (many):0", "weighted interleave:0-1", "prefer:1"]
        );
    }

    #[test]
    fn parse_when_malformed_names_the_line() {
        for text in [
            "x default",
            "1000",
            "1000 default N0=x",
            "1000 default N0=18446744073709551615",
        ] {
            assert_eq!(parse(text).unwrap_err().line, 1, "{text}");
        }
    }

    #[test]
    fn read_when_asked_for_ourselves_finds_memory_on_some_node() {
        let root = SysRoot::real();
        if !root.process(std::process::id(), "numa_maps").exists() {
            eprintln!("SKIPPED: this kernel has no /proc/PID/numa_maps (CONFIG_NUMA)");
            return;
        }
        let found = read(&root, std::process::id(), |_| true).unwrap();
        assert!(
            found
                .iter()
                .any(|mapping| mapping.bytes.values().sum::<u64>() > 0)
        );
    }
}
