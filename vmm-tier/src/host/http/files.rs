//! The page's files, which are part of the program.

use axum::{
    http::{HeaderMap, HeaderName, header},
    response::{IntoResponse, Response},
};

/// What a page of a browser may do: use our files, ask us, and nothing else. Scripts can make no markup
/// of texts (`require-trusted-types-for`).
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// For programs and people without a browser.
const INDEX: &str = "The host daemon of vmm-tier.\n\n\
    /metrics  the figures, in OpenMetrics or the Prometheus text format\n\
    /health   whether the figures are fresh\n\
    /events   the figures as they come: server-sent events\n\
    /api/history?name=VM&since-s=SECONDS&step-s=SECONDS\n\
    /api/vm/NAME, and demand, heatmap, moves, explain?address=N below it\n\n\
    A browser gets a page.\n";

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const ICON: &str = include_str!("page/icon.svg");
/// The scripts by name. The page names the second, which imports the first.
pub(super) const SCRIPTS: [(&str, &str); 2] = [
    ("/draw.js", include_str!("page/draw.js")),
    ("/page.js", include_str!("page/page.js")),
];

/// The page for browsers, a text for others.
pub(super) async fn index(headers: HeaderMap) -> Response {
    let mut accepted = headers.get_all(header::ACCEPT).iter();
    let is_browser = accepted.any(|it| it.to_str().is_ok_and(|it| it.contains("text/html")));
    let mut answer = match is_browser {
        true => file("text/html; charset=utf-8", PAGE),
        false => INDEX.into_response(),
    };
    let vary = header::HeaderValue::from_static("accept");
    answer.headers_mut().insert(header::VARY, vary);
    answer
}

pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", STYLE)
}

pub(super) async fn icon() -> Response {
    file("image/svg+xml", ICON)
}

pub(super) fn script(text: &'static str) -> Response {
    file("text/javascript; charset=utf-8", text)
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let head: [(HeaderName, &str); 2] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
    ];
    (head, text).into_response()
}
