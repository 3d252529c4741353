//! Taking in where the kernel says the pages lie, and what became of moves.

pub(super) mod scan;

use super::{
    Action, Leftovers, MoveReport, ScanReport, VmEngine, VmState,
    evidence::access_stats::PlacedBytes, mover::in_flight::FlyingPage,
};
use crate::{
    addr::{HUGE_PAGE, Hva, NodeId},
    dual_heap::{PageId, Placement},
    heat_store::HeatStore,
    moves::{Direction, Outcome, PageResult},
    pages::PageIndex,
    settings::Tier,
    time::Time,
};

impl VmEngine {
    /// Takes the kernel's word on where a chunk's pages lie.
    pub(super) fn take_scan(&mut self, now: Time, report: &ScanReport) {
        let mut seen = Leftovers::default();
        let could_look = !report.pages.is_empty();
        for (page, node) in &report.pages {
            match node {
                None => seen.absent_bytes += page.bytes,
                Some(node) if self.tier_of(*node).is_none() => seen.elsewhere_bytes += page.bytes,
                Some(_) => {}
            }
        }
        let share = self.settings.scan_cpu_share;
        if !self.scanner.finish(report, seen, now, share) || !could_look {
            return;
        }
        self.refold(now, report);
        for &(page, node) in &report.pages {
            let Some(id) = self.index.id_at(page.hva) else {
                continue;
            };
            // A page under way is settled by its report, which comes later than this answer.
            if self.heap.is_in_flight(id) {
                continue;
            }
            self.place(now, id, self.placement_on(node));
        }
    }

    /// Folds and unfolds huge pages as the kernel has them now. Heat goes with the memory.
    fn refold(&mut self, now: Time, report: &ScanReport) {
        let span = report.request.span;
        for head in self.index.folded_in(span.hva, span.bytes) {
            let Some(id) = self.index.id_at(head) else {
                continue;
            };
            if report.huge.binary_search(&head).is_ok() || self.heap.is_in_flight(id) {
                continue;
            }
            let (count, placement) = (self.heap.count(id, now), self.heap.placement(id));
            self.place(now, id, Placement::Untracked);
            let frames = self.index.unfold(head);
            self.refolded(head);
            for frame in frames.into_iter().flatten() {
                self.place(now, PageId(frame), placement);
                self.heap.set_count(PageId(frame), count, now);
            }
        }
        for &head in &report.huge {
            let Some(id) = self.index.id_at(head) else {
                continue;
            };
            let frames = (0..HUGE_PAGE)
                .step_by(4096)
                .filter_map(|at| self.index.id_at(Hva(head.0 + at)));
            let frames: Vec<PageId> = frames.collect();
            let busy = frames.iter().any(|&frame| self.heap.is_in_flight(frame));
            // A huge page that reaches over the border of the tracked memory stays in frames.
            if busy || !self.index.can_fold(head) {
                continue;
            }
            let counts: f64 = frames
                .iter()
                .map(|&frame| self.heap.count(frame, now))
                .sum();
            let placement = self.heap.placement(id);
            for &frame in &frames {
                self.place(now, frame, Placement::Untracked);
            }
            self.index.fold(head);
            self.refolded(head);
            self.place(now, id, placement);
            self.heap
                .set_count(id, counts / frames.len().max(1) as f64, now);
        }
    }

    /// Settles every page of a finished batch and launches what waited for it. A page that the report
    /// does not speak of counts as busy.
    pub(super) fn take_moves(&mut self, now: Time, report: &MoveReport, actions: &mut Vec<Action>) {
        let Some(flight) = self.flights.land(report.id) else {
            return;
        };
        let mut reported = report.results.iter();
        let mut results = Vec::with_capacity(flight.pages.len());
        let mut freed = 0;
        for &(id, page) in &flight.pages {
            let result = reported.next().filter(|result| result.page == page);
            let result = result.copied().unwrap_or(PageResult {
                page,
                outcome: Outcome::Busy,
                node: None,
            });
            if result.outcome == Outcome::Moved && flight.direction == Direction::Demote {
                freed += page.bytes;
            }
            self.settle(now, id, &result);
            results.push(result);
        }
        self.totals.add(flight.direction, &results, report.cpu_time);
        self.notice_failures(flight.direction, &results);
        for result in &results {
            self.history.add(now, flight.direction, result);
        }
        let any = |outcome| results.iter().any(|result| result.outcome == outcome);
        self.throttle.finished(now, any(Outcome::Moved));
        if any(Outcome::Gone) {
            actions.push(Action::RefreshMap);
        }
        if let Some(exchange) = self.flights.exchange_after(report.id) {
            let promote = self.admitted(exchange.waiting, freed);
            actions.extend(self.batch_of(Direction::Promote, promote).map(Action::Move));
        }
    }

    /// Those of the waiting pages that fit into `freed` bytes and may be promoted still: tiering may have
    /// been paused or the limit lowered meanwhile. The others wait for another exchange.
    fn admitted(&mut self, waiting: Vec<FlyingPage>, freed: u64) -> Vec<FlyingPage> {
        let mut room = match self.state() {
            VmState::Running => freed.min(self.limit_room()),
            _ => 0,
        };
        let mut admitted = Vec::new();
        for (id, page) in waiting {
            let is_pinned_down = self
                .pins
                .of(id)
                .is_some_and(|entry| entry.pin.tier == Tier::Slow);
            if page.bytes <= room && !is_pinned_down {
                room -= page.bytes;
                admitted.push((id, page));
            } else {
                self.bias.forget(id);
                self.heap.settle(id, Placement::Slow, None);
            }
        }
        admitted
    }

    /// Bytes of the fast tier that the guest may still fill under its limit.
    fn limit_room(&self) -> u64 {
        let held = self.bytes.of(Tier::Fast) + self.flights.promoting_bytes();
        let limit = self.settings.fast_limit_bytes;
        limit.map_or(u64::MAX, |limit| limit.saturating_sub(held))
    }

    fn settle(&mut self, now: Time, id: PageId, result: &PageResult) {
        let old = self.heap.placement(id);
        let new = match (result.node, result.outcome) {
            (Some(_), _) => self.placement_on(result.node),
            (None, Outcome::Absent | Outcome::Gone) => Placement::Untracked,
            (None, _) => old,
        };
        let rest = match result.outcome {
            Outcome::Moved => Some(self.settings.cooldown),
            failed => failed
                .retry_after()
                .map(|wait| wait.max(self.settings.cooldown / 4)),
        };
        self.count_place(id, result.page.bytes, old, new);
        let was_promoted = result.outcome == Outcome::Moved && new == Placement::Fast;
        self.bias.settled(now, id, was_promoted);
        self.seen_elsewhere(now, id, old, new);
        self.heap.settle(id, new, rest.map(|rest| now + rest));
        match result.outcome {
            Outcome::Shared => {
                self.heap.exclude(id);
            }
            Outcome::Split | Outcome::WrongNode => self.scanner.ask_urgently(result.page.hva),
            _ => {}
        }
    }

    /// Places a page that is not under way.
    fn place(&mut self, now: Time, id: PageId, new: Placement) {
        let Some(page) = self.index.page(id) else {
            return;
        };
        let old = self.heap.placement(id);
        if old != new {
            self.bias.forget(id);
            self.seen_elsewhere(now, id, old, new);
        }
        self.heap.place(id, new);
        self.count_place(id, page.bytes, old, new);
    }

    /// Brings a page's count to what would have been seen of it in the tier where it is now.
    fn seen_elsewhere(&mut self, now: Time, id: PageId, old: Placement, new: Placement) {
        if let Some(factor) = self.bias.at_move(old, new) {
            let count = self.heap.count(id, now) * factor;
            self.heap.set_count(id, count, now);
            self.forgetting.scale(id, factor);
        }
    }

    fn count_place(&mut self, id: PageId, bytes: u64, old: Placement, new: Placement) {
        self.bytes.replace(bytes, old, new);
        self.pins.replace(id, bytes, old, new);
    }

    fn tier_of(&self, node: NodeId) -> Option<Tier> {
        if self.tiers.fast.contains(node) {
            Some(Tier::Fast)
        } else if self.tiers.slow.contains(node) {
            Some(Tier::Slow)
        } else {
            None
        }
    }

    fn placement_on(&self, node: Option<NodeId>) -> Placement {
        match node.and_then(|node| self.tier_of(node)) {
            Some(Tier::Fast) => Placement::Fast,
            Some(Tier::Slow) => Placement::Slow,
            None => Placement::Untracked,
        }
    }

    /// Gives the pages of a new index the placement and heat that the same memory had in the old one.
    /// The next round of look-ups corrects what changed.
    pub(super) fn carry_over(&mut self, now: Time, mut index: PageIndex, mut heap: HeatStore) {
        let mut bytes = PlacedBytes::default();
        for (id, placement, count) in self.heap.iter(now) {
            let Some(page) = self.index.page(id) else {
                continue;
            };
            if self.index.is_folded(id) && index.can_fold(page.hva) {
                index.fold(page.hva);
            }
            let Some(new) = index
                .id_at(page.hva)
                .filter(|&new| index.page(new) == Some(page))
            else {
                continue;
            };
            heap.place(new, placement);
            if count > 0.0 {
                heap.set_count(new, count, now);
            }
            bytes.replace(page.bytes, Placement::Untracked, placement);
        }
        (self.index, self.heap, self.bytes) = (index, heap, bytes);
    }
}
