//! What a guest says on its serial port.

use std::io::{BufRead, PipeReader, PipeWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_setfl};

use super::Watch;
use crate::event::{GuestEvent, Mark, guest_event};
use crate::inside::{Reporter, locked};
use crate::pagemap::{PAGE_BYTES, runs_of_pages};

/// Reads a guest's console.
pub(super) struct Listener {
    /// The guest's name.
    pub(super) guest: String,
    /// What its lines are called in the log.
    pub(super) source: String,
    pub(super) reporter: Reporter,
    pub(super) watch: Arc<Mutex<Watch>>,
    /// Bytes heard so far.
    pub(super) said: Arc<AtomicU64>,
    pub(super) sender: Sender<GuestEvent>,
}

impl Listener {
    pub(super) fn listen(self, console: impl BufRead) {
        let mut gathered: Vec<[u64; 2]> = Vec::new();
        for line in console.split(b'\n').map_while(Result::ok) {
            self.said
                .fetch_add(line.len() as u64 + 1, Ordering::Relaxed);
            let line = String::from_utf8_lossy(&line);
            match guest_event(&line) {
                None => self.reporter.log(&self.source, line.trim_end()),
                Some(GuestEvent::Updates { count, ms, gap_ms }) => {
                    let rate = count as f64 * 1000.0 / ms.max(1) as f64;
                    let mut watch = locked(&self.watch);
                    watch.updates = Some((Instant::now(), rate));
                    watch.gap_ms = watch.gap_ms.max(Some(gap_ms));
                }
                Some(GuestEvent::Touched { .. } | GuestEvent::Compared { .. }) => {}
                Some(GuestEvent::Hot {
                    base,
                    first,
                    pages,
                    stride,
                    of,
                }) => {
                    locked(&self.watch).new_runs =
                        Some(runs_of_set(base, first, pages, stride, of));
                }
                Some(GuestEvent::Runs { runs, first, last }) => {
                    if first {
                        gathered.clear();
                    }
                    gathered.extend(runs);
                    if last {
                        locked(&self.watch).new_runs = Some(std::mem::take(&mut gathered));
                    }
                }
                Some(GuestEvent::Obeyed { order }) => {
                    self.reporter.log(&self.source, format!("obeyed {order}"));
                    if order.starts_with("hot") {
                        self.reporter.mark(Mark::HotMoved, &self.guest);
                    }
                }
                Some(event) => {
                    if self.sender.send(event).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// The runs of a hot set in a working set that lies in one piece; a page more than the set has is
/// none.
fn runs_of_set(base: u64, first: u64, pages: u64, stride: u64, of: u64) -> Vec<[u64; 2]> {
    let page = |n: u64| (first + n * stride) % of.max(1);
    runs_of_pages((0..pages.min(of)).map(|n| base + page(n) * PAGE_BYTES as u64))
}

/// A pipe that takes nothing more.
pub(super) fn full_pipe() -> anyhow::Result<(PipeReader, PipeWriter)> {
    let (reader, mut writer) = std::io::pipe()?;
    fcntl_setfl(&writer, OFlags::NONBLOCK)?;
    while writer.write(&[b'.'; 4096]).is_ok() {}
    Ok((reader, writer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_when_a_hot_set_goes_round_the_end_are_cut_there() {
        // Pages 3, 4, 0 and 1 of 5.
        let runs = runs_of_set(0x20_0000, 3, 4, 1, 5);

        assert_eq!(runs, [[0x20_3000, 0x2000], [0x20_0000, 0x2000]]);
        assert_eq!(runs_of_set(0, 0, 2, 2, 5), [[0, 0x1000], [0x2000, 0x1000]]);
        assert!(runs_of_set(0, 1, u64::MAX, 1, 0).is_empty());
    }

    #[test]
    fn pipe_when_full_takes_nothing_more() {
        let (_reader, mut writer) = full_pipe().unwrap();

        let error = writer.write(b"x").unwrap_err();

        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}
