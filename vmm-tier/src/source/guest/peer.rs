//! What is made of an agent's frames. Pure: bytes, time and the map come in, batches and replies go out.
//!
//! The agent is taken for hostile: it may send anything, in any order and at any speed. Whatever it
//! sends is counted, as a sample or with the reason why not, and at most reorders the guest's own pages.

use std::{collections::VecDeque, time::Duration};

use tier_core::{
    map::GuestMemoryMap,
    sample::{AccessSample, DropReason, SampleAccount, SampleBatch},
    time::Time,
    wire::{Batch, Credit, Decoded, Drops, Frame, Hello, InGuest, Message, Observed, Wish},
};

use super::{
    convert::{MAX_SPAN_NS, access_sample, empty, push_region, region_span},
    limits::Limits,
};

/// Sessions that have ended and are remembered, so that their frames can't begin them again.
const PAST_SESSIONS: usize = 64;
/// Most frames that may be missing in one place.
const MAX_GAP: u64 = 1 << 20;
/// The longest sampling period believed.
const MAX_PERIOD: u64 = 10_000_000;
/// Least time between two questions who is there, in nanoseconds.
const ASK_EVERY_NS: u64 = 1_000_000_000;
/// Drops alone wait so long for a batch to go with, in nanoseconds.
const TELL_DROPS_AFTER_NS: u64 = 1_000_000_000;

/// A session of the guest's agent.
#[derive(Debug)]
pub(super) struct Session {
    id: u64,
    pub(super) hello: Hello,
    pub(super) since: Time,
    /// The frames and bytes that came.
    came: Credit,
    told: Credit,
    pub(super) source: InGuest,
    pub(super) drops: Drops,
    pub(super) trouble: String,
    last_accesses: Time,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) limits: Limits,
    pub(super) session: Option<Session>,
    past: VecDeque<u64>,
    /// Sessions begun.
    pub(super) sessions: u64,
    /// When a frame of the current session was last taken.
    pub(super) heard: Option<Time>,
    /// A version of the protocol that is not ours.
    pub(super) strange_version: Option<u8>,
    asked: Option<Time>,
    wish: Wish,
    /// Drops that no batch has told of yet.
    account: SampleAccount,
    /// When batches were last handed on.
    delivered: Time,
    batches: Vec<SampleBatch>,
    replies: Vec<Frame>,
}

impl Peer {
    pub(super) fn new(now: Time, wish: Wish) -> Self {
        Self {
            limits: Limits::new(now),
            session: None,
            past: VecDeque::new(),
            sessions: 0,
            heard: None,
            strange_version: None,
            asked: None,
            wish,
            account: SampleAccount::default(),
            delivered: now,
            batches: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// A connection was made: whoever is there shall begin a session.
    pub(super) fn on_connected(&mut self, now: Time) {
        self.end_session();
        self.asked = None;
        self.ask(now);
    }

    /// The connection is gone, and with it the session.
    pub(super) fn end_session(&mut self) {
        self.replies.clear();
        if let Some(session) = self.session.take() {
            self.past.push_back(session.id);
            if self.past.len() > PAST_SESSIONS {
                self.past.pop_front();
            }
        }
    }

    /// Wishes for another pace.
    pub(super) fn set_wish(&mut self, wish: Wish) {
        if self.wish != wish {
            self.wish = wish;
            self.reply(Message::Wish(wish));
        }
    }

    pub(super) fn say_stop(&mut self) {
        self.reply(Message::Stop);
    }

    /// What is to be sent.
    pub(super) fn take_replies(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.replies)
    }

    /// The batches so far, oldest first; what was dropped goes with the first. Where drops alone have come
    /// for a while, an empty batch tells of them.
    pub(super) fn take_batches(&mut self, now: Time, map: &GuestMemoryMap) -> Vec<SampleBatch> {
        let mut batches = std::mem::take(&mut self.batches);
        let silent = now.0.saturating_sub(self.delivered.0) >= TELL_DROPS_AFTER_NS;
        let untold = self.account != SampleAccount::default();
        if batches.is_empty() && untold && silent {
            batches.push(empty(now, map.generation(), 0, 1));
        }
        if let Some(first) = batches.first_mut() {
            first.account.add(&std::mem::take(&mut self.account));
            self.delivered = now;
        }
        batches
    }

    fn reply(&mut self, message: Message) {
        if let Some(session) = &self.session {
            self.replies.push(Frame {
                session: session.id,
                sequence: 0,
                message,
            });
        }
    }

    /// Asks who is there, not too often.
    fn ask(&mut self, now: Time) {
        let due = self
            .asked
            .is_none_or(|asked| now.0.saturating_sub(asked.0) >= ASK_EVERY_NS);
        if due {
            self.asked = Some(now);
            self.replies.push(Frame {
                session: 0,
                sequence: 0,
                message: Message::Ask,
            });
        }
    }

    /// Asks again if nobody has answered yet.
    pub(super) fn ask_if_alone(&mut self, now: Time) {
        if self.session.is_none() {
            self.ask(now);
        }
    }

    fn drop_records(&mut self, reason: DropReason, records: usize) {
        self.account.drop_records(reason, records as u64);
    }

    /// Takes what the decoder found.
    pub(super) fn take(&mut self, found: Decoded, now: Time, map: &GuestMemoryMap) {
        match found {
            Decoded::Frame(frame, bytes) => self.take_frame(frame, bytes, now, map),
            Decoded::Garbage { bytes } => {
                // The agent paid for them out of its credit if they were a frame once.
                if let Some(session) = &mut self.session {
                    session.came.bytes = session.came.bytes.saturating_add(bytes as u64);
                }
                self.drop_records(DropReason::Malformed, 1);
            }
            Decoded::Corrupt => {
                self.limits.charge_corrupt();
                self.drop_records(DropReason::Malformed, 1);
            }
            Decoded::Version { version } => {
                self.strange_version = Some(version);
                self.drop_records(DropReason::Malformed, 1);
            }
            Decoded::Broken {
                session, sequence, ..
            } => {
                // It is no gap: the frame came.
                let current = self.session.as_mut().filter(|own| own.id == session);
                if let Some(own) = current.filter(|own| own.came.sequence == sequence) {
                    own.came.sequence = own.came.sequence.saturating_add(1);
                }
                self.drop_records(DropReason::Hostile, 1);
            }
        }
    }

    fn take_frame(&mut self, frame: Frame, bytes: usize, now: Time, map: &GuestMemoryMap) {
        let records = match &frame.message {
            Message::Batch(batch) => batch.observed.len().max(1),
            _ => 1,
        };
        if let Message::Hello(hello) = frame.message {
            if self.begin(frame.session, frame.sequence, hello, bytes, now) {
                self.heard = Some(now);
            } else {
                self.drop_records(DropReason::OutOfSequence, records);
            }
            return;
        }
        let Some(session) = self.session.as_mut().filter(|own| own.id == frame.session) else {
            self.drop_records(DropReason::OutOfSequence, records);
            self.ask_if_alone(now);
            return;
        };
        let gap = match frame.sequence.checked_sub(session.came.sequence) {
            None => {
                self.drop_records(DropReason::OutOfSequence, records);
                return;
            }
            Some(gap) if gap > MAX_GAP => {
                self.drop_records(DropReason::Hostile, records);
                return;
            }
            Some(gap) => gap,
        };
        session.came.sequence = frame.sequence.saturating_add(1);
        session.came.bytes = session.came.bytes.saturating_add(bytes as u64);
        let (came, told) = (session.came, session.told);
        self.account.lost = self.account.lost.saturating_add(gap);
        self.heard = Some(now);
        if frame.sequence >= told.sequence || came.bytes > told.bytes {
            self.drop_records(DropReason::RateLimited, records);
            return;
        }
        match frame.message {
            Message::Batch(batch) => {
                self.note_drops(batch.drops);
                self.take_batch(&batch, now, map);
            }
            Message::Status(status) => {
                self.note_drops(status.drops);
                if let Some(session) = &mut self.session {
                    session.source = status.source;
                    session.trouble = status.trouble;
                }
            }
            // What only a host says.
            _ => self.drop_records(DropReason::Hostile, records),
        }
    }

    /// Begins a session, or welcomes one again that has not heard its welcome; `false` if that is over.
    fn begin(&mut self, id: u64, sequence: u64, hello: Hello, bytes: usize, now: Time) -> bool {
        let current = self.session.as_ref().filter(|own| own.id == id);
        if sequence != 0 || self.past.contains(&id) {
            return false;
        }
        if let Some(own) = current {
            if own.came.sequence != 1 {
                return false;
            }
        } else {
            self.end_session();
            self.sessions += 1;
            let came = Credit {
                sequence: 1,
                bytes: bytes as u64,
            };
            self.session = Some(Session {
                id,
                source: hello.source,
                hello,
                since: now,
                came,
                told: self.limits.credit(now, came),
                drops: Drops::default(),
                trouble: String::new(),
                last_accesses: now,
            });
        }
        if let Some(own) = &self.session {
            self.reply(Message::Welcome(own.told, self.wish));
        }
        true
    }

    /// What the agent says that it lost counts as lost; it can only grow.
    fn note_drops(&mut self, drops: Drops) {
        let Some(session) = &mut self.session else {
            return;
        };
        let before = std::mem::replace(&mut session.drops, drops);
        let lost = drops.total().saturating_sub(before.total());
        let throttled = drops.throttled.saturating_sub(before.throttled);
        // Only a display is at stake; but sums must not overflow.
        let bounded = |n: u64| n.min(u64::from(u32::MAX));
        self.account.lost = self.account.lost.saturating_add(bounded(lost));
        self.account.throttled = self.account.throttled.saturating_add(bounded(throttled));
    }

    fn take_batch(&mut self, batch: &Batch, now: Time, map: &GuestMemoryMap) {
        let records = batch.observed.len();
        let granted = match &batch.observed {
            Observed::Accesses { .. } => self.limits.take_accesses(now, records as u64),
            Observed::Regions { tests, .. } => {
                let span = region_span(batch, *tests);
                self.limits.take_report(now, span / 1000)
            }
        };
        if !granted {
            self.drop_records(DropReason::RateLimited, records.max(1));
            return;
        }
        let generation = map.generation();
        match &batch.observed {
            Observed::Accesses { period, samples } => {
                let period = (*period).min(MAX_PERIOD);
                let samples = samples.iter().map(access_sample);
                self.add_accesses(period, samples, now, generation);
            }
            Observed::Regions { tests, regions } => {
                let mut out = empty(now, generation, *tests, 1);
                out.span = Duration::from_nanos(region_span(batch, *tests));
                for region in regions {
                    push_region(&mut out.samples, region, map);
                }
                self.batches.push(out);
            }
        }
    }

    /// Single accesses of one poll are one batch, as long as their period is the same.
    fn add_accesses(
        &mut self,
        period: u64,
        samples: impl Iterator<Item = AccessSample>,
        now: Time,
        generation: u64,
    ) {
        let Some(session) = &mut self.session else {
            return;
        };
        let open = self.batches.last_mut().filter(|last| {
            last.tests == 0 && last.period == period && last.map_generation == generation
        });
        if let Some(open) = open {
            open.samples.extend(samples);
            return;
        }
        let since = now.0.saturating_sub(session.last_accesses.0);
        session.last_accesses = now;
        let mut out = empty(now, generation, 0, period);
        out.span = Duration::from_nanos(since.clamp(1_000_000, MAX_SPAN_NS));
        out.samples.extend(samples);
        self.batches.push(out);
    }

    /// Tells the guest of more credit, once there is enough of it.
    pub(super) fn tell_credit(&mut self, now: Time) {
        let Some(session) = &mut self.session else {
            return;
        };
        let new = self.limits.credit(now, session.came);
        if Limits::is_worth_telling(new, session.told) {
            // What was granted stays granted.
            let credit = Credit {
                sequence: new.sequence.max(session.told.sequence),
                bytes: new.bytes.max(session.told.bytes),
            };
            session.told = credit;
            self.reply(Message::Credit(credit));
        }
    }
}
