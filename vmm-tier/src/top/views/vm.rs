//! One VM: its DRAM, its tiers, why it moves nothing, its sources, and all of its figures.

use std::time::Instant;

use serde_json::Value;
use tier_core::report::Object;

use super::{
    super::{
        app::{Agent, App},
        columns::bar,
        figures::{self, list, number, shown, text},
        text::{columns, cut, fitted, harmless, wrapped},
    },
    Line, Look, alarms, line, of_age, said, words,
};
use crate::{agent::QUERY_TIER, host::report::HostVm};

/// The columns of a label.
const LABEL: usize = 11;
/// The longest bar.
const LONGEST_BAR: usize = 60;
/// The least width at which figures are explained.
const WIDE: usize = 100;

/// The view of the selected VM, by the daemon's figures and its agent's.
pub(in super::super) fn vm_lines(app: &App, width: usize, now: Instant) -> Vec<Line> {
    let Some((host, vm)) = app.host().zip(app.vm()) else {
        let gone = match &app.selected {
            Some(name) => format!("{} is not there", harmless(name)),
            None => "no VM is selected".to_owned(),
        };
        return vec![line(cut(&gone, width), Look::Warning)];
    };
    let state = [
        said(vm, "state"),
        said(vm, "agent-state"),
        said(vm, "source"),
    ];
    let state: Vec<String> = state.into_iter().flatten().collect();
    let mut page = Page::new(width, vm, &state.join("  "));
    let amounts = [
        ("held", "fast-bytes"),
        ("share", "share-bytes"),
        ("entitled", "entitled-bytes"),
        ("demand", "demand-bytes"),
        ("guarantee", "guarantee-bytes"),
        ("cap", "cap-bytes"),
    ];
    page.bars(amounts.map(|(label, name)| (label, number(vm, name))));
    page.pairs(&[
        ("weight", shown(vm, "weight")),
        ("hits", shown(vm, "hit-ratio")),
        ("slowdown", shown(vm, "slowdown")),
        ("moves", shown(vm, "moves-per-s")),
    ]);
    page.why(&reasons(host, vm, app, now));
    match &app.agent.tier.value {
        Some(tier) => page.agent(tier),
        None if app.player.is_some() => {}
        None if text(vm, "control").is_none() => page.put(
            "tiers, sources and moves: the daemon does not know the VM's control socket",
            Look::Faint,
        ),
        None => page.put("tiers, sources and moves: asking its agent", Look::Faint),
    }
    page.all(Object::of::<HostVm>(), vm);
    page.lines
}

/// The view of the VM of an agent that answers itself.
pub(in super::super) fn agent_lines(agent: &Agent, width: usize) -> Vec<Line> {
    let Some(tier) = &agent.tier.value else {
        return Vec::new();
    };
    let source = tier.get("source").and_then(|source| said(source, "kind"));
    let state = [said(tier, "state"), source];
    let state: Vec<String> = state.into_iter().flatten().collect();
    let mut page = Page::new(width, tier, &state.join("  "));
    let fast = list(tier, "tiers").first();
    let of_fast = |name| fast.and_then(|fast| number(fast, name));
    let of_host = |name| tier.get("host").and_then(|host| number(host, name));
    page.bars([
        ("held", of_fast("bytes")),
        ("limit", of_fast("limit-bytes")),
        ("share", of_host("share-bytes")),
        ("demand", of_host("demand-bytes")),
    ]);
    page.pairs(&[
        ("hits", shown(tier, "hit-ratio")),
        ("promoted", shown(tier, "promoted-bytes")),
        ("demoted", shown(tier, "demoted-bytes")),
    ]);
    page.why(&reasons_of_agent(tier));
    page.agent(tier);
    page.all(QUERY_TIER, tier);
    page.lines
}

/// Why a VM has what it has, and moves nothing: in words of the daemon and the agent.
fn reasons(host: &Value, vm: &Value, app: &App, now: Instant) -> Vec<String> {
    let mut reasons: Vec<String> = Vec::new();
    let alarms = alarms(host, text(vm, "name"));
    reasons.extend(
        alarms
            .into_iter()
            .map(|(severity, text)| format!("{}{text}", severity.mark())),
    );
    reasons.extend(said(vm, "refused").map(|why| format!("! its agent was refused: {why}")));
    match &app.agent.tier.value {
        Some(tier) => reasons.extend(reasons_of_agent(tier)),
        None => reasons.extend(said(vm, "waits-for").map(|what| format!("moves wait for: {what}"))),
    }
    let agent = &app.agent.tier;
    reasons.extend(
        agent
            .lost
            .as_ref()
            .map(|why| format!("! {}", harmless(why))),
    );
    reasons.extend(of_age(agent, now).map(|old| format!("! {old}")));
    reasons
}

fn reasons_of_agent(tier: &Value) -> Vec<String> {
    let of = |name: &str, member: &str| tier.get(name).and_then(|it| said(it, member));
    let mut reasons = Vec::new();
    match (said(tier, "waits-for"), said(tier, "waits-because")) {
        (Some(what), Some(why)) => reasons.push(format!("moves wait for {what}: {why}")),
        (Some(what), None) => reasons.push(format!("moves wait for {what}")),
        _ => {}
    }
    let paused = words(tier, "paused-by");
    if !paused.is_empty() {
        reasons.push(format!("paused by {paused}"));
    }
    let others = [
        ("! ", said(tier, "refused")),
        ("! ", of("holds", "reason")),
        ("! ", of("source", "down")),
        ("exchanges are slow: ", of("brake", "reason")),
        ("! the daemon: ", of("host", "trouble")),
        ("! no rebinding: ", said(tier, "rebind-refused")),
    ];
    reasons.extend(
        others
            .into_iter()
            .filter_map(|(head, why)| Some(format!("{head}{}", why?))),
    );
    reasons
}

struct Page {
    width: usize,
    lines: Vec<Line>,
}

impl Page {
    fn new(width: usize, of: &Value, state: &str) -> Self {
        let name = said(of, "name").unwrap_or_default();
        let title = format!("VM  {name}");
        let room = width.saturating_sub(columns(state) + 2).max(width / 2);
        let first = vec![
            (cut(&title, room), Look::Title),
            (format!("  {state}"), Look::Plain),
        ];
        Self {
            width,
            lines: vec![first],
        }
    }

    fn put(&mut self, text: &str, look: Look) {
        let lines = wrapped(text, self.width).into_iter();
        self.lines.extend(lines.map(|text| line(text, look)));
    }

    /// A paragraph behind a label.
    fn labelled(&mut self, label: &str, text: &str, look: Look) {
        let room = self.width.saturating_sub(LABEL);
        for (at, part) in wrapped(text, room).into_iter().enumerate() {
            let label = if at == 0 { label } else { "" };
            self.lines.push(vec![
                (fitted(label, LABEL, false), Look::Plain),
                (part, look),
            ]);
        }
    }

    fn heading(&mut self, text: &str) {
        self.lines.push(Vec::new());
        self.put(text, Look::Title);
    }

    /// Amounts as bars on one scale, whose end is twice the largest but for a cap.
    fn bars<const N: usize>(&mut self, amounts: [(&str, Option<f64>); N]) {
        self.heading("DRAM");
        const VALUE: usize = 9;
        let room = self
            .width
            .saturating_sub(LABEL + VALUE + 2)
            .min(LONGEST_BAR);
        let is_bound = |label: &str| matches!(label, "cap" | "limit");
        let used = amounts.iter().filter(|(label, _)| !is_bound(label));
        let most = used.filter_map(|amount| amount.1).fold(0.0, f64::max);
        for (label, amount) in amounts {
            let value = amount.map_or("–".to_owned(), super::super::text::bytes);
            let bar = amount
                .filter(|_| most > 0.0 && room > 0)
                .map(|amount| bar(amount / most, room));
            let look = if label == "held" {
                Look::Fast
            } else {
                Look::Plain
            };
            self.lines.push(vec![
                (fitted(label, LABEL, false), Look::Plain),
                (fitted(&value, VALUE, true) + " ", Look::Plain),
                (bar.unwrap_or_default(), look),
            ]);
        }
    }

    fn pairs(&mut self, pairs: &[(&str, String)]) {
        let pairs = pairs
            .iter()
            .map(|(name, value)| format!("{name} {}", cut(value, 30)));
        let pairs: Vec<String> = pairs.collect();
        for text in super::packed(&pairs, self.width) {
            self.lines.push(line(text, Look::Plain));
        }
    }

    fn why(&mut self, reasons: &[String]) {
        if reasons.is_empty() {
            return;
        }
        self.heading("WHY");
        for reason in reasons {
            let look = if reason.starts_with('!') {
                Look::Warning
            } else {
                Look::Plain
            };
            self.put(reason.trim_start(), look);
        }
    }

    /// What only the agent knows.
    fn agent(&mut self, tier: &Value) {
        self.heading("TIERS");
        for (at, of) in list(tier, "tiers").iter().take(8).enumerate() {
            let nodes = list(of, "nodes").iter().take(64).filter_map(Value::as_u64);
            let nodes: Vec<String> = nodes.map(|node| node.to_string()).collect();
            let limit = number(of, "limit-bytes").map_or(String::new(), |_| {
                format!(", at most {}", shown(of, "limit-bytes"))
            });
            let text = format!(
                "{} of the guest{limit}; node {} has {} free",
                shown(of, "bytes"),
                nodes.join(","),
                shown(of, "free-bytes")
            );
            let (name, look) = if at == 0 {
                ("fast", Look::Fast)
            } else {
                ("slow", Look::Slow)
            };
            self.labelled(name, &text, look);
        }
        self.heading("SOURCES");
        for source in list(tier, "sources").iter().take(8) {
            let believed = source.get("believed").and_then(Value::as_bool) == Some(true);
            let mut text = said(source, "health").unwrap_or_default();
            if believed {
                text += ", believed";
            }
            if number(source, "quality").is_some() {
                text += &format!(", quality {}", shown(source, "quality"));
            }
            text += &format!(", {} records a second", shown(source, "accepted-per-s"));
            if let Some(reason) = said(source, "reason") {
                text += &format!(": {reason}");
            }
            let kind = said(source, "kind").unwrap_or_default();
            self.labelled(&kind, &text, Look::Plain);
        }
        self.heading("MOVES");
        let pages = |name| shown(tier, name);
        let text = format!(
            "{} moved of {} tried",
            pages("moved-pages"),
            pages("tried-pages")
        );
        self.labelled("pages", &text, Look::Plain);
        let failed = tier.get("failed").and_then(Value::as_object);
        for (class, count) in failed.into_iter().flatten().take(32) {
            let is_some = count.as_f64().is_some_and(|count| count > 0.0);
            if is_some {
                self.labelled(
                    "failed",
                    &format!("{} {count}", harmless(class)),
                    Look::Plain,
                );
            }
        }
    }

    /// All figures by their names; explained if there is room.
    fn all(&mut self, object: &'static Object, of: &Value) {
        self.heading("ALL FIGURES");
        let all = figures::all(object, of);
        let longest = all
            .iter()
            .map(|(name, ..)| columns(name))
            .max()
            .unwrap_or(0);
        let names = longest.min(self.width / 2);
        let is_wide = self.width >= WIDE;
        for (name, value, help) in all {
            let mut text = format!("{}  {}", fitted(&name, names, false), cut(&value, 40));
            if is_wide {
                text = fitted(&text, names + 24, false) + "  " + &help;
            }
            self.lines.push(line(cut(&text, self.width), Look::Plain));
        }
    }
}
