//! A file for the result of long work: it is made before the work begins, and has its name once it is
//! whole.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Why a result is not in its file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputFileError {
    /// The path names no file.
    #[error("{} is no name of a file", .0.display())]
    NoFile(PathBuf),
    /// It can't be made or written.
    #[error("{} can't be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A file that is called `FILE.part` until it is whole. Dropped before, it is removed.
#[derive(Debug)]
pub(crate) struct OutputFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
    is_whole: bool,
}

impl OutputFile {
    /// Makes the file. What has its name stays until the file is whole.
    ///
    /// # Errors
    /// If it can't be made.
    pub(crate) fn create(path: &Path) -> Result<Self, OutputFileError> {
        let name = path.file_name().filter(|_| !path.is_dir());
        let Some(name) = name else {
            return Err(OutputFileError::NoFile(path.to_owned()));
        };
        let mut part_name = name.to_owned();
        part_name.push(".part");
        let part = path.with_file_name(part_name);
        let file = File::create(&part).map_err(|source| OutputFileError::Write {
            path: part.clone(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            part,
            file,
            is_whole: false,
        })
    }

    /// Writes the whole content, and gives the file its name.
    ///
    /// # Errors
    /// If it can't be written.
    pub(crate) fn finish(mut self, content: &[u8]) -> Result<(), OutputFileError> {
        let written = self.file.write_all(content);
        let named = written.and_then(|()| fs::rename(&self.part, &self.path));
        named.map_err(|source| OutputFileError::Write {
            path: self.path.clone(),
            source,
        })?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if !self.is_whole {
            // It may be gone already.
            let _ = fs::remove_file(&self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_when_the_work_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let file = OutputFile::create(&path).unwrap();
        assert!(!path.exists() && folder.path().join("picture.png.part").exists());
        file.finish(b"first").unwrap();
        drop(OutputFile::create(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        OutputFile::create(&path)
            .unwrap()
            .finish(b"second")
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn file_when_it_cannot_be_made_says_which() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            folder.path().to_owned(),
            PathBuf::from(".."),
            folder.path().join("no/such"),
        ] {
            let error = OutputFile::create(&path).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        }
    }
}
