//! The pages: what is answered to which path.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Extension, Query, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::Map;
use tier_core::report::{
    Object,
    open_metrics::{self, Format},
};

use super::{
    Lane, Site, files,
    guests::{self, Guests},
    orders,
    stream::Frames,
};
use crate::host::{published::Figures, report::HostInfo};

/// Figures older than this are not worth a scrape: a reader is to see that the owner hangs.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// When the owner's figures are this old, it is not well.
const LATE_AFTER: Duration = Duration::from_secs(10);

/// What browsers and caches are told with every answer; the page's files have a policy of their own.
pub(super) const SECURITY_HEADERS: [(HeaderName, &str); 6] = [
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// A text, and the figures that it was made of.
struct Rendered {
    of: Arc<Figures>,
    format: Format,
    text: Bytes,
}

/// What the pages are made of.
pub(super) struct Pages {
    pub(super) site: Site,
    pub(super) guests: Guests,
    frames: Arc<Frames>,
    /// The last text in each format: however many clients ask, figures are rendered once.
    rendered: Mutex<Vec<Rendered>>,
}

/// The pages of this site.
pub(super) fn router(site: Site) -> Router {
    let pages = Arc::new(Pages {
        frames: Arc::new(Frames::new(&site)),
        site,
        guests: Guests::default(),
        rendered: Mutex::default(),
    });
    let router = files::SCRIPTS
        .iter()
        .fold(Router::new(), |router, &(path, text)| {
            router.route(path, get(async move || files::script(text)))
        });
    router
        .route("/", get(files::index))
        .route("/page.css", get(files::style))
        .route("/icon.svg", get(files::icon))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/events", get(events))
        .route("/api/history", get(history))
        .route("/api/command", post(orders::command))
        .route("/api/vm/{name}", get(guests::tier))
        .route("/api/vm/{name}/heatmap", get(guests::heatmap))
        .route("/api/vm/{name}/demand", get(guests::demand))
        .route("/api/vm/{name}/moves", get(guests::moves))
        .route("/api/vm/{name}/explain", get(guests::explain))
        .fallback(async || (StatusCode::NOT_FOUND, "there is no such page\n"))
        .with_state(pages)
}

async fn health(State(pages): State<Arc<Pages>>) -> Response {
    match pages.site.published.last() {
        Some(figures) if figures.age() <= LATE_AFTER => "ok\n".into_response(),
        figures => unavailable(figures.as_deref()),
    }
}

async fn metrics(State(pages): State<Arc<Pages>>, headers: HeaderMap) -> Response {
    match pages.site.published.last() {
        Some(figures) if figures.age() <= STALE_AFTER => {
            let format = format_for(&headers);
            let head = [
                (header::CONTENT_TYPE, content_type(format)),
                (header::VARY, "accept"),
            ];
            (head, pages.text(figures, format)).into_response()
        }
        figures => unavailable(figures.as_deref()),
    }
}

async fn events(State(pages): State<Arc<Pages>>, Extension(lane): Extension<Lane>) -> Response {
    let takes_orders = pages.site.operator.is_some();
    pages.frames.clone().answer(lane, takes_orders)
}

/// The query of `/api/history`: the arguments of `query-host-history`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct HistoryQuery {
    name: Option<String>,
    since_s: Option<u64>,
    step_s: Option<u64>,
}

async fn history(State(pages): State<Arc<Pages>>, Query(query): Query<HistoryQuery>) -> Response {
    let Some(recorder) = pages.site.recorder.clone() else {
        return (StatusCode::NOT_FOUND, "no history is kept here\n").into_response();
    };
    let HistoryQuery {
        name,
        since_s,
        step_s,
    } = query;
    let mut arguments = Map::new();
    arguments.extend(name.map(|name| ("name".to_owned(), name.into())));
    arguments.extend(since_s.map(|since| ("since-s".to_owned(), since.into())));
    arguments.extend(step_s.map(|step| ("step-s".to_owned(), step.into())));
    // It takes some milliseconds, in which streams go on.
    let read = move || recorder.answer(arguments).map(|value| value.to_string());
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Ok(Err(error)) => orders::error_answer(StatusCode::UNPROCESSABLE_ENTITY, &error.desc),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn unavailable(figures: Option<&Figures>) -> Response {
    let why = match figures {
        Some(figures) => format!("the last figures are {} s old\n", figures.age().as_secs()),
        None => "there are no figures yet\n".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

/// The format that a client asks for: OpenMetrics if it knows it.
fn format_for(headers: &HeaderMap) -> Format {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let mut accepted = accepted.filter_map(|value| value.to_str().ok());
    let is_open = |accepted: &str| accepted.contains("application/openmetrics-text");
    match accepted.any(is_open) {
        true => Format::OpenMetrics,
        false => Format::Prometheus,
    }
}

const fn content_type(format: Format) -> &'static str {
    match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
    }
}

impl Pages {
    fn text(&self, figures: Arc<Figures>, format: Format) -> Bytes {
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |it: &&Rendered| it.format == format && Arc::ptr_eq(&it.of, &figures);
        if let Some(known) = rendered.iter().find(is_known) {
            return known.text.clone();
        }
        let text = Bytes::from(render(&figures.host, format));
        rendered.retain(|it| it.format != format);
        rendered.push(Rendered {
            of: figures,
            format,
            text: text.clone(),
        });
        text
    }
}

/// The figures as Prometheus reads them.
pub(super) fn render(host: &HostInfo, format: Format) -> String {
    // Reports have no values that JSON has not.
    let report = serde_json::to_value(host).unwrap_or_default();
    open_metrics::render(format, Object::of::<HostInfo>(), [(&[][..], &report)])
}
