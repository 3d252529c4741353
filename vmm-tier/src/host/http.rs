//! The HTTP server: shows the daemon's last figures to scrapers and people.
//!
//! It runs on a thread of its own, and reads what the owner has [published](super::published), so no
//! client makes the owner wait. Each connection has one request, bounded time for all of it, and bounded
//! headers. Where [`MOST_CONNECTIONS`] are open, the oldest is closed for the next: clients
//! that connect and say nothing lock nobody out.
//!
//! A page of a browser can make its own name point to this address (DNS rebinding). Requests whose
//! `Host` is not [ours](address) are refused.

pub(crate) mod address;
mod pages;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use self::address::{Address, is_ours};
use super::published::Published;

/// The most connections at a time.
const MOST_CONNECTIONS: usize = 64;
/// How long clients have.
const PATIENCE: Patience = Patience {
    asked_within: Duration::from_secs(5),
    answered_within: Duration::from_secs(10),
};
/// The most headers of a request.
const MOST_HEADERS: usize = 64;
/// The most bytes of a request's headers: the least buffer that hyper can do with.
const MOST_HEADER_BYTES: usize = 8192;
/// The pause after a connection could not be accepted, as files or memory are short.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// How long a client has.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// To send its request's headers.
    asked_within: Duration,
    /// For all: from the begin of the connection until the last byte of the answer is taken.
    answered_within: Duration,
}

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The address can't be had.
    #[error("can't listen for HTTP on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The thread can't be started.
    #[error("the HTTP server can't be started")]
    Start(#[source] std::io::Error),
}

/// Serves the published figures on `address` until the process ends. `names` are those by which
/// clients may call this host, besides `localhost` and its addresses.
///
/// Returns the address, with the port that the kernel chose if `address` has port 0.
///
/// # Errors
/// If the address can't be had, or the thread can't be started.
pub(crate) fn serve(
    address: Address,
    names: Vec<String>,
    published: Arc<Published>,
) -> Result<SocketAddr, HttpError> {
    serve_with(PATIENCE, address, names, published)
}

fn serve_with(
    patience: Patience,
    address: Address,
    names: Vec<String>,
    published: Arc<Published>,
) -> Result<SocketAddr, HttpError> {
    let failed = |source| HttpError::Listen {
        address: address.0,
        source,
    };
    let listener = TcpListener::bind(address.0).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(HttpError::Start)?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(failed)?
    };
    let pages = TowerToHyperService::new(pages::router(published));
    thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || runtime.block_on(accept(&listener, patience, pages, names.into())))
        .map_err(HttpError::Start)?;
    if !bound.ip().is_loopback() {
        warn!("the figures can be read by all who reach {bound}: there is no password");
    }
    info!("figures are served on http://{bound}/metrics");
    Ok(bound)
}

/// Accepts connections for ever.
async fn accept(
    listener: &tokio::net::TcpListener,
    patience: Patience,
    pages: TowerToHyperService<axum::Router>,
    names: Arc<[String]>,
) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut is_short = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !is_short {
                    warn!("a connection for HTTP can't be accepted: {error}");
                }
                is_short = true;
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        is_short = false;
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MOST_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let names = names.clone();
        let connection = connection(
            stream,
            patience.asked_within,
            local.ip(),
            pages.clone(),
            names,
        );
        let connection = tokio::time::timeout(patience.answered_within, connection);
        open.push_back(tokio::spawn(connection).abort_handle());
        // Those that are open have their turn, however many come.
        tokio::task::yield_now().await;
    }
}

/// One request and its answer.
async fn connection(
    stream: tokio::net::TcpStream,
    asked_within: Duration,
    local: IpAddr,
    pages: TowerToHyperService<axum::Router>,
    names: Arc<[String]>,
) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let refusal = refusal(&request, local, &names);
        let pages = pages.clone();
        async move {
            let response = match refusal {
                Some(refusal) => refusal,
                None => pages.call(request).await?,
            };
            Ok::<_, Infallible>(guarded(response))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(asked_within)
        .keep_alive(false)
        .max_headers(MOST_HEADERS)
        .max_header_size(MOST_HEADER_BYTES)
        .max_buf_size(MOST_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!("an HTTP client: {error}");
    }
}

/// The answer to a request that calls us by another name.
fn refusal(request: &Request<Incoming>, local: IpAddr, names: &[String]) -> Option<Response> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    let (Some(host), None) = (host, another) else {
        let why = "a request has one Host header\n";
        return Some((StatusCode::BAD_REQUEST, why).into_response());
    };
    let is_ours = |host: &str| is_ours(host, local, names);
    let in_uri = request.uri().authority();
    let is_ours =
        host.to_str().is_ok_and(is_ours) && in_uri.is_none_or(|uri| is_ours(uri.as_str()));
    (!is_ours).then(|| {
        let why =
            "this host is called localhost, or by its address, or by the names in http.hosts\n";
        (StatusCode::MISDIRECTED_REQUEST, why).into_response()
    })
}

/// The answer with the headers that every answer has.
fn guarded(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    for (name, value) in pages::SECURITY_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
