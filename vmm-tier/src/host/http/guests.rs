//! What the agent of a VM tells: its control socket is asked, within a deadline, in a thread apart.
//!
//! The agent told the path when it registered. What serves the socket must be the process that
//! registered, by what the kernel says.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use qmp::{
    Client,
    client::{ExecuteError, Options, peer_of},
    codec::Limits,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{Pages, orders::error_answer};

/// The most agents that are asked at a time.
const MOST_ASKED: usize = 4;
/// How long an agent has for each step.
const PATIENCE: Duration = Duration::from_secs(2);
/// For so long an answer is given again: an agent looks at every page for some of them.
const FRESH: Duration = Duration::from_secs(2);
/// The most answers that are kept, and the most bytes of an answer that is.
const MOST_KEPT: usize = 16;
const MOST_KEPT_BYTES: usize = 1 << 20;
/// The heat map's rows and columns.
const HEATMAP: (u64, u64) = (32, 64);
/// How many moves are told.
const MOVES: u64 = 100;
/// The longest path of a unix socket.
const LONGEST_PATH: usize = 107;

/// What was asked, when, and the answer.
type Kept = ((String, &'static str, Option<u64>), Instant, Bytes);

/// The agents, as they are asked.
pub(super) struct Guests {
    asked: Arc<Semaphore>,
    kept: Mutex<Vec<Kept>>,
}

impl Default for Guests {
    fn default() -> Self {
        Self {
            asked: Arc::new(Semaphore::new(MOST_ASKED)),
            kept: Mutex::default(),
        }
    }
}

/// The query of `explain`.
#[derive(Deserialize)]
pub(super) struct Address {
    address: u64,
}

pub(super) async fn tier(State(pages): State<Arc<Pages>>, Path(name): Path<String>) -> Response {
    told(&pages, name, "query-tier", None).await
}

pub(super) async fn heatmap(State(pages): State<Arc<Pages>>, Path(name): Path<String>) -> Response {
    told(&pages, name, "query-tier-heatmap", None).await
}

pub(super) async fn moves(State(pages): State<Arc<Pages>>, Path(name): Path<String>) -> Response {
    told(&pages, name, "query-tier-moves", None).await
}

pub(super) async fn demand(State(pages): State<Arc<Pages>>, Path(name): Path<String>) -> Response {
    told(&pages, name, "query-tier-demand", None).await
}

pub(super) async fn explain(
    State(pages): State<Arc<Pages>>,
    Path(name): Path<String>,
    Query(Address { address }): Query<Address>,
) -> Response {
    told(&pages, name, "tier-explain", Some(address)).await
}

/// The agent's answer, which may be some seconds old.
async fn told(
    pages: &Pages,
    name: String,
    command: &'static str,
    address: Option<u64>,
) -> Response {
    let key = (name, command, address);
    let kept = || {
        pages
            .guests
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    kept().retain(|(_, at, _)| at.elapsed() < FRESH);
    let known = (kept().iter().find(|(it, ..)| *it == key)).map(|(.., text)| text.clone());
    let text = match known {
        Some(text) => text,
        None => match ask(pages, &key.0, command, address).await {
            Ok(value) => Bytes::from(value.to_string()),
            Err(refusal) => return refusal,
        },
    };
    if text.len() <= MOST_KEPT_BYTES {
        let mut kept = kept();
        if !kept.iter().any(|(it, ..)| *it == key) {
            if kept.len() >= MOST_KEPT {
                kept.remove(0);
            }
            kept.push((key, Instant::now(), text.clone()));
        }
    }
    let head = [(header::CONTENT_TYPE, "application/json")];
    (head, text).into_response()
}

/// What the agent of a VM answers.
pub(super) async fn ask(
    pages: &Pages,
    name: &str,
    command: &'static str,
    address: Option<u64>,
) -> Result<Value, Response> {
    let figures = pages.site.published.last();
    let vm = figures
        .as_ref()
        .and_then(|figures| figures.host.vms.iter().find(|vm| vm.name == name));
    let Some(vm) = vm else {
        return Err(error_answer(StatusCode::NOT_FOUND, "there is no such VM"));
    };
    let unknown = "the VM has no agent, or its agent serves no control socket";
    let (Some(path), Some(pid)) = (vm.control.clone(), vm.agent_pid) else {
        return Err(error_answer(StatusCode::CONFLICT, unknown));
    };
    let arguments = match command {
        "query-tier-heatmap" => {
            let (rows, columns) = HEATMAP;
            Some(json!({ "rows": rows, "columns": columns }))
        }
        "query-tier-moves" => Some(json!({ "count": MOVES })),
        _ => address.map(|address| json!({ "address": address })),
    };
    let permit = pages.guests.asked.clone().acquire_owned().await;
    let work = move || {
        let answer = asked(&path, pid, command, arguments);
        drop(permit);
        answer
    };
    let answer = tokio::task::spawn_blocking(work).await;
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err((status, text))) => Err(error_answer(status, &text)),
        Err(_) => Err(error_answer(StatusCode::INTERNAL_SERVER_ERROR, "it failed")),
    }
}

/// Asks what serves `path`, if that is the process `pid`.
fn asked(
    path: &str,
    pid: u32,
    command: &str,
    arguments: Option<Value>,
) -> Result<Value, (StatusCode, String)> {
    let bad = |text: String| (StatusCode::BAD_GATEWAY, text);
    if !path.starts_with('/') || path.len() > LONGEST_PATH {
        return Err(bad(
            "the agent's control socket has no whole path".to_owned()
        ));
    }
    let unreached =
        |error: qmp::client::ConnectError| bad(format!("the agent can't be asked: {error}"));
    // Nothing is said to a stranger.
    let peer = peer_of(path.as_ref(), PATIENCE).map_err(unreached)?;
    if peer.pid != pid {
        let text = format!("{path} is served by process {}, not by the agent", peer.pid);
        return Err(bad(text));
    }
    let options = Options {
        connect_timeout: PATIENCE,
        greeting_timeout: PATIENCE,
        command_timeout: PATIENCE,
        event_capacity: 1,
        limits: Limits::REPLIES,
        oob: false,
    };
    let (client, _) = Client::connect(path, &options).map_err(unreached)?;
    if client.peer().pid != pid {
        return Err(bad(
            "another process serves the agent's socket now".to_owned()
        ));
    }
    client
        .execute_raw(command, arguments)
        .map_err(|error| match error {
            ExecuteError::Refused { error, .. } => (StatusCode::UNPROCESSABLE_ENTITY, error.desc),
            error => bad(format!("the agent gives no answer: {error}")),
        })
}
