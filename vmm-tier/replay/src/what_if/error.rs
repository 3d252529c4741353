//! Why there is no answer to what-if for a host.

use std::{io, path::PathBuf};

use tier_core::{
    arbiter::{AdmitError, MAX_VMS},
    text::table::count,
};

use super::MIN_SECONDS;
use crate::comparison::{ComparisonError, PictureError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WhatIfError {
    /// More guests than a host has.
    #[error("{guests} guests are more than the {MAX_VMS} that can share a host's DRAM")]
    TooMany {
        /// The guests asked for.
        guests: u64,
    },
    /// No number of copies.
    #[error(
        "'{0}' is no file, and has no number of copies behind the '*': write FILE*3 for three guests"
    )]
    Copies(String),
    /// A name that is empty or can't be printed.
    #[error(
        "'{0}' is no name for a guest: write NAME=FILE with a name of 1 to 64 printable characters"
    )]
    Name(String),
    /// Two guests of one name.
    #[error("two guests would be named {0}: give names, such as a=FILE b=FILE")]
    SameName(String),
    /// An option for a guest that is not there.
    #[error("--{option} names {name}, which is no guest here: there are {known}")]
    NoGuest {
        /// The option.
        option: &'static str,
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// An option without a value that can be read.
    #[error("--{option}: {reason}")]
    Value {
        /// The option.
        option: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A recording that can't be read.
    #[error(transparent)]
    Recording(#[from] ComparisonError),
    /// A recording that is too short.
    #[error(
        "{name} took {seconds:.1} s, and heat is learnt over some seconds: record {MIN_SECONDS} s or more, better two \
         minutes"
    )]
    Short {
        /// The recording.
        name: String,
        /// Its length.
        seconds: f64,
    },
    /// Terms that make no sense.
    #[error(transparent)]
    Terms(#[from] AdmitError),
    /// A host without DRAM.
    #[error("--dram {size} is less than a page: the guests have {memory} of memory in all")]
    NoDram {
        /// As asked for.
        size: String,
        /// The memory of all guests.
        memory: String,
    },
    /// Too many sizes.
    #[error("--dram has {} sizes: give {most} at most", count(*.sizes as u64))]
    Sizes {
        /// As many as asked for.
        sizes: usize,
        /// How many there may be.
        most: usize,
    },
    /// There can be no picture.
    #[error("--svg: {0}")]
    Picture(#[from] PictureError),
    /// The answer is no JSON.
    #[error("the answer can't be written as JSON")]
    Json(#[from] serde_json::Error),
    /// The picture can't be written.
    #[error("{} can't be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
