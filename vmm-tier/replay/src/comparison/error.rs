//! Why policies can't be compared.

use std::{io, path::PathBuf};

use super::{charts::PictureError, input::InputError, settings::SettingsError};
use crate::trace::TraceError;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// The arguments make no sense.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A trace can't be read. The error names the trace.
    #[error(transparent)]
    Trace(TraceError),
    /// A trace or a workload can't be replayed.
    #[error("{name} can't be replayed")]
    Input {
        /// Its name.
        name: String,
        /// Why.
        source: InputError,
    },
    /// The curves can't be drawn.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The heat map can't be drawn.
    #[cfg(any(feature = "pictures", test))]
    #[error(transparent)]
    Heat(#[from] crate::picture::PictureError),
    /// The report is no JSON.
    #[error("the report can't be written as JSON")]
    Json(#[from] serde_json::Error),
    /// A file of results can't be written.
    #[error("{} can't be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ComparisonError {
    /// An error that says of which input it is. Those of reading say it themselves.
    pub(crate) fn of(error: InputError, name: String) -> Self {
        match error {
            InputError::Trace(error) => Self::Trace(error),
            source => Self::Input { name, source },
        }
    }
}
