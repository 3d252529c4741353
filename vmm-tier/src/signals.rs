//! Signals that ask this process to end.

use crossbeam::channel::{Receiver, bounded};
use signal_hook::iterator::Signals;
use tier_sys::{process, sysroot::SysRoot};

/// Catches the signals that ask this process to end, as messages that wake its thread. One
/// message waits at most: a second says nothing new.
pub(crate) fn ending(root: &SysRoot) -> std::io::Result<Receiver<()>> {
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
