//! `vmm-tier ctl`: one QMP command to a control socket.

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use serde_json::Value;

use crate::map_cmd::print;

/// Sends the command; prints the reply as JSON on stdout. An error reply is printed on stderr.
pub(crate) fn run(
    socket: &Path,
    command: &str,
    arguments: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let arguments = arguments
        .map(|text| {
            let value: Value = serde_json::from_str(text)
                .with_context(|| format!("the arguments '{text}' are no JSON"))?;
            anyhow::ensure!(
                value.is_object(),
                "the arguments '{text}' are no JSON object, such as {{\"bytes\": 1048576}}"
            );
            Ok(value)
        })
        .transpose()?;
    let (client, _events) = qmp::Client::connect(socket, &qmp::client::Options::default())?;
    let reply = client.execute_raw(command, arguments)?;
    let text = serde_json::to_string_pretty(&reply)? + "\n";
    print(&text).context("the reply can't be printed")?;
    Ok(ExitCode::SUCCESS)
}
