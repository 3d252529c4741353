//! The stream: the figures as they come, as server-sent events.
//!
//! A client that reads slowly is skipped: it gets the figures that are the newest when it has room again.
//! So it holds the bytes of one frame, which clients of the same second share, and what the kernel keeps
//! for its socket. A client that reads nothing for [`STALLED`](super::STALLED) is let go.
//!
//! The id of an event is the time at which its figures were made, in milliseconds of CLOCK_MONOTONIC, which
//! never jumps. The first event, `hello`, tells what that clock says now.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::header,
    response::{IntoResponse, Response},
};
use hyper::body::Frame;
use serde::Serialize;
use serde_json::json;
use tier_sys::process;
use tokio::{sync::watch, time::timeout};

use super::{Lane, Site};
use crate::host::{
    player::Played,
    published::{Figures, Published},
    report::HostInfo,
};

/// When nothing new came for so long, the client hears that the connection lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// The frames: those of the last figures, made once for all clients.
pub(super) struct Frames {
    published: Arc<Published>,
    played: Option<watch::Receiver<Option<Arc<Played>>>>,
    last: Mutex<Option<(Arc<Figures>, Bytes)>>,
}

/// An answer of `query-host`, and when it was made.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Told<'a> {
    at_ms: u64,
    #[serde(flatten)]
    host: &'a HostInfo,
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

impl Frames {
    pub(super) fn new(site: &Site) -> Self {
        Self {
            published: site.published.clone(),
            played: site.played.clone(),
            last: Mutex::default(),
        }
    }

    fn of(&self, figures: &Arc<Figures>) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, frame)) = &*last
            && Arc::ptr_eq(known, figures)
        {
            return frame.clone();
        }
        let told = Told {
            at_ms: unix_ms().saturating_sub(figures.age().as_millis() as u64),
            host: &figures.host,
        };
        // Reports have no values that JSON has not: what is no number is null.
        let text = serde_json::to_string(&told).unwrap_or_default();
        let frame = frame(figures.made.0 / 1_000_000, &text);
        *last = Some((figures.clone(), frame.clone()));
        frame
    }

    fn said(&self, said: &Said) -> Bytes {
        match said {
            Said::Figures(figures) => self.of(figures),
            Said::Played(played) => frame(played.at_ms, &String::from_utf8_lossy(&played.text)),
            Said::Nothing => Bytes::from_static(b": alive\n\n"),
        }
    }

    /// The answer to a client: `hello`, the last figures, and all that come.
    pub(super) fn answer(self: Arc<Self>, lane: Lane, takes_orders: bool) -> Response {
        lane.become_stream();
        let last = self.played.as_ref().map(|played| played.borrow().clone());
        let played_ms = last.map(|last| last.map_or(0, |last| last.at_ms));
        let hello = json!({
            "now-ms": unix_ms(),
            "uptime-ms": played_ms.unwrap_or_else(|| process::now().0 / 1_000_000),
            "is-recording": played_ms.is_some(),
            "version": env!("CARGO_PKG_VERSION"),
            "takes-orders": takes_orders,
        });
        let first = Bytes::from(format!("retry: 2000\nevent: hello\ndata: {hello}\n\n"));
        let news = match &self.played {
            Some(played) => {
                let mut played = played.clone();
                played.mark_changed();
                News::Played(played)
            }
            None => News::Published(self.published.watch()),
        };
        let client = Client {
            frames: self,
            lane,
            first: Some(first),
            next: None,
            news: Some(news),
        };
        let head = [(header::CONTENT_TYPE, "text/event-stream")];
        (head, Body::new(client)).into_response()
    }
}

/// An event: its id, and one line of JSON.
fn frame(id: u64, text: &str) -> Bytes {
    Bytes::from(format!("event: host\nid: {id}\ndata: {text}\n\n"))
}

/// Where figures come from.
enum News {
    Published(watch::Receiver<Option<Arc<Figures>>>),
    Played(watch::Receiver<Option<Arc<Played>>>),
}

/// What is sent next.
enum Said {
    Figures(Arc<Figures>),
    Played(Arc<Played>),
    /// A sign of life.
    Nothing,
}

type Next = Pin<Box<dyn Future<Output = (News, Said)> + Send>>;

/// What a client is being sent.
struct Client {
    frames: Arc<Frames>,
    lane: Lane,
    first: Option<Bytes>,
    /// Waits for what comes next.
    next: Option<Next>,
    /// While nothing is waited for.
    news: Option<News>,
}

/// What is newest of a channel, if something comes in time.
async fn newest<T: Clone>(news: &mut watch::Receiver<Option<T>>) -> Option<T> {
    match timeout(SIGN_OF_LIFE, news.changed()).await {
        Ok(Ok(())) => news.borrow_and_update().clone(),
        Ok(Err(_)) | Err(_) => None,
    }
}

/// The newest figures that the client does not have, or a sign of life.
async fn next(mut news: News) -> (News, Said) {
    let said = match &mut news {
        News::Published(news) => newest(news).await.map(Said::Figures),
        News::Played(news) => newest(news).await.map(Said::Played),
    };
    (news, said.unwrap_or(Said::Nothing))
}

impl HttpBody for Client {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.lane.progresses();
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let mut under_way = match (self.next.take(), self.news.take()) {
            (Some(next), _) => next,
            (None, Some(news)) => Box::pin(next(news)),
            (None, None) => return Poll::Ready(None),
        };
        match under_way.as_mut().poll(context) {
            Poll::Pending => {
                self.next = Some(under_way);
                Poll::Pending
            }
            Poll::Ready((news, said)) => {
                self.news = Some(news);
                Poll::Ready(Some(Ok(Frame::data(self.frames.said(&said)))))
            }
        }
    }
}
