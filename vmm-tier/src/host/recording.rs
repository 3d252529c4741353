//! A recorded hour: what `query-host` told each second, in a file of JSON lines.
//!
//! The first line is `{"vmm-tier-host-recording": 1}`. Each other line is a reply to `query-host` with a
//! further member `at-ms`, the time of the wall clock in milliseconds since 1970. A file that was cut in the
//! middle of a line is read up to there.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Map, Value};
use tier_core::text::size::human;

use super::published::Published;

/// The version that this program writes and reads.
const VERSION: u64 = 1;
/// The member of a line that tells its time.
const AT_MS: &str = "at-ms";
/// The longest line that is read: a thousand VMs take 1 MB.
const MOST_LINE_BYTES: u64 = 8 << 20;
/// The largest file that is read.
const MOST_FILE_BYTES: u64 = 8 << 30;
/// The most moments that are read: a day of seconds, and a little more.
const MOST_MOMENTS: usize = 100_000;

/// Why there is no recording, or no moment of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordingError {
    #[error("{path}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} exists: name another file, or remove it")]
    Exists { path: PathBuf },
    #[error("{path} is no regular file")]
    NoFile { path: PathBuf },
    #[error(
        "{path} is no recording of a host: its first line is not {{\"vmm-tier-host-recording\": 1}}"
    )]
    NoRecording { path: PathBuf },
    #[error("{path} is a recording of version {version}, this program reads {VERSION}")]
    Version { path: PathBuf, version: u64 },
    #[error("{path}, line {line}: {what}")]
    Line {
        path: PathBuf,
        line: usize,
        what: String,
    },
    #[error("{path} holds no moment")]
    Empty { path: PathBuf },
    #[error("{path} is too large: {what} are read")]
    TooLarge { path: PathBuf, what: String },
    #[error("{path} is as long as it may be: {what}")]
    Full { path: PathBuf, what: String },
}

/// How long and how large a recording may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    pub(crate) time: Duration,
    pub(crate) bytes: u64,
}

impl Default for Bounds {
    /// An hour. Of a hundred VMs it takes 0.3 GB.
    fn default() -> Self {
        Self {
            time: Duration::from_secs(3600),
            bytes: 1 << 30,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(rename = "vmm-tier-host-recording")]
    version: u64,
}

/// Writes a recording.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    written: u64,
    bounds: Bounds,
    begin: Option<Instant>,
}

impl Writer {
    /// Makes the file. A file that is there stays as it is.
    ///
    /// # Errors
    /// If the file exists or can't be made.
    pub(crate) fn create(path: &Path, bounds: Bounds) -> Result<Self, RecordingError> {
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o640).open(path);
        let file = made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => RecordingError::Exists { path: path.into() },
            _ => file_error(path, source),
        })?;
        let mut writer = Self {
            path: path.into(),
            file,
            written: 0,
            bounds,
            begin: None,
        };
        writer.put(&Head { version: VERSION })?;
        Ok(writer)
    }

    /// Writes what `query-host` told at a time of the wall clock.
    ///
    /// # Errors
    /// If the recording is as long as it may be, or can't be written: it stays as it is then.
    pub(crate) fn add(&mut self, at_ms: u64, host: &impl Serialize) -> Result<(), RecordingError> {
        #[derive(Serialize)]
        #[serde(rename_all = "kebab-case")]
        struct Moment<'a, T> {
            at_ms: u64,
            #[serde(flatten)]
            host: &'a T,
        }
        let begin = *self.begin.get_or_insert_with(Instant::now);
        if begin.elapsed() >= self.bounds.time {
            let what = format!("{} s have passed", self.bounds.time.as_secs());
            return Err(self.full(what));
        }
        self.put(&Moment { at_ms, host })
    }

    fn put(&mut self, line: &impl Serialize) -> Result<(), RecordingError> {
        let mut text = serde_json::to_vec(line)
            .map_err(|error| file_error(&self.path, io::Error::other(error)))?;
        text.push(b'\n');
        let bytes = text.len() as u64;
        if self.written + bytes > self.bounds.bytes || bytes > MOST_LINE_BYTES {
            return Err(self.full(human(self.written)));
        }
        let written = self.file.write_all(&text);
        written.map_err(|source| file_error(&self.path, source))?;
        self.written += bytes;
        Ok(())
    }

    fn full(&self, what: String) -> RecordingError {
        let path = self.path.clone();
        RecordingError::Full { path, what }
    }
}

/// The wall clock, in milliseconds since 1970.
pub(crate) fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Writes what is published, in a thread of its own, until the recording is as long as it may be.
///
/// # Errors
/// If the thread can't be started.
pub(super) fn record(mut writer: Writer, published: Arc<Published>) -> io::Result<()> {
    let record = move || {
        let mut last = None;
        loop {
            let figures = published.wait_for_new(last.as_ref());
            match writer.add(wall_clock_ms(), &figures.host) {
                Ok(()) => last = Some(figures),
                Err(full @ RecordingError::Full { .. }) => {
                    return tracing::info!("recording ends: {full}");
                }
                Err(error) => {
                    let why = crate::log::with_causes(&error);
                    return tracing::warn!("recording ends: {why}");
                }
            }
        }
    };
    let thread = thread::Builder::new().name("recording".to_owned());
    thread.spawn(record).map(drop)
}

/// A recording that is read. Only where its lines are is kept in memory.
#[derive(Debug)]
pub(crate) struct Recording {
    path: PathBuf,
    file: File,
    /// By their order in the file; never empty.
    moments: Vec<Moment>,
    is_cut: bool,
}

/// Where a moment is.
#[derive(Clone, Copy, Debug)]
struct Moment {
    offset: u64,
    bytes: usize,
    at_ms: u64,
    /// Time since the first moment. The wall clock may have been set back, this never goes back.
    since_ms: u64,
    /// Jain's index of fairness, if it was known.
    jain: Option<f64>,
}

impl Recording {
    /// Reads where the moments are, and checks each.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub(crate) fn open(path: &Path) -> Result<Self, RecordingError> {
        let failed = |source| file_error(path, source);
        let no_wait = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = OpenOptions::new();
        // Whoever opens a pipe to read it waits for its writer.
        let file = options.read(true).custom_flags(no_wait).open(path);
        let file = file.map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(RecordingError::NoFile { path: path.into() });
        }
        let too_large = |what: String| RecordingError::TooLarge {
            path: path.into(),
            what,
        };
        if facts.len() > MOST_FILE_BYTES {
            return Err(too_large(human(MOST_FILE_BYTES)));
        }
        let mut lines = Lines::new(&file);
        lines.next().map_err(failed)?;
        check_head(path, &lines)?;
        let mut moments: Vec<Moment> = Vec::new();
        let mut is_cut = false;
        while lines.next().map_err(failed)? {
            if !lines.is_whole() && !lines.is_too_long() {
                is_cut = true;
                break;
            }
            if moments.len() == MOST_MOMENTS {
                return Err(too_large(format!("{MOST_MOMENTS} moments")));
            }
            let wrong = |what: String| RecordingError::Line {
                path: path.into(),
                line: lines.number,
                what,
            };
            let Known {
                at_ms, fairness, ..
            } = known_of(&lines).map_err(wrong)?;
            // A second has passed if the clock was set back.
            let since_ms = moments.last().map_or(0, |last| {
                let step = at_ms.checked_sub(last.at_ms).unwrap_or(1000);
                last.since_ms.saturating_add(step)
            });
            moments.push(Moment {
                offset: lines.offset,
                bytes: lines.text.len(),
                at_ms,
                since_ms,
                jain: fairness.and_then(|fairness| fairness.jain),
            });
        }
        if moments.is_empty() {
            return Err(RecordingError::Empty { path: path.into() });
        }
        Ok(Self {
            path: path.into(),
            file,
            moments,
            is_cut,
        })
    }

    /// How many moments there are: 1 or more.
    pub(crate) fn len(&self) -> usize {
        self.moments.len()
    }

    /// Whether the file ends in the middle of a line.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The time of the wall clock at a moment, in milliseconds since 1970; of the last moment beyond it.
    pub(crate) fn at_ms(&self, moment: usize) -> u64 {
        self.moment(moment).at_ms
    }

    /// The time since the first moment, in milliseconds. It never falls from a moment to the next.
    pub(crate) fn since_ms(&self, moment: usize) -> u64 {
        self.moment(moment).since_ms
    }

    /// Jain's index of fairness at a moment, if it was known.
    pub(crate) fn jain(&self, moment: usize) -> Option<f64> {
        self.moment(moment).jain
    }

    /// The last moment that is not later after the first than this.
    pub(crate) fn moment_at(&self, since_ms: u64) -> usize {
        let later = self.moments.partition_point(|it| it.since_ms <= since_ms);
        later.saturating_sub(1)
    }

    /// What `query-host` told at a moment.
    ///
    /// # Errors
    /// If the file has changed since it was opened.
    pub(crate) fn read(&self, moment: usize) -> Result<Value, RecordingError> {
        let Moment { offset, bytes, .. } = *self.moment(moment);
        let mut text = vec![0; bytes];
        let read = self.file.read_exact_at(&mut text, offset);
        read.map_err(|source| file_error(&self.path, source))?;
        let told: Result<Map<String, Value>, _> = serde_json::from_slice(&text);
        let mut told = told.map_err(|error| RecordingError::Line {
            path: self.path.clone(),
            // The first line is the head.
            line: moment + 2,
            what: error.to_string(),
        })?;
        told.remove(AT_MS);
        Ok(Value::Object(told))
    }

    fn moment(&self, moment: usize) -> &Moment {
        &self.moments[moment.min(self.moments.len() - 1)]
    }
}

fn file_error(path: &Path, source: io::Error) -> RecordingError {
    let path = path.into();
    RecordingError::File { path, source }
}

fn check_head(path: &Path, lines: &Lines) -> Result<(), RecordingError> {
    match serde_json::from_slice(&lines.text) {
        Ok(Head { version: VERSION }) if lines.is_whole() => Ok(()),
        Ok(Head { version }) if version != VERSION => {
            let path = path.into();
            Err(RecordingError::Version { path, version })
        }
        _ => Err(RecordingError::NoRecording { path: path.into() }),
    }
}

/// What is known of a line before its moment is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Known {
    at_ms: u64,
    #[serde(rename = "vms")]
    _vms: Vec<Named>,
    fairness: Option<Index>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "name")]
    _name: IgnoredAny,
}

#[derive(Deserialize)]
struct Index {
    jain: Option<f64>,
}

fn known_of(lines: &Lines) -> Result<Known, String> {
    if lines.is_too_long() {
        return Err(format!("it is longer than {}", human(MOST_LINE_BYTES)));
    }
    serde_json::from_slice(&lines.text).map_err(|error| error.to_string())
}

/// The lines of a file, of which no more than [`MOST_LINE_BYTES`] are read.
struct Lines<'a> {
    file: BufReader<&'a File>,
    /// The current line, with its end.
    text: Vec<u8>,
    /// Where it begins.
    offset: u64,
    /// Its number, from 1.
    number: usize,
}

impl<'a> Lines<'a> {
    fn new(file: &'a File) -> Self {
        Self {
            file: BufReader::with_capacity(1 << 16, file),
            text: Vec::new(),
            offset: 0,
            number: 0,
        }
    }

    /// Goes on to the next line; `false` at the end of the file.
    fn next(&mut self) -> io::Result<bool> {
        self.offset += self.text.len() as u64;
        self.number += 1;
        self.text.clear();
        let mut bounded = (&mut self.file).take(MOST_LINE_BYTES);
        Ok(bounded.read_until(b'\n', &mut self.text)? > 0)
    }

    fn is_whole(&self) -> bool {
        self.text.ends_with(b"\n")
    }

    fn is_too_long(&self) -> bool {
        self.text.len() as u64 == MOST_LINE_BYTES && !self.is_whole()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{host::http::tests::host, log::with_causes};

    const HEAD: &str = "{\"vmm-tier-host-recording\": 1}\n";

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn opened(text: impl AsRef<[u8]>) -> Result<Recording, RecordingError> {
        let folder = folder();
        let path = folder.path().join("hour");
        std::fs::write(&path, text).unwrap();
        Recording::open(&path)
    }

    fn refusal(text: impl AsRef<[u8]>) -> String {
        with_causes(&opened(text).unwrap_err())
    }

    #[test]
    fn recording_when_written_is_read_as_it_was_told() {
        let folder = folder();
        let path = folder.path().join("hour");
        let mut writer = Writer::create(&path, Bounds::default()).unwrap();
        let mut told = host(3);
        told.fairness.jain = f64::NAN;
        writer.add(1_000_000, &told).unwrap();
        writer.add(1_001_000, &json!({"vms": []})).unwrap();
        let recording = Recording::open(&path).unwrap();
        assert_eq!((recording.len(), recording.is_cut()), (2, false));
        let read = recording.read(0).unwrap();
        assert_eq!(read, serde_json::to_value(&told).unwrap());
        assert!(read["fairness"]["jain"].is_null());
        assert_eq!(recording.at_ms(0), 1_000_000);
        assert_eq!(recording.since_ms(1), 1000);
        assert_eq!(recording.read(1).unwrap(), json!({"vms": []}));
        assert_eq!((recording.jain(0), recording.jain(1)), (None, None));
        writer.add(1_002_000, &host(1)).unwrap();
        assert_eq!(Recording::open(&path).unwrap().jain(2), Some(0.995));
    }

    #[test]
    fn published_figures_when_recorded_are_in_the_file_until_it_is_full() {
        let folder = folder();
        let path = folder.path().join("hour");
        let line = serde_json::to_vec(&host(2)).unwrap().len() as u64;
        let bounds = Bounds {
            bytes: 4 * line,
            ..Bounds::default()
        };
        let writer = Writer::create(&path, bounds).unwrap();
        let published = Arc::new(Published::default());
        record(writer, published.clone()).unwrap();
        let begin = Instant::now();
        let moments = || Recording::open(&path).map_or(0, |recording| recording.len());
        while moments() < 3 {
            published.put(host(2));
            assert!(begin.elapsed() < Duration::from_secs(30), "{}", moments());
            thread::sleep(Duration::from_millis(10));
        }
        published.put(host(2));
        thread::sleep(Duration::from_millis(50));
        assert_eq!(moments(), 3, "a fourth has no room");
    }

    #[test]
    fn writer_when_the_time_is_over_or_the_file_is_there_says_so() {
        let folder = folder();
        let path = folder.path().join("hour");
        let bounds = Bounds {
            time: Duration::ZERO,
            ..Bounds::default()
        };
        let mut writer = Writer::create(&path, bounds).unwrap();
        let full = writer.add(0, &host(0)).unwrap_err().to_string();
        assert!(full.contains("0 s have passed"), "{full}");
        let exists = Writer::create(&path, bounds).unwrap_err().to_string();
        assert!(exists.contains("exists: name another file"), "{exists}");
        let nowhere = Writer::create(&path.join("x"), bounds).unwrap_err();
        assert!(with_causes(&nowhere).contains("Not a directory"));
    }

    #[test]
    fn time_when_the_clock_jumps_never_goes_back() {
        let moment = |at: u64| format!("{{\"at-ms\": {at}, \"vms\": []}}\n");
        let text = [5000, 6000, 2000, 3000, u64::MAX, 0].map(moment).concat();
        let recording = opened(HEAD.to_owned() + &text).unwrap();
        let since: Vec<u64> = (0..6).map(|moment| recording.since_ms(moment)).collect();
        assert_eq!(since[..4], [0, 1000, 2000, 3000]);
        assert!(since.is_sorted(), "{since:?}");
        assert_eq!(recording.at_ms(2), 2000);
        assert_eq!(
            [0, 999, 1000, 2500].map(|ms| recording.moment_at(ms)),
            [0, 0, 1, 2]
        );
        assert_eq!(recording.moment_at(u64::MAX), 5);
        assert_eq!(recording.since_ms(99), recording.since_ms(5));
    }

    #[test]
    fn recording_when_cut_is_read_up_to_there() {
        let whole = "{\"vms\": [{\"name\": \"a\"}], \"at-ms\": 7}\n";
        for cut in ["{\"at-", "{\"at-ms\": 8, \"vms\": []}", "\u{1b}", "\0\0\0"] {
            let recording = opened(format!("{HEAD}{whole}{cut}")).unwrap();
            assert_eq!((recording.len(), recording.is_cut()), (1, true), "{cut}");
        }
    }

    #[test]
    fn file_when_it_is_no_recording_is_refused_with_what_is_wrong() {
        let deep = "[".repeat(100_000);
        let cases = [
            (String::new(), "is no recording"),
            ("\n".to_owned(), "is no recording"),
            ("{}\n".to_owned(), "is no recording"),
            (HEAD.trim_end().to_owned(), "is no recording"),
            ("\0".repeat(100), "is no recording"),
            (HEAD.replace('1', "2"), "of version 2, this program reads 1"),
            (HEAD.to_owned(), "holds no moment"),
            (format!("{HEAD}{{\"at-"), "holds no moment"),
            (format!("{HEAD}nonsense\n"), "line 2: expected"),
            (
                format!("{HEAD}{{\"vms\": []}}\n"),
                "line 2: missing field `at-ms`",
            ),
            (
                format!("{HEAD}{{\"at-ms\": 1, \"vms\": 3}}\n"),
                "line 2: invalid type",
            ),
            (
                format!("{HEAD}{{\"at-ms\": 1, \"vms\": [{{}}]}}\n"),
                "line 2: missing field `name`",
            ),
            (
                format!("{HEAD}{{\"at-ms\": -1, \"vms\": []}}\n"),
                "line 2: invalid value",
            ),
            (format!("{HEAD}{{\"x\": {deep}\n"), "line 2: "),
            (
                format!("{HEAD}{{\"at-ms\": 1, \"vms\": [], \"fairness\": 1e999}}\n"),
                "line 2: number out of range",
            ),
        ];
        for (text, word) in cases {
            let said = refusal(&text);
            assert!(said.contains(word), "{text:.60}: {said}");
        }
    }

    #[test]
    fn file_when_too_long_or_not_regular_is_refused_without_reading_on() {
        let long = format!("{HEAD}{}", "x".repeat(MOST_LINE_BYTES as usize + 9));
        assert!(refusal(long).contains("line 2: it is longer than 8 MiB"));
        let moments = "{\"at-ms\":1,\"vms\":[]}\n".repeat(MOST_MOMENTS + 1);
        assert!(refusal(HEAD.to_owned() + &moments).contains("100000 moments are read"));
        let folder = folder();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        for path in [Path::new("/dev/zero"), folder.path(), &pipe] {
            let said = Recording::open(path).unwrap_err().to_string();
            assert!(said.contains("is no regular file"), "{said}");
        }
        let absent = Recording::open(&folder.path().join("absent")).unwrap_err();
        assert!(with_causes(&absent).contains("No such file"));
        let huge = folder.path().join("huge");
        let sparse = File::create(&huge).unwrap();
        sparse.set_len(MOST_FILE_BYTES + 1).unwrap();
        let said = Recording::open(&huge).unwrap_err().to_string();
        assert!(said.contains("8 GiB are read"), "{said}");
    }

    #[test]
    fn moment_when_the_file_was_changed_is_an_error() {
        let folder = folder();
        let path = folder.path().join("hour");
        std::fs::write(&path, format!("{HEAD}{{\"at-ms\": 1, \"vms\": []}}\n")).unwrap();
        let recording = Recording::open(&path).unwrap();
        std::fs::write(&path, HEAD).unwrap();
        let said = with_causes(&recording.read(0).unwrap_err());
        assert!(said.contains("hour"), "{said}");
        std::fs::write(&path, "x".repeat(200)).unwrap();
        let said = recording.read(0).unwrap_err().to_string();
        assert!(said.contains("line 2"), "{said}");
    }
}
