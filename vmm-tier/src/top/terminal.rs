//! The terminal: the screen of its own and the keys. It is as it was before once this is dropped, and after
//! a panic.

use std::{
    io::{self, Stdout},
    thread,
};

use crossbeam::channel::{Receiver, bounded};
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::event::{self, Event},
};

/// See the [module](self).
pub(super) struct Screen {
    pub(super) terminal: Terminal<CrosstermBackend<Stdout>>,
    /// Keys and changes of the size; ends when the terminal is gone.
    pub(super) events: Receiver<Event>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// If it is none, or the thread that reads keys can't be started.
    pub(super) fn take() -> io::Result<Self> {
        let (sender, events) = bounded(16);
        // A panic restores the terminal before it tells what happened.
        let terminal = ratatui::try_init()?;
        let screen = Self { terminal, events };
        let read = move || {
            while let Ok(event) = event::read() {
                if sender.send(event).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("keys".to_owned()).spawn(read)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}
