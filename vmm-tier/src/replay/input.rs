//! Where accesses come from: a generator.

use std::{sync::Arc, time::Duration};

use tier_core::{
    replay::{Access, Accesses, Guest},
    time::Time,
    workload::{self, Scale},
};

/// Accesses of any origin.
pub(super) type AnyAccesses = Box<dyn Accesses<Error = anyhow::Error>>;

/// What can be replayed, as often as one likes.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// Generated accesses.
    Workload { name: &'static str, scale: Scale },
}

/// What is known of an input before it is replayed.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) guest: Arc<Guest>,
    /// From the first access to the last.
    pub(super) duration: Duration,
    /// When the pattern of accesses changes.
    pub(super) phases: Vec<Time>,
    /// Whether its time is that of a recording, not one that the user chose.
    pub(super) is_recorded: bool,
}

impl Input {
    /// What users call it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Workload { name, .. } => (*name).to_owned(),
        }
    }

    /// Its accesses, from the first on.
    ///
    /// # Errors
    /// If it can't be opened.
    pub(super) fn open(&self) -> anyhow::Result<AnyAccesses> {
        match self {
            Self::Workload { name, scale } => {
                let workload = workload::make(name, scale)?;
                Ok(Box::new(Widened(workload.accesses)))
            }
        }
    }

    /// Learns its memory and its length.
    ///
    /// # Errors
    /// If it can't be read, or accesses nothing.
    pub(super) fn facts(&self, huge: bool) -> anyhow::Result<Facts> {
        match self {
            Self::Workload { name, scale } => {
                let workload = workload::make(name, scale)?;
                let guest = match huge {
                    true => workload.guest.in_huge_pages()?,
                    false => workload.guest,
                };
                Ok(Facts {
                    guest: Arc::new(guest),
                    duration: Duration::from_secs(scale.seconds.into()),
                    phases: workload.phases,
                    is_recorded: false,
                })
            }
        }
    }
}

/// Accesses whose error is made fit for any.
struct Widened<A>(A);

impl<A: Accesses<Error: Into<anyhow::Error>>> Accesses for Widened<A> {
    type Error = anyhow::Error;

    fn fill(&mut self, out: &mut Vec<Access>) -> anyhow::Result<bool> {
        self.0.fill(out).map_err(Into::into)
    }
}
