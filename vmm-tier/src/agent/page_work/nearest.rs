//! A batch for a tier of several nodes: each page goes to the nearest node with room.

use std::{collections::BTreeMap, time::Duration};

use tier_core::{
    addr::{Hva, NodeId},
    moves::{MoveBatch, Outcome, PageResult},
    nearness::{Place, Targets},
};
use tier_sys::pages::PagesError;

use super::done::{Carried, unmoved};
use crate::log::with_causes;

/// Divides a batch by where its pages lie now, which `nodes_of` says, and has each part moved to one
/// node.
pub(super) fn to_nearest(
    batch: &MoveBatch,
    targets: &Targets,
    nodes_of: impl FnOnce(&[Hva]) -> Result<Vec<Option<NodeId>>, PagesError>,
    mut carry_out: impl FnMut(&MoveBatch) -> Carried,
) -> Carried {
    let addresses: Vec<Hva> = batch.pages.iter().map(|page| page.hva).collect();
    let nodes = match nodes_of(&addresses) {
        Ok(nodes) => nodes,
        Err(error) => {
            return Carried {
                report: unmoved(batch, error.outcome()),
                refusal: Some(with_causes(&error)),
            };
        }
    };
    // No node of the tier has room above the watermark and the headroom.
    let mut report = unmoved(batch, Outcome::BelowWatermark);
    let mut parts: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    let pages = batch.pages.iter().copied().zip(nodes.iter().copied());
    for (index, place) in targets.places(pages).into_iter().enumerate() {
        let result = &mut report.results[index];
        result.node = nodes[index];
        match place {
            Place::There(_) => result.outcome = Outcome::AlreadyThere,
            Place::To(node) => parts.entry(node).or_default().push(index),
            Place::NoRoom => {}
        }
    }
    report.cpu_time = Duration::ZERO;
    let mut refusal = None;
    for (target, indices) in parts {
        let part = MoveBatch {
            target,
            nearest: None,
            pages: indices.iter().map(|&index| batch.pages[index]).collect(),
            ..*batch
        };
        let carried = carry_out(&part);
        report.cpu_time += carried.report.cpu_time;
        refusal = refusal.or(carried.refusal);
        for (index, result) in indices.into_iter().zip(carried.report.results) {
            report.results[index] = result;
        }
    }
    // What was refused for one node only is told page by page.
    let is_moved = |result: &PageResult| result.outcome == Outcome::Moved;
    let refusal = refusal.filter(|_| !report.results.iter().any(is_moved));
    Carried { report, refusal }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tier_core::{
        addr::{BASE_PAGE, NodeSet},
        moves::{Direction, Page},
        nearness::{Distance, Nearness},
    };

    use super::*;

    /// A batch of four pages for the slow nodes 2 and 5, of which 5 is nearer to node 0. Node 5 has room
    /// for one page.
    fn batch() -> (MoveBatch, Targets) {
        let distance = |to, slit| {
            let is_foreign = false;
            ((NodeId(0), NodeId(to)), Distance { slit, is_foreign })
        };
        let nearness = Nearness {
            distances: [distance(2, 30), distance(5, 20)].into(),
            cpus: NodeSet::default(),
        };
        let rooms = vec![(NodeId(2), 9 * BASE_PAGE), (NodeId(5), BASE_PAGE)];
        let tier = "2,5".parse().unwrap();
        let targets = Targets::new(Direction::Demote, tier, rooms, Arc::new(nearness));
        let page = |number: u64| Page {
            hva: Hva(number * BASE_PAGE),
            bytes: BASE_PAGE,
        };
        let batch = MoveBatch {
            id: 7,
            direction: Direction::Demote,
            target: NodeId(2),
            nearest: Some(targets.clone()),
            frame_bytes: BASE_PAGE,
            pages: (0..4).map(page).collect(),
        };
        (batch, targets)
    }

    /// Page 1 lies on a slow node already.
    fn nodes_of(addresses: &[Hva]) -> Result<Vec<Option<NodeId>>, PagesError> {
        let lies_on = |address: &Hva| match address.0 / BASE_PAGE {
            1 => Some(NodeId(5)),
            _ => Some(NodeId(0)),
        };
        Ok(addresses.iter().map(lies_on).collect())
    }

    fn carried(part: &MoveBatch, outcome: Outcome) -> Carried {
        let mut report = unmoved(part, outcome);
        report.cpu_time = Duration::from_micros(part.pages.len() as u64);
        for result in &mut report.results {
            result.node = Some(part.target);
        }
        let refusal = (outcome == Outcome::Cpuset).then(|| "cpuset".to_owned());
        Carried { report, refusal }
    }

    #[test]
    fn batch_when_the_tier_has_several_nodes_is_divided_and_reported_in_its_order() {
        let (batch, targets) = batch();
        let mut calls = Vec::new();
        let Carried { report, refusal } = to_nearest(&batch, &targets, nodes_of, |part| {
            calls.push((part.target.0, part.pages.len()));
            carried(part, Outcome::Moved)
        });
        assert_eq!(calls, [(2, 2), (5, 1)]);
        assert_eq!((report.id, refusal), (7, None));
        assert_eq!(report.cpu_time, Duration::from_micros(3));
        let results = report.results.iter().zip(&batch.pages);
        let found = results.map(|(result, page)| {
            assert_eq!(result.page, *page);
            (result.outcome, result.node.map(|node| node.0))
        });
        assert_eq!(
            found.collect::<Vec<_>>(),
            [
                (Outcome::Moved, Some(5)),
                (Outcome::AlreadyThere, Some(5)),
                (Outcome::Moved, Some(2)),
                (Outcome::Moved, Some(2)),
            ]
        );
    }

    #[test]
    fn batch_when_one_node_is_refused_moves_the_rest_and_when_all_are_says_why() {
        let (batch, targets) = batch();
        let refuse = |refused: &'static [u16]| {
            to_nearest(&batch, &targets, nodes_of, move |part| {
                match refused.contains(&part.target.0) {
                    true => carried(part, Outcome::Cpuset),
                    false => carried(part, Outcome::Moved),
                }
            })
        };
        let one = refuse(&[5]);
        assert_eq!(one.refusal, None);
        assert_eq!(one.report.results[0].outcome, Outcome::Cpuset);
        assert_eq!(one.report.results[2].outcome, Outcome::Moved);
        assert_eq!(refuse(&[2, 5]).refusal.as_deref(), Some("cpuset"));
    }

    #[test]
    fn batch_when_the_process_is_gone_is_not_tried() {
        let (batch, targets) = batch();
        let gone = |_: &[Hva]| Err(PagesError::Gone { pid: 1 });
        let Carried { report, refusal } =
            to_nearest(&batch, &targets, gone, |_| panic!("it was tried"));
        assert!(report.results.iter().all(|r| r.outcome == Outcome::Gone));
        assert!(refusal.is_some());
    }
}
