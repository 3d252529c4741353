//! Which sources the operator wants, and how each of them is opened.

use std::{path::PathBuf, str::FromStr};

use tier_core::sample::SourceKind;
use tier_sys::sysroot::SysRoot;

use super::{
    Opener, damon,
    guest::{self, GuestAddress, ParseGuestAddressError},
    ibs, pebs, replay,
};

/// A source that the operator named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Damon,
    Ibs,
    /// A ring of `ibs_op` records in a file: an emulated host's software PMU.
    IbsFile(PathBuf),
    Pebs,
    Guest(GuestAddress),
    /// A recording of another source.
    Replay(PathBuf),
}

/// A text that names no source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParseSourceError {
    #[error(
        "source '{0}' is not known; there is: auto, damon, ibs, ibs=FILE, pebs, guest=SOCKET, guest=vsock:CID:PORT, \
         replay=FILE; several are joined by commas"
    )]
    Unknown(String),
    #[error(transparent)]
    Guest(#[from] ParseGuestAddressError),
}

/// The sources that the operator wants: by name, or the best of those that work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceChoice {
    /// All sources that may work on this host, beside those that are named.
    pub(crate) auto: bool,
    pub(crate) named: Vec<Wanted>,
}

/// The text that names sources, once it is known to do so.
///
/// # Errors
/// As [`SourceChoice::from_str`].
pub(crate) fn checked(text: &str) -> Result<String, ParseSourceError> {
    SourceChoice::from_str(text).map(|_| text.to_owned())
}

impl FromStr for SourceChoice {
    type Err = ParseSourceError;

    /// Names joined by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut choice = Self::default();
        for word in text.split(',') {
            match word.trim() {
                "auto" => choice.auto = true,
                "damon" => choice.add(Wanted::Damon),
                "ibs" => choice.add(Wanted::Ibs),
                "pebs" => choice.add(Wanted::Pebs),
                word => match word.split_once('=') {
                    Some(("ibs", path)) if !path.is_empty() => {
                        choice.add(Wanted::IbsFile(PathBuf::from(path)));
                    }
                    Some(("replay", path)) if !path.is_empty() => {
                        choice.add(Wanted::Replay(PathBuf::from(path)));
                    }
                    Some(("guest", address)) => choice.add(Wanted::Guest(address.parse()?)),
                    _ => return Err(ParseSourceError::Unknown(word.to_owned())),
                },
            }
        }
        Ok(choice)
    }
}

impl SourceChoice {
    /// The best of the sources that work.
    pub(crate) fn auto() -> Self {
        Self {
            auto: true,
            named: Vec::new(),
        }
    }

    fn add(&mut self, wanted: Wanted) {
        if !self.named.contains(&wanted) {
            self.named.push(wanted);
        }
    }

    /// The sources to try: each kind once, those that were named before those that were found.
    pub(crate) fn candidates(&self, root: &SysRoot, is_kvm: bool) -> Vec<Candidate> {
        let mut wanted = self.named.clone();
        if self.auto {
            wanted.extend(found(root, is_kvm));
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        for wanted in wanted {
            let kind = wanted.kind();
            if candidates.iter().all(|candidate| candidate.kind != kind) {
                let open = wanted.opener();
                candidates.push(Candidate { kind, open });
            }
        }
        candidates
    }
}

/// A source to try.
pub(crate) struct Candidate {
    pub(crate) kind: SourceKind,
    pub(crate) open: Opener,
}

impl Wanted {
    pub(crate) const fn kind(&self) -> SourceKind {
        match self {
            Self::Damon => SourceKind::Damon,
            Self::Ibs | Self::IbsFile(_) => SourceKind::Ibs,
            Self::Pebs => SourceKind::Pebs,
            Self::Guest(_) => SourceKind::Guest,
            Self::Replay(_) => SourceKind::Replay,
        }
    }

    fn opener(self) -> Opener {
        match self {
            Self::Damon => Box::new(damon::open),
            Self::Ibs => Box::new(ibs::open),
            Self::IbsFile(path) => Box::new(move |setup, map| ibs::open_file(setup, map, &path)),
            Self::Pebs => Box::new(pebs::open),
            Self::Guest(address) => Box::new(move |setup, map| guest::open(setup, map, &address)),
            Self::Replay(path) => replay::opener(path),
        }
    }
}

/// The sources of this host that may see a guest. A source that sees none must be asked for by name.
fn found(root: &SysRoot, is_kvm: bool) -> Vec<Wanted> {
    let mut found = vec![Wanted::Damon];
    let pmus = root.sys("bus/event_source/devices");
    if pmus.join("ibs_op").exists() {
        found.push(Wanted::Ibs);
    }
    let has_pebs = ["cpu", "cpu_core"]
        .iter()
        .any(|pmu| pmus.join(pmu).join("events/mem-loads").exists());
    if has_pebs && !is_kvm {
        found.push(Wanted::Pebs);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_when_several_are_named_has_each_once_and_in_order() {
        let choice: SourceChoice =
            "guest=/run/a.sock, damon,guest=vsock:3:7000,ibs=/ring,replay=/trace,auto"
                .parse()
                .unwrap();
        let root = SysRoot::at(std::path::Path::new("/nonexistent"));
        let kinds: Vec<_> = choice
            .candidates(&root, true)
            .iter()
            .map(|candidate| candidate.kind)
            .collect();
        assert_eq!(
            kinds,
            [
                SourceKind::Guest,
                SourceKind::Damon,
                SourceKind::Ibs,
                SourceKind::Replay
            ]
        );
    }

    #[test]
    fn choice_when_a_name_is_wrong_says_what_there_is() {
        for (text, part) in [
            ("damn", "'damn' is not known; there is: auto, damon"),
            (
                "kvm-faults",
                "'kvm-faults' is not known; there is: auto, damon",
            ),
            ("", "'' is not known"),
            ("damon,guest=vsock:1:2", "'vsock:1:2' is no address"),
        ] {
            let error = text.parse::<SourceChoice>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
