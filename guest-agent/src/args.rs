//! The command line.

use std::{ffi::OsString, path::PathBuf};

use tier_core::wire::InGuest;

/// The port that `run` takes without `--port`: the name that the host's documentation gives it.
const PORT: &str = "/dev/virtio-ports/vmm-tier";
/// Where the agent writes down what it has set up in the kernel.
const RUN_DIR: &str = "/run/guest-agent";

pub(crate) const USAGE: &str = "\
The in-guest companion of vmm-tier.

Usage:
  guest-agent run [OPTIONS]   observe which pages are used and tell vmm-tier on the host
  guest-agent report          say what the host can't see of this guest, as JSON

Options of run:
  --port PATH        the virtio-serial port [default: /dev/virtio-ports/vmm-tier]
  --vsock PORT       connect to this vsock port of the host instead
  --source NAME      pebs, ibs, damon or page-faults [default: the best that works]
  --max-regions N    most regions that DAMON may watch, whatever the host wishes [default: 4000]
  --run-dir DIR      where the use of DAMON is written down [default: /run/guest-agent]
  --help, --version";

/// Where the host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A virtio-serial port (or, to try things out, a unix socket).
    Port(PathBuf),
    /// A vsock port of the host.
    Vsock(u32),
}

/// The arguments of `run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) place: Place,
    /// `None` for the best that works.
    pub(crate) source: Option<InGuest>,
    pub(crate) max_regions: u32,
    pub(crate) run_dir: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            place: Place::Port(PORT.into()),
            source: None,
            max_regions: 4000,
            run_dir: RUN_DIR.into(),
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Version,
    Report,
    Run(Settings),
}

/// A command line that can't be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("no command: give run or report")]
    NoCommand,
    #[error("unknown word '{0}'")]
    Unknown(String),
    #[error("{0} needs a value")]
    NoValue(String),
    #[error("'{value}' is no value of {option}: {wanted}")]
    Value {
        option: String,
        value: String,
        wanted: &'static str,
    },
}

impl Command {
    pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut args = args.map(|word| word.to_string_lossy().into_owned());
        let command = args.next().ok_or(ArgsError::NoCommand)?;
        let parsed = match command.as_str() {
            "--help" | "-h" | "help" => Self::Help,
            "--version" | "-V" => Self::Version,
            "report" => Self::Report,
            "run" => return Self::parse_run(args),
            _ => return Err(ArgsError::Unknown(command)),
        };
        match args.next() {
            None => Ok(parsed),
            Some(word) => Err(ArgsError::Unknown(word)),
        }
    }

    fn parse_run(mut args: impl Iterator<Item = String>) -> Result<Self, ArgsError> {
        let mut settings = Settings::default();
        while let Some(option) = args.next() {
            if matches!(option.as_str(), "--help" | "-h") {
                return Ok(Self::Help);
            }
            let mut value = || {
                args.next()
                    .ok_or_else(|| ArgsError::NoValue(option.clone()))
            };
            let number = |value: String, wanted, least: u32, most: u32| match value.parse() {
                Ok(number) if (least..=most).contains(&number) => Ok(number),
                _ => Err(ArgsError::Value {
                    option: option.clone(),
                    value,
                    wanted,
                }),
            };
            match option.as_str() {
                "--port" => settings.place = Place::Port(value()?.into()),
                "--vsock" => {
                    let wanted = "a port, 1 to 4294967294";
                    let port = number(value()?, wanted, 1, u32::MAX - 1)?;
                    settings.place = Place::Vsock(port);
                }
                "--source" => {
                    let value = value()?;
                    let known = InGuest::ALL.into_iter().find(|own| own.name() == value);
                    settings.source = match known {
                        Some(InGuest::Nothing) | None => {
                            return Err(ArgsError::Value {
                                option,
                                value,
                                wanted: "pebs, ibs, damon or page-faults",
                            });
                        }
                        known => known,
                    };
                }
                "--max-regions" => {
                    settings.max_regions = number(value()?, "10 to 8000", 10, 8000)?;
                }
                "--run-dir" => settings.run_dir = value()?.into(),
                _ => return Err(ArgsError::Unknown(option)),
            }
        }
        Ok(Self::Run(settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, ArgsError> {
        Command::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn run_when_options_are_given_takes_them() {
        assert_eq!(parse("run"), Ok(Command::Run(Settings::default())));
        let settings = Settings {
            place: Place::Vsock(7420),
            source: Some(InGuest::Damon),
            max_regions: 500,
            run_dir: "/tmp/x".into(),
        };
        assert_eq!(
            parse("run --vsock 7420 --source damon --max-regions 500 --run-dir /tmp/x"),
            Ok(Command::Run(settings))
        );
    }

    #[test]
    fn command_line_when_wrong_says_what() {
        for (line, word) in [
            ("", "run or report"),
            ("go", "'go'"),
            ("report now", "'now'"),
            ("run --port", "--port needs"),
            ("run --vsock 0", "'0'"),
            ("run --source nothing", "pebs, ibs"),
            ("run --max-regions 9", "10 to 8000"),
            ("run extra", "'extra'"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
