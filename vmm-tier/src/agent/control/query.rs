//! The reply to `query-tier`.

use serde_json::{Map, Value};

use super::Control;
use crate::agent::{Agent, state_file::POLICY};

impl Agent {
    /// What the agent does and how that goes.
    pub(in crate::agent) fn query_tier(&self) -> Value {
        let snapshot = self.engine.snapshot();
        let refused = self
            .refusal
            .now
            .as_ref()
            .or(self.look_up_trouble.now.as_ref());
        let migration = self.migration.under_way().map(ToString::to_string);
        let (state_file, restored) = self.saved.report();
        let sockets = self.control.iter().chain(&self.proxy);
        let sockets: Value = sockets.map(Control::report).collect();
        let mut reply = match serde_json::to_value(&snapshot) {
            Ok(Value::Object(members)) => members,
            _ => Map::new(),
        };
        reply.remove("samples");
        if let Some(pins) = reply.get_mut("pins").and_then(Value::as_object_mut) {
            let (ranges, waiting) = self.list_pins();
            pins.insert("ranges".to_owned(), ranges);
            pins.insert("waiting".to_owned(), waiting);
        }
        let mut insert = |name: &str, value: Value| reply.insert(name.to_owned(), value);
        insert("name", self.name.clone().into());
        insert("pid", self.pid.into());
        insert("uptime-s", self.started.elapsed().as_secs().into());
        insert("paused-by", self.paused_by().into());
        insert("migration", migration.into());
        insert("refused", refused.cloned().into());
        insert("policy", POLICY.into());
        insert("source", self.source_report());
        insert("sources", self.sources.report(self.engine.sources()).into());
        insert("sockets", sockets);
        insert("restored", restored);
        insert("state-file", state_file);
        reply.into()
    }

    /// Who wants moves to pause.
    pub(in crate::agent) fn paused_by(&self) -> Vec<&'static str> {
        let who = [
            (self.overrides.paused, "operator"),
            (self.migration.under_way().is_some(), "migration"),
        ];
        let who = who.into_iter().filter(|(wants, _)| *wants);
        who.map(|(_, who)| who).collect()
    }
}
