//! `vmm-tier map`: the guest's memory ranges, and on which nodes their pages lie.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use serde::Serialize;
use tier_core::{
    addr::{Hva, NodeId},
    map::{Backing, GuestMemoryMap, MapRange},
    text::{size::human, table::table},
};
use tier_sys::{
    pages::{PageStatus, PagesError, query_nodes},
    sysroot::SysRoot,
};

use crate::discover::{Discovered, discover};

/// Pages asked for in one kernel call: large enough to make the call's own cost vanish, small enough
/// to keep 512 KiB of addresses and 256 KiB of answers.
const CHUNK: usize = 1 << 16;

/// Prints the map of the guest behind a QMP socket.
///
/// # Errors
/// If the socket can't be used, the map not be found, or the pages' nodes not be asked for.
pub(crate) fn run(qmp: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let (client, _events) = qmp::Client::connect(qmp, &qmp::client::Options::default())?;
    let found = discover(&client, &SysRoot::real())?;
    // The monitor serves one client: leave it before the long part.
    drop(client);
    let pid = found.pid;
    let report = Report::new(&found, |pages| {
        let status = query_nodes(pid, pages)?;
        Ok::<_, PagesError>(status.into_iter().map(PageStatus::node).collect())
    })?;
    let text = if json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_text()
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output; a reader that has seen enough is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// What `map` shows. The JSON is a contract: names and units stay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    pid: u32,
    /// Addresses that QEMU translated, and how long finding the map took.
    translations: u32,
    elapsed_us: u64,
    ranges: Vec<RangeReport>,
    #[serde(skip)]
    heading: String,
    #[serde(skip)]
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct RangeReport {
    gpa: u64,
    len: u64,
    block: String,
    offset: u64,
    hva: u64,
    page_size: u64,
    /// Bytes of the range that are present, by node.
    nodes: BTreeMap<NodeId, u64>,
    #[serde(skip)]
    backing: Option<Backing>,
}

impl Report {
    /// Asks for the node of every page of the map; `query` gives one answer a page, `None` for a page
    /// that is not present.
    fn new<E>(
        found: &Discovered,
        mut query: impl FnMut(&[Hva]) -> Result<Vec<Option<NodeId>>, E>,
    ) -> Result<Self, E> {
        let map = &found.map;
        let ranges = map.ranges().iter().map(|range| {
            let block = map.block(range.block);
            Ok(RangeReport {
                gpa: range.gpa.0,
                len: range.len,
                block: block.name.clone(),
                offset: range.offset,
                hva: range.hva.0,
                page_size: block.page_size,
                nodes: placement(map, range, &mut query)?,
                backing: block.backing,
            })
        });
        let again = match found.attempts {
            1 => String::new(),
            attempts => format!(", {attempts} attempts"),
        };
        Ok(Self {
            pid: found.pid,
            translations: found.probes,
            elapsed_us: u64::try_from(found.elapsed.as_micros()).unwrap_or(u64::MAX),
            ranges: ranges.collect::<Result<_, E>>()?,
            heading: format!(
                "QEMU process {}: {} in {} from 1 MiB up, found with {} address translations in {:.0?}{again}",
                found.pid,
                human(map.total_bytes()),
                plural(map.ranges().len(), "range"),
                found.probes,
                found.elapsed,
            ),
            notes: found.unmapped.iter().map(note).collect(),
        })
    }

    /// A table for people.
    fn to_text(&self) -> String {
        let mut nodes: Vec<NodeId> = self
            .ranges
            .iter()
            .flat_map(|range| range.nodes.keys().copied())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut rows = vec![
            [
                "guest-physical",
                "size",
                "block",
                "offset",
                "in QEMU",
                "page",
                "backing",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows[0].extend(nodes.iter().map(|node| format!("node {node}")));
        rows[0].push("not present".to_owned());
        for range in &self.ranges {
            let name = if range.block.is_empty() {
                "(no name)"
            } else {
                &range.block
            };
            let mut row = vec![
                format!("{:#x}-{:#x}", range.gpa, range.gpa + range.len - 1),
                human(range.len),
                name.to_owned(),
                format!("{:#x}", range.offset),
                format!("{:#x}", range.hva),
                human(range.page_size),
                range.backing.map_or("unknown", Backing::name).to_owned(),
            ];
            row.extend(amounts(&nodes, range.len, &range.nodes));
            rows.push(row);
        }
        let mut total = BTreeMap::new();
        for (&node, bytes) in self.ranges.iter().flat_map(|range| &range.nodes) {
            *total.entry(node).or_insert(0) += bytes;
        }
        let len = self.ranges.iter().map(|range| range.len).sum();
        let mut row = vec![String::new(); 7];
        "total".clone_into(&mut row[0]);
        row[1] = human(len);
        row.extend(amounts(&nodes, len, &total));
        rows.push(row);

        let mut out = format!(
            "{}\n\n{}",
            self.heading,
            table(&rows, |column| !matches!(column, 0 | 2 | 6))
        );
        for note in &self.notes {
            let _ = writeln!(out, "\n{note}");
        }
        out
    }
}

fn note((name, bytes): &(String, u64)) -> String {
    let name = if name.is_empty() {
        "without name".to_owned()
    } else {
        format!("'{name}'")
    };
    format!(
        "note: {} of the RAM block {name} are not mapped into the guest",
        human(*bytes)
    )
}

/// Bytes on each node, then bytes not present.
fn amounts(nodes: &[NodeId], len: u64, bytes: &BTreeMap<NodeId, u64>) -> Vec<String> {
    let dash = |bytes: u64| {
        if bytes == 0 {
            "-".to_owned()
        } else {
            human(bytes)
        }
    };
    let present: u64 = bytes.values().sum();
    let on_nodes = nodes
        .iter()
        .map(|node| dash(bytes.get(node).copied().unwrap_or(0)));
    on_nodes
        .chain([dash(len.saturating_sub(present))])
        .collect()
}

pub(crate) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Bytes of a range on each node. A page that reaches over the range's ends counts with the part inside.
fn placement<E>(
    map: &GuestMemoryMap,
    range: &MapRange,
    query: &mut impl FnMut(&[Hva]) -> Result<Vec<Option<NodeId>>, E>,
) -> Result<BTreeMap<NodeId, u64>, E> {
    let page_size = map.block(range.block).page_size;
    let (start, end) = (range.hva.0, range.hva.0 + range.len);
    let mut pages = (range.hva.align_down(page_size).0..end)
        .step_by(usize::try_from(page_size).unwrap_or(usize::MAX));
    let mut bytes = BTreeMap::new();
    loop {
        let chunk: Vec<Hva> = pages.by_ref().take(CHUNK).map(Hva).collect();
        if chunk.is_empty() {
            return Ok(bytes);
        }
        for (page, node) in chunk.iter().zip(query(&chunk)?) {
            if let Some(node) = node {
                *bytes.entry(node).or_insert(0) +=
                    (page.0 + page_size).min(end) - page.0.max(start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use tier_core::{
        addr::Gpa,
        map::{BlockIndex, RamBlock},
    };

    use super::*;

    const MIB: u64 = 1 << 20;

    /// 5 GiB of 2 MiB pages split at 2 GiB, as a q35 machine does it; every fourth page is on node 1,
    /// the last GiB not present.
    fn found() -> Discovered {
        let hva = 0x7f00_0000_0000;
        let block = RamBlock {
            name: "ram0".to_owned(),
            hva: Hva(hva),
            used: 5120 * MIB,
            total: 5120 * MIB,
            page_size: 2 * MIB,
            backing: Some(Backing::Hugetlb),
        };
        let range = |gpa, len, offset| MapRange {
            gpa: Gpa(gpa),
            len,
            block: BlockIndex(0),
            offset,
            hva: Hva(hva + offset),
        };
        let ranges = vec![
            range(MIB, 2047 * MIB, MIB),
            range(4096 * MIB, 3072 * MIB, 2048 * MIB),
        ];
        Discovered {
            pid: 4711,
            map: GuestMemoryMap::new(1, vec![block], ranges).unwrap(),
            probes: 44,
            attempts: 1,
            elapsed: Duration::from_millis(20),
            pools: vec![],
            unmapped: vec![(String::new(), 256 * MIB)],
        }
    }

    fn nodes_of(pages: &[Hva]) -> Result<Vec<Option<NodeId>>, Infallible> {
        let node = |page: &Hva| {
            let number = (page.0 - 0x7f00_0000_0000) / (2 * MIB);
            (number < 2048).then(|| NodeId(u16::from(number.is_multiple_of(4))))
        };
        Ok(pages.iter().map(node).collect())
    }

    #[test]
    fn json_when_a_page_reaches_over_the_range_counts_the_part_inside() {
        let report = Report::new(&found(), nodes_of).unwrap();

        insta::assert_snapshot!(serde_json::to_string_pretty(&report).unwrap());
        // The first page is on node 1 and half of it lies below 1 MiB: 256 pages of 2 MiB less 1 MiB.
        assert_eq!(report.ranges[0].nodes[&NodeId(1)], 511 * MIB);
    }

    #[test]
    fn text_when_pages_are_on_two_nodes_has_a_column_for_each() {
        let report = Report::new(&found(), nodes_of).unwrap();

        insta::assert_snapshot!(report.to_text());
    }

    #[test]
    fn placement_when_a_range_is_long_asks_in_chunks_for_each_page_once() {
        let mut found = found();
        let mut block = found.map.blocks()[0].clone();
        block.page_size = 4096;
        found.map = GuestMemoryMap::new(1, vec![block], found.map.ranges().to_vec()).unwrap();
        let mut asked = Vec::new();

        Report::new(&found, |pages| {
            assert!(pages.len() <= CHUNK);
            asked.extend_from_slice(pages);
            Ok::<_, Infallible>(vec![None; pages.len()])
        })
        .unwrap();

        assert_eq!(asked.len() as u64, found.map.total_bytes() / 4096);
        assert!(asked.is_sorted());
    }
}
