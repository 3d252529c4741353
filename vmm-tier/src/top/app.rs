//! What the screen shows, and what keys change of it. It knows neither terminal nor socket.

use std::{
    collections::VecDeque,
    path::PathBuf,
    time::{Duration, Instant},
};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;

use super::{
    columns::Order,
    feed::{HISTORY_S, HeatSize, News},
    figures::{list, number, text},
    player::Player,
    text::harmless,
};

/// Figures of this age are as they should be.
const FRESH: Duration = Duration::from_secs(3);
/// The most characters of a filter.
const LONGEST_FILTER: usize = 100;
/// How far keys go in a recording, in milliseconds.
const NEAR_MS: f64 = 10_000.0;
const FAR_MS: f64 = 60_000.0;
/// The rows that a page key goes.
const PAGE: isize = 10;

/// A view of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Table,
    Vm,
    Heat,
    Alarms,
    Help,
}

/// Figures that came from a socket, and how that stands.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) value: Option<Value>,
    /// When it came.
    pub(super) seen: Option<Instant>,
    /// Why nothing comes, if so.
    pub(super) lost: Option<String>,
}

impl Told {
    fn take(&mut self, value: Value, now: Instant) {
        *self = Self {
            value: Some(value),
            seen: Some(now),
            lost: None,
        };
    }

    /// How old the figures are, if that is more than it should be.
    pub(super) fn stale(&self, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(self.seen?);
        (age > FRESH || self.lost.is_some()).then_some(age)
    }
}

/// A VM's agent, of which more is asked than the daemon knows.
#[derive(Debug, Default)]
pub(super) struct Agent {
    pub(super) tier: Told,
    pub(super) heat: Option<Value>,
    /// Why there is no heat map.
    pub(super) no_heat: Option<String>,
}

impl Agent {
    fn take(&mut self, news: News, now: Instant) {
        match news {
            News::Agent(value) => self.tier.take(value, now),
            News::Heat(heat) => (self.heat, self.no_heat) = (Some(heat), None),
            News::NoHeat(why) => self.no_heat = Some(why),
            News::Lost(why) => self.tier.lost = Some(why),
            News::Host(_) | News::History(_) => {}
        }
    }
}

/// An agent's socket, and the process that must serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentSocket {
    pub(super) vm: String,
    pub(super) path: PathBuf,
    pub(super) pid: u32,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct App {
    /// The socket or the file.
    pub(super) from: String,
    pub(super) player: Option<Player>,
    /// The daemon's figures; none if an agent answers.
    pub(super) host: Told,
    /// The agent that answers instead of a daemon, or that of the selected VM.
    pub(super) agent: Agent,
    /// Whether an agent answers instead of a daemon.
    pub(super) is_agent: bool,
    pub(super) order: Order,
    pub(super) selected: Option<String>,
    /// The views that one comes back to, the current one last; never empty.
    views: Vec<View>,
    /// Whether keys are letters of the filter.
    pub(super) is_typing: bool,
    /// Lines of a long view that are above the screen.
    pub(super) scroll: usize,
    /// Jain's index: seconds since the begin, and the value.
    pub(super) jain: VecDeque<(f64, f64)>,
    begin: Instant,
    /// Why nothing is recorded any more.
    pub(super) record_ended: Option<String>,
    /// Whether the user wants to leave.
    pub(super) is_over: bool,
}

impl App {
    /// A screen of a socket, or of a recording.
    pub(super) fn new(from: &str, order: Order, player: Option<Player>, now: Instant) -> Self {
        Self {
            from: harmless(from),
            player,
            host: Told::default(),
            agent: Agent::default(),
            is_agent: false,
            order,
            selected: None,
            views: vec![View::Table],
            is_typing: false,
            scroll: 0,
            jain: VecDeque::new(),
            begin: now,
            record_ended: None,
            is_over: false,
        }
    }

    /// The current view.
    pub(super) fn view(&self) -> View {
        let view = self.views.last().copied().unwrap_or(View::Table);
        match view {
            // One agent has no table.
            View::Table if self.is_agent => View::Vm,
            view => view,
        }
    }

    /// The time since the begin, in seconds.
    pub(super) fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.begin).as_secs_f64()
    }

    /// Takes what the socket told.
    pub(super) fn take(&mut self, news: News, now: Instant) {
        match news {
            News::Host(host) => {
                self.is_agent = false;
                if let Some(jain) = host.get("fairness").and_then(|it| number(it, "jain")) {
                    let at = self.seconds(now);
                    self.jain.push_back((at, jain));
                    let oldest = at - HISTORY_S as f64;
                    while self.jain.front().is_some_and(|&(at, _)| at < oldest) {
                        self.jain.pop_front();
                    }
                }
                self.host.take(host, now);
                self.keep_selection();
            }
            News::History(history) => self.take_history(&history, now),
            News::Agent(_) | News::Heat(_) | News::NoHeat(_) => {
                self.is_agent = true;
                self.agent.take(news, now);
            }
            News::Lost(why) if self.is_agent => self.agent.tier.lost = Some(why),
            News::Lost(why) => self.host.lost = Some(why),
        }
    }

    /// Puts what was before the first figures before them.
    fn take_history(&mut self, history: &Value, now: Instant) {
        let known = (number(history, "begins-s-ago"), number(history, "step-s"));
        let (Some(ago), Some(step)) = known else {
            return;
        };
        let jain = history.get("host").and_then(|host| host.get("jain"));
        let least = jain.map_or(&[][..], |jain| list(jain, "min"));
        let first = self.jain.front().map_or(f64::INFINITY, |&(at, _)| at);
        let begin = self.seconds(now) - ago;
        // The daemon keeps an hour; whoever tells more is cut.
        let steps = least.iter().take(HISTORY_S as usize).enumerate();
        let before =
            steps.filter_map(|(at, value)| Some((begin + step * at as f64, value.as_f64()?)));
        let before: Vec<_> = before.filter(|&(at, _)| at < first).collect();
        for point in before.into_iter().rev() {
            self.jain.push_front(point);
        }
    }

    /// Takes what the agent of the selected VM told.
    pub(super) fn take_of_agent(&mut self, news: News, now: Instant) {
        self.agent.take(news, now);
    }

    /// Goes on with a recording.
    pub(super) fn play(&mut self, now: Instant) {
        let Some(player) = &mut self.player else {
            return;
        };
        match player.advance(now) {
            Ok(Some(host)) => {
                self.host.take(host, now);
                self.keep_selection();
            }
            Ok(None) => self.host.seen = Some(now),
            Err(error) => self.host.lost = Some(crate::log::with_causes(&error)),
        }
    }

    /// The daemon's figures.
    pub(super) fn host(&self) -> Option<&Value> {
        self.host.value.as_ref()
    }

    /// The VMs that the table shows, in their order.
    pub(super) fn vms(&self) -> Vec<&Value> {
        self.host().map_or(Vec::new(), |host| self.order.of(host))
    }

    /// The selected VM, if it is there.
    pub(super) fn vm(&self) -> Option<&Value> {
        let vms = list(self.host()?, "vms");
        let selected = self.selected.as_deref()?;
        vms.iter().find(|vm| text(vm, "name") == Some(selected))
    }

    /// The place of the selected VM in the table.
    pub(super) fn place(&self, vms: &[&Value]) -> Option<usize> {
        let selected = self.selected.as_deref()?;
        vms.iter().position(|vm| text(vm, "name") == Some(selected))
    }

    /// In the table some VM is always selected, if there is one.
    fn keep_selection(&mut self) {
        if self.view() != View::Table {
            return;
        }
        let vms = self.vms();
        if self.place(&vms).is_none() {
            let first = vms.first().and_then(|vm| text(vm, "name"));
            self.selected = first.map(str::to_owned);
        }
    }

    /// The agent of which more is to be asked.
    pub(super) fn wanted_agent(&self) -> Option<AgentSocket> {
        let is_wanted = !self.is_agent && self.player.is_none();
        let in_view = matches!(self.view(), View::Vm | View::Heat);
        let vm = self.vm().filter(|_| is_wanted && in_view)?;
        let pid = number(vm, "agent-pid")? as u32;
        Some(AgentSocket {
            vm: text(vm, "name")?.to_owned(),
            path: text(vm, "control")?.into(),
            pid,
        })
    }

    /// Forgets what another agent told.
    pub(super) fn forget_agent(&mut self) {
        self.agent = Agent::default();
    }

    /// The heat map that is wanted on a screen of this width and height.
    pub(super) fn wanted_heat(&self, width: u16, height: u16) -> HeatSize {
        (self.view() == View::Heat).then(|| super::views::heat::size(width, height))
    }

    /// Does what a key says.
    pub(super) fn key(&mut self, key: KeyEvent) {
        if key.kind == KeyEventKind::Release {
            return;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if is_control => self.is_over = true,
            _ if self.is_typing => self.type_key(key.code),
            code => self.command(code),
        }
    }

    fn type_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.order.filter.clear();
            }
            KeyCode::Backspace => drop(self.order.filter.pop()),
            KeyCode::Char(char) if self.order.filter.chars().count() < LONGEST_FILTER => {
                self.order.filter.push(char);
            }
            _ => {}
        }
        self.keep_selection();
    }

    fn command(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char('q') => self.is_over = true,
            KeyCode::Esc => self.back(),
            KeyCode::Char('?') | KeyCode::F(1) => self.show(View::Help),
            KeyCode::Char('t') => self.show(View::Table),
            KeyCode::Char('v') | KeyCode::Enter => self.show(View::Vm),
            KeyCode::Char('h') => self.show(View::Heat),
            KeyCode::Char('a') => self.show(View::Alarms),
            KeyCode::Char('/') if self.view() == View::Table => self.is_typing = true,
            KeyCode::Char('s') => self.order.by = self.order.by.after(1),
            KeyCode::Char('S') => self.order.by = self.order.by.after(-1),
            KeyCode::Char('r') => self.order.is_reversed = !self.order.is_reversed,
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::PageDown => self.go(PAGE),
            KeyCode::PageUp => self.go(-PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX),
            KeyCode::Tab => self.next_vm(1),
            KeyCode::BackTab => self.next_vm(-1),
            code => self.play_key(code),
        }
    }

    fn play_key(&mut self, code: KeyCode) {
        let Some(player) = &mut self.player else {
            return;
        };
        match code {
            KeyCode::Char(' ') if player.is_at_end() => {
                player.go_to(0.0);
                player.is_paused = false;
            }
            KeyCode::Char(' ') => player.is_paused = !player.is_paused,
            KeyCode::Left => player.seek(-NEAR_MS),
            KeyCode::Right => player.seek(NEAR_MS),
            KeyCode::Char('[') => player.seek(-FAR_MS),
            KeyCode::Char(']') => player.seek(FAR_MS),
            KeyCode::Char(',') => player.step(-1),
            KeyCode::Char('.') => player.step(1),
            KeyCode::Char('0') => player.go_to(0.0),
            KeyCode::Char('+' | '=') => player.faster(1),
            KeyCode::Char('-') => player.faster(-1),
            _ => {}
        }
    }

    fn show(&mut self, view: View) {
        if self.view() == view {
            return;
        }
        // A view that one came from is gone back to.
        let known = self.views.iter().position(|&known| known == view);
        self.views
            .truncate(known.map_or(self.views.len(), |at| at + 1));
        if known.is_none() {
            self.views.push(view);
        }
        self.scroll = 0;
        self.keep_selection();
    }

    fn back(&mut self) {
        if self.views.len() > 1 {
            self.views.pop();
            self.scroll = 0;
        } else {
            self.order.filter.clear();
        }
        self.keep_selection();
    }

    /// Goes to another line: of the table, or of a long view.
    fn go(&mut self, by: isize) {
        match self.view() {
            View::Table => self.next_vm(by),
            // Drawing keeps it within the view.
            _ => self.scroll = self.scroll.saturating_add_signed(by),
        }
    }

    fn next_vm(&mut self, by: isize) {
        let vms = self.vms();
        let at = self.place(&vms).unwrap_or(0);
        let to = at
            .saturating_add_signed(by)
            .min(vms.len().saturating_sub(1));
        let name = vms.get(to).and_then(|vm| text(vm, "name"));
        if let Some(name) = name.map(str::to_owned) {
            self.selected = Some(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn app() -> App {
        let host = json!({"fairness": {"jain": 0.5}, "vms": [
            {"name": "a", "control": "/run/a.sock", "agent-pid": 7}, {"name": "b"}, {"name": "c"},
        ]});
        let mut app = App::new("socket", Order::default(), None, Instant::now());
        app.take(News::Host(host), Instant::now());
        app
    }

    fn press(app: &mut App, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                '\u{8}' => KeyCode::Backspace,
                key => KeyCode::Char(key),
            };
            app.key(code.into());
        }
    }

    #[test]
    fn keys_when_pressed_go_through_vms_and_views_and_back() {
        let mut app = app();
        assert_eq!(app.selected.as_deref(), Some("a"));
        press(&mut app, "jj");
        assert_eq!(app.selected.as_deref(), Some("c"));
        press(&mut app, "jjj");
        assert_eq!(app.selected.as_deref(), Some("c"), "that is the last");
        press(&mut app, "k\nh");
        assert_eq!(
            (app.view(), app.selected.as_deref()),
            (View::Heat, Some("b"))
        );
        press(&mut app, "v");
        assert_eq!(app.view(), View::Vm);
        press(&mut app, "\u{1b}");
        assert_eq!(app.view(), View::Table);
        press(&mut app, "?a\u{1b}\u{1b}\u{1b}");
        assert_eq!((app.view(), app.is_over), (View::Table, false));
        press(&mut app, "q");
        assert!(app.is_over);
    }

    #[test]
    fn filter_when_typed_selects_what_it_leaves() {
        let mut app = app();
        press(&mut app, "/cq\u{8}");
        assert!(app.is_typing && !app.is_over);
        assert_eq!(
            (app.order.filter.as_str(), app.selected.as_deref()),
            ("c", Some("c"))
        );
        press(&mut app, "\n/");
        assert_eq!(app.vms().len(), 1);
        press(&mut app, "\u{1b}");
        assert_eq!((app.is_typing, app.vms().len()), (false, 3));
        press(&mut app, "/");
        press(&mut app, &"x".repeat(500));
        assert_eq!(
            (app.order.filter.len(), app.selected.as_deref()),
            (100, None)
        );
    }

    #[test]
    fn sort_keys_when_pressed_change_the_column_and_its_direction() {
        let mut app = app();
        press(&mut app, "sr");
        assert_eq!(
            (app.order.by.figure, app.order.is_reversed),
            ("state", true)
        );
        press(&mut app, "SS");
        assert_eq!(app.order.by.figure, "report-age-s");
    }

    #[test]
    fn agent_of_a_vm_when_its_view_is_shown_is_wanted() {
        let mut app = app();
        assert_eq!(app.wanted_agent(), None);
        press(&mut app, "v");
        let socket = app.wanted_agent().unwrap();
        assert_eq!((socket.vm.as_str(), socket.pid), ("a", 7));
        assert_eq!(app.wanted_heat(80, 24), None);
        press(&mut app, "h");
        assert!(app.wanted_agent().is_some() && app.wanted_heat(80, 24).is_some());
        app.key(KeyCode::Tab.into());
        assert_eq!(
            (app.wanted_agent(), app.selected.as_deref()),
            (None, Some("b"))
        );
        app.take(News::Agent(json!({"name": "b"})), Instant::now());
        press(&mut app, "t");
        assert_eq!(app.view(), View::Vm, "an agent has no table");
    }

    #[test]
    fn figures_when_old_or_lost_are_told_to_be() {
        let mut app = app();
        let now = Instant::now();
        assert_eq!(app.host.stale(now), None);
        let later = now + Duration::from_secs(14);
        assert!(app.host.stale(later).unwrap() >= Duration::from_secs(13));
        app.take(News::Lost("gone".to_owned()), now);
        assert!(app.host.stale(now).is_some() && app.host().is_some());
    }

    #[test]
    fn history_when_it_comes_stands_before_what_was_seen() {
        let mut app = app();
        let history = json!({"begins-s-ago": 30, "step-s": 10, "host": {"jain": {"min": [0.9, null, 0.7, 0.6]}}});
        app.take(News::History(history), Instant::now());
        let values: Vec<f64> = app.jain.iter().map(|point| point.1).collect();
        // The step that is not over began before the first figures, or after.
        assert_eq!(
            (values[0], values[1], *values.last().unwrap()),
            (0.9, 0.7, 0.5)
        );
        assert!(app.jain.iter().is_sorted_by(|a, b| a.0 <= b.0));
        app.take(News::History(json!({"step-s": "x"})), Instant::now());
        app.take(News::History(json!([])), Instant::now());
    }
}
