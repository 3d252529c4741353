//! The agent's clients: the sockets by which they come, and the events that they are sent.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crossbeam::channel::Receiver;
use qmp::Client;

use super::{
    control::{Control, Request, SocketReport},
    events::EventPublisher,
    log_once::LogOnce,
};

/// See the [module](self). Dropping it removes the sockets.
pub(super) struct Clients {
    /// QEMU's monitor for other clients. It comes and goes with the monitor.
    proxy: Option<Control>,
    control: Option<Control>,
    proxy_path: Option<PathBuf>,
    proxy_trouble: LogOnce,
    pub(super) events: EventPublisher,
}

impl Clients {
    /// Serves the agent's own socket at `control`, if there is to be one. The proxy waits for QEMU's
    /// monitor.
    pub(super) fn start(control: Option<&Path>, proxy: Option<PathBuf>) -> anyhow::Result<Self> {
        let control = control.map(Control::serve).transpose()?;
        Ok(Self {
            proxy: None,
            events: EventPublisher::new(control.iter().map(Control::events).collect()),
            control,
            proxy_path: proxy,
            proxy_trouble: LogOnce::default(),
        })
    }

    /// Where requests to the agent's own socket arrive.
    pub(super) fn requests(&self) -> Option<&Receiver<Request>> {
        self.control.as_ref().map(Control::requests)
    }

    /// Where requests to the proxy arrive.
    pub(super) fn proxy_requests(&self) -> Option<&Receiver<Request>> {
        self.proxy.as_ref().map(Control::requests)
    }

    /// The threads of the agent's own socket have ended.
    pub(super) fn end_control(&mut self) {
        self.control = None;
    }

    /// Serves QEMU's `monitor` to other clients, if that is asked for.
    pub(super) fn serve_proxy(&mut self, monitor: &Arc<Client>) -> anyhow::Result<()> {
        if let Some(path) = &self.proxy_path {
            self.proxy = Some(Control::proxy(path, Arc::clone(monitor))?);
            self.publish_to_all();
        }
        Ok(())
    }

    /// Serves the `monitor` that is back; logs what stands in the way.
    pub(super) fn serve_proxy_again(&mut self, monitor: &Arc<Client>, vm: &str) {
        let Err(error) = self.serve_proxy(monitor) else {
            return;
        };
        let error = format!("{error:#}");
        if self.proxy_trouble.is_news(&error) {
            tracing::error!(
                vm,
                "{error}; the next attempt follows the next loss of QEMU's monitor"
            );
        }
    }

    /// Ends the proxy: QEMU's monitor was lost.
    pub(super) fn end_proxy(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            self.publish_to_all();
            // The socket is gone already. Ending the connections of clients that don't read takes a
            // second, for which the agent can't wait.
            let end = move || drop(proxy);
            let ending = std::thread::Builder::new().name("proxy-end".to_owned());
            // Without a thread it is done here.
            let _ = ending.spawn(end);
        }
    }

    /// Events go to the clients of all sockets.
    fn publish_to_all(&mut self) {
        let sockets = self.control.iter().chain(&self.proxy);
        self.events.tell(sockets.map(Control::events).collect());
    }

    /// The sockets and their clients, for `query-tier`.
    pub(super) fn report(&self) -> Vec<SocketReport> {
        let sockets = self.control.iter().chain(&self.proxy);
        sockets.map(Control::report).collect()
    }
}
