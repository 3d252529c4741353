//! Findings about the host: nodes, permissions, sampling, KVM.

use tier_core::text::size::human;
use tier_core::{
    addr::{NodeId, NodeSet},
    constraints::Cpusets,
    tiers::{Division, TierBasis, Tiers, TiersError},
};

use super::{
    Area, Finding, Level,
    facts::{HostFacts, KvmFacts},
    memory::{drift, folios, huge_pages, hugetlb, other_damon, rivals},
};

/// The version that KVM has had since 2007; another one is not KVM as QEMU knows it.
const KVM_API_VERSION: i32 = 12;
/// A perf ring of 512 KiB a CPU is what the DAMON source asks for.
const RING_KIB: u64 = 512;

pub(super) fn findings(
    host: &HostFacts,
    division: Option<&Result<Division, TiersError>>,
) -> Vec<Finding> {
    let mut out = tiers(host, division);
    out.extend(permissions(host));
    out.extend(sampling(host));
    out.extend(virtualisation(&host.kvm));
    let tiers = division
        .and_then(|division| division.as_ref().ok())
        .map(|division| &division.tiers);
    out.extend(own_cpuset(host, tiers));
    match &host.pools {
        Ok(pools) => out.extend(pools.iter().filter_map(|pool| hugetlb(pool, tiers))),
        Err(error) => out.push(unreadable(Area::HugePages, "hugetlb-pools", error)),
    }
    out.extend(host.drifts.iter().map(drift));
    match &host.knobs {
        Ok(knobs) => {
            out.extend(huge_pages(knobs));
            out.extend(host.folios.as_ref().map(folios));
            out.extend(rivals(knobs));
        }
        Err(error) => out.push(unreadable(Area::Rivals, "kernel-settings", error)),
    }
    out.extend(other_damon(&host.damon));
    out
}

/// The cpuset of the doctor itself, if it leaves out a node of the tiers: started in the same way, an
/// agent can't move pages there.
fn own_cpuset(host: &HostFacts, tiers: Option<&Tiers>) -> Option<Finding> {
    let cpusets = Cpusets {
        qemu: None,
        agent: host.allowed.clone(),
    };
    let closed = cpusets.closed(tiers?, 0);
    let first = closed.first()?;
    let meaning = "an agent that is started as this command was can't move pages there";
    let finding = Finding::new(
        Area::Permissions,
        "own-cpuset",
        Level::Warn,
        first.reason.clone(),
        meaning,
    );
    Some(finding.mend("grep -H . /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/cpuset.mems"))
}

fn unreadable(area: Area, id: &'static str, error: &str) -> Finding {
    Finding::new(area, id, Level::Warn, error, "can't be judged")
}

fn tiers(host: &HostFacts, division: Option<&Result<Division, TiersError>>) -> Vec<Finding> {
    let topology = match &host.topology {
        Ok(topology) => topology,
        Err(error) => {
            return vec![Finding::new(
                Area::Tiers,
                "nodes",
                Level::Fail,
                error,
                "without nodes there are no tiers",
            )];
        }
    };
    let mut out: Vec<Finding> = Vec::new();
    for node in topology.nodes.iter().filter(|node| node.total > 0) {
        let mut parts = vec![format!(
            "{} ({} free)",
            human(node.total),
            human(node.marks.free)
        )];
        parts.push(if node.has_cpu { "CPUs" } else { "no CPUs" }.to_owned());
        parts.extend(node.tier.map(|tier| format!("kernel tier {tier}")));
        let latency = node
            .performance()
            .map_or(0, |performance| performance.read_latency_ns);
        if latency > 0 {
            parts.push(format!("reads take {latency} ns"));
        }
        let distances: Vec<_> = node.distances.iter().map(ToString::to_string).collect();
        parts.push(format!("distances {}", distances.join(" ")));
        let meaning = if node.marks.free > node.marks.high {
            "it has room"
        } else {
            "short of memory: a move to it makes room first"
        };
        out.push(Finding::new(
            Area::Tiers,
            "node",
            Level::Note,
            format!("node {}: {}", node.id, parts.join(", ")),
            meaning,
        ));
    }
    match division {
        Some(Ok(division)) => out.push(divided(division)),
        Some(Err(error @ TiersError::OneNode(_))) => {
            let node = topology
                .nodes
                .iter()
                .find(|node| node.total > 0)
                .map_or(NodeId(0), |node| node.id);
            let meaning =
                "nothing can be moved; --dry-run with the node as both tiers shows what would be";
            out.push(
                Finding::new(
                    Area::Tiers,
                    "tiers",
                    Level::Fail,
                    error.to_string(),
                    meaning,
                )
                .mend(format!(
                    "vmm-tier run --qmp SOCKET --fast {node} --slow {node} --dry-run"
                )),
            );
        }
        Some(Err(error)) => {
            let meaning = "the kernel sees no slower memory, so the tiers must be named";
            out.push(
                Finding::new(
                    Area::Tiers,
                    "tiers",
                    Level::Warn,
                    error.to_string(),
                    meaning,
                )
                .mend("vmm-tier run --qmp SOCKET --fast 0 --slow 1"),
            );
        }
        None => {}
    }
    out
}

fn divided(division: &Division) -> Finding {
    let tiers = &division.tiers;
    let what = format!(
        "fast tier: {}, slow tier: {}",
        nodes(&tiers.fast),
        nodes(&tiers.slow)
    );
    let basis = match division.basis {
        TierBasis::MemoryTiering => "by the kernel's memory tiers",
        TierBasis::Latency => "by read latency",
        TierBasis::CpuLess => "because a node without CPUs counts as a memory expander",
        TierBasis::Given => "as named",
    };
    let latency = match division.latencies_assumed {
        true => "latencies are not known and assumed to be",
        false => "a read takes",
    };
    let meaning = format!(
        "{basis}; {latency} {:.0} and {:.0} ns",
        tiers.fast_latency_ns, tiers.slow_latency_ns
    );
    Finding::new(Area::Tiers, "tiers", Level::Ok, what, meaning)
}

fn nodes(set: &NodeSet) -> String {
    format!("{} {set}", if set.len() == 1 { "node" } else { "nodes" })
}

fn permissions(host: &HostFacts) -> Vec<Finding> {
    let own = host.capabilities;
    let needed = [
        (
            own.sys_admin,
            "CAP_SYS_ADMIN",
            Level::Fail,
            "DAMON can't be set up, and its event can't be read",
        ),
        (
            own.sys_ptrace,
            "CAP_SYS_PTRACE",
            Level::Warn,
            "pages of other users' QEMU processes can't be moved",
        ),
        (
            own.sys_nice,
            "CAP_SYS_NICE",
            Level::Warn,
            "pages that vhost-user processes share can't be moved",
        ),
        (
            own.ipc_lock,
            "CAP_IPC_LOCK",
            Level::Note,
            "the perf rings must fit the locked-memory limit",
        ),
    ];
    let missing: Vec<_> = needed.into_iter().filter(|(has, ..)| !has).collect();
    if missing.is_empty() {
        let what = "all capabilities that an agent uses";
        return vec![Finding::new(
            Area::Permissions,
            "capabilities",
            Level::Ok,
            what,
            "pages of every guest can be sampled and moved",
        )];
    }
    let finding = |(_, name, level, meaning): (bool, &str, Level, &str)| {
        Finding::new(
            Area::Permissions,
            "capabilities",
            level,
            format!("{name} is missing"),
            meaning,
        )
        .mend("sudo vmm-tier doctor")
    };
    missing.into_iter().map(finding).collect()
}

fn sampling(host: &HostFacts) -> Vec<Finding> {
    let mut out = Vec::new();
    let area = Area::Sampling;
    out.push(match host.damon.has_sysfs {
        true => Finding::new(area, "damon", Level::Ok, "DAMON has its sysfs interface", "the agent can set it up"),
        false => Finding::new(
            area,
            "damon",
            Level::Warn,
            "DAMON's sysfs interface is missing (/sys/kernel/mm/damon/admin)",
            "DAMON can't sample guests: boot a kernel with CONFIG_DAMON_VADDR and CONFIG_DAMON_SYSFS",
        )
        .mend("grep DAMON /boot/config-$(uname -r)"),
    });
    out.push(match (host.has_tracefs, host.has_damon_event) {
        (true, true) => Finding::new(area, "damon-event", Level::Ok, "tracefs has the event damon:damon_aggregated", "DAMON's findings arrive through a perf ring"),
        (true, false) => Finding::new(area, "damon-event", Level::Warn, "tracefs has no event damon:damon_aggregated", "DAMON's findings can't be received: boot a kernel with CONFIG_DAMON and CONFIG_TRACEPOINTS"),
        (false, _) => Finding::new(area, "damon-event", Level::Warn, "tracefs can't be read", "DAMON's findings can't be received")
            .mend("mount -t tracefs tracefs /sys/kernel/tracing"),
    });
    let Ok(knobs) = &host.knobs else {
        return out;
    };
    let own = host.capabilities;
    if let Some(paranoid) = knobs.perf_event_paranoid {
        let what = format!("kernel.perf_event_paranoid = {paranoid}");
        // Debian's patch: from 3 on CAP_PERFMON is not enough.
        let is_enough = own.sys_admin || (own.perfmon && paranoid < 3) || paranoid < 0;
        out.push(match is_enough {
            true => Finding::new(
                area,
                "perf-paranoid",
                Level::Ok,
                what,
                "perf events can be opened with this user's capabilities",
            ),
            false => Finding::new(
                area,
                "perf-paranoid",
                Level::Fail,
                what,
                "tracepoints can't be opened by this user",
            )
            .mend("sudo vmm-tier doctor"),
        });
    }
    if let Some(kib) = knobs.perf_event_mlock_kb {
        let what = format!("kernel.perf_event_mlock_kb = {kib}");
        out.push(if own.ipc_lock || kib >= RING_KIB {
            Finding::new(area, "perf-mlock", Level::Ok, what, "perf rings have room")
        } else {
            Finding::new(
                area,
                "perf-mlock",
                Level::Warn,
                what,
                "perf rings will be small and lose records under load",
            )
            .mend(format!(
                "sysctl kernel.perf_event_mlock_kb={}",
                RING_KIB + 4
            ))
        });
    }
    out
}

fn virtualisation(kvm: &Result<KvmFacts, String>) -> Vec<Finding> {
    let area = Area::Virtualisation;
    let kvm = match kvm {
        Ok(kvm) => kvm,
        Err(error) => {
            let meaning = "only emulated (TCG) guests can run here; they can be tiered";
            return vec![
                Finding::new(
                    area,
                    "kvm",
                    Level::Warn,
                    format!("KVM can't be opened: {error}"),
                    meaning,
                )
                .mend("modprobe -a kvm_intel kvm_amd"),
            ];
        }
    };
    let mut out = Vec::new();
    let version = format!("KVM, API version {}", kvm.api_version);
    out.push(if kvm.api_version != KVM_API_VERSION {
        Finding::new(
            area,
            "kvm",
            Level::Warn,
            version,
            format!("QEMU expects version {KVM_API_VERSION}"),
        )
    } else if !kvm.sync_mmu {
        Finding::new(
            area,
            "kvm",
            Level::Fail,
            version,
            "KVM_CAP_SYNC_MMU is missing: a page can't be moved under a running guest",
        )
    } else {
        Finding::new(
            area,
            "kvm",
            Level::Ok,
            version,
            "pages can be moved under a running guest",
        )
    });
    match kvm.paging {
        Some((module, true)) => out.push(Finding::new(
            area,
            "nested-paging",
            Level::Ok,
            format!("{module} uses nested paging"),
            "accessed bits of guest pages are kept by hardware",
        )),
        Some((module, false)) => out.push(
            Finding::new(
                area,
                "nested-paging",
                Level::Warn,
                format!("{module} runs with shadow page tables"),
                "each look at accessed bits costs the guest a fault",
            )
            .mend(format!(
                "modprobe -r {module} && modprobe {module} {}=1",
                if module == "kvm_intel" { "ept" } else { "npt" }
            )),
        ),
        None => {}
    }
    if let Some(guest_pmu) = kvm.guest_pmu {
        let (what, meaning) = match (guest_pmu, kvm.guest_pmu_version) {
            (true, 0) => (
                "KVM gives guests a PMU".to_owned(),
                "what a guest agent can sample depends on the CPU",
            ),
            (true, version @ 1..=3) => (
                format!("KVM gives guests a PMU of version {version}"),
                "too old for a guest agent to sample addresses",
            ),
            (true, version) => (
                format!("KVM gives guests a PMU of version {version}"),
                "a guest agent may sample exact addresses where the CPU can",
            ),
            (false, _) => (
                "KVM gives guests no PMU (kvm.enable_pmu=0)".to_owned(),
                "a guest agent samples with DAMON or by page faults",
            ),
        };
        out.push(Finding::new(area, "guest-pmu", Level::Note, what, meaning));
    }
    out
}
