//! Orders by HTTP: a POST of JSON with the token, carried out as the daemon's socket does for root.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::State,
    http::{HeaderMap, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use qmp::QmpError;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Pages, guests};

/// The most bytes of an order.
const MOST_BYTES: usize = 4096;
/// How long who has not the token waits for the answer.
const PENALTY: Duration = Duration::from_millis(500);
/// What may be ordered of an agent.
const OF_AGENTS: [&str; 2] = ["tier-pause", "tier-resume"];

/// An order, as QMP has it; `vm` names the VM whose agent it is for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    execute: String,
    #[serde(default)]
    arguments: Map<String, Value>,
    vm: Option<String>,
}

/// What became of it, as QMP has it.
pub(super) fn answer(outcome: Result<Value, QmpError>) -> Response {
    match outcome {
        Ok(value) => json_answer(StatusCode::OK, &json!({ "return": value })),
        Err(error) => error_answer(StatusCode::UNPROCESSABLE_ENTITY, &error.desc),
    }
}

/// An error, with the text for people.
pub(super) fn error_answer(status: StatusCode, text: &str) -> Response {
    json_answer(status, &json!({ "error": { "desc": text } }))
}

fn json_answer(status: StatusCode, value: &Value) -> Response {
    let head = [(header::CONTENT_TYPE, "application/json")];
    (status, head, value.to_string()).into_response()
}

/// Carries an order out. What is not allowed is refused before the body is read.
pub(super) async fn command(State(pages): State<Arc<Pages>>, request: Request<Body>) -> Response {
    let Some((token, operator)) = pages.site.operator.clone() else {
        return error_answer(StatusCode::FORBIDDEN, "nobody may give orders here");
    };
    let (head, body) = request.into_parts();
    if !token.is_in(&head.headers) {
        tokio::time::sleep(PENALTY).await;
        let text = format!(
            "orders need the daemon's token, which is in {}",
            token.path.display()
        );
        let mut answer = error_answer(StatusCode::UNAUTHORIZED, &text);
        let scheme = header::HeaderValue::from_static("Bearer");
        (answer.headers_mut()).insert(header::WWW_AUTHENTICATE, scheme);
        return answer;
    }
    if !is_json(&head.headers) {
        let text = "an order is application/json";
        return error_answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    }
    let Ok(body) = to_bytes(body, MOST_BYTES).await else {
        let text = format!("an order has at most {MOST_BYTES} bytes");
        return error_answer(StatusCode::PAYLOAD_TOO_LARGE, &text);
    };
    let order: Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => {
            let text = format!("this is no order: {error}");
            return error_answer(StatusCode::BAD_REQUEST, &text);
        }
    };
    tracing::info!(order = order.execute, vm = order.vm, "ordered by HTTP");
    match order.vm {
        None => {
            let work = move || operator.order(&order.execute, order.arguments);
            match tokio::task::spawn_blocking(work).await {
                Ok(outcome) => answer(outcome),
                Err(_) => error_answer(StatusCode::INTERNAL_SERVER_ERROR, "it failed"),
            }
        }
        Some(vm) => match OF_AGENTS.into_iter().find(|&it| it == order.execute) {
            Some(command) if order.arguments.is_empty() => {
                match guests::ask(&pages, &vm, command, None).await {
                    Ok(value) => answer(Ok(value)),
                    Err(refusal) => refusal,
                }
            }
            _ => error_answer(
                StatusCode::UNPROCESSABLE_ENTITY,
                "an agent can be told tier-pause and tier-resume, without arguments",
            ),
        },
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}
