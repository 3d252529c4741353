//! Which part of the guest's placement is looked up next.
//!
//! Placement truth lies in the kernel and changes under the agent (balloon, khugepaged, reclaim,
//! kernel tiering). The engine asks for it chunk by chunk: the whole guest once at the start, then
//! round and round at a bounded share of a CPU, and out of turn where a sample fell on a page whose
//! placement is unknown. A replay can't tell what the later rounds are worth: there nobody else moves
//! pages.
//!
//! Beside a guest at rest a round takes hours. There the pages of 2 MiB at a random place are asked for
//! now and then (a *probe*). Where many of them lie on the other tier than is known, somebody else moves pages (a
//! cpuset that was changed, reclaim), and a round goes on as if there were no rest.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use crate::{
    addr::{HUGE_PAGE, Hva, NodeId},
    moves::Page,
    pages::Span,
    random::Random,
    time::Time,
};

/// Frames that one request covers at most (16 MiB of 4 KiB pages).
const CHUNK_FRAMES: u64 = 4096;
/// A round over the guest takes no less: what moves pages under the agent is slower, and small guests
/// would be looked at many times a second.
const LEAST_ROUND: Duration = Duration::from_secs(4);
/// What is left of the share of a CPU while the guest is at rest: a round over 64 GiB of small pages takes
/// hours then instead of twelve minutes. A sample of an unknown page is looked up out of turn as ever.
const AT_REST: f64 = 1.0 / 32.0;
/// Probes come no closer than this: each takes some 100 µs.
const PROBE_EVERY: Duration = Duration::from_secs(4);
/// Of so many pages that were looked up one lies on the other tier where somebody else moves pages.
const SURPRISE: usize = 8;
/// Chunks waiting out of turn; more are left to the regular round.
const URGENT_MAX: usize = 256;

/// A stretch of guest memory whose placement the engine wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanRequest {
    /// Tells requests apart that look at the same place.
    pub id: u64,
    /// What to look at.
    pub span: Span,
}

/// The kernel's answer to a [`ScanRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct ScanReport {
    /// The request.
    pub request: ScanRequest,
    /// The pages in it that are larger than its frames, in rising order: transparent huge pages, and
    /// smaller folios. Each lies in one 2 MiB.
    pub folios: Vec<Page>,
    /// Every page in it (a folio once) and its node, `None` if it is not present. Empty if the
    /// kernel could not be asked: then nothing is learnt of these pages.
    pub pages: Vec<(Page, Option<NodeId>)>,
    /// CPU time that the look-up took.
    pub cpu_time: Duration,
}

/// Bytes outside both tiers, seen in one round over the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Not present: never touched, ballooned out, swapped.
    pub absent_bytes: u64,
    /// On a node that belongs to neither tier.
    pub elsewhere_bytes: u64,
}

/// The order of look-ups. Pure; one request is under way at a time.
#[derive(Debug)]
pub(crate) struct Scanner {
    spans: Vec<Span>,
    cursor: (usize, u64),
    last_id: u64,
    urgent: VecDeque<Span>,
    urgent_starts: BTreeSet<Hva>,
    was_urgent: bool,
    under_way: Option<ScanRequest>,
    /// Whether what is under way is a probe.
    is_probe: bool,
    at_rest: bool,
    /// The round before which the guest is looked at as if it were not at rest.
    distrusted_until: u64,
    random: Random,
    /// When the next probe is due, at rest.
    probe_at: Time,
    next_at: Time,
    /// When the round goes on; what is urgent does not wait for it.
    turn_at: Time,
    rounds: u64,
    current: Leftovers,
    pub(crate) last_round: Leftovers,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            spans: Vec::new(),
            cursor: (0, 0),
            last_id: 0,
            urgent: VecDeque::new(),
            urgent_starts: BTreeSet::new(),
            was_urgent: false,
            under_way: None,
            is_probe: false,
            at_rest: false,
            distrusted_until: 0,
            random: Random::new(0),
            probe_at: Time(0),
            next_at: Time(0),
            turn_at: Time(0),
            rounds: 0,
            current: Leftovers::default(),
            last_round: Leftovers::default(),
        }
    }
}

impl Scanner {
    /// Starts over on a new set of spans.
    pub(crate) fn reset(&mut self, spans: Vec<Span>, now: Time) {
        *self = Self {
            spans,
            next_at: now,
            turn_at: now,
            last_id: self.last_id,
            at_rest: self.at_rest,
            ..Self::default()
        };
    }

    /// The guest is at rest, or no longer.
    pub(crate) fn set_at_rest(&mut self, at_rest: bool, now: Time) {
        if self.at_rest && !at_rest {
            // The pause was meant for rest.
            self.next_at = self.next_at.min(now);
        }
        self.at_rest = at_rest;
    }

    /// Takes note of an answer: so many pages, of so many, lie on the other tier than was known, and it was
    /// not this agent that moved them.
    pub(crate) fn found(&mut self, elsewhere: usize, pages: usize) {
        if elsewhere > 0 && elsewhere >= pages / SURPRISE && self.has_seen_all() {
            if self.looks_little() {
                (self.next_at, self.turn_at) = (Time(0), Time(0));
            }
            // What is left of this round, and the next one, as pages of this one may have moved since.
            self.distrusted_until = self.rounds + 2;
        }
    }

    const fn looks_little(&self) -> bool {
        self.at_rest && self.has_seen_all() && self.rounds >= self.distrusted_until
    }

    /// Whether the whole guest has been looked at once.
    pub(crate) const fn has_seen_all(&self) -> bool {
        self.rounds > 0
    }

    /// Asks for the huge-page sized neighbourhood of `hva` out of turn.
    pub(crate) fn ask_urgently(&mut self, hva: Hva) {
        let inside = |span: &&Span| hva >= span.hva && hva.0 - span.hva.0 < span.bytes;
        let Some(span) = self.spans.iter().find(inside) else {
            return;
        };
        let span = neighbourhood(span, hva);
        if self.urgent.len() < URGENT_MAX && self.urgent_starts.insert(span.hva) {
            self.urgent.push_back(span);
        }
    }

    /// The next request, if one is due. `finished` reports must be given to [`Self::finish`].
    pub(crate) fn next(&mut self, now: Time) -> Option<ScanRequest> {
        let in_first_round = self.rounds == 0;
        if self.under_way.is_some() || self.spans.is_empty() {
            return None;
        }
        if !in_first_round && now < self.next_at {
            return self.probe(now);
        }
        // In turns: pages that are sampled and stay absent (a coarse region speaks for them too) ask out
        // of turn without end, and must not keep the round from going on.
        let turn_is_due = in_first_round || now >= self.turn_at;
        let urgent = match self.was_urgent && turn_is_due {
            true => None,
            false => self.urgent.pop_front(),
        };
        if urgent.is_none() && !turn_is_due {
            return self.probe(now);
        }
        self.was_urgent = urgent.is_some();
        let span = match urgent {
            Some(span) => {
                self.urgent_starts.remove(&span.hva);
                span
            }
            None => self.next_in_turn(),
        };
        self.is_probe = false;
        Some(self.ask(span))
    }

    fn ask(&mut self, span: Span) -> ScanRequest {
        self.last_id += 1;
        let request = ScanRequest {
            id: self.last_id,
            span,
        };
        self.under_way = Some(request);
        request
    }

    /// Asks for the pages at a random place, if that is due.
    fn probe(&mut self, now: Time) -> Option<ScanRequest> {
        if !self.looks_little() || now < self.probe_at {
            return None;
        }
        self.probe_at = now + PROBE_EVERY;
        let all: u64 = self.spans.iter().map(|span| span.bytes).sum();
        let mut at = self.random.below(all.max(1));
        let span = *self.spans.iter().find(|span| {
            let is_inside = at < span.bytes;
            at -= if is_inside { 0 } else { span.bytes };
            is_inside
        })?;
        self.is_probe = true;
        Some(self.ask(neighbourhood(&span, Hva(span.hva.0 + at))))
    }

    fn next_in_turn(&self) -> Span {
        let (i, offset) = self.cursor;
        let span = self.spans[i];
        let bytes = (span.bytes - offset).min(CHUNK_FRAMES * span.frame_bytes);
        let hva = Hva(span.hva.0 + offset);
        // Chunks end on huge-page borders, so that no huge page is cut in two.
        let cut = (hva.0 + bytes) % HUGE_PAGE;
        let bytes = if bytes > HUGE_PAGE && offset + bytes < span.bytes {
            bytes - cut
        } else {
            bytes
        };
        Span { hva, bytes, ..span }
    }

    /// Takes note of a finished request. Returns false if it is not the one under way (asked under an
    /// older map): its answer must be dropped.
    pub(crate) fn finish(
        &mut self,
        report: &ScanReport,
        seen: Leftovers,
        now: Time,
        cpu_share: f64,
    ) -> bool {
        if self.under_way != Some(report.request) {
            return false;
        }
        self.under_way = None;
        if self.is_probe {
            return true;
        }
        // The whole guest is looked up once in any case.
        let part = if self.looks_little() { AT_REST } else { 1.0 };
        let cpu_share = (cpu_share * part).clamp(1e-4, 1.0);
        let pause = report.cpu_time.as_secs_f64() * (1.0 / cpu_share - 1.0);
        self.next_at = now + Duration::from_secs_f64(pause.min(60.0));
        let (i, offset) = self.cursor;
        let span = self.spans[i];
        if report.request.span.hva.0 != span.hva.0 + offset {
            return true;
        }
        let all: u64 = self.spans.iter().map(|span| span.bytes).sum();
        let part = report.request.span.bytes as f64 / all.max(1) as f64;
        self.turn_at = now + LEAST_ROUND.mul_f64(part.min(1.0));
        self.current.absent_bytes += seen.absent_bytes;
        self.current.elsewhere_bytes += seen.elsewhere_bytes;
        let offset = offset + report.request.span.bytes;
        self.cursor = if offset < span.bytes {
            (i, offset)
        } else {
            (i + 1, 0)
        };
        if self.cursor.0 == self.spans.len() {
            self.cursor = (0, 0);
            self.rounds += 1;
            self.last_round = std::mem::take(&mut self.current);
        }
        true
    }
}

/// The huge page, or as much of one, around an address: no larger page is cut in two.
fn neighbourhood(span: &Span, hva: Hva) -> Span {
    let size = HUGE_PAGE.max(span.frame_bytes);
    let start = hva.align_down(size).max(span.hva);
    let end = (hva.align_down(size).0 + size).min(span.hva.0 + span.bytes);
    Span {
        hva: start,
        bytes: end - start.0,
        frame_bytes: span.frame_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::BASE_PAGE;

    const MIB: u64 = 1 << 20;

    fn scanner() -> Scanner {
        let mut scanner = Scanner::default();
        scanner.reset(
            vec![
                Span {
                    hva: Hva(MIB),
                    bytes: 40 * MIB,
                    frame_bytes: BASE_PAGE,
                },
                Span {
                    hva: Hva(1 << 30),
                    bytes: 4 * MIB,
                    frame_bytes: HUGE_PAGE,
                },
            ],
            Time(0),
        );
        scanner
    }

    fn answer(request: ScanRequest, cpu_time: Duration) -> ScanReport {
        ScanReport {
            request,
            folios: vec![],
            pages: vec![],
            cpu_time,
        }
    }

    #[test]
    fn first_round_when_followed_covers_every_byte_once() {
        let mut scanner = scanner();
        let mut covered = 0;
        while !scanner.has_seen_all() {
            let request = scanner.next(Time(0)).unwrap();
            assert_eq!(scanner.next(Time(0)), None, "one at a time");
            let end = request.span.hva.0 + request.span.bytes;
            assert!(
                end.is_multiple_of(HUGE_PAGE) || end == 41 * MIB,
                "{request:?}"
            );
            covered += request.span.bytes;
            let report = answer(request, Duration::from_millis(1));
            assert!(scanner.finish(&report, Leftovers::default(), Time(0), 0.5));
        }
        assert_eq!(covered, 44 * MIB);
    }

    #[test]
    fn later_rounds_when_look_ups_take_long_keep_to_the_cpu_share() {
        let mut scanner = scanner();
        while !scanner.has_seen_all() {
            let request = scanner.next(Time(0)).unwrap();
            scanner.finish(
                &answer(request, Duration::from_millis(10)),
                Leftovers::default(),
                Time(0),
                0.01,
            );
        }
        assert_eq!(scanner.next(Time(0) + Duration::from_millis(980)), None);
        assert!(scanner.next(Time(0) + Duration::from_millis(991)).is_some());
    }

    #[test]
    fn scanner_when_the_guest_is_at_rest_takes_less_and_goes_on_at_once_when_that_ends() {
        let mut scanner = scanner();
        scanner.set_at_rest(true, Time(0));
        let mut now = Time(0);
        while !scanner.has_seen_all() {
            let request = scanner.next(now).expect("at once, whatever the pace");
            let done = answer(request, Duration::ZERO);
            scanner.finish(&done, Leftovers::default(), now, 0.5);
        }
        now = now + LEAST_ROUND;
        let request = scanner.next(now).unwrap();
        // A hundredth of the time.
        let done = answer(request, Duration::from_millis(100));
        scanner.finish(&done, Leftovers::default(), now, 0.32);
        now = now + Duration::from_millis(9800);
        let probe = scanner.next(now).unwrap();
        assert!(probe.span.bytes <= HUGE_PAGE);
        scanner.finish(
            &answer(probe, Duration::ZERO),
            Leftovers::default(),
            now,
            0.32,
        );
        assert_eq!(scanner.next(now), None);
        scanner.set_at_rest(false, now);
        assert!(scanner.next(now).is_some());
    }

    #[test]
    fn probes_when_they_find_pages_elsewhere_have_all_looked_at_soon() {
        let mut scanner = scanner();
        let mut now = Time(0);
        // Looks at all that is due in a minute at rest; a look-up of a whole chunk takes 20 ms.
        let minute = |scanner: &mut Scanner, now: &mut Time, elsewhere: usize| {
            let (mut bytes, mut starts) = (0, BTreeSet::new());
            for _ in 0..6000 {
                *now = *now + Duration::from_millis(10);
                if let Some(request) = scanner.next(*now) {
                    bytes += request.span.bytes;
                    starts.insert(request.span.hva);
                    let done = answer(request, Duration::from_millis(20));
                    scanner.finish(&done, Leftovers::default(), *now, 0.01);
                    scanner.found(elsewhere, 64);
                }
            }
            (bytes, starts.len())
        };
        minute(&mut scanner, &mut now, 0);
        scanner.set_at_rest(true, now);
        let (bytes, places) = minute(&mut scanner, &mut now, 0);
        assert!(
            bytes < 2 * 44 * MIB && places > 8,
            "{bytes} bytes at {places} places"
        );
        // A page or two may be chance.
        let (bytes, _) = minute(&mut scanner, &mut now, 7);
        assert!(bytes < 2 * 44 * MIB, "{bytes}");
        let (bytes, _) = minute(&mut scanner, &mut now, 8);
        assert!(bytes > 5 * 44 * MIB, "{bytes}");
        // It trusts again after two rounds.
        minute(&mut scanner, &mut now, 0);
        let (bytes, _) = minute(&mut scanner, &mut now, 0);
        assert!(bytes < 2 * 44 * MIB, "{bytes}");
    }

    #[test]
    fn later_rounds_when_look_ups_cost_nothing_take_their_time_and_urgent_ones_do_not() {
        let mut scanner = scanner();
        let mut now = Time(0);
        let mut looked = 0;
        while now < Time(0) + LEAST_ROUND * 10 {
            now = now + Duration::from_millis(10);
            if let Some(request) = scanner.next(now) {
                looked += u64::from(scanner.has_seen_all());
                let done = answer(request, Duration::ZERO);
                assert!(scanner.finish(&done, Leftovers::default(), now, 0.5));
                assert_eq!(scanner.next(now).is_some(), !scanner.has_seen_all());
                scanner.under_way = None;
            }
        }
        // Four chunks a round.
        assert!((36..=44).contains(&looked), "{looked}");
        scanner.ask_urgently(Hva(6 * MIB));
        assert_eq!(scanner.next(now).unwrap().span.hva, Hva(6 * MIB));
    }

    #[test]
    fn urgent_request_when_asked_twice_comes_once_and_first() {
        let mut scanner = scanner();
        scanner.ask_urgently(Hva(7 * MIB + 5));
        scanner.ask_urgently(Hva(6 * MIB + 5));
        scanner.ask_urgently(Hva(99 << 30));
        let request = scanner.next(Time(0)).unwrap();
        assert_eq!(
            (request.span.hva, request.span.bytes),
            (Hva(6 * MIB), 2 * MIB)
        );
        assert!(scanner.finish(
            &answer(request, Duration::ZERO),
            Leftovers::default(),
            Time(0),
            0.5
        ));
        let next = scanner.next(Time(0)).unwrap();
        assert_eq!(next.span.hva, Hva(MIB));
    }

    #[test]
    fn round_when_urgent_requests_never_end_goes_on() {
        let mut scanner = scanner();
        let mut asked = 0;
        while !scanner.has_seen_all() {
            scanner.ask_urgently(Hva(30 * MIB));
            let request = scanner.next(Time(0)).unwrap();
            asked += 1;
            assert!(
                asked <= 8,
                "4 requests make a round, as many urgent ones come between"
            );
            let done = answer(request, Duration::ZERO);
            assert!(scanner.finish(&done, Leftovers::default(), Time(0), 0.5));
        }
    }

    #[test]
    fn urgent_request_when_in_the_middle_of_a_large_page_can_be_asked_again() {
        let gib = 1 << 30;
        let mut scanner = Scanner::default();
        let span = Span {
            hva: Hva(gib),
            bytes: 2 * gib,
            frame_bytes: gib,
        };
        scanner.reset(vec![span], Time(0));
        for now in [Time(0), Time(0) + LEAST_ROUND] {
            scanner.ask_urgently(Hva(gib + 5 * MIB));
            let request = scanner.next(now).unwrap();
            assert_eq!((request.span.hva, request.span.bytes), (Hva(gib), gib));
            let done = answer(request, Duration::ZERO);
            assert!(scanner.finish(&done, Leftovers::default(), now, 0.5));
            let in_turn = scanner.next(now + LEAST_ROUND / 2).unwrap();
            let done = answer(in_turn, Duration::ZERO);
            assert!(scanner.finish(&done, Leftovers::default(), now, 0.5));
        }
    }

    #[test]
    fn report_when_it_answers_an_older_map_is_refused() {
        let mut scanner = scanner();
        let old = scanner.next(Time(0)).unwrap();
        let spans = scanner.spans.clone();
        scanner.reset(spans, Time(0));
        let new = scanner.next(Time(0)).unwrap();
        assert_eq!(old.span, new.span);
        for (request, is_taken) in [(old, false), (new, true), (new, false)] {
            let done = answer(request, Duration::ZERO);
            let taken = scanner.finish(&done, Leftovers::default(), Time(0), 0.5);
            assert_eq!(taken, is_taken);
        }
    }
}
