//! Why policies can't be compared.

use std::{io, path::PathBuf};

use super::{charts::PictureError, input::NotAFile, settings::SettingsError, survey::SurveyError};
use crate::{
    machine::{SlicerError, guest::GuestError},
    policy::UnknownPolicy,
    trace::TraceError,
    workload::UnknownWorkload,
};

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

/// Why a trace or a workload can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It can't be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// It can't be read twice.
    #[error(transparent)]
    NotAFile(#[from] NotAFile),
    /// Its memory can't be told.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// Its memory is none that a guest can have.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// It can't be cut into slices.
    #[error(transparent)]
    Slicer(#[from] SlicerError),
    /// No workload has this name.
    #[error(transparent)]
    Workload(#[from] UnknownWorkload),
    /// No policy has this name.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
    /// DRAM without a page.
    #[error(
        "{size} of a guest of {guest_bytes} bytes is less than one of its pages ({page_bytes} bytes): \
         give it more with --fast"
    )]
    NoPage {
        /// As asked for.
        size: String,
        /// The guest's memory.
        guest_bytes: u64,
        /// The smallest page.
        page_bytes: u64,
    },
}

impl ComparisonError {
    /// An error that says of which input it is. Those of reading say it themselves.
    pub(super) fn of(error: InputError, name: String) -> Self {
        match error {
            InputError::Trace(error) => Self::Trace(error),
            source => Self::Input { name, source },
        }
    }
}
