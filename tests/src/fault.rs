//! Runs that the emulator ended, not what they were to show.
//!
//! What is known of its faults stands in [`crate::emulator`]. They strike emulated hosts that no
//! agent has touched, so a run that shows one may begin again; every other failure counts at once.

use crate::event::Mark;
use crate::result::ScenarioResult;
use crate::scenario::{Scenario, System};

/// A fault of the emulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A stale breakpoint in the emulated host's kernel.
    StaleCode,
    /// The emulated host ended by itself, without a word.
    HostEnded,
    /// One of its CPUs sleeps for good, or it says nothing any more.
    CpuLost,
    /// A CPU waits for ever for another's answer.
    SoftLockup,
    /// An interrupt was delivered twice to a guest's Linux, which ended or stands still.
    LinuxGuestLost,
    /// A guest without an operating system reset itself, and no agent had been near any guest.
    BareGuestReset,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::StaleCode => "a CPU ran code that had been patched",
            Self::HostEnded => "the emulated host ended by itself",
            Self::CpuLost => "a CPU never woke up",
            Self::SoftLockup => "a CPU was never answered by another",
            Self::LinuxGuestLost => "a guest's Linux was interrupted twice for one interrupt",
            Self::BareGuestReset => "a guest reset itself before any agent ran",
        })
    }
}

/// How a run of the emulator came to its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The emulated host said that it was done, or could not go on.
    #[default]
    Told,
    /// The emulator's process ended before.
    TooEarly,
    /// An emulated CPU, or all of the host, stands still.
    StandStill,
    /// It went on for far longer than expected.
    TooLong,
}

/// The fault that a failed run shows, if it is one of the emulator's.
#[must_use]
pub fn find(scenario: &Scenario, result: &ScenarioResult, console: &str) -> Option<Fault> {
    if result.pass {
        return None;
    }
    if console.contains("Oops: int3") || console.contains("int3: 0000") {
        return Some(Fault::StaleCode);
    }
    match result.end {
        End::TooEarly => return Some(Fault::HostEnded),
        End::StandStill => return Some(Fault::CpuLost),
        End::Told | End::TooLong => {}
    }
    if console.contains("soft lockup") || console.contains("rcu_sched self-detected stall") {
        return Some(Fault::SoftLockup);
    }
    let failed = result.runs.iter().filter(|run| !run.pass);
    let reset_alone = failed.clone().any(|run| {
        let error = run.error.as_deref().unwrap_or_default();
        let mut marks = run.marks.iter();
        // QEMU ends with 0 where a guest resets: an exception that the guest notices ends it with a
        // line.
        error.starts_with("QEMU of guest")
            && error.ends_with("(exit status: 0)")
            && !marks.any(|(_, mark, _)| *mark == Mark::AgentStarted)
    });
    if reset_alone {
        return Some(Fault::BareGuestReset);
    }
    let mut errors = failed.filter_map(|run| Some((run.run.as_str(), run.error.as_deref()?)));
    let lost = errors.any(|(name, error)| {
        let run = scenario.runs.iter().find(|run| run.name == name);
        let linux = run.is_some_and(|run| run.guests.iter().any(|g| g.system == System::Linux));
        let guest = error.starts_with("guest ");
        let silent = error.contains("stands still") || error.contains("without a word");
        let ended = error.starts_with("QEMU of guest") || error.contains("Broken pipe");
        linux && (ended || guest && silent)
    });
    lost.then_some(Fault::LinuxGuestLost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::RunResult;

    fn scenario(system: &str) -> Scenario {
        let text = format!(
            "title = 'x'\nexpect-s = 1\n[[runs]]\nname = 'a'\nsteps = []\nguests = [{{ system = '{system}' }}]\n"
        );
        toml::from_str(&text).unwrap()
    }

    fn failed(error: &str, end: End) -> ScenarioResult {
        let mut result = ScenarioResult {
            end,
            ..ScenarioResult::default()
        };
        result.runs.push(RunResult::failed("a", error));
        result
    }

    #[test]
    fn failure_when_the_emulator_shows_its_fault_is_known() {
        let bare = scenario("bare");
        let told = failed("x", End::Told);

        assert_eq!(
            find(&bare, &told, "[ 9.1] Oops: int3: 0000 [#1]"),
            Some(Fault::StaleCode)
        );
        assert_eq!(
            find(&bare, &told, "watchdog: BUG: soft lockup - CPU#1"),
            Some(Fault::SoftLockup)
        );
        assert_eq!(
            find(&bare, &failed("x", End::TooEarly), ""),
            Some(Fault::HostEnded)
        );
        assert_eq!(
            find(&bare, &failed("x", End::StandStill), ""),
            Some(Fault::CpuLost)
        );
    }

    #[test]
    fn failure_when_it_is_the_projects_own_counts() {
        let bare = scenario("bare");

        assert_eq!(
            find(&bare, &failed("the agent ended at once", End::Told), ""),
            None
        );
        // Nothing interrupts a bare guest: its end is a fault of the guest or the VMM.
        assert_eq!(
            find(&bare, &failed("QEMU of guest a ended", End::Told), ""),
            None
        );
        assert_eq!(find(&bare, &failed("x", End::TooLong), ""), None);
        let mut passed = failed("x", End::TooEarly);
        passed.pass = true;
        assert_eq!(find(&bare, &passed, "Oops: int3"), None);
    }

    #[test]
    fn bare_guest_when_it_resets_itself_is_the_emulators_only_before_any_agent_ran() {
        let bare = scenario("bare");
        let reset = || failed("QEMU of guest a ended (exit status: 0)", End::Told);
        assert_eq!(find(&bare, &reset(), ""), Some(Fault::BareGuestReset));
        let mut beside_an_agent = reset();
        let mark = (1.0, Mark::AgentStarted, "a".to_owned());
        beside_an_agent.runs[0].marks.push(mark);
        assert_eq!(find(&bare, &beside_an_agent, ""), None);
        let crashed = failed("QEMU of guest a ended (signal: 6 (SIGABRT))", End::Told);
        assert_eq!(find(&bare, &crashed, ""), None);
    }

    #[test]
    fn linux_guest_when_it_ends_by_itself_is_the_emulators() {
        let linux = scenario("linux");

        assert_eq!(
            find(&linux, &failed("QEMU of guest a ended", End::Told), ""),
            Some(Fault::LinuxGuestLost)
        );
        assert_eq!(
            find(
                &linux,
                &failed("guest a stands still: no byte", End::Told),
                ""
            ),
            Some(Fault::LinuxGuestLost)
        );
        assert_eq!(
            find(&linux, &failed("the agent ended at once", End::Told), ""),
            None
        );
        assert_eq!(
            find(&linux, &failed("the agent stands still", End::Told), ""),
            None
        );
    }
}
