//! Alarms: what an operator should know of the host now, in words.
//!
//! [`AlarmBook::look`] is a pure function of the figures at each look and of when each trouble began. An
//! alarm is told once its trouble has lasted, so that a share that is on its way to a VM raises none.

use std::{collections::BTreeMap, time::Duration};

use crate::{engine::Wait, text::size::human, time::Time};

/// The most alarms that are told, the worst first. A host whose VMs are all in trouble has a trouble of
/// its own.
pub const MAX_ALARMS: usize = 100;
/// A VM lacks of its guarantee if it lacks this part of it: whole pages and moves under way are less.
const GUARANTEE_PART: f64 = 0.02;
/// A VM is below its share if it lacks this part of it.
const SHARE_PART: f64 = 0.05;
/// Less is never worth an alarm, in bytes: the least step of a share.
const LEAST_BYTES: u64 = 256 << 10;

crate::words! {
    /// How bad an alarm is.
    pub enum Severity {
        /// The service is worse than was asked for.
        Warning = "warning",
        /// What was promised is not kept: someone must act.
        Critical = "critical",
    }
}

crate::report! {
    /// What an operator should know now.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Alarm = "HostAlarm" {
        /// The VM that it is about; absent if it is about the host.
        pub vm: Option<String>,
        /// How bad it is.
        pub severity: Severity,
        /// For how long it has been so.
        pub since_s: f64,
        /// What is wrong and why, in a sentence.
        pub text: String,
    }
}

/// Whether a VM's agent is heard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Voice {
    /// It reports, or is about to.
    Heard,
    /// It has been silent for a while; the share holds.
    Quiet,
    /// It has been silent for so long that the share has ended.
    Expired,
    /// The VM has no agent.
    None,
}

/// What is known of a VM at a look.
#[derive(Clone, Debug, PartialEq)]
pub struct VmFacts<'a> {
    /// The VM.
    pub name: &'a str,
    /// Whether its agent is heard.
    pub voice: Voice,
    /// Why its agent was refused, if it was.
    pub refused: Option<&'a str>,
    /// What is guaranteed to it, in bytes.
    pub guarantee_bytes: u64,
    /// What it may hold, in bytes.
    pub share_bytes: Option<u64>,
    /// What it uses, in bytes.
    pub demand_bytes: Option<u64>,
    /// What it holds, in bytes.
    pub fast_bytes: u64,
    /// The operator's limit, in bytes.
    pub limit_bytes: Option<u64>,
    /// Whether its agent sees no accesses.
    pub is_blind: bool,
    /// What its moves wait for.
    pub waits_for: Option<Wait>,
}

/// What is known of the host at a look.
#[derive(Clone, Debug, PartialEq)]
pub struct HostFacts<'a> {
    /// Bytes by which the guarantees exceed the pool.
    pub shortfall_bytes: u64,
    /// Why what commands set can't be kept.
    pub state_file_error: Option<&'a str>,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    BelowGuarantee,
    Expired,
    Shortfall,
    Refused,
    BelowShare,
    Quiet,
    Blind,
    StateFile,
}

impl Trouble {
    /// For how long it must last before it is told.
    const fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::BelowGuarantee => 3,
            Self::BelowShare => 30,
            Self::Blind => 5,
            Self::Expired | Self::Shortfall | Self::Refused | Self::Quiet | Self::StateFile => 0,
        })
    }

    /// How bad it is after so long.
    fn severity(self, lasted: Duration) -> Severity {
        match self {
            Self::Expired | Self::Shortfall => Severity::Critical,
            // The time within which a guarantee is back unless the operator says otherwise.
            Self::BelowGuarantee if lasted >= Duration::from_secs(10) => Severity::Critical,
            _ => Severity::Warning,
        }
    }
}

/// Since when what has been wrong.
#[derive(Clone, Debug, Default)]
pub struct AlarmBook {
    since: BTreeMap<(String, Trouble), Time>,
}

impl AlarmBook {
    /// What is to be told at `now`: the worst first, then by VM. Looking twice at the same figures tells
    /// the same.
    pub fn look<'a>(
        &mut self,
        now: Time,
        host: &HostFacts<'_>,
        vms: impl IntoIterator<Item = VmFacts<'a>>,
    ) -> Vec<Alarm> {
        let mut found = troubles_of_host(host);
        for vm in vms {
            let troubles = troubles_of_vm(&vm).into_iter();
            found.extend(troubles.map(|(trouble, words)| (vm.name.to_owned(), trouble, words)));
        }
        let mut since = BTreeMap::new();
        let mut told = Vec::new();
        for (name, trouble, Words { what, why }) in found {
            let key = (name, trouble);
            // A clock that jumps back begins anew.
            let known = self.since.get(&key).copied();
            let begin = known.filter(|&begin| begin <= now).unwrap_or(now);
            let lasted = now.since(begin);
            if lasted >= trouble.patience() {
                let text = sentence(&key.0, &what, lasted, &why);
                told.push((trouble, key.0.clone(), lasted, text));
            }
            since.insert(key, begin);
        }
        self.since = since;
        told.sort_by(|(a, a_name, a_lasted, _), (b, b_name, b_lasted, _)| {
            let by_severity = b.severity(*b_lasted).cmp(&a.severity(*a_lasted));
            by_severity.then_with(|| (a, a_name).cmp(&(b, b_name)))
        });
        told.truncate(MAX_ALARMS);
        let alarm = |(trouble, name, lasted, text): (Trouble, String, Duration, String)| Alarm {
            vm: (!name.is_empty()).then_some(name),
            severity: trouble.severity(lasted),
            since_s: lasted.as_secs_f64(),
            text,
        };
        told.into_iter().map(alarm).collect()
    }
}

/// A trouble in words: what is so, and why or what follows; `why` may be empty.
struct Words {
    what: String,
    why: String,
}

impl Words {
    fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
        }
    }
}

/// `vm7 is 120 MiB below its guarantee for 14 s: its pages are pinned`.
fn sentence(name: &str, what: &str, lasted: Duration, why: &str) -> String {
    let name = if name.is_empty() { "the host" } else { name };
    let lasted = match lasted.as_secs() {
        0 => String::new(),
        seconds @ ..120 => format!(" for {seconds} s"),
        seconds @ ..7200 => format!(" for {} min", seconds / 60),
        seconds => format!(" for {} h", seconds / 3600),
    };
    match why {
        "" => format!("{name} {what}{lasted}"),
        why => format!("{name} {what}{lasted}: {why}"),
    }
}

fn troubles_of_host(host: &HostFacts<'_>) -> Vec<(String, Trouble, Words)> {
    let mut found = Vec::new();
    if host.shortfall_bytes > 0 {
        let lacking = human(host.shortfall_bytes);
        let words = Words::new(
            format!("lacks {lacking} for all guarantees"),
            "each VM is guaranteed the same part of its guarantee",
        );
        found.push((String::new(), Trouble::Shortfall, words));
    }
    if let Some(error) = host.state_file_error {
        let words = Words::new("forgets at its next start what commands set", error);
        found.push((String::new(), Trouble::StateFile, words));
    }
    found
}

fn troubles_of_vm(vm: &VmFacts<'_>) -> Vec<(Trouble, Words)> {
    let mut found = Vec::new();
    if let Some(reason) = vm.refused {
        let words = Words::new("has no share, as its agent was refused", reason);
        found.push((Trouble::Refused, words));
    }
    match vm.voice {
        Voice::None => return found,
        Voice::Expired => {
            let words = Words::new(
                "has had no share",
                "its agent is silent, and the VM is charged with what it holds",
            );
            found.push((Trouble::Expired, words));
            return found;
        }
        Voice::Quiet => {
            let words = Words::new("has a silent agent", "its share stays as it is");
            found.push((Trouble::Quiet, words));
        }
        Voice::Heard => {}
    }
    let demand = vm.demand_bytes.unwrap_or(0);
    let lacks_of = |bytes: u64, part: f64| {
        let lacking = bytes.min(demand).saturating_sub(vm.fast_bytes);
        let least = ((bytes as f64 * part) as u64).max(LEAST_BYTES);
        (lacking >= least).then_some(lacking)
    };
    if let Some(lacking) = lacks_of(vm.guarantee_bytes, GUARANTEE_PART) {
        let what = format!("is {} below its guarantee", human(lacking));
        found.push((Trouble::BelowGuarantee, Words::new(what, reason(vm))));
    } else if let Some(share) = vm.share_bytes
        && let Some(lacking) = lacks_of(share, SHARE_PART)
    {
        let what = format!("is {} below its share", human(lacking));
        found.push((Trouble::BelowShare, Words::new(what, reason(vm))));
    }
    if vm.is_blind {
        let words = Words::new("is not seen", "no source of its agent delivers accesses");
        found.push((Trouble::Blind, words));
    }
    found
}

/// Why a VM has less than it may have, as far as its agent tells; empty if it does not.
fn reason(vm: &VmFacts<'_>) -> &'static str {
    let bound = vm.share_bytes.unwrap_or(u64::MAX);
    if vm.limit_bytes.is_some_and(|limit| limit < bound) {
        return "the operator's limit is below its share";
    }
    match vm.waits_for {
        None => "",
        Some(Wait::Monitor) => "QEMU's monitor is lost",
        Some(Wait::Pause) => "its moves pause: ask query-tier for whom",
        Some(Wait::Guest) => "its CPUs are stopped",
        Some(Wait::LookUp) => "its pages are being looked up",
        Some(Wait::Source) => "no source delivers",
        Some(Wait::WarmUp) => "its source has not watched for long enough",
        Some(Wait::Pace) => "its source adapts its pace",
        Some(Wait::Cpuset) => "a cpuset leaves out the fast nodes",
        Some(Wait::Rest) => "its pages can't be moved now: they are pinned or busy",
        Some(Wait::Access) => "its slow pages are not accessed",
        Some(Wait::Room) => {
            "the fast nodes have no room for it: the pool may be larger than what they can give"
        }
        Some(Wait::ColdPage) => "no page of it that is in DRAM may leave: they are pinned or rest",
        Some(Wait::Gain) => "no exchange of its pages pays",
        Some(Wait::Brake) => "its exchanges are slowed down",
        Some(Wait::Rate) => "its rate of moves is used up",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const WELL: HostFacts<'static> = HostFacts {
        shortfall_bytes: 0,
        state_file_error: None,
    };

    fn vm(name: &str) -> VmFacts<'_> {
        VmFacts {
            name,
            voice: Voice::Heard,
            refused: None,
            guarantee_bytes: 500 * MIB,
            share_bytes: Some(600 * MIB),
            demand_bytes: Some(600 * MIB),
            fast_bytes: 600 * MIB,
            limit_bytes: None,
            is_blind: false,
            waits_for: None,
        }
    }

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn texts(alarms: &[Alarm]) -> Vec<(Severity, &str)> {
        alarms
            .iter()
            .map(|it| (it.severity, it.text.as_str()))
            .collect()
    }

    #[test]
    fn vm_when_below_its_guarantee_is_told_with_time_and_reason() {
        let mut book = AlarmBook::default();
        let short = VmFacts {
            fast_bytes: 380 * MIB,
            waits_for: Some(Wait::Rest),
            ..vm("vm7")
        };
        assert_eq!(book.look(at(100), &WELL, [short.clone()]), []);
        assert_eq!(book.look(at(102), &WELL, [short.clone()]), []);
        let told = book.look(at(103), &WELL, [short.clone()]);
        assert_eq!(told[0].severity, Severity::Warning);
        let told = book.look(at(114), &WELL, [short.clone()]);
        let text = "vm7 is 120 MiB below its guarantee for 14 s: its pages can't be moved now: they are \
                    pinned or busy";
        assert_eq!(texts(&told), [(Severity::Critical, text)]);
        assert_eq!(
            (told[0].vm.as_deref(), told[0].since_s),
            (Some("vm7"), 14.0)
        );
        assert_eq!(book.look(at(114), &WELL, [short.clone()]), told, "twice");
        // It has its guarantee again, and lacks of it later: the time begins anew.
        assert_eq!(book.look(at(115), &WELL, [vm("vm7")]), []);
        assert_eq!(book.look(at(116), &WELL, [short]), []);
    }

    #[test]
    fn vm_when_it_uses_less_or_lacks_little_raises_no_alarm() {
        let mut book = AlarmBook::default();
        let idle = VmFacts {
            demand_bytes: Some(MIB),
            fast_bytes: MIB,
            ..vm("idle")
        };
        let nearly = VmFacts {
            fast_bytes: 495 * MIB,
            share_bytes: Some(500 * MIB),
            ..vm("nearly")
        };
        let unknown = VmFacts {
            demand_bytes: None,
            share_bytes: None,
            fast_bytes: 0,
            ..vm("unknown")
        };
        for second in [0, 1000] {
            let vms = [idle.clone(), nearly.clone(), unknown.clone()];
            assert_eq!(book.look(at(second), &WELL, vms), []);
        }
    }

    #[test]
    fn vm_when_the_nodes_have_no_room_names_the_pool() {
        let mut book = AlarmBook::default();
        let short = VmFacts {
            fast_bytes: 550 * MIB,
            waits_for: Some(Wait::Room),
            ..vm("db")
        };
        assert_eq!(book.look(at(0), &WELL, [short.clone()]), []);
        let told = book.look(at(300), &WELL, [short.clone()]);
        let text = "db is 50 MiB below its share for 5 min: the fast nodes have no room for it: the pool \
                    may be larger than what they can give";
        assert_eq!(texts(&told), [(Severity::Warning, text)]);
        let limited = VmFacts {
            limit_bytes: Some(550 * MIB),
            ..short
        };
        let told = book.look(at(301), &WELL, [limited]);
        assert!(
            told[0]
                .text
                .ends_with("operator's limit is below its share")
        );
    }

    #[test]
    fn alarms_when_there_are_many_are_the_worst_first_and_bounded() {
        let names: Vec<String> = (0..200).map(|it| format!("vm{it:03}")).collect();
        let blind = |name: &'static str| VmFacts {
            is_blind: true,
            ..vm(name)
        };
        let silent = names.iter().map(|name| VmFacts {
            voice: Voice::Expired,
            ..vm(name)
        });
        let mut book = AlarmBook::default();
        let host = HostFacts {
            shortfall_bytes: 3 * MIB,
            state_file_error: Some("the disk is full"),
        };
        let all = |book: &mut AlarmBook, second| {
            book.look(at(second), &host, silent.clone().chain([blind("a")]))
        };
        all(&mut book, 0);
        let told = all(&mut book, 60);
        assert_eq!(told.len(), MAX_ALARMS);
        assert!(told.iter().all(|it| it.severity == Severity::Critical));
        assert!(told[0].text.starts_with("vm000 has had no share for 60 s"));
        let few = book.look(at(61), &host, [blind("a")]);
        let severities: Vec<Severity> = few.iter().map(|it| it.severity).collect();
        assert_eq!(
            severities,
            [Severity::Critical, Severity::Warning, Severity::Warning]
        );
        assert_eq!(few[0].vm, None);
        assert!(few[0].text.starts_with("the host lacks 3 MiB"), "{few:?}");
    }

    #[test]
    fn agent_when_refused_or_absent_is_told_or_not() {
        let mut book = AlarmBook::default();
        let refused = VmFacts {
            voice: Voice::None,
            refused: Some("its name is taken"),
            ..vm("b")
        };
        let none = VmFacts {
            voice: Voice::None,
            fast_bytes: 0,
            ..vm("c")
        };
        let told = book.look(at(1), &WELL, [refused, none]);
        let text = "b has no share, as its agent was refused: its name is taken";
        assert_eq!(texts(&told), [(Severity::Warning, text)]);
        // A clock that jumps back.
        let quiet = VmFacts {
            voice: Voice::Quiet,
            ..vm("b")
        };
        book.look(at(50), &WELL, [quiet.clone()]);
        let told = book.look(at(10), &WELL, [quiet]);
        assert_eq!(told[0].since_s, 0.0);
    }
}
