//! Signals that tell the agent to end, as messages that wake its thread.

use crossbeam::channel::{Receiver, bounded};
use signal_hook::iterator::Signals;
use tier_sys::{process, sysroot::SysRoot};

/// Catches the signals that tell this process to end; each that comes is a message. Further ones while a
/// message waits say nothing new.
///
/// # Errors
/// If the kernel refuses a handler or a thread.
pub(super) fn ending(root: &SysRoot) -> std::io::Result<Receiver<()>> {
    let mut signals = Signals::new(process::ending_signals(root))?;
    let (sender, told) = bounded(1);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                let _ = sender.try_send(());
            }
        })?;
    Ok(told)
}
