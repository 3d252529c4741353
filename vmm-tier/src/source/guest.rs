//! The agent in the guest as a source: it observes there and sends guest-physical addresses.
//!
//! ```text
//!  virtio-serial or vsock ─► Link ─► Decoder ─► Peer (checks, limits) ─► SampleBatch
//!                             ▲                   │
//!                             └── welcome, credit, wish
//! ```
//!
//! The agent may be started, killed and replaced at any time, and may be anyone: see [`peer`].

mod address;
mod convert;
mod limits;
mod link;
mod peer;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tier_core::{
    damon_pace::{Pace, PaceKeeper},
    map::GuestMemoryMap,
    sample::{Sight, SourceKind},
    time::Time,
    wire::{Decoder, MAX_FRAME, Wish},
};
use tier_sys::{process, wait::Wait};

pub(crate) use self::address::{GuestAddress, ParseGuestAddressError};
use self::{
    link::{Link, Woken},
    peer::Peer,
};
use super::{Polled, Setup, Source, turn::Turn};

/// Accesses a second that the guest is asked for.
const ACCESSES_PER_S: u32 = 10_000;
/// How long opening waits for an agent to answer.
const GREETING: Duration = Duration::from_millis(500);
/// An agent says something at least every second; after so long it is taken for stalled.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// Where nobody has begun a session for so long, this source has nothing to offer.
const ALONE_AFTER: Duration = Duration::from_secs(15);
/// A frame that was begun and does not go on for so long was cut off.
const CUT_AFTER: Duration = Duration::from_secs(1);
/// Bytes that one poll takes in at most.
const BYTES_A_POLL: usize = 4 * MAX_FRAME;
/// How often the agent is told what it may send, and turns are looked at.
const UPKEEP_EVERY: Duration = Duration::from_millis(500);
/// How long to wait for what may be read again.
const REFILL: Duration = Duration::from_millis(20);
/// Sessions are told of at most so often: a guest may begin one after the other.
const TELL_EVERY: Duration = Duration::from_secs(5);

struct GuestAgent {
    address: GuestAddress,
    map: Arc<GuestMemoryMap>,
    link: Link,
    decoder: Decoder,
    peer: Peer,
    pace: PaceKeeper,
    turn: Turn,
    quiet: bool,
    quiet_factor: u32,
    buffer: Vec<u8>,
    /// Bytes of a frame that waits for its rest, and since when there have been so many.
    waiting: (usize, Instant),
    opened: Instant,
    /// The number of the session that was told of, and when.
    told: (u64, Option<Instant>),
}

/// Meets the guest's agent at `address`, and gives it a moment to say who it is. That it answers can't be
/// waited for: it may start later.
pub(crate) fn open(
    setup: &Setup,
    map: &Arc<GuestMemoryMap>,
    address: &GuestAddress,
) -> anyhow::Result<Box<dyn Source>> {
    let link = Link::open(address)?;
    let mut agent = GuestAgent::new(setup, map, address.clone(), link);
    while agent.peer.session.is_none() && agent.opened.elapsed() < GREETING {
        agent.exchange(GREETING.into())?;
    }
    // Whoever opens it tells of this one.
    agent.told.0 = agent.peer.sessions;
    Ok(Box::new(agent))
}

impl GuestAgent {
    fn new(setup: &Setup, map: &Arc<GuestMemoryMap>, address: GuestAddress, link: Link) -> Self {
        let pace = setup.pace_keeper();
        let wish = wish(pace.pace(), 1);
        let now = process::now();
        let mut peer = Peer::new(now, wish);
        if link.is_connected() {
            peer.on_connected(now);
        }
        Self {
            address,
            map: Arc::clone(map),
            link,
            decoder: Decoder::new(),
            peer,
            pace,
            turn: Turn::watch(),
            quiet: false,
            quiet_factor: setup.quiet_factor,
            buffer: vec![0; MAX_FRAME],
            waiting: (0, Instant::now()),
            opened: Instant::now(),
            told: (0, None),
        }
    }

    fn on_connection(&mut self, woken: Woken, now: Time) {
        self.decoder.reset();
        match woken {
            Woken::Connected => self.peer.on_connected(now),
            Woken::Gone => self.peer.end_session(),
            Woken::Readable | Woken::TimedOut => {}
        }
    }

    /// Waits until something comes, takes it in, and answers.
    fn exchange(&mut self, wait: Wait<'_>) -> anyhow::Result<()> {
        self.send_replies(process::now());
        let may_read = self.peer.limits.may_read(process::now()) > 0;
        let wait = if may_read { wait } else { wait.at_most(REFILL) };
        let busy = self.peer.session.is_some() && self.silence() < STALLED_AFTER;
        match self.link.wait(wait, may_read, busy)? {
            Woken::Readable => self.read(),
            Woken::TimedOut => {}
            changed => self.on_connection(changed, process::now()),
        }
        let now = process::now();
        self.look_for_cut_frames(now);
        self.send_replies(now);
        Ok(())
    }

    /// Reads what may be read.
    fn read(&mut self) {
        let mut taken = 0;
        while taken < BYTES_A_POLL {
            let now = process::now();
            let room = self.peer.limits.may_read(now).min(self.buffer.len());
            if room == 0 {
                break;
            }
            let Some(bytes) = self.link.read(&mut self.buffer[..room]) else {
                self.on_connection(Woken::Gone, now);
                return;
            };
            if bytes == 0 {
                break;
            }
            taken += bytes;
            self.peer.limits.has_read(now, bytes);
            let (peer, map) = (&mut self.peer, &self.map);
            self.decoder
                .push(&self.buffer[..bytes], |found| peer.take(found, now, map));
        }
    }

    /// Gives up a frame that was begun and does not go on.
    fn look_for_cut_frames(&mut self, now: Time) {
        let pending = self.decoder.pending();
        if pending == 0 || pending != self.waiting.0 {
            self.waiting = (pending, Instant::now());
        } else if self.waiting.1.elapsed() >= CUT_AFTER {
            let (peer, map) = (&mut self.peer, &self.map);
            self.decoder.give_up(|found| peer.take(found, now, map));
            self.waiting = (self.decoder.pending(), Instant::now());
        }
    }

    fn send_replies(&mut self, now: Time) {
        self.peer.ask_if_alone(now);
        self.peer.tell_credit(now);
        if !self.link.is_connected() {
            return;
        }
        let mut bytes = Vec::new();
        for frame in self.peer.take_replies() {
            // What we say ourselves is always within bounds.
            let encoded = frame.encode(&mut bytes);
            debug_assert!(encoded.is_ok(), "{encoded:?}");
        }
        if !bytes.is_empty() && !self.link.send(&bytes) {
            self.on_connection(Woken::Gone, now);
        }
    }

    /// How long nothing was heard.
    fn silence(&self) -> Duration {
        let heard = self.peer.heard.map(|heard| process::now().since(heard));
        heard.map_or_else(
            || self.opened.elapsed(),
            |heard| heard.min(self.opened.elapsed()),
        )
    }

    /// Why there is no session, and what to do.
    fn why_alone(&self) -> String {
        let place = &self.address;
        if let Some(version) = self.peer.strange_version {
            return format!(
                "the agent behind {place} speaks version {version} of the protocol, not {}: install the \
                 guest-agent of this vmm-tier in the guest",
                tier_core::wire::VERSION
            );
        }
        if let Some(trouble) = &self.link.trouble {
            return trouble.clone();
        }
        if self.link.refused > 0 && !self.link.is_connected() {
            let refused = self.link.refused;
            return format!(
                "{refused} connections to {place} came from others than this guest: see that the context \
                 id is the guest's (guest-cid of its vhost-vsock device)"
            );
        }
        let silence = self.silence().as_secs();
        format!(
            "nobody has answered at {place} for {silence} s: start guest-agent in the guest, with the same \
             port"
        )
    }

    /// Tells of a session that has begun.
    fn tell_session(&mut self) {
        let due = self.told.1.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if self.told.0 == self.peer.sessions || !due {
            return;
        }
        self.told = (self.peer.sessions, Some(Instant::now()));
        tracing::info!(session = self.peer.sessions, "{}", self.label());
    }

    /// While the guest is at rest and slow looks would tell too little, its agent looks in turns.
    fn take_turns(&mut self) {
        if self.turn.advance(self.pace.pace().turns) {
            self.send_wish();
        }
    }

    fn send_wish(&mut self) {
        let slower = if self.quiet { self.quiet_factor } else { 1 };
        let wish = match self.turn.is_resting() {
            true => Wish::default(),
            false => wish(self.pace.pace(), slower),
        };
        self.peer.set_wish(wish);
    }
}

impl Source for GuestAgent {
    fn kind(&self) -> SourceKind {
        SourceKind::Guest
    }

    fn sight(&self) -> Sight {
        Sight::Guest
    }

    fn label(&self) -> String {
        let place = &self.address;
        let Some(session) = &self.peer.session else {
            return format!("the guest's agent over {place}: not heard of yet");
        };
        let hello = &session.hello;
        let since = process::now().since(session.since).as_secs();
        let source = match self.turn.is_resting() {
            true => "rests until its next turn".to_owned(),
            false => format!("observes with {}", session.source),
        };
        let mut line = format!(
            "the guest's agent {} over {place} (session of {since} s) {source}; kernel {}, pages of \
             {}, {} MiB",
            hello.agent,
            hello.kernel,
            sizes(&hello.page_sizes),
            hello.memory_bytes >> 20,
        );
        if session.drops.total() > 0 {
            line += &format!(", has itself dropped {}", session.drops.total());
        }
        if !session.trouble.is_empty() {
            line += &format!(", says: {}", session.trouble);
        }
        let silence = self.silence();
        if silence >= STALLED_AFTER {
            line += &format!("; silent for {} s", silence.as_secs());
        }
        line
    }

    fn poll(&mut self, wait: Wait<'_>) -> anyhow::Result<Polled> {
        self.exchange(wait.at_most(UPKEEP_EVERY))?;
        self.tell_session();
        let now = process::now();
        let mut batches = self.peer.take_batches(now, &self.map);
        let mut changed = false;
        for batch in batches.iter_mut().filter(|batch| batch.tests > 0) {
            self.turn.report();
            batch.settled = self.pace.is_settled(batch);
            changed |= self.pace.observe(batch).is_some();
        }
        if changed {
            self.send_wish();
        }
        self.take_turns();
        // An agent that is silent within its session may go on at any time: the guest may be stopped.
        let alone = self.peer.session.is_none() && self.silence() >= ALONE_AFTER;
        let ended = alone.then(|| self.why_alone());
        Ok(Polled {
            batches,
            ended,
            ..Polled::default()
        })
    }

    fn set_map(&mut self, map: &Arc<GuestMemoryMap>) -> anyhow::Result<()> {
        self.map = Arc::clone(map);
        Ok(())
    }

    fn set_quiet(&mut self, quiet: bool) -> anyhow::Result<()> {
        self.quiet = quiet;
        self.pace.set_quiet(quiet);
        self.turn = Turn::watch();
        self.send_wish();
        Ok(())
    }

    fn stop(mut self: Box<Self>) -> anyhow::Result<()> {
        self.peer.say_stop();
        self.send_replies(process::now());
        Ok(())
    }
}

/// The wish for a pace; single accesses come `slower` times less often.
fn wish(pace: Pace, slower: u32) -> Wish {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    Wish {
        accesses_per_s: ACCESSES_PER_S / slower.max(1),
        sampling_us: micros(pace.sampling),
        aggregation_us: micros(pace.aggregation),
        max_regions: u32::try_from(pace.max_regions).unwrap_or(u32::MAX),
    }
}

/// Page sizes for people.
fn sizes(sizes: &[u64]) -> String {
    let shown = |&size: &u64| match size {
        size if size >= 1 << 30 => format!("{} GiB", size >> 30),
        size if size >= 1 << 20 => format!("{} MiB", size >> 20),
        size => format!("{} KiB", size >> 10),
    };
    sizes.iter().map(shown).collect::<Vec<_>>().join(", ")
}
