//! The figures once: as a table, as JSON, or as CSV.

use std::{env, fmt::Write as _};

use ratatui::crossterm::terminal;
use rustix::termios::isatty;
use serde_json::{Map, Value};
use tier_core::report::{Object, Shape};

use super::{
    app::Agent,
    columns::{Chosen, Order},
    feed::News,
    text::{cut, harmless, harmless_json, packed},
    views::{Line, agent_lines, alarms, pieces},
};
use crate::{agent::QUERY_TIER, host::report::HostVm};

/// The width of a table that nobody has bounded.
const WIDEST: usize = 200;

/// The columns that a table may take: those of the terminal, or `COLUMNS`, or as many as it needs.
pub(super) fn width() -> Option<usize> {
    let is_terminal = isatty(std::io::stdout());
    let of_terminal = is_terminal.then(terminal::size).and_then(Result::ok);
    let of_terminal = of_terminal.map(|(width, _)| usize::from(width));
    let of_variable = || env::var("COLUMNS").ok()?.parse().ok();
    of_terminal.or_else(of_variable).filter(|&width| width > 0)
}

/// The figures as a table.
pub(super) fn table(news: &News, order: &Order, width: Option<usize>) -> String {
    let bound = width.unwrap_or(WIDEST);
    let mut lines = Vec::new();
    match news {
        News::Host(host) => {
            lines.extend(packed(&pieces(host), bound));
            for (severity, text) in alarms(host, None) {
                lines.push(format!("{}{text}", severity.mark()));
            }
            let vms = order.of(host);
            let chosen = Chosen::new(width, &vms);
            lines.push(chosen.header(None));
            lines.extend(vms.iter().map(|vm| chosen.row(host, vm).0));
        }
        News::Agent(tier) => {
            let mut agent = Agent::default();
            agent.tier.value = Some(tier.clone());
            let words = |line: Line| line.into_iter().map(|(text, _)| text).collect::<String>();
            lines.extend(agent_lines(&agent, bound).into_iter().map(words));
        }
        News::History(_) | News::Heat(_) | News::Lost(_) | News::NoHeat(_) => {}
    }
    let mut out = String::new();
    for line in lines {
        let line = width.map_or_else(|| line.clone(), |width| cut(&line, width));
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The reply as it came.
pub(super) fn json(news: &News) -> serde_json::Result<String> {
    let (News::Host(value) | News::Agent(value)) = news else {
        return Ok(String::new());
    };
    Ok(harmless_json(&serde_json::to_string_pretty(value)?) + "\n")
}

/// The VMs' figures, those of a reply that are one value: a line for each VM, in the order of the table.
pub(super) fn csv(news: &News, order: &Order) -> String {
    let (object, rows) = match news {
        News::Host(host) => (Object::of::<HostVm>(), order.of(host)),
        News::Agent(tier) => (QUERY_TIER, vec![tier]),
        _ => return String::new(),
    };
    let figures = object.figures().into_iter().filter(|figure| {
        !matches!(
            figure.shape,
            Shape::List(_) | Shape::Map(_) | Shape::Object(_)
        )
    });
    let names: Vec<String> = figures.map(|figure| figure.name()).collect();
    let mut out = names.join(",") + "\n";
    let nothing = Map::new();
    for row in rows {
        let row = row.as_object().unwrap_or(&nothing);
        let cells = names.iter().map(|name| cell(row.get(name)));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join(","));
    }
    out
}

/// A value as RFC 4180 has it. A text that a spreadsheet would take for a formula begins with `'`.
fn cell(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => {
            let mut text = harmless(text);
            if text.starts_with(['=', '+', '-', '@']) {
                text.insert(0, '\'');
            }
            match text.contains([',', '"', ';']) {
                true => format!("\"{}\"", text.replace('"', "\"\"")),
                false => text,
            }
        }
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::text::columns, *};
    use crate::host::published_host as host;

    fn news() -> News {
        let mut host = serde_json::to_value(host(3)).unwrap();
        host["vms"][0]["name"] = json!("=cmd(\"x\"),\u{1b}[31m");
        host["vms"][0]["source"] = Value::Null;
        host["vms"][1]["hit-ratio"] = json!(-0.5);
        host["alarms"] = json!([{"severity": "warning", "text": "x".repeat(300)}]);
        News::Host(host)
    }

    #[test]
    fn table_when_narrow_takes_no_more_columns() {
        for width in [20, 40, 80, 120] {
            let text = table(&news(), &Order::default(), Some(width));
            assert!(text.lines().all(|line| columns(line) <= width), "{text}");
            assert!(text.lines().any(|line| line.contains("vm2")), "{text}");
        }
        let whole = table(&news(), &Order::default(), None);
        assert!(
            whole.contains(&"x".repeat(300)) && whole.contains("WAITS FOR"),
            "{whole}"
        );
        insta::assert_snapshot!("once_80", table(&news(), &Order::default(), Some(80)));
    }

    #[test]
    fn csv_when_read_has_a_column_for_each_figure() {
        let text = csv(&news(), &Order::default());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("name,pid,"));
        assert!(
            lines[1].starts_with("\"'=cmd(\"\"x\"\"),\u{fffd}[31m\",1001,"),
            "{text}"
        );
        let commas = |line: &str| line.matches(',').count();
        assert_eq!(commas(lines[2]), commas(lines[0]));
        assert!(lines[2].contains(",-0.5,"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn json_when_printed_is_the_reply() {
        let text = json(&news()).unwrap();
        let News::Host(told) = news() else {
            unreachable!("it is a host's");
        };
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), told);
        assert!(!text.contains('\u{1b}'));
    }
}
