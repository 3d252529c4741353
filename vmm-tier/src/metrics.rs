//! `vmm-tier metrics`: the figures of running agents, as Prometheus reads them.

#[cfg(test)]
mod dashboards;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tools;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::Context;
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde_json::Value;
use tier_core::report::open_metrics::{self, Format};

use crate::{agent::QUERY_TIER, log::complain, map_cmd::print};

/// The label that names the VM.
const DOMAIN: &str = "domain";

/// Arguments of `metrics`.
#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    /// The control sockets of the agents
    #[arg(required = true, value_name = "SOCKET")]
    sockets: Vec<PathBuf>,
    /// The text format; node_exporter's textfile collector needs prometheus
    #[arg(long, default_value_t, value_parser = format_parser())]
    format: Format,
}

fn format_parser() -> impl TypedValueParser<Value = Format> {
    let names = PossibleValuesParser::new(Format::ALL.map(Format::name));
    names.map(|name| {
        let mut formats = Format::ALL.into_iter();
        let named = formats.find(|format| format.name() == name);
        named.unwrap_or_default()
    })
}

/// Asks all agents at the same time, and prints the figures of those that answer.
pub(crate) fn run(args: &MetricsArgs) -> anyhow::Result<ExitCode> {
    let answers: Vec<anyhow::Result<Value>> = thread::scope(|scope| {
        let asked = args
            .sockets
            .iter()
            .map(|socket| scope.spawn(|| ask(socket)));
        let asked: Vec<_> = asked.collect();
        let answers = asked.into_iter().map(|thread| match thread.join() {
            Ok(answer) => answer,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        answers.collect()
    });
    let mut code = ExitCode::SUCCESS;
    let mut replies = Vec::new();
    let mut names = HashSet::new();
    for (socket, answer) in args.sockets.iter().zip(&answers) {
        match answer {
            Ok(reply) => {
                let name = reply["name"].as_str().unwrap_or_default();
                if !names.insert(name) {
                    // Two agents may serve guests of one name, while one migrates to the other.
                    complain(format_args!(
                        "{}: another agent's VM is called '{name}' too; give each agent its own --name",
                        socket.display()
                    ));
                    code = ExitCode::FAILURE;
                    continue;
                }
                replies.push(([(DOMAIN, name)], reply));
            }
            Err(error) => {
                complain(format_args!("{error:#}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    let reports = replies.iter().map(|(labels, reply)| (&labels[..], *reply));
    let text = open_metrics::render(args.format, QUERY_TIER, reports);
    print(&text).context("the figures can't be printed")?;
    Ok(code)
}

fn ask(socket: &Path) -> anyhow::Result<Value> {
    let (client, _events) = qmp::Client::connect(socket, &qmp::client::Options::default())?;
    Ok(client.execute_raw("query-tier", None)?)
}
