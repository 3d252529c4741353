//! Files of the run directory in which agents write down what they change: JSON, with a version.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use tier_sys::sysroot::{read_text, replace_file};

/// What such a file holds.
pub(crate) trait Record: DeserializeOwned {
    /// The version that this program writes and reads.
    const VERSION: u64;
    /// The largest file that is read, in bytes.
    const MAX_BYTES: u64;

    /// The version that the file has.
    fn version(&self) -> u64;
}

/// Reads a record; `None` if there is no such file.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn read<R: Record>(path: &Path) -> Result<Option<R>, String> {
    let text = match read_text(path, R::MAX_BYTES) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let record: R = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    match record.version() {
        version if version == R::VERSION => Ok(Some(record)),
        other => Err(format!(
            "it is of version {other}, this program reads {}",
            R::VERSION
        )),
    }
}

/// The records of a folder, each with its path, by name.
pub(crate) fn all<R, E>(
    folder: &Path,
    read: impl Fn(&Path) -> Result<Option<R>, E>,
) -> Vec<(PathBuf, Result<R, E>)> {
    let entries = std::fs::read_dir(folder);
    let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    paths.sort_unstable();
    let read = |path: PathBuf| {
        let record = read(&path).transpose()?;
        Some((path, record))
    };
    paths.into_iter().filter_map(read).collect()
}

/// Replaces the file, and makes its folder.
pub(crate) fn write(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)?;
    replace_file(path, text, mode)
}

/// Removes the file, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
