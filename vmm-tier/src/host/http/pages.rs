//! The pages: what is answered to which path.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tier_core::report::{
    Object,
    open_metrics::{self, Format},
};

use crate::host::{
    published::{Figures, Published},
    report::HostInfo,
};

/// Figures older than this are not worth a scrape: a reader is to see that the owner hangs.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// When the owner's figures are this old, it is not well.
const LATE_AFTER: Duration = Duration::from_secs(10);

const INDEX: &str = "The host daemon of vmm-tier.\n\n\
    /metrics  the figures, in OpenMetrics or the Prometheus text format\n\
    /health   whether the figures are fresh\n";

/// What browsers and caches are told with every answer.
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
struct Pages {
    published: Arc<Published>,
    /// The last text in each format: however many clients ask, figures are rendered once.
    rendered: Mutex<Vec<Rendered>>,
}

/// The pages of these figures.
pub(super) fn router(published: Arc<Published>) -> Router {
    let pages = Arc::new(Pages {
        published,
        rendered: Mutex::default(),
    });
    Router::new()
        .route("/", get(INDEX))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(async || (StatusCode::NOT_FOUND, "there is no such page\n"))
        .with_state(pages)
}

async fn health(State(pages): State<Arc<Pages>>) -> Response {
    match pages.published.last() {
        Some(figures) if figures.age() <= LATE_AFTER => "ok\n".into_response(),
        figures => unavailable(figures.as_deref()),
    }
}

async fn metrics(State(pages): State<Arc<Pages>>, headers: HeaderMap) -> Response {
    match pages.published.last() {
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
