//! The `TIER_*` events that clients are sent.

use std::time::{Duration, Instant};

use qmp::{Event, server::EventSender};
use serde_json::{Value, json};
use tier_core::{
    addr::{Gpa, Hva},
    engine::{DrainProgress, Notice, VmState},
    moves::{Direction, Outcome},
    sample::SourceKind,
};

use super::control::Pauser;

/// The least time between two events about failed moves.
const FAILURES_APART: Duration = Duration::from_secs(1);

/// Sends events to all clients; to nobody where nobody can connect.
#[derive(Debug, Default)]
pub(super) struct EventPublisher {
    to: Vec<EventSender>,
    failures: Failures,
    /// Notices that the engine had dropped when it was asked last.
    dropped: u64,
}

/// A page that did not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    gpa: Option<Gpa>,
    hva: Hva,
    bytes: u64,
    direction: Direction,
    outcome: Outcome,
}

/// Failed moves, of which at most one a second is published.
#[derive(Debug, Default)]
struct Failures {
    told: Option<Instant>,
    /// The newest that was not told.
    waiting: Option<Failure>,
    /// How many before it were not told either.
    left_out: u64,
}

impl Failures {
    fn add(&mut self, failure: Failure) {
        if self.waiting.replace(failure).is_some() {
            self.left_out += 1;
        }
    }

    /// What may be told now, and how many were left out since the last time.
    fn due(&mut self, now: Instant) -> Option<(Failure, u64)> {
        let may_tell = self
            .told
            .is_none_or(|told| now.duration_since(told) >= FAILURES_APART);
        let failure = self.waiting.take_if(|_| may_tell)?;
        self.told = Some(now);
        Some((failure, std::mem::take(&mut self.left_out)))
    }
}

impl EventPublisher {
    pub(super) fn new(to: Vec<EventSender>) -> Self {
        Self {
            to,
            failures: Failures::default(),
            dropped: 0,
        }
    }

    /// Sends events to these from now on.
    pub(super) fn tell(&mut self, to: Vec<EventSender>) {
        self.to = to;
    }

    fn send(&self, name: &str, data: Value) {
        let event = Event::now(name, data);
        for sender in &self.to {
            sender.send(&event);
        }
    }

    /// Tells what the engine noticed; `paused_by` is who wants moves to pause now.
    pub(super) fn notice(&mut self, notice: Notice, paused_by: &[Pauser]) {
        match notice {
            Notice::State { from, to } => self.state(from, to, paused_by),
            Notice::Drain(progress) => self.drain(&progress),
            Notice::MoveFailed {
                gpa,
                hva,
                bytes,
                direction,
                outcome,
            } => self.failures.add(Failure {
                gpa,
                hva,
                bytes,
                direction,
                outcome,
            }),
        }
    }

    /// Takes note of how many notices the engine has dropped since the start: where whole batches fail it
    /// keeps the last failures only.
    pub(super) fn dropped(&mut self, total: u64) {
        let before = std::mem::replace(&mut self.dropped, total);
        self.failures.left_out += total.saturating_sub(before);
    }

    fn state(&self, from: VmState, to: VmState, paused_by: &[Pauser]) {
        let mut data = json!({"from": from, "to": to});
        if to == VmState::Paused {
            data["paused-by"] = json!(paused_by);
        }
        self.send("TIER_STATE", data);
    }

    fn drain(&self, progress: &DrainProgress) {
        let mut data = json!(progress);
        if let Some(members) = data.as_object_mut() {
            members.retain(|_, value| !value.is_null());
        }
        self.send("TIER_DRAIN", data);
    }

    /// Tells that the limit is another one; `None` is no limit.
    pub(super) fn limit(&self, old: Option<u64>, new: Option<u64>, who: &str) {
        if old == new {
            return;
        }
        let mut data = json!({"who": who});
        for (name, bytes) in [("old", old), ("new", new)] {
            if let Some(bytes) = bytes {
                data[name] = bytes.into();
            }
        }
        self.send("TIER_LIMIT", data);
    }

    /// Tells which source is believed from now on, or that none is, and why.
    pub(super) fn believed(&self, now: Option<SourceKind>, before: Option<SourceKind>, why: &str) {
        let Some(kind) = now.or(before) else { return };
        let mut data = json!({
            "kind": kind,
            "up": now.is_some(),
            "believed": now.is_some(),
            "reason": why,
        });
        if let (Some(_), Some(before)) = (now, before) {
            data["instead-of"] = json!(before);
        }
        self.send("TIER_SOURCE", data);
    }

    /// Tells that a source beside the one that is believed does not deliver, and why.
    pub(super) fn source_fails(&self, kind: SourceKind, why: &str) {
        let data = json!({"kind": kind, "up": false, "believed": false, "reason": why});
        self.send("TIER_SOURCE", data);
    }

    /// Tells of a failed move when it is time to. `refused` is why the kernel refuses all, if it does.
    pub(super) fn tell_failures(&mut self, now: Instant, refused: Option<&str>) {
        let Some((failure, left_out)) = self.failures.due(now) else {
            return;
        };
        let mut data = json!({
            "hva": failure.hva,
            "bytes": failure.bytes,
            "direction": failure.direction,
            "class": failure.outcome,
            "left-out": left_out,
        });
        if let Some(gpa) = failure.gpa {
            data["gpa"] = gpa.0.into();
        }
        if let Some(reason) = refused {
            data["reason"] = reason.into();
        }
        self.send("TIER_MOVE_FAILED", data);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use qmp::{
        Client, QmpError, Server, client,
        server::{CommandSpec, Handler, Options},
    };

    use serde_json::Map;

    use super::*;

    /// Nobody is asked anything here.
    struct Mute;

    impl Handler for Mute {
        fn commands(&self) -> &[CommandSpec] {
            &[]
        }

        fn handle(&self, name: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
            Err(QmpError::command_not_found(name))
        }
    }

    fn failure(page: u64) -> Failure {
        Failure {
            gpa: None,
            hva: Hva(page * 4096),
            bytes: 4096,
            direction: Direction::Promote,
            outcome: Outcome::Busy,
        }
    }

    #[test]
    fn failures_when_many_are_told_once_a_second_and_all_are_counted() {
        let mut failures = Failures::default();
        let start = Instant::now();
        failures.add(failure(1));
        assert_eq!(
            failures.due(start),
            Some((failure(1), 0)),
            "the first at once"
        );

        for page in 2..=11 {
            failures.add(failure(page));
            assert_eq!(failures.due(start + FAILURES_APART / 2), None);
        }
        let later = start + FAILURES_APART;
        assert_eq!(failures.due(later), Some((failure(11), 9)));
        assert_eq!(failures.due(later + FAILURES_APART), None, "all were told");
    }

    #[test]
    fn failures_when_told_say_which_page_where_to_and_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let server = Server::bind(&path, Arc::new(Mute), Options::default()).unwrap();
        let (_client, events) = Client::connect(&path, &client::Options::default()).unwrap();
        let mut publisher = EventPublisher::new(vec![server.events()]);
        let start = Instant::now();

        for gpa in [None, Some(Gpa(1 << 20))] {
            publisher.notice(
                Notice::MoveFailed {
                    gpa,
                    hva: Hva(0x7f00_0000_0000),
                    bytes: 4096,
                    direction: Direction::Demote,
                    outcome: Outcome::NoMemory,
                },
                &[],
            );
        }
        publisher.dropped(960);
        publisher.dropped(960);
        publisher.tell_failures(start, Some("not permitted"));
        publisher.tell_failures(start + FAILURES_APART, None);
        publisher.source_fails(SourceKind::Damon, "no DAMON");
        publisher.believed(Some(SourceKind::Damon), Some(SourceKind::Ibs), "silent");

        let event = events.recv().unwrap();
        assert_eq!(event.name, "TIER_MOVE_FAILED");
        let expected = json!({
            "gpa": 1 << 20, "hva": 0x7f00_0000_0000_u64, "bytes": 4096, "direction": "demote",
            "class": "no-memory", "reason": "not permitted", "left-out": 961,
        });
        assert_eq!(event.data, expected);
        let event = events.recv().unwrap();
        assert_eq!(event.name, "TIER_SOURCE", "the failures were told");
        let expected =
            json!({"kind": "damon", "up": false, "believed": false, "reason": "no DAMON"});
        assert_eq!(event.data, expected);
        let expected = json!({
            "kind": "damon", "up": true, "believed": true, "instead-of": "ibs", "reason": "silent",
        });
        assert_eq!(events.recv().unwrap().data, expected);
    }
}
