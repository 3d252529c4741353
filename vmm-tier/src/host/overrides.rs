//! What commands have set, kept over a restart of the daemon in a file of the run directory.
//!
//! A file that can't be understood is put aside with a warning, and is never a reason to fail.

use std::{
    collections::BTreeMap,
    fs::DirBuilder,
    io::{self, ErrorKind, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tier_core::arbiter::Mode;
use tier_sys::sysroot::replace_file;

use super::settings::Grant;

/// The version that this program writes, and the newest that it reads.
const VERSION: u64 = 1;
/// The file's name.
const NAME: &str = "host.json";
/// The largest file that is read: terms of thousands of VMs.
const MAX_BYTES: u64 = 4 << 20;

/// What commands have set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Overrides {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) band: Option<f64>,
    /// DRAM that guests may keep, while a drain is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drain_bytes: Option<u64>,
    /// The node that guests leave by it, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drain_node: Option<u16>,
    /// By the VM's name.
    pub(super) vms: BTreeMap<String, Grant>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Document {
    version: u64,
    set: Overrides,
}

/// The file.
#[derive(Debug)]
pub(super) struct OverridesFile {
    pub(super) path: PathBuf,
    /// Why it can't be written, if it can't.
    pub(super) error: Option<String>,
}

impl OverridesFile {
    /// The file in the run directory, and what it says.
    pub(super) fn open(run_dir: &Path) -> (Self, Overrides) {
        let mut file = Self {
            path: run_dir.join(NAME),
            error: None,
        };
        let set = match file.read() {
            Ok(set) => set,
            Err(reason) => {
                let aside = run_dir.join(format!("{NAME}.damaged"));
                let path = file.path.display();
                match std::fs::rename(&file.path, &aside) {
                    Ok(()) => tracing::warn!(
                        "what commands had set is lost: {path} {reason}; it is kept as {}",
                        aside.display()
                    ),
                    Err(error) => {
                        let why = format!("{path} {reason}, and can't be put aside: {error}");
                        tracing::warn!("what commands set is lost when the daemon ends: {why}");
                        file.error = Some(why);
                    }
                }
                Overrides::default()
            }
        };
        (file, set)
    }

    fn read(&self) -> Result<Overrides, String> {
        let unreadable = |error: io::Error| format!("can't be read: {error}");
        let mut options = std::fs::OpenOptions::new();
        // A pipe in its place must not keep the daemon waiting, nor a link lead it elsewhere.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.read(true).custom_flags(flags.bits().cast_signed());
        let file = match options.open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Overrides::default()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format!("has more than {MAX_BYTES} bytes"));
        }
        let damaged = |error: serde_json::Error| format!("is damaged: {error}");
        let Document { version, set } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(format!(
                "is of version {version}; this program reads {VERSION}"
            ));
        }
        let faults = set
            .vms
            .iter()
            .find_map(|(name, grant)| Some((name, grant.fault()?)));
        if let Some((name, (key, value, must))) = faults {
            return Err(format!(
                "is damaged: {key} of VM {name} is {value}, but must be {must}"
            ));
        }
        match set.band.filter(|band| !(0.0..=1.0).contains(band)) {
            Some(band) => Err(format!("is damaged: band is {band}")),
            None => Ok(set),
        }
    }

    /// Writes down what is set now.
    pub(super) fn save(&mut self, set: &Overrides) {
        let write = || {
            let document = Document {
                version: VERSION,
                set: set.clone(),
            };
            let mut text = serde_json::to_vec_pretty(&document)?;
            text.push(b'\n');
            let folder = self.path.parent().unwrap_or(Path::new("."));
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)?;
            replace_file(&self.path, &text, 0o600)
        };
        let error = write()
            .err()
            .map(|error: io::Error| format!("{} can't be written: {error}", self.path.display()));
        if let Some(why) = error.as_ref().filter(|_| error != self.error) {
            tracing::warn!("what commands set is lost when the daemon ends: {why}");
        }
        self.error = error;
    }
}

#[cfg(test)]
mod tests {
    use tier_core::text::size::Size;

    use super::*;

    #[test]
    fn file_when_written_is_read_again_by_the_next_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, nothing) = OverridesFile::open(folder.path());
        assert_eq!(nothing, Overrides::default());
        let grant = Grant {
            guarantee: Some(Size::Bytes(21 << 20)),
            ..Grant::default()
        };
        let set = Overrides {
            mode: Some(Mode::Utility),
            band: Some(0.5),
            drain_bytes: Some(0),
            drain_node: Some(1),
            vms: BTreeMap::from([("db".to_owned(), grant)]),
        };
        file.save(&set);
        assert_eq!(file.error, None);
        assert_eq!(OverridesFile::open(folder.path()).1, set);
    }

    #[test]
    fn file_when_it_makes_no_sense_is_put_aside() {
        let texts = [
            "{",
            r#"{"version": 2, "set": {"vms": {}}}"#,
            r#"{"version": 1, "set": {"vms": {}, "band": 7}}"#,
            r#"{"version": 1, "set": {"vms": {"db": {"weight": 0}}}}"#,
            r#"{"version": 1, "set": {"vms": {}}, "more": 1}"#,
        ];
        for text in texts {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(NAME), text).unwrap();
            let (file, set) = OverridesFile::open(folder.path());
            assert_eq!((set, file.error), (Overrides::default(), None), "{text}");
            let aside = folder.path().join("host.json.damaged");
            assert_eq!(std::fs::read_to_string(aside).unwrap(), text);
        }
    }

    #[test]
    fn file_when_it_cannot_be_written_says_why() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let mut file = OverridesFile {
            path: folder.path().join("file/host.json"),
            error: None,
        };
        file.save(&Overrides::default());
        assert!(file.error.unwrap().contains("can't be written"));
    }
}
