//! An input of a comparison: the accesses of a file or of a generator.

use std::{
    cell::Cell,
    convert::Infallible,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE},
    sample::SampleAccount,
    time::Time,
};

use super::{
    progress::Progress,
    ranges,
    survey::{Survey, SurveyError},
};
use crate::trace::{self, Format, Options, TraceError, TraceFile, TraceInfo};
use crate::{
    format::Origin,
    machine::{Access, Accesses, Guest, SlicerError, guest::GuestError},
    policy::UnknownPolicy,
    workload::{self, Scale, UnknownWorkload},
};

/// Accesses of any origin.
pub(super) type AnyAccesses = Box<dyn Accesses<Error = InputError>>;

/// Accesses that can be replayed any number of times.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A trace.
    File {
        path: PathBuf,
        format: Format,
        options: Options,
        bounds: Bounds,
    },
    /// Generated accesses.
    Workload { name: &'static str, scale: Scale },
}

/// What reading a trace may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Pages of the guest.
    pub(crate) most_pages: u32,
    /// Bytes for which pages were used when.
    pub(crate) memory_bytes: usize,
    /// When it must be done, and how long that is.
    pub(crate) until: Option<(Instant, Duration)>,
}

impl Default for Bounds {
    /// As much time as it takes.
    fn default() -> Self {
        Self {
            most_pages: u32::MAX,
            memory_bytes: 512 << 20,
            until: None,
        }
    }
}

impl Bounds {
    fn check_time(&self) -> Result<(), InputError> {
        match self.until {
            Some((until, limit)) if Instant::now() > until => Err(InputError::TooLong { limit }),
            _ => Ok(()),
        }
    }
}

/// What is known of an input before it is replayed.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) guest: Arc<Guest>,
    /// Whether the guest has only the pages that were touched, because the trace names no memory.
    pub(crate) touched_only: bool,
    /// The time from the first access to the last.
    pub(crate) duration: Duration,
    /// When the pattern of accesses changes.
    pub(crate) phases: Vec<Time>,
    /// Whether it may be played slower. Generated accesses have the length that the user gave, and
    /// recorded samples keep their source's time.
    pub(crate) may_stretch: bool,
    /// Set if the records are samples: the accesses that one stands for, and how often pages were
    /// tested.
    pub(crate) samples: Option<(u64, u32)>,
    /// What the recording says was lost and dropped when it was made.
    pub(crate) account: SampleAccount,
    /// Accesses that the recording left out as they lay outside the guest's memory.
    pub(crate) outside: u64,
    /// Passes that it took to learn this.
    pub(crate) passes: usize,
    /// Notes for readers.
    pub(crate) notes: Vec<String>,
}

/// A file that can't be read again.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} is no file that can be read more than once: make a trace of it first, with \
     'vmm-tier record --import {0} --output FILE'"
)]
pub struct NotAFile(String);

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
    /// It takes too long to read.
    #[error("it was not read within {limit:?}: give a shorter recording, or run vmm-tier what-if")]
    TooLong {
        /// The time that it had.
        limit: Duration,
    },
    /// Its guest has too many pages.
    #[error(
        "its guest has {pages} pages, and at most {most} are looked at here: run vmm-tier what-if"
    )]
    TooLarge {
        /// Its pages.
        pages: u32,
        /// How many there may be.
        most: u32,
    },
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

/// Accesses, and how many of them the reader has dropped so far.
pub(super) struct Opened {
    pub(super) accesses: AnyAccesses,
    pub(super) outside: Rc<Cell<u64>>,
}

impl Input {
    /// What users call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Workload { name, .. } => (*name).to_owned(),
        }
    }

    /// Its accesses, from the first on.
    ///
    /// # Errors
    /// If it can't be opened.
    pub(super) fn open(&self) -> Result<Opened, InputError> {
        let outside = Rc::default();
        let accesses: AnyAccesses = match self {
            Self::File {
                path,
                format,
                options,
                bounds,
            } => Box::new(Counted {
                file: trace::open(path, *format, *options)?.accesses,
                outside: Rc::clone(&outside),
                bounds: *bounds,
            }),
            Self::Workload { name, scale } => {
                Box::new(Generated(workload::make(name, scale)?.accesses))
            }
        };
        Ok(Opened { accesses, outside })
    }

    /// Learns its memory and its length.
    ///
    /// # Errors
    /// If it can't be read, or accesses nothing.
    pub(super) fn facts(&self, huge: bool, progress: &Progress) -> Result<Facts, InputError> {
        match self {
            Self::File {
                path,
                format,
                options,
                bounds,
            } => file_facts((path, *format, *options), bounds, huge, progress),
            Self::Workload { name, scale } => {
                let workload = workload::make(name, scale)?;
                let guest = match huge {
                    true => workload.guest.in_huge_pages()?,
                    false => workload.guest,
                };
                Ok(Facts {
                    guest: Arc::new(guest),
                    touched_only: false,
                    duration: Duration::from_secs(scale.seconds.into()),
                    phases: workload.phases,
                    may_stretch: false,
                    samples: None,
                    account: SampleAccount::default(),
                    outside: 0,
                    passes: 0,
                    notes: Vec::new(),
                })
            }
        }
    }
}

fn file_facts(
    (path, format, options): (&Path, Format, Options),
    bounds: &Bounds,
    huge: bool,
    progress: &Progress,
) -> Result<Facts, InputError> {
    let trace::Opened { mut accesses, info } = trace::open(path, format, options)?;
    if info.bytes == 0 {
        return Err(NotAFile(path.display().to_string()).into());
    }
    let mut notes = Vec::new();
    // A recording that names its memory and its length need not be read for them.
    let known = (!info.header.ranges.is_empty())
        .then_some(info.end.as_ref())
        .flatten()
        // What it says of itself is not true of a part of it.
        .filter(|_| !options.partial);
    let survey = match known {
        Some(_) => None,
        None => {
            progress.begin(&path.display().to_string(), "looking at memory");
            Some(survey(&mut accesses, &info, bounds, progress)?)
        }
    };
    let doubt = accesses.doubt();
    let is_whole = doubt.is_none();
    notes.extend(doubt);
    let page_bytes = if huge { HUGE_PAGE } else { BASE_PAGE };
    let guest = match &survey {
        Some(survey) if info.header.ranges.is_empty() => survey.guest(page_bytes)?,
        _ => {
            // Memory may have come while it was recorded: a trace that was cut tells of it in its midst.
            let memory = match survey {
                Some(_) => accesses.memory(),
                None => &info.header.ranges,
            };
            let guest = Guest::from_ranges(&ranges::in_whole_pages(memory))?;
            if huge { guest.in_huge_pages()? } else { guest }
        }
    };
    let duration = match (&survey, known) {
        (Some(survey), _) => survey.duration(),
        (None, Some(end)) => Time(end.last).since(Time(end.first)),
        (None, None) => Duration::ZERO,
    };
    let is_sampled = info.header.period > 1
        || info.header.tests > 0
        || matches!(info.header.origin, Origin::Source(_));
    if is_sampled {
        let what = match info.header.tests {
            0 => format!("one for {} accesses", info.header.period),
            tests => format!("counts of {tests} looks at each page"),
        };
        notes.push(format!(
            "the trace holds what {} delivered, {what}: hits are those of its records",
            info.header.origin.name()
        ));
    }
    // A trace that was cut tells of its losses in its midst.
    let so_far = accesses.so_far().cloned().unwrap_or_default();
    let end = info.end.filter(|_| is_whole).unwrap_or(so_far);
    Ok(Facts {
        guest: Arc::new(guest),
        touched_only: info.header.ranges.is_empty(),
        duration,
        phases: end.marks.iter().map(|mark| mark.at).collect(),
        may_stretch: !is_sampled,
        samples: is_sampled.then_some((info.header.period, info.header.tests)),
        account: end.account,
        outside: end.outside,
        passes: usize::from(survey.is_some()),
        notes,
    })
}

fn survey(
    accesses: &mut TraceFile,
    info: &TraceInfo,
    bounds: &Bounds,
    progress: &Progress,
) -> Result<Survey, InputError> {
    let mut survey = Survey::new(bounds.most_pages);
    let mut block = Vec::new();
    while accesses.fill(&mut block)? {
        bounds.check_time()?;
        survey.add(&block)?;
        block.clear();
        progress.set(accesses.position() as f64, info.bytes as f64);
    }
    survey.add(&block)?;
    Ok(survey)
}

/// A trace. Its drops can be read while its accesses are.
struct Counted {
    file: TraceFile,
    outside: Rc<Cell<u64>>,
    bounds: Bounds,
}

impl Accesses for Counted {
    type Error = InputError;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, InputError> {
        self.bounds.check_time()?;
        let more = self.file.fill(out)?;
        self.outside.set(self.file.counts().outside);
        Ok(more)
    }
}

/// A generator, which never fails.
struct Generated<A>(A);

impl<A: Accesses<Error = Infallible>> Accesses for Generated<A> {
    type Error = InputError;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, InputError> {
        let Ok(more) = self.0.fill(out);
        Ok(more)
    }
}
