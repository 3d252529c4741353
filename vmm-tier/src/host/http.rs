//! The HTTP server: shows the daemon's last figures to scrapers and people, and takes orders from who has
//! the [token].
//!
//! It runs on a thread of its own, and reads what the owner has [published](super::published), so no
//! client makes the owner wait. Each connection has one request, bounded time for all of it, and bounded
//! headers. Where [`MOST_CONNECTIONS`] are open, the oldest is closed for the next: clients
//! that connect and say nothing lock nobody out. [Streams](stream) go on for as long as the client reads;
//! they are counted apart, up to [`MOST_STREAMS`]. What waits for the owner or an agent does so in a
//! thread apart.
//!
//! A page of a browser can make its own name point to this address (DNS rebinding). Requests whose
//! `Host` is not [ours](address) are refused, and so are those that another site's page makes (`Origin`).

pub(crate) mod address;
mod files;
mod guests;
mod orders;
mod pages;
mod stream;
#[cfg(test)]
pub(super) mod tests;
pub(crate) mod token;

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::{IsTerminal as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{sync::watch, task::AbortHandle, time::timeout};
use tracing::{info, warn};

use self::{
    address::{Address, is_ours},
    pages::Pages,
    token::Token,
};
use super::{control::Operator, player::Played, published::Published, recorder::Recorder};

/// The most connections at a time.
const MOST_CONNECTIONS: usize = 64;
/// The most streams at a time.
const MOST_STREAMS: usize = 128;
/// A stream of which the client has read nothing for so long is closed.
const STALLED: Duration = Duration::from_secs(20);
/// What the kernel may keep of an answer for a client that does not read, in bytes. It doubles that.
const SEND_BUFFER: usize = 128 << 10;
/// Threads that wait for the owner or for agents.
const MOST_WAITING: usize = 8;
/// How long clients have.
const PATIENCE: Patience = Patience {
    asked_within: Duration::from_secs(5),
    answered_within: Duration::from_secs(10),
    stalled: STALLED,
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
    /// To take something of a stream.
    stalled: Duration,
}

/// What is served.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) published: Arc<Published>,
    /// Keeps the history, if it is kept.
    pub(crate) recorder: Option<Arc<Recorder>>,
    /// What is played instead of published figures, if something is.
    pub(crate) played: Option<watch::Receiver<Option<Arc<Played>>>>,
    /// Who has the token may give orders, if anybody may.
    pub(crate) operator: Option<(Token, Operator)>,
}

impl From<Arc<Published>> for Site {
    /// Figures alone.
    fn from(published: Arc<Published>) -> Self {
        Self {
            published,
            recorder: None,
            played: None,
            operator: None,
        }
    }
}

/// What a connection is used for, as the handler of its request tells it.
#[derive(Clone, Default)]
struct Lane(Arc<LaneState>);

#[derive(Default)]
struct LaneState {
    is_stream: AtomicBool,
    has_progress: AtomicBool,
}

impl Lane {
    /// The answer goes on for as long as the client reads it.
    fn become_stream(&self) {
        self.0.is_stream.store(true, Ordering::Relaxed);
    }

    fn is_stream(&self) -> bool {
        self.0.is_stream.load(Ordering::Relaxed)
    }

    /// There is room for more of the answer.
    fn progresses(&self) {
        self.0.has_progress.store(true, Ordering::Relaxed);
    }

    fn take_progress(&self) -> bool {
        self.0.has_progress.swap(false, Ordering::Relaxed)
    }
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

/// Serves the site on `address` until the process ends. `names` are those by which
/// clients may call this host, besides `localhost` and its addresses.
///
/// Returns the address, with the port that the kernel chose if `address` has port 0.
///
/// # Errors
/// If the address can't be had, or the thread can't be started.
pub(crate) fn serve(
    address: Address,
    names: Vec<String>,
    site: impl Into<Site>,
) -> Result<SocketAddr, HttpError> {
    serve_with(PATIENCE, address, names, site)
}

fn serve_with(
    patience: Patience,
    address: Address,
    names: Vec<String>,
    site: impl Into<Site>,
) -> Result<SocketAddr, HttpError> {
    let site = site.into();
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
        .max_blocking_threads(MOST_WAITING)
        .build()
        .map_err(HttpError::Start)?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(failed)?
    };
    let token = site.operator.as_ref().map(|(token, _)| token.clone());
    let pages = TowerToHyperService::new(pages::router(site));
    thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || runtime.block_on(accept(&listener, patience, pages, names.into())))
        .map_err(HttpError::Start)?;
    if !bound.ip().is_loopback() {
        warn!("the figures can be read by all who reach {bound}: there is no password");
    }
    info!("figures are served on http://{bound}/metrics, and a page on http://{bound}/");
    if let Some(token) = token {
        tell(bound, &token);
    }
    Ok(bound)
}

/// Tells the token to who sits at the terminal. A journal has more readers than the token's file: it gets
/// the file's name.
fn tell(bound: SocketAddr, token: &Token) {
    info!("orders by HTTP need the token in {}", token.path.display());
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        // A terminal that is gone is no reason to fail.
        let _ = writeln!(
            terminal,
            "a page that takes orders: http://{bound}/#token={}",
            token.text()
        );
    }
}

/// Accepts connections for ever.
async fn accept(
    listener: &tokio::net::TcpListener,
    patience: Patience,
    pages: TowerToHyperService<axum::Router>,
    names: Arc<[String]>,
) {
    let mut open: VecDeque<(AbortHandle, Lane)> = VecDeque::new();
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
        // Without it the kernel keeps some megabytes for a client that does not read.
        let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER);
        open.retain(|(connection, _)| !connection.is_finished());
        make_room(&mut open);
        let lane = Lane::default();
        let connection = connection(
            stream,
            patience.asked_within,
            local.ip(),
            pages.clone(),
            names.clone(),
            lane.clone(),
        );
        let connection = bounded(connection, patience, lane.clone());
        open.push_back((tokio::spawn(connection).abort_handle(), lane));
        // Those that are open have their turn, however many come.
        tokio::task::yield_now().await;
    }
}

/// Closes the oldest of each kind for the next connection, where there are as many as there may be. Which
/// kind the next one is of is not known yet.
fn make_room(open: &mut VecDeque<(AbortHandle, Lane)>) {
    for (is_stream, most) in [(false, MOST_CONNECTIONS), (true, MOST_STREAMS)] {
        let is_of_kind = |(_, lane): &(AbortHandle, Lane)| lane.is_stream() == is_stream;
        let count = open.iter().filter(|it| is_of_kind(it)).count();
        let oldest = open.iter().position(is_of_kind);
        if count >= most
            && let Some((oldest, _)) = oldest.and_then(|oldest| open.remove(oldest))
        {
            oldest.abort();
        }
    }
}

/// A connection within its time; a stream, for as long as the client reads.
async fn bounded(connection: impl Future<Output = ()>, patience: Patience, lane: Lane) {
    let mut connection = pin!(connection);
    if timeout(patience.answered_within, &mut connection)
        .await
        .is_ok()
        || !lane.is_stream()
    {
        return;
    }
    while lane.take_progress() {
        if timeout(patience.stalled, &mut connection).await.is_ok() {
            return;
        }
    }
}

/// One request and its answer.
async fn connection(
    stream: tokio::net::TcpStream,
    asked_within: Duration,
    local: IpAddr,
    pages: TowerToHyperService<axum::Router>,
    names: Arc<[String]>,
    lane: Lane,
) {
    let answer = service_fn(move |mut request: Request<Incoming>| {
        let refusal = refusal(&request, local, &names);
        request.extensions_mut().insert(lane.clone());
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
    if !is_ours {
        let why =
            "this host is called localhost, or by its address, or by the names in http.hosts\n";
        return Some((StatusCode::MISDIRECTED_REQUEST, why).into_response());
    }
    let is_foreign = is_foreign(request, host);
    is_foreign.then(|| {
        let why = "pages of other sites get no answer\n";
        (StatusCode::FORBIDDEN, why).into_response()
    })
}

/// Whether the page of another site makes the request, for what is no page: browsers tell the origin.
/// Whatever calls us as `host` may be a proxy that speaks TLS, so the scheme does not count.
fn is_foreign(request: &Request<Incoming>, host: &HeaderValue) -> bool {
    let headers = request.headers();
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let is_own = |origin: &HeaderValue| {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.is_some_and(|authority| host == authority)
    };
    let site = headers.get("sec-fetch-site");
    let is_page = request.uri().path() == "/";
    !origins.all(is_own) || (!is_page && site.is_some_and(|site| site == "cross-site"))
}

/// The answer with the headers that every answer has.
fn guarded(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    for (name, value) in pages::SECURITY_HEADERS {
        let value = HeaderValue::from_static(value);
        headers.entry(name).or_insert(value);
    }
    response
}
