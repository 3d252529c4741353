//! `vmm-tier top`: the host's DRAM and its VMs on a terminal, live from a daemon's or an agent's socket, or
//! from a recording.
//!
//! ```text
//!  socket ─► feed ──► app ─► views ─► terminal
//!  recording ─► player ┘
//! ```
//!
//! The app is the screen's state and knows neither socket nor terminal; views turn it into lines of text.

mod app;
mod args;
mod columns;
mod feed;
mod figures;
mod once;
mod player;
mod spark;
mod terminal;
mod text;
mod views;

use std::{
    env,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam::{
    channel::{Receiver, never},
    select,
};
use ratatui::crossterm::event::Event;
use rustix::termios::isatty;
use serde_json::Value;
use tier_sys::sysroot::SysRoot;

pub(crate) use self::args::TopArgs;
use self::{
    app::{AgentSocket, App},
    columns::{Column, Order},
    feed::{Feed, HeatSize, News},
    player::Player,
    terminal::Screen,
};
use crate::{
    config::RUN_DIR,
    host::recording::{Bounds, Recording, Writer, wall_clock_ms},
    log::with_causes,
    map_cmd::print,
    signals,
};

/// How often a recording that is played is looked at.
const PLAY_EVERY: Duration = Duration::from_millis(250);

/// `vmm-tier top`.
///
/// # Errors
/// If there is nothing to show, or no terminal to show it on.
pub(crate) fn run(args: TopArgs) -> anyhow::Result<ExitCode> {
    let socket = args
        .socket
        .unwrap_or_else(|| Path::new(RUN_DIR).join("host.sock"));
    let order = Order {
        by: args.sort.unwrap_or_else(Column::first),
        is_reversed: false,
        filter: args.filter,
    };
    let at_ms = args
        .at
        .map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
    if args.once || args.json || args.csv {
        let news = match &args.replay {
            Some(file) => {
                let recording = Recording::open(file)?;
                News::Host(recording.read(recording.moment_at(at_ms))?)
            }
            None => feed::ask_once(&socket)?,
        };
        let text = match (args.json, args.csv) {
            (true, _) => once::json(&news)?,
            (_, true) => once::csv(&news, &order),
            _ => once::table(&news, &order, once::width()),
        };
        print(&text).context("the figures can't be printed")?;
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::ensure!(
        isatty(std::io::stdout()),
        "the output is no terminal: use --once, --json or --csv"
    );
    let now = Instant::now();
    let player = args.replay.as_deref();
    let player = player
        .map(|file| Player::open(file, at_ms, now))
        .transpose()?;
    let from = args
        .replay
        .as_ref()
        .unwrap_or(&socket)
        .display()
        .to_string();
    let record = args.record.as_deref();
    let record = record
        .map(|file| Writer::create(file, Bounds::default()))
        .transpose()?;
    let app = App::new(&from, order, player, now);
    let top = Top {
        feed: app
            .player
            .is_none()
            .then(|| Feed::start(&socket, None))
            .transpose()?,
        app,
        agent: None,
        record,
        has_colours: env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    top.show()
}

/// The screen, and what it shows.
struct Top {
    app: App,
    feed: Option<Feed>,
    /// The agent of the VM that is looked at.
    agent: Option<(AgentSocket, Feed)>,
    record: Option<Writer>,
    has_colours: bool,
}

impl Top {
    /// Shows it until the user or a signal ends it.
    fn show(mut self) -> anyhow::Result<ExitCode> {
        let signals = signals::ending(&SysRoot::real()).context("signals can't be caught")?;
        let mut screen = Screen::take().context("the terminal can't be used")?;
        let mut heat = None;
        while !self.app.is_over {
            let now = Instant::now();
            self.app.play(now);
            let size = screen.terminal.size().context("the terminal is gone")?;
            self.ask_agent(self.app.wanted_heat(size.width, size.height), &mut heat);
            let drawn = screen
                .terminal
                .draw(|frame| views::draw(&mut self.app, frame, now, self.has_colours));
            drawn.context("the terminal is gone")?;
            let every = match self.app.player {
                Some(_) => PLAY_EVERY,
                None => feed::EVERY,
            };
            select! {
                recv(signals) -> _ => break,
                recv(screen.events) -> event => match event {
                    Ok(Event::Key(key)) => self.app.key(key),
                    Ok(_) => {}
                    // The terminal is gone.
                    Err(_) => break,
                },
                recv(news_of(self.feed.as_ref())) -> news => self.take(news.ok()),
                recv(news_of(self.agent.as_ref().map(|agent| &agent.1))) -> news => {
                    if let Ok(news) = news {
                        self.app.take_of_agent(news, Instant::now());
                    }
                }
                default(every) => {}
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn take(&mut self, news: Option<News>) {
        let Some(news) = news else {
            return;
        };
        if let News::Host(host) = &news {
            self.record(host);
        }
        self.app.take(news, Instant::now());
    }

    fn record(&mut self, host: &Value) {
        let Some(writer) = &mut self.record else {
            return;
        };
        if let Err(error) = writer.add(wall_clock_ms(), host) {
            self.app.record_ended = Some(format!("recording ends: {}", with_causes(&error)));
            self.record = None;
        }
    }

    /// Asks the agent that the view needs, for the heat map that it needs.
    fn ask_agent(&mut self, size: HeatSize, known: &mut HeatSize) {
        let wanted = self.app.wanted_agent();
        if self.agent.as_ref().map(|agent| &agent.0) != wanted.as_ref() {
            self.agent = None;
            *known = None;
            if !self.app.is_agent {
                self.app.forget_agent();
            }
            self.agent = wanted.and_then(|socket| {
                let feed = Feed::start(&socket.path, Some(socket.pid)).ok()?;
                Some((socket, feed))
            });
        }
        let feed = match &self.agent {
            Some((_, feed)) => Some(feed),
            None => self.feed.as_ref().filter(|_| self.app.is_agent),
        };
        if let Some(feed) = feed.filter(|_| *known != size) {
            feed.want_heat(size);
            *known = size;
        }
    }
}

/// A feed's news; without a feed none ever come.
fn news_of(feed: Option<&Feed>) -> Receiver<News> {
    feed.map_or_else(never, |feed| feed.news.clone())
}
