//! The agent's loop: keeps the connection, the session and the source going, each of which may end at any
//! time.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tier_core::wire::{Decoded, Decoder, Drops, Hello, InGuest, Message, Wish};
use tier_sys::sysroot::SysRoot;

use crate::{
    args::Settings,
    link::{Change, Link},
    log::log,
    report,
    session::{Heard, Session},
    source::{self, Found, InGuestSource, Setup, Taken},
};

/// How long a poll of the source may take: credit and orders are seen after it.
const POLL: Duration = Duration::from_millis(100);
/// The hello is said again until it is answered, and signs of life are given.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// A source that failed is tried again after this time, and sources are probed again.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether memory was plugged in or out.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A source outlives a lost connection for so long: the host's agent may only be restarted.
const KEEP_SOURCE: Duration = Duration::from_secs(5);
/// Batches that wait for credit.
const MAX_WAITING: usize = 8;

/// Runs until a signal ends it. Whatever fails is tried again.
pub(crate) fn run(settings: &Settings, terminate: &AtomicBool) -> anyhow::Result<()> {
    let setup = Setup::new(SysRoot::real(), &settings.run_dir, settings.max_regions);
    let mut agent = Agent {
        settings: settings.clone(),
        link: Link::new(&settings.place),
        decoder: Decoder::new(),
        session: None,
        found: Found::default(),
        setup,
        source: None,
        wish: Wish::default(),
        idle_since: Instant::now(),
        next_try: Instant::now(),
        next_say: Instant::now(),
        next_look: Instant::now() + LOOK_EVERY,
        waiting: VecDeque::new(),
        taken: 0,
        no_credit: 0,
        ended: Drops::default(),
        failure: String::new(),
        said: String::new(),
    };
    agent.probe();
    log(agent.about_sources());
    while !terminate.load(Ordering::Relaxed) {
        agent.turn();
    }
    agent.stop_source();
    Ok(())
}

/// See the [module](self).
struct Agent {
    settings: Settings,
    link: Link,
    decoder: Decoder,
    session: Option<Session>,
    setup: Setup,
    found: Found,
    source: Option<(InGuest, Box<dyn InGuestSource>)>,
    wish: Wish,
    /// Since when nobody wants samples.
    idle_since: Instant,
    /// When a source that failed is tried again.
    next_try: Instant,
    next_say: Instant,
    next_look: Instant,
    waiting: VecDeque<Message>,
    /// Observations, and those that were left out for want of credit, in this session.
    taken: u64,
    no_credit: u64,
    /// What sources dropped that have ended.
    ended: Drops,
    /// Why no source could be opened last.
    failure: String,
    /// The trouble that was told last.
    said: String,
}

impl Agent {
    fn turn(&mut self) {
        match self.link.look() {
            Change::Up => self.begin(),
            Change::Down => self.session = None,
            Change::None => {}
        }
        self.tell_trouble();
        self.listen();
        let wanted = self.session.as_ref().is_some_and(Session::is_welcome);
        if wanted {
            self.idle_since = Instant::now();
            self.look_for_memory();
            self.open_source();
        } else if self.source.is_some() && self.idle_since.elapsed() >= KEEP_SOURCE {
            self.stop_source();
        }
        self.observe();
        self.send();
    }

    /// Begins a session with whoever is at the other end.
    fn begin(&mut self) {
        let mut id = [0; 8];
        if rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).is_err() {
            // Before the kernel has randomness, time tells sessions apart well enough.
            id = now_ns().to_ne_bytes();
        }
        self.decoder.reset();
        self.waiting.clear();
        (self.taken, self.no_credit) = (0, 0);
        let hello = self.hello();
        self.session = Some(Session::new(u64::from_ne_bytes(id), hello));
        self.next_say = Instant::now();
    }

    fn hello(&self) -> Hello {
        let about = report::about();
        Hello {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: about.kernel,
            page_sizes: about.page_sizes,
            memory_bytes: about.memory_bytes,
            source: self.found.can.first().copied().unwrap_or_default(),
            can: self.found.can.clone(),
        }
    }

    /// Takes in what the host says.
    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            let bytes = self.link.read(&mut buffer);
            if bytes == 0 {
                break;
            }
            let mut frames = Vec::new();
            self.decoder.push(&buffer[..bytes], |found| {
                if let Decoded::Frame(frame, _) = found {
                    frames.push(frame);
                }
            });
            for frame in frames {
                match self.session.as_mut().map(|session| session.hear(&frame)) {
                    // A session that nobody has answered yet may be what is asked for.
                    Some(Heard::Ask) if self.is_fresh() => self.next_say = Instant::now(),
                    Some(Heard::Ask) => self.begin(),
                    Some(Heard::Stop) => {
                        self.session = None;
                        self.waiting.clear();
                    }
                    Some(Heard::Noted) => {}
                    None if frame.message == Message::Ask => self.begin(),
                    None => {}
                }
            }
        }
        if let Some(wish) = self.session.as_mut().and_then(Session::take_wish) {
            self.follow(wish);
        }
    }

    /// A source that watches ranges is set up again when they change.
    fn look_for_memory(&mut self) {
        if Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + LOOK_EVERY;
        if self.setup.look_for_memory() {
            log("memory was plugged in or out");
            self.stop_source();
            self.next_try = Instant::now();
        }
    }

    fn is_fresh(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| !session.is_welcome())
    }

    fn follow(&mut self, wish: Wish) {
        if std::mem::replace(&mut self.wish, wish) == wish {
            return;
        }
        // The next wish opens a source again, at once.
        self.next_try = Instant::now();
        if wish.is_rest() {
            self.stop_source();
        } else if let Some((kind, source)) = &mut self.source
            && let Err(error) = source.set_wish(&wish)
        {
            log(format_args!("{kind}: {error:#}"));
            self.stop_source();
        }
    }

    fn probe(&mut self) {
        self.found = source::probe(&self.setup, self.settings.source);
    }

    fn about_sources(&self) -> String {
        match (self.found.can.first(), self.found.reasons()) {
            (Some(best), reasons) if reasons.is_empty() => format!("observing with {best}"),
            (Some(best), reasons) => format!("observing with {best}; not usable here: {reasons}"),
            (None, reasons) => format!("no source works: {reasons}"),
        }
    }

    fn open_source(&mut self) {
        if self.source.is_some() || self.wish.is_rest() || Instant::now() < self.next_try {
            return;
        }
        self.next_try = Instant::now() + RETRY;
        if self.found.can.is_empty() {
            self.probe();
        }
        // The next best, if the best can't be opened now.
        for kind in self.found.can.clone() {
            match source::open(&self.setup, kind, &self.wish) {
                Ok(source) => {
                    self.source = Some((kind, source));
                    self.failure.clear();
                    break;
                }
                Err(error) => {
                    let failure = format!("{error:#}");
                    if failure != self.failure {
                        log(&failure);
                        self.failure = failure;
                    }
                }
            }
        }
    }

    fn stop_source(&mut self) {
        if let Some((kind, source)) = self.source.take() {
            add(&mut self.ended, source.drops());
            if let Err(error) = source.stop() {
                log(format_args!("{kind} did not end cleanly: {error:#}"));
            }
        }
    }

    /// Lets the source work, or waits for the host.
    fn observe(&mut self) {
        let Some((kind, source)) = &mut self.source else {
            self.link.wait(POLL);
            return;
        };
        let kind = *kind;
        match source.poll(POLL) {
            Ok(all) => {
                for taken in all {
                    self.keep(taken);
                }
            }
            Err(error) => {
                log(format_args!("{kind}: {error:#}"));
                self.stop_source();
            }
        }
    }

    /// Keeps a batch until it can be sent; the oldest gives way.
    fn keep(&mut self, taken: Taken) {
        let count = taken.observed.len() as u64;
        if count == 0 || self.session.is_none() {
            return;
        }
        self.taken += count;
        let drops = self.drops();
        let batch = taken.observed.finish(taken.clock_ns, taken.span_ns, drops);
        if self.waiting.len() >= MAX_WAITING
            && let Some(Message::Batch(oldest)) = self.waiting.pop_front()
        {
            self.no_credit += oldest.observed.len() as u64;
        }
        self.waiting.push_back(Message::Batch(batch));
    }

    fn drops(&self) -> Drops {
        let mut drops = self.ended;
        if let Some((_, source)) = &self.source {
            add(&mut drops, source.drops());
        }
        drops.no_credit += self.no_credit;
        drops
    }

    fn send(&mut self) {
        let due = Instant::now() >= self.next_say;
        let (drops, trouble) = (self.drops(), self.trouble());
        let source = self.source.as_ref().map_or(InGuest::Nothing, |own| own.0);
        let Some(session) = &mut self.session else {
            return;
        };
        if !self.link.has_room(tier_core::wire::MAX_FRAME) {
            // What waits to be sent goes first.
            self.link.send(&[]);
            return;
        }
        if due {
            self.next_say = Instant::now() + SAY_EVERY;
            let said = if session.is_welcome() {
                session.status(source, self.taken, drops, cpu_ns(), &trouble)
            } else {
                Some(session.hello())
            };
            if let Some(bytes) = said {
                self.link.send(&bytes);
            }
        }
        while self.link.has_room(tier_core::wire::MAX_FRAME) {
            let Some(message) = self.waiting.front() else {
                break;
            };
            let Some(bytes) = session.say(message.clone()) else {
                break;
            };
            self.waiting.pop_front();
            self.link.send(&bytes);
        }
        self.link.send(&[]);
    }

    /// What the host should know.
    fn trouble(&self) -> String {
        match (&self.source, self.failure.as_str()) {
            (Some(_), _) => String::new(),
            _ if self.wish.is_rest() => String::new(),
            (None, "") => self.found.reasons(),
            (None, failure) => failure.to_owned(),
        }
    }

    /// Tells people on this side what keeps the host from being reached, once.
    fn tell_trouble(&mut self) {
        let trouble = self.link.trouble.clone().unwrap_or_default();
        if trouble != self.said {
            match trouble.as_str() {
                "" => log("the host's end is open"),
                text => log(text),
            }
            self.said = trouble;
        }
    }
}

fn add(sum: &mut Drops, more: Drops) {
    sum.no_address += more.no_address;
    sum.no_credit += more.no_credit;
    sum.lost += more.lost;
    sum.throttled += more.throttled;
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither part of these clocks is ever negative.
    let (seconds, nanos) = (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

fn now_ns() -> u64 {
    nanos(ClockId::Monotonic)
}

fn cpu_ns() -> u64 {
    nanos(ClockId::ProcessCPUTime)
}
