//! The desk: where agents' reports are checked and kept until the owner takes them.
//!
//! A report is answered at once, in the thread of its connection, with the share that was decided last.
//! So a report wakes nobody, and an agent never waits for the owner. Once a second the owner takes the
//! latest report of each connection, decides, and leaves the new shares here.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tier_core::time::Time;

use super::{
    protocol::{Lease, MOST_POINTS, MOST_RANGES, Report},
    report::ReportFault,
};

/// The most reports a second on a connection; one is due.
const MOST_REPORTS: u32 = 4;
/// How old a report may be when it comes.
const OLDEST: Duration = Duration::from_secs(5);
/// How far a report's time may lie in the future: both clocks are the same, so not at all but for a clock
/// that is read in another order than the threads run.
const AHEAD: Duration = Duration::from_millis(100);
/// The longest word of a report.
const LONGEST_WORD: usize = 64;

/// Why a report is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum ReportError {
    #[error("this connection has registered no VM: say host-register first")]
    NotRegistered,
    #[error("report {number} is none that is due: the last had the number {last}")]
    Number { number: u64, last: u64 },
    #[error(
        "report {number} is {age_s:.1} s old: a report must be newer than the last, and 5 s old at most"
    )]
    Old { number: u64, age_s: f64 },
    #[error("report {number} is from the future, by {ahead_s:.1} s")]
    Future { number: u64, ahead_s: f64 },
    #[error("more than {MOST_REPORTS} reports came within a second: one is due")]
    Flood,
    #[error("report {number} has {what}")]
    Malformed { number: u64, what: &'static str },
}

impl ReportError {
    pub(super) const fn fault(&self) -> ReportFault {
        match self {
            Self::NotRegistered => ReportFault::NotRegistered,
            Self::Number { .. } => ReportFault::Number,
            Self::Old { .. } => ReportFault::Old,
            Self::Future { .. } => ReportFault::Future,
            Self::Flood => ReportFault::Flood,
            Self::Malformed { .. } => ReportFault::Malformed,
        }
    }
}

/// A report that was taken.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Taken {
    pub(super) connection: u64,
    /// When it was answered.
    pub(super) at: Time,
    pub(super) report: Report,
}

/// The place of a connection that has registered a VM.
#[derive(Debug)]
struct Seat {
    lease: Lease,
    number: u64,
    made: Time,
    /// Since when reports are counted, and how many came.
    window: (Time, u32),
    latest: Option<Taken>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Desk {
    seats: HashMap<u64, Seat>,
    /// Connections that have ended since the owner asked last.
    ended: Vec<u64>,
    accepted: u64,
    refused: BTreeMap<ReportFault, u64>,
}

impl Desk {
    /// Gives a connection its place.
    pub(super) fn seat(&mut self, connection: u64, lease: Lease) {
        let seat = Seat {
            lease,
            number: 0,
            made: Time(0),
            window: (Time(0), 0),
            latest: None,
        };
        self.seats.insert(connection, seat);
    }

    /// Takes a connection's place away: its reports are refused from now on.
    pub(super) fn unseat(&mut self, connection: u64) {
        self.seats.remove(&connection);
    }

    /// Whether the connection serves a VM.
    pub(super) fn has(&self, connection: u64) -> bool {
        self.seats.contains_key(&connection)
    }

    /// A connection has ended.
    pub(super) fn end(&mut self, connection: u64) {
        if self.seats.remove(&connection).is_some() {
            self.ended.push(connection);
        }
    }

    /// Checks a report; the reply is what was decided last.
    pub(super) fn report(
        &mut self,
        now: Time,
        connection: u64,
        report: Report,
    ) -> Result<Lease, ReportError> {
        let taken = match self.seats.get_mut(&connection) {
            Some(seat) => seat.take(now, connection, report),
            None => Err(ReportError::NotRegistered),
        };
        match &taken {
            Ok(_) => self.accepted += 1,
            Err(error) => *self.refused.entry(error.fault()).or_default() += 1,
        }
        taken
    }

    /// The latest report of each connection, and the connections that have ended.
    pub(super) fn collect(&mut self) -> (Vec<Taken>, Vec<u64>) {
        let reports = self
            .seats
            .values_mut()
            .filter_map(|seat| seat.latest.take());
        (reports.collect(), std::mem::take(&mut self.ended))
    }

    /// Leaves what was decided for a connection.
    pub(super) fn post(&mut self, connection: u64, lease: Lease) {
        if let Some(seat) = self.seats.get_mut(&connection) {
            seat.lease = lease;
        }
    }

    /// Reports taken, and reports refused by why.
    pub(super) fn counts(&self) -> (u64, BTreeMap<ReportFault, u64>) {
        (self.accepted, self.refused.clone())
    }
}

impl Seat {
    fn take(&mut self, now: Time, connection: u64, report: Report) -> Result<Lease, ReportError> {
        if now.since(self.window.0) >= Duration::from_secs(1) {
            self.window = (now, 0);
        }
        self.window.1 += 1;
        if self.window.1 > MOST_REPORTS {
            return Err(ReportError::Flood);
        }
        let (number, last) = (report.number, self.number);
        if number <= last {
            return Err(ReportError::Number { number, last });
        }
        let made = Time(report.made_ns);
        let (age, ahead) = (now.since(made), made.since(now));
        if ahead > AHEAD {
            let ahead_s = ahead.as_secs_f64();
            return Err(ReportError::Future { number, ahead_s });
        }
        // A report that is late says nothing against the next one.
        self.number = number;
        if age > OLDEST || made <= self.made {
            let age_s = age.as_secs_f64();
            return Err(ReportError::Old { number, age_s });
        }
        if let Some(what) = fault(&report) {
            return Err(ReportError::Malformed { number, what });
        }
        self.made = made;
        self.latest = Some(Taken {
            connection,
            at: now,
            report,
        });
        Ok(self.lease)
    }
}

/// What of a report makes no sense.
fn fault(report: &Report) -> Option<&'static str> {
    let words = [
        Some(&report.state),
        report.source.as_ref(),
        report.waits_for.as_ref(),
    ];
    let mut end = 0;
    let is_in_order = report.ram.iter().all(|&(start, bytes)| {
        let follows = start >= end && bytes > 0;
        end = start.saturating_add(bytes);
        follows
    });
    [
        (
            report.curve.len() > MOST_POINTS,
            "too many points in its curve",
        ),
        (report.ram.len() > MOST_RANGES, "too many ranges of RAM"),
        (
            !is_in_order,
            "ranges of RAM that overlap or are out of order",
        ),
        (
            words
                .into_iter()
                .flatten()
                .any(|word| word.len() > LONGEST_WORD),
            "a word that is too long",
        ),
    ]
    .into_iter()
    .find_map(|(is_so, what)| is_so.then_some(what))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::host::protocol::{LEASE_MS, REPORT_EVERY_MS};

    pub(in crate::host) fn report(number: u64, made: Time) -> Report {
        Report {
            number,
            made_ns: made.0,
            curve: vec![(8 << 20, 1e6)],
            ram: vec![(0x1_0000_0000, 64 << 20)],
            fast_bytes: 8 << 20,
            present_bytes: 32 << 20,
            limit_bytes: None,
            limit_in_force_bytes: None,
            state: "running".to_owned(),
            source: Some("damon".to_owned()),
            waits_for: Some("gain".to_owned()),
            hit_ratio: Some(0.9),
            promoted_bytes: 0,
            demoted_bytes: 0,
        }
    }

    fn lease(share_bytes: Option<u64>) -> Lease {
        Lease {
            share_bytes,
            lease_ms: LEASE_MS,
            report_ms: REPORT_EVERY_MS,
            move_bytes_per_s: 1,
        }
    }

    fn at(ms: u64) -> Time {
        Time(0) + Duration::from_millis(ms)
    }

    #[test]
    fn report_when_it_is_due_is_answered_with_what_was_decided_last() {
        let mut desk = Desk::default();
        desk.seat(3, lease(None));
        assert_eq!(
            desk.report(at(1000), 3, report(1, at(999))),
            Ok(lease(None))
        );
        desk.post(3, lease(Some(7)));
        assert_eq!(
            desk.report(at(2000), 3, report(2, at(2000))),
            Ok(lease(Some(7)))
        );
        let (reports, ended) = desk.collect();
        assert_eq!(reports.len(), 1, "the latest counts");
        assert_eq!((reports[0].report.number, reports[0].at), (2, at(2000)));
        assert_eq!(ended, [0; 0]);
        assert!(desk.collect().0.is_empty());
        assert_eq!(desk.counts(), (2, BTreeMap::new()));
    }

    #[test]
    fn report_when_it_is_old_repeated_or_from_the_future_is_refused_and_counted() {
        let mut desk = Desk::default();
        desk.seat(3, lease(None));
        let mut refused = |now, number, made| {
            let reply = desk.report(at(now), 3, report(number, at(made)));
            reply.err().map(|error| error.fault())
        };
        assert_eq!(refused(10_000, 1, 10_000), None);
        assert_eq!(refused(11_000, 1, 11_000), Some(ReportFault::Number));
        assert_eq!(refused(12_000, 2, 10_000), Some(ReportFault::Old));
        assert_eq!(refused(20_000, 3, 14_000), Some(ReportFault::Old));
        assert_eq!(refused(21_000, 4, 22_000), Some(ReportFault::Future));
        // Yesterday's, on a host that has been up for two days.
        assert_eq!(refused(172_800_000, 5, 86_400_000), Some(ReportFault::Old));
        assert_eq!(
            refused(172_801_000, 9, 172_801_000),
            None,
            "a gap does no harm"
        );
        let (accepted, refused) = desk.counts();
        let expected = [
            (ReportFault::Number, 1),
            (ReportFault::Old, 3),
            (ReportFault::Future, 1),
        ];
        assert_eq!((accepted, refused), (2, BTreeMap::from(expected)));
    }

    #[test]
    fn report_when_too_many_come_is_refused_for_that_connection_alone() {
        let mut desk = Desk::default();
        desk.seat(3, lease(None));
        desk.seat(4, lease(None));
        let mut taken = 0;
        for number in 1..=100 {
            let now = at(1000 + number);
            taken += u32::from(desk.report(now, 3, report(number, now)).is_ok());
        }
        assert_eq!(taken, MOST_REPORTS);
        assert!(desk.report(at(1100), 4, report(1, at(1100))).is_ok());
        assert!(desk.report(at(2100), 3, report(200, at(2100))).is_ok());
    }

    #[test]
    fn report_when_it_is_malformed_is_refused_with_what_it_has() {
        let mut desk = Desk::default();
        desk.seat(3, lease(None));
        let mut refused = |number: u64, change: fn(&mut Report)| {
            let now = at(1000 * number);
            let mut report = report(number, now);
            change(&mut report);
            let error = desk.report(now, 3, report).unwrap_err();
            assert_eq!(error.fault(), ReportFault::Malformed);
            error.to_string()
        };
        assert!(refused(1, |report| report.curve = vec![(1, 1.0); 65]).contains("points"));
        assert!(refused(2, |report| report.ram = vec![(1, 1); 65]).contains("ranges"));
        assert!(refused(3, |report| report.ram = vec![(8, 8), (9, 8)]).contains("overlap"));
        assert!(refused(4, |report| report.state = "x".repeat(65)).contains("word"));
    }

    #[test]
    fn connection_when_it_has_no_place_is_told_to_register() {
        let mut desk = Desk::default();
        desk.seat(3, lease(None));
        desk.end(3);
        desk.end(4);
        assert_eq!(desk.collect().1, [3]);
        let refused = desk.report(at(1000), 3, report(1, at(1000)));
        assert_eq!(refused, Err(ReportError::NotRegistered));
    }
}
