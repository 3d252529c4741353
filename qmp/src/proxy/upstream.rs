//! The way to QEMU: one connection that all clients share.

use std::{os::fd::AsFd, sync::Arc};

use serde_json::Value;

use super::{merge::Merge, window::Window};
use crate::{
    client::{Client, Greeting, Request},
    server::{Back, Call, Handler, Relay},
};

/// In-band commands under way. QEMU reads on while fewer than 8 wait (`QMP_REQ_QUEUE_LEN_MAX`), so
/// that an out-of-band command is seen at once; two places are left to the connection's owner.
const IN_BAND: usize = 6;
/// Out-of-band commands under way.
const OUT_OF_BAND: usize = 6;
/// Bytes under way: less than a socket takes before a write waits (`net.core.wmem_default`, 208 KiB
/// with the kernel's own share), so that nobody waits in a write while QEMU is busy.
const BYTES: usize = 96 << 10;
/// Commands that take the file descriptors that came last (`qemu_chr_fe_get_msgfd`).
const FD_COMMANDS: [&str; 2] = ["getfd", "add-fd"];

/// QEMU behind the proxy.
pub(super) struct Upstream {
    client: Arc<Client>,
    extension: Arc<dyn Handler>,
    in_band: Arc<Window>,
    out_of_band: Arc<Window>,
    /// One at a time: QEMU drops the descriptors it has when others come.
    with_fds: Arc<Window>,
}

impl Upstream {
    pub(super) fn new(client: Arc<Client>, extension: Arc<dyn Handler>) -> Self {
        Self {
            client,
            extension,
            in_band: Window::new(IN_BAND, BYTES),
            out_of_band: Window::new(OUT_OF_BAND, BYTES),
            with_fds: Window::new(1, usize::MAX),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    fn try_forward(&self, call: Call, back: Back) -> Option<()> {
        let Call {
            name,
            arguments,
            oob,
            fds,
        } = call;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let arguments = (!arguments.is_empty()).then_some(Value::Object(arguments));
        let mut request = Request::new(&name).arguments(arguments).fds(&fds);
        if oob {
            request = request.out_of_band();
        }
        let line = request.encode().ok()?;
        // First the rarer place: nobody waits for it who holds one that others need.
        let fd_place = match FD_COMMANDS.contains(&name.as_str()) {
            true => Some(self.with_fds.enter(0, || back.is_given_up())?),
            false => None,
        };
        let window = if oob {
            &self.out_of_band
        } else {
            &self.in_band
        };
        let place = window.enter(line.len(), || back.is_given_up())?;
        let merge = Merge::of(&name).map(|merge| (merge, Arc::clone(&self.extension)));
        let reply = move |mut result| {
            if let (Some((merge, extension)), Ok(value)) = (merge, &mut result) {
                merge.into(value, &*extension);
            }
            back.reply(result);
            drop((place, fd_place));
            true
        };
        self.client.post(&request, line, Box::new(reply)).ok()?;
        Some(())
    }
}

impl Relay for Upstream {
    fn greeting(&self) -> &Greeting {
        self.client.greeting()
    }

    fn is_oob(&self) -> bool {
        self.client.is_oob()
    }

    fn takes_fds(&self, name: &str) -> bool {
        FD_COMMANDS.contains(&name)
    }

    fn forward(&self, call: Call, back: Back) -> bool {
        self.try_forward(call, back).is_some()
    }

    fn close(&self) {
        for window in [&self.in_band, &self.out_of_band, &self.with_fds] {
            window.close();
        }
    }
}
