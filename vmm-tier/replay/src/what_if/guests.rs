//! The guests that the arguments name, with what they are granted.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    rc::Rc,
    str::FromStr,
};

use tier_core::{
    arbiter::{MAX_VMS, Mode, Terms, admit},
    text::size::Size,
};

use super::{
    args::{WhatIfArgs, percent},
    error::WhatIfError,
    host::Candidate,
    recording::Recording,
};
use crate::{
    comparison::{input::Bounds, progress::Progress},
    trace::Options,
};

/// Characters of a name.
const MOST_NAME: usize = 64;
/// Of names that are told in an error.
const MOST_TOLD: usize = 10;
/// The goal of a guest in the mode `goal` that has none.
const GOAL: f64 = 0.95;

/// A recording as it was asked for.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    /// If it was given.
    name: Option<String>,
    path: PathBuf,
    copies: u64,
}

/// A recording and the guests that do what it tells.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) recording: Rc<Recording>,
    pub(super) guests: Vec<Candidate>,
}

impl FromStr for Asked {
    type Err = WhatIfError;

    /// `FILE`, `NAME=FILE`, `FILE*3`, `NAME=FILE*3`. A text that is a file's path is that file.
    fn from_str(text: &str) -> Result<Self, WhatIfError> {
        let whole = |text: &str| Path::new(text).exists();
        let file = |name: Option<&str>, path: &str, copies| Self {
            name: name.map(str::to_owned),
            path: path.into(),
            copies,
        };
        if whole(text) {
            return Ok(file(None, text, 1));
        }
        let named = text.split_once('=').filter(|(name, _)| !name.contains('/'));
        if let Some((name, path)) = named.filter(|(_, path)| whole(path)) {
            return Ok(file(Some(name), path, 1));
        }
        let (rest, copies) = match text.rsplit_once('*') {
            None => (text, 1),
            Some((rest, digits)) => match digits.trim().parse() {
                Ok(copies) if copies > 0 && !rest.is_empty() => (rest, copies),
                _ => return Err(WhatIfError::Copies(text.to_owned())),
            },
        };
        let named = rest
            .split_once('=')
            .filter(|(name, _)| !name.contains('/') && !whole(rest));
        Ok(match named {
            Some((name, path)) => file(Some(name), path, copies),
            None => file(None, rest, copies),
        })
    }
}

/// Reads the recordings; each file once.
///
/// # Errors
/// If there are too many guests, an option makes no sense, or a recording can't be read.
pub(super) fn read(args: &WhatIfArgs, progress: &Progress) -> Result<Vec<Group>, WhatIfError> {
    let asked: Vec<Asked> = args
        .recordings
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let guests = asked
        .iter()
        .fold(0, |sum: u64, asked| sum.saturating_add(asked.copies));
    if guests > MAX_VMS as u64 {
        return Err(WhatIfError::TooMany { guests });
    }
    let names = names(&asked)?;
    let grants = Grants::new(args, &asked, &names)?;
    let options = Options {
        partial: args.partial,
        ..Options::default()
    };
    let mut groups: Vec<Group> = Vec::new();
    for (asked, name) in asked.iter().zip(&names) {
        let path = asked.path.display().to_string();
        let known = groups.iter().find(|group| group.recording.file == path);
        let recording = match known {
            Some(group) => Rc::clone(&group.recording),
            None => {
                let read = Recording::read(
                    (&asked.path, args.format),
                    options,
                    Bounds::default(),
                    progress,
                )?;
                Rc::new(read)
            }
        };
        let guests = (0..asked.copies).map(|number| {
            let length = u64::from(recording.curves.seconds());
            let later = if args.in_step {
                0
            } else {
                length * number / asked.copies
            };
            let own = guest_name(name, number, asked.copies);
            let candidate = Candidate {
                terms: grants.terms(name, &own, &recording, args.mode)?,
                vcpu_s_per_s: grants.cpus.of(name, &own).copied(),
                name: own,
                curves: recording.curves.clone(),
                offset_s: later as u32,
            };
            // A guest that no host would admit is none to ask for.
            admit(u64::MAX, [], &candidate.name, &candidate.terms)?;
            Ok(candidate)
        });
        let guests = guests.collect::<Result<Vec<Candidate>, WhatIfError>>()?;
        let name = name.clone();
        groups.push(Group {
            name,
            recording,
            guests,
        });
    }
    Ok(groups)
}

fn guest_name(name: &str, number: u64, copies: u64) -> String {
    match copies {
        1 => name.to_owned(),
        _ => format!("{name}-{}", number + 1),
    }
}

/// The names of the recordings: as given, or the files', numbered where two are alike.
fn names(asked: &[Asked]) -> Result<Vec<String>, WhatIfError> {
    let mut names: Vec<String> = Vec::new();
    for asked in asked {
        let name = match &asked.name {
            Some(name) => name.clone(),
            None => {
                let stem = asked.path.file_stem().unwrap_or(asked.path.as_os_str());
                let stem: String = stem.to_string_lossy().chars().take(MOST_NAME).collect();
                let numbered = (1..).map(|number| guest_name(&stem, number - 1, number));
                let mut free = numbered.filter(|name| !names.contains(name));
                free.next().unwrap_or_default()
            }
        };
        let length = name.chars().count();
        if !(1..=MOST_NAME).contains(&length) || name.chars().any(|c| c.is_control() || c == '=') {
            return Err(WhatIfError::Name(name.escape_debug().collect()));
        }
        if names.contains(&name) {
            return Err(WhatIfError::SameName(name));
        }
        names.push(name);
    }
    let mut all = HashSet::new();
    for (asked, name) in asked.iter().zip(&names) {
        for number in 0..asked.copies {
            let guest = guest_name(name, number, asked.copies);
            if !all.insert(guest.clone()) {
                return Err(WhatIfError::SameName(guest));
            }
        }
    }
    Ok(names)
}

/// An option's values, each for all guests, or for those of a name.
struct Granted<T>(Vec<(Option<String>, T)>);

impl<T> Granted<T> {
    fn new(
        option: &'static str,
        texts: &[String],
        (asked, names): (&[Asked], &[String]),
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Self, WhatIfError> {
        let value = |text: &String| {
            let (name, value) = match text.rsplit_once('=') {
                Some((name, value)) => (Some(name.trim()), value),
                None => (None, text.as_str()),
            };
            if let Some(name) = name.filter(|name| !is_there(asked, names, name)) {
                let known: Vec<&str> = names.iter().take(MOST_TOLD).map(String::as_str).collect();
                let more = if names.len() > MOST_TOLD { ", …" } else { "" };
                return Err(WhatIfError::NoGuest {
                    option,
                    name: name.to_owned(),
                    known: known.join(", ") + more,
                });
            }
            let value =
                parse(value.trim()).map_err(|reason| WhatIfError::Value { option, reason })?;
            Ok((name.map(str::to_owned), value))
        };
        Ok(Self(texts.iter().map(value).collect::<Result<_, _>>()?))
    }

    /// What a guest of a recording has: what is for the guest, else for the recording, else for all.
    fn of(&self, recording: &str, guest: &str) -> Option<&T> {
        let mut of = [Some(guest), Some(recording), None]
            .into_iter()
            .map(|wanted| {
                let mut values = self.0.iter().rev();
                values.find(|(name, _)| name.as_deref() == wanted)
            });
        of.find_map(|found| found.map(|(_, value)| value))
    }
}

fn is_there(asked: &[Asked], names: &[String], wanted: &str) -> bool {
    asked.iter().zip(names).any(|(asked, name)| {
        let mut guests = (0..asked.copies).map(|number| guest_name(name, number, asked.copies));
        name == wanted || guests.any(|guest| guest == wanted)
    })
}

/// What guests are granted.
struct Grants {
    guarantee: Granted<Size>,
    cap: Granted<Size>,
    weight: Granted<f64>,
    goal: Granted<f64>,
    cpus: Granted<f64>,
}

impl Grants {
    fn new(args: &WhatIfArgs, asked: &[Asked], names: &[String]) -> Result<Self, WhatIfError> {
        let size = |text: &str| {
            let size = text.parse::<Size>();
            size.map_err(|error| error.to_string())
        };
        let number = |text: &str, what: &str, is_right: fn(f64) -> bool| {
            let number = text.parse().ok().filter(|number| is_right(*number));
            number.ok_or_else(|| format!("'{text}' is no {what}"))
        };
        let guests = (asked, names);
        Ok(Self {
            guarantee: Granted::new("guarantee", &args.guarantee, guests, size)?,
            cap: Granted::new("cap", &args.cap, guests, size)?,
            weight: Granted::new("weight", &args.weight, guests, |text| {
                number(text, "weight, such as 2", f64::is_finite)
            })?,
            goal: Granted::new("goal", &args.goal, guests, percent)?,
            cpus: Granted::new("cpus", &args.cpus, guests, |text| {
                let what = "number of busy virtual CPUs, such as 1.5";
                number(text, what, |cpus| cpus > 0.0 && cpus <= 100_000.0)
            })?,
        })
    }

    fn terms(
        &self,
        recording_name: &str,
        guest: &str,
        recording: &Recording,
        mode: Mode,
    ) -> Result<Terms, WhatIfError> {
        let memory = recording.memory_bytes;
        let bytes = |granted: &Granted<Size>| {
            let size = granted.of(recording_name, guest);
            size.map(|size| size.bytes(memory))
        };
        let goal = self.goal.of(recording_name, guest).copied();
        Ok(Terms {
            guarantee_bytes: bytes(&self.guarantee).unwrap_or(0),
            cap_bytes: bytes(&self.cap).unwrap_or(memory).min(memory),
            weight: self
                .weight
                .of(recording_name, guest)
                .copied()
                .unwrap_or(1.0),
            page_bytes: recording.page_bytes,
            goal: goal.or((mode == Mode::Goal).then_some(GOAL)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> (Option<String>, String, u64) {
        let asked: Asked = text.parse().unwrap();
        (asked.name, asked.path.display().to_string(), asked.copies)
    }

    #[test]
    fn recording_when_named_and_multiplied_is_taken_apart() {
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(asked("a.vmt"), (None, "a.vmt".to_owned(), 1));
        assert_eq!(asked("db=a.vmt"), (some("db"), "a.vmt".to_owned(), 1));
        assert_eq!(asked("a.vmt*3"), (None, "a.vmt".to_owned(), 3));
        assert_eq!(
            asked("db=./a.vmt*30"),
            (some("db"), "./a.vmt".to_owned(), 30)
        );
        assert_eq!(asked("/x=y/a.vmt"), (None, "/x=y/a.vmt".to_owned(), 1));
        for text in [
            "a.vmt*",
            "a.vmt*0",
            "a.vmt*-1",
            "a.vmt*x",
            "*3",
            "a*99999999999999999999",
        ] {
            let error = text.parse::<Asked>().unwrap_err().to_string();
            assert!(error.contains("number of copies"), "{text}: {error}");
        }
    }

    #[test]
    fn file_when_its_name_has_the_signs_is_that_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["a=b.vmt", "c*2"] {
            std::fs::write(path(name), "").unwrap();
            assert_eq!(asked(&path(name)), (None, path(name), 1));
        }
        let named = format!("db={}", path("c*2"));
        assert_eq!(asked(&named), (Some("db".to_owned()), path("c*2"), 1));
        let more = format!("{}*4", path("a=b.vmt"));
        assert_eq!(asked(&more), (None, path("a=b.vmt"), 4));
    }

    fn names_of(texts: &[&str]) -> Result<Vec<String>, String> {
        let asked: Vec<Asked> = texts.iter().map(|text| text.parse().unwrap()).collect();
        names(&asked).map_err(|error| error.to_string())
    }

    #[test]
    fn names_when_two_are_alike_are_numbered_or_refused() {
        assert_eq!(
            names_of(&["a/db.vmt", "b/db.vmt", "x=c"]).unwrap(),
            ["db", "db-2", "x"]
        );
        assert!(names_of(&["x=a", "x=b"]).unwrap_err().contains("named x"));
        assert!(
            names_of(&["db-2=a", "db=b*2"])
                .unwrap_err()
                .contains("named db-2")
        );
        for bad in ["=a", "\u{1b}[2J=a"] {
            let error = names_of(&[bad]).unwrap_err();
            assert!(
                error.contains("is no name") && !error.contains('\u{1b}'),
                "{error}"
            );
        }
    }

    #[test]
    fn option_when_it_is_for_a_guest_goes_before_its_recording_and_all() {
        let asked: Vec<Asked> = ["db=a*2", "web=b"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let names = names(&asked).unwrap();
        let texts = ["1", "db=2", "db-2=3"].map(str::to_owned);
        let parse = |text: &str| text.parse::<u8>().map_err(|error| error.to_string());
        let granted = Granted::new("weight", &texts, (&asked, &names), parse).unwrap();
        let of = |recording, guest| granted.of(recording, guest).copied();
        assert_eq!(of("db", "db-1"), Some(2));
        assert_eq!(of("db", "db-2"), Some(3));
        assert_eq!(of("web", "web"), Some(1));

        let error = |text: &str| {
            let granted = Granted::new("weight", &[text.to_owned()], (&asked, &names), parse);
            granted.err().unwrap().to_string()
        };
        assert_eq!(
            error("mail=1"),
            "--weight names mail, which is no guest here: there are db, web"
        );
        assert!(error("db=x").starts_with("--weight: "), "{}", error("db=x"));
    }
}
