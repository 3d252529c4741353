//! Which sources of accesses work on this host and with this guest: what each sees, how precisely, and
//! what would make it work. Pure: from what was found to a table.

use tier_core::sample::{Sight, SourceKind};

use super::{
    Area, Finding, Level,
    agent::agent,
    facts::{GuestFacts, HostFacts},
    probe::{Probe, Probes},
    source_report::{SourceReport, Works},
};

/// The table, best source first. Without a guest it is for a guest of KVM's.
pub(super) fn table(
    host: &HostFacts,
    probes: &Probes,
    guest: Option<&GuestFacts>,
) -> Vec<SourceReport> {
    let is_kvm = guest.is_none_or(|guest| guest.kvm != Some(false));
    vec![
        ibs(&probes.ibs),
        agent(host.kvm.as_ref().ok(), guest, is_kvm),
        damon(&probes.damon),
        pebs(&probes.pebs, is_kvm),
    ]
}

/// Whether it works, and what was found, in words.
fn judge(probe: &Probe, what: &str) -> (Works, String) {
    match probe {
        Probe::Delivers { records: 0, .. } => (
            Works::Perhaps,
            format!("opened on the doctor's own thread, but no {what} came"),
        ),
        Probe::Delivers { records, usable: 0 } => (
            Works::No,
            format!("{records} {what} came, none of them with a usable address"),
        ),
        Probe::Delivers { records, usable } => (
            Works::Yes,
            format!("{records} {what} came, {usable} of them with a usable address"),
        ),
        Probe::Refused(why) => (Works::No, why.clone()),
    }
}

fn ibs(probe: &Probe) -> SourceReport {
    let (works, found) = judge(probe, "samples");
    let mut enable = Vec::new();
    if works == Works::No {
        enable.push("an AMD host (family 10h or later) with IBS on in its firmware".to_owned());
        enable.push(
            "as root, on the host itself: a hypervisor below does not hand IBS on to this machine"
                .to_owned(),
        );
    }
    SourceReport {
        source: SourceKind::Ibs,
        works,
        sees: Sight::Guest,
        precision: "exact (host-physical)",
        found,
        enable,
    }
}

fn damon(probe: &Probe) -> SourceReport {
    let (works, found) = judge(probe, "regions");
    let mut enable = Vec::new();
    if works != Works::Yes {
        enable.push(
            "a kernel with CONFIG_DAMON_VADDR and CONFIG_DAMON_SYSFS (Debian 13, most with Linux 6.x)"
                .to_owned(),
        );
        enable.push("root (CAP_SYS_ADMIN), a free kdamond, and tracefs".to_owned());
    }
    SourceReport {
        source: SourceKind::Damon,
        works,
        sees: Sight::Guest,
        precision: "regions of 4 KiB or more",
        found,
        enable,
    }
}

fn pebs(probe: &Probe, is_kvm: bool) -> SourceReport {
    let (works, found) = judge(probe, "samples");
    let mut enable = Vec::new();
    if works == Works::No {
        enable.push("an Intel host, or a virtual machine to which PEBS is handed on".to_owned());
    }
    let sees = if is_kvm {
        enable.push(
            "nothing makes it see a KVM guest from outside: run the guest agent with PEBS inside"
                .to_owned(),
        );
        Sight::HostMode
    } else {
        Sight::Guest
    };
    SourceReport {
        source: SourceKind::Pebs,
        works,
        sees,
        precision: "exact (host-virtual)",
        found,
        enable,
    }
}

/// What the table says in one finding.
pub(super) fn finding(table: &[SourceReport]) -> Finding {
    let names = |works: fn(&SourceReport) -> bool| {
        let names: Vec<_> = table
            .iter()
            .filter(|row| works(row))
            .map(|row| row.source.name())
            .collect();
        names.join(", ")
    };
    let serving = names(SourceReport::serves);
    if !serving.is_empty() {
        return Finding::new(
            Area::Sampling,
            "sources",
            Level::Ok,
            format!("the guest's accesses are seen by: {serving}"),
            "tiering knows what is hot",
        );
    }
    let hopeful = names(|row| row.works == Works::Perhaps && row.sees == Sight::Guest);
    if !hopeful.is_empty() {
        return Finding::new(
            Area::Sampling,
            "sources",
            Level::Warn,
            format!("the guest's accesses may be seen by: {hopeful}"),
            "whether that works shows when it runs; until then the agent is blind and moves nothing",
        );
    }
    Finding::new(
        Area::Sampling,
        "sources",
        Level::Fail,
        "no source on this host sees the guest's accesses",
        "the agent would be blind and move nothing; the table of sources says what would help",
    )
}
