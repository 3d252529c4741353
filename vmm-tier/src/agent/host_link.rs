//! The host daemon as the agent sees it: what is reported to it, and what it grants.
//!
//! A [thread](link) speaks with the daemon. The agent's thread hands it a report about once a second and
//! takes the daemon's leases, and waits for neither. A share bounds the guest beside the operator's limit,
//! as long as its lease lasts. Then the operator's limit alone holds.

mod leases;
mod link;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;
use tier_core::{
    addr::BASE_PAGE,
    arbiter::Rules,
    engine::{DemandBasis, HostGrant, Order, VmEngine},
    map::GuestMemoryMap,
    text::size,
    time::Time,
};
use tier_sys::process;

pub(super) use self::link::{Identity, News};
use self::{
    leases::Leases,
    link::{Facts, LinkEnd},
};
use super::{Agent, log_once::LogOnce, vm::Vm};
use crate::host::protocol::{Lease, MOST_POINTS, MOST_RANGES, REPORT_EVERY_MS, Report};

/// The least time between two events, or two lines in the journal, about shares.
const TOLD_APART: Duration = Duration::from_secs(10);
/// A share is told of if it differs by at least one part of so many from the share that was told last.
const TOLD_PART: u64 = 20;

tier_core::words! {
    /// How the agent stands with the host daemon.
    pub(super) enum HostState {
        /// The daemon is not reached.
        Unreached = "unreached",
        /// The daemon took the VM.
        Registered = "registered",
        /// The daemon refused the VM, or its reports; the agent tries again.
        Refused = "refused",
    }
}

tier_core::words! {
    /// Whose limit is in force.
    pub(super) enum LimitOwner {
        /// The operator's.
        Operator = "operator",
        /// The host daemon's share.
        Host = "host",
    }
}

tier_core::report! {
    /// How the agent stands with the host daemon, and what the daemon grants.
    #[derive(Clone, Debug)]
    pub(super) struct HostReport = "TierHost" {
        /// The daemon's socket.
        #[metric(exempt = "text; the same for all VMs of a host")]
        socket: String,
        /// How the agent stands with the daemon.
        #[metric(states = "host_link_state")]
        state: HostState,
        /// What is wrong with the daemon or its replies, if something is.
        #[metric(exempt = "text; `vmm_tier_host_link_state` and the counters say that it is so")]
        trouble: Option<String>,
        /// Whose limit of the fast tier is in force, if there is a limit: the lesser of both.
        #[metric(states = "limit_owner")]
        limit_owner: Option<LimitOwner>,
        /// The operator's limit of the fast tier, if there is one.
        #[metric(gauge = "operator_limit_bytes")]
        operator_limit_bytes: Option<u64>,
        /// The share of the fast tier that the daemon grants; absent if none holds.
        #[metric(gauge = "host_link_share_bytes")]
        share_bytes: Option<u64>,
        /// For how many seconds the share holds if the daemon says nothing more.
        #[metric(gauge = "host_link_lease_left_seconds")]
        lease_left_s: Option<f64>,
        /// Most bytes moved a second that the daemon grants; absent if no lease holds.
        #[metric(gauge = "host_link_rate_limit_bytes_per_second")]
        move_bytes_per_s: Option<u64>,
        /// Most bytes moved a second, in force: the lesser of the daemon's and the policy's.
        #[metric(gauge = "rate_in_force_bytes_per_second")]
        rate_in_force_bytes_per_s: u64,
        /// How much DRAM the guest uses, by the arbiter's standing rules: the memory with an access a
        /// minute or more for each 4 KiB, and of that the hottest that takes 99 % of all accesses.
        #[metric(gauge = "demand_bytes")]
        demand_bytes: u64,
        /// How that is known.
        #[metric(states = "demand_basis")]
        demand_basis: DemandBasis,
        /// Times that the daemon took the VM.
        #[metric(counter = "host_link_registrations", since = "the agent's start")]
        registrations: u64,
        /// Reports that the daemon answered with a lease.
        #[metric(counter = "host_link_reports", since = "the agent's start")]
        reports: u64,
        /// Registrations and reports that the daemon refused.
        #[metric(counter = "host_link_refusals", since = "the agent's start")]
        refusals: u64,
        /// Replies that were no lease, or one that is not believed.
        #[metric(counter = "host_link_bad_replies", since = "the agent's start")]
        bad_replies: u64,
        /// Shares that ended as the daemon granted no more.
        #[metric(counter = "host_link_leases_ended", since = "the agent's start")]
        leases_ended: u64,
    }
}

/// What was told of the limit in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    bytes: Option<u64>,
    owner: Option<LimitOwner>,
    /// When a change by the daemon was told last.
    at: Option<Instant>,
}

impl Told {
    /// Whether another limit is worth an event now: it is another's, or differs by 5 %; once in 10 s.
    fn is_news(&self, bytes: Option<u64>, owner: Option<LimitOwner>, now: Instant) -> bool {
        let may_tell = self
            .at
            .is_none_or(|at| now.saturating_duration_since(at) >= TOLD_APART);
        let differs = match (self.bytes, bytes) {
            (Some(old), Some(new)) => old.abs_diff(new) > old / TOLD_PART,
            (old, new) => old != new,
        };
        may_tell && (owner != self.owner || differs)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    registrations: u64,
    reports: u64,
    refusals: u64,
    bad_replies: u64,
    leases_ended: u64,
}

/// See the [module](self).
pub(super) struct HostLink {
    socket: PathBuf,
    end: LinkEnd,
    state: HostState,
    leases: Leases,
    /// The grant in force.
    grant: HostGrant,
    told: Told,
    trouble: LogOnce,
    /// Whether the last report was answered as it should be.
    is_well: bool,
    counts: Counts,
    every: Duration,
    next_report: Instant,
}

impl HostLink {
    /// Begins to speak with the daemon at `socket`. `limit_bytes` is the limit in force, which is the
    /// operator's.
    pub(super) fn start(
        socket: &Path,
        identity: Identity,
        limit_bytes: Option<u64>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            socket: socket.to_owned(),
            end: LinkEnd::start(socket.to_owned(), identity)?,
            state: HostState::Unreached,
            leases: Leases::default(),
            grant: HostGrant::default(),
            told: Told {
                bytes: limit_bytes,
                owner: limit_bytes.map(|_| LimitOwner::Operator),
                at: None,
            },
            trouble: LogOnce::default(),
            is_well: false,
            counts: Counts::default(),
            every: Duration::from_millis(REPORT_EVERY_MS),
            next_report: Instant::now(),
        })
    }

    /// Where the daemon's news arrive.
    pub(super) const fn news(&self) -> &Receiver<News> {
        self.end.news()
    }

    /// The share in force.
    pub(super) const fn share_bytes(&self) -> Option<u64> {
        self.grant.share_bytes
    }

    /// The picture for `query-tier`.
    pub(super) fn report(&self, engine: &VmEngine, now: Time) -> HostReport {
        let Counts {
            registrations,
            reports,
            refusals,
            bad_replies,
            leases_ended,
        } = self.counts;
        let demand = engine.demand(now);
        let rules = Rules::default();
        let idle = rules.idle_hits_per_page_s / BASE_PAGE as f64;
        let left = self.leases.left(Instant::now());
        HostReport {
            socket: self.socket.display().to_string(),
            state: self.state,
            trouble: self.trouble.now.clone(),
            limit_owner: limit_owner(engine),
            operator_limit_bytes: engine.operator_limit(),
            share_bytes: self.grant.share_bytes,
            lease_left_s: left.map(|left| left.as_secs_f64()),
            move_bytes_per_s: self.grant.rate_bytes_per_s,
            rate_in_force_bytes_per_s: engine.settings().rate_bytes_per_s,
            demand_bytes: demand.curve.used_bytes(rules.coverage, idle) as u64,
            demand_basis: demand.basis,
            registrations,
            reports,
            refusals,
            bad_replies,
            leases_ended,
        }
    }

    /// Takes news of the daemon that came at `now`, for a guest of so much memory. Returns the words for
    /// the journal, if any are due.
    fn take(&mut self, news: News, guest_bytes: u64, now: Instant) -> Option<Words> {
        match news {
            News::Registered(lease) => {
                self.state = HostState::Registered;
                self.counts.registrations += 1;
                // What is wrong with reports is so until a report is answered well.
                let taken = self.take_lease(&lease, guest_bytes, now);
                taken.err().and_then(|why| self.trouble_with(why))
            }
            News::Reported(lease) => {
                self.counts.reports += 1;
                if let Err(why) = self.take_lease(&lease, guest_bytes, now) {
                    return self.trouble_with(why);
                }
                let was_well = std::mem::replace(&mut self.is_well, true);
                self.trouble.end();
                (!was_well).then_some(Words::Registered)
            }
            News::ReportRefused(why) => {
                self.counts.refusals += 1;
                self.trouble_with(format!("the host daemon refuses a report: {why}"))
            }
            News::Refused(why) => {
                self.state = HostState::Refused;
                self.counts.refusals += 1;
                self.trouble_with(format!("the host daemon refuses this VM: {why}"))
            }
            News::Nonsense(why) => {
                self.counts.bad_replies += 1;
                self.trouble_with(why)
            }
            News::Lost(why) => {
                self.state = HostState::Unreached;
                self.trouble_with(why)
            }
        }
    }

    fn take_lease(&mut self, lease: &Lease, guest_bytes: u64, now: Instant) -> Result<(), String> {
        match self.leases.take(lease, guest_bytes, now) {
            Ok(every) => {
                self.every = every;
                Ok(())
            }
            Err(error) => {
                self.counts.bad_replies += 1;
                Err(error.to_string())
            }
        }
    }

    fn trouble_with(&mut self, why: String) -> Option<Words> {
        self.is_well = false;
        self.trouble.is_news(&why).then_some(Words::Trouble(why))
    }

    /// Whether a report is due; the next one is due later.
    fn is_report_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.next_report;
        if is_due {
            self.next_report = (self.next_report + self.every).max(now + self.every / 2);
        }
        is_due
    }
}

/// What the journal is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Words {
    /// The daemon grants shares, again or for the first time.
    Registered,
    Trouble(String),
}

/// Whose limit is in force; the operator's, where both are the same.
pub(super) fn limit_owner(engine: &VmEngine) -> Option<LimitOwner> {
    let in_force = engine.settings().fast_limit_bytes?;
    match engine.operator_limit() == Some(in_force) {
        true => Some(LimitOwner::Operator),
        false => Some(LimitOwner::Host),
    }
}

impl Agent {
    /// Takes news of the host daemon.
    pub(super) fn on_host_news(&mut self, news: News) {
        let now = Instant::now();
        let guest_bytes = self.engine.map().map_or(0, GuestMemoryMap::total_bytes);
        let Some(host) = &mut self.host else { return };
        let words = host.take(news, guest_bytes, now);
        let vm = self.vm.name.as_str();
        match words {
            Some(Words::Registered) => tracing::info!(
                vm,
                "the host daemon has registered the guest and grants it shares"
            ),
            Some(Words::Trouble(why)) => tracing::warn!(
                vm,
                "{why}; the last share holds until its lease ends, then the operator's limit; the \
                 agent tries again"
            ),
            None => {}
        }
        self.look_at_host(now);
    }

    /// Puts in force what is granted, reports if that is due, and tells of the limit.
    pub(super) fn look_at_host(&mut self, now: Instant) {
        let Some(host) = &mut self.host else { return };
        if host.leases.end(now) {
            host.counts.leases_ended += 1;
            tracing::warn!(
                vm = self.vm.name,
                "the lease on the share of the fast tier ended: the operator's limit holds"
            );
        }
        let grant = host.leases.grant();
        let is_due = host.is_report_due(now);
        if std::mem::replace(&mut host.grant, grant) != grant {
            // Never refused.
            let _ = self.order(Order::Grant(grant));
        }
        self.tell_limit(now);
        if is_due {
            self.report_to_host();
        }
    }

    /// Tells of the limit that is in force with `bytes` as the operator's. `who` set that.
    pub(super) fn tell_limit_of_operator(&mut self, bytes: Option<u64>, who: &str) {
        let old = self.engine.settings().fast_limit_bytes;
        let share = self.host.as_ref().and_then(HostLink::share_bytes);
        let new = bytes.into_iter().chain(share).min();
        let owner = match new == bytes {
            true => new.map(|_| LimitOwner::Operator),
            false => Some(LimitOwner::Host),
        };
        let who = match owner {
            Some(LimitOwner::Host) => LimitOwner::Host.name(),
            _ => who,
        };
        self.clients.events.limit(old, new, who);
        if let Some(host) = &mut self.host {
            (host.told.bytes, host.told.owner) = (new, owner);
        }
    }

    /// Tells of the limit in force, if the daemon changed it by enough.
    fn tell_limit(&mut self, now: Instant) {
        let Some(host) = &mut self.host else { return };
        let bytes = self.engine.settings().fast_limit_bytes;
        let owner = limit_owner(&self.engine);
        if !host.told.is_news(bytes, owner, now) {
            return;
        }
        let old = host.told.bytes;
        host.told = Told {
            bytes,
            owner,
            at: Some(now),
        };
        let who = owner.unwrap_or(LimitOwner::Operator);
        let words = |bytes: Option<u64>| bytes.map_or("none".to_owned(), size::human);
        tracing::info!(
            vm = self.vm.name,
            old = words(old),
            new = words(bytes),
            who = who.name(),
            "limit of the fast tier"
        );
        self.clients.events.limit(old, bytes, who.name());
    }

    fn report_to_host(&self) {
        let Some(host) = &self.host else { return };
        host.end.tell(facts(
            &self.engine,
            Self::now(),
            self.sources.believed_name(),
            host.share_bytes(),
        ));
    }
}

/// What is reported of a guest now.
fn facts(engine: &VmEngine, now: Time, source: Option<String>, share_bytes: Option<u64>) -> Facts {
    let snapshot = engine.snapshot();
    let sizes = &snapshot.page_sizes;
    let most = sizes.iter().max_by_key(|(_, bytes)| **bytes);
    let points = engine.demand(now).curve.points().to_vec();
    Facts {
        memory_bytes: engine.map().map_or(0, GuestMemoryMap::total_bytes),
        page_bytes: most.map_or(BASE_PAGE, |(page_bytes, _)| *page_bytes),
        share_bytes,
        report: Report {
            number: 0,
            made_ns: now.0,
            curve: points
                .iter()
                .take(MOST_POINTS)
                .map(|point| (point.bytes as u64, point.hits))
                .collect(),
            ram: engine.map().map_or_else(Vec::new, ram),
            fast_bytes: snapshot.tiers.first().map_or(0, |fast| fast.bytes),
            present_bytes: sizes.values().sum(),
            limit_bytes: engine.operator_limit(),
            limit_in_force_bytes: engine.settings().fast_limit_bytes,
            state: snapshot.state.to_string(),
            source,
            waits_for: engine.waits_for(now).map(|wait| wait.name().to_owned()),
            hit_ratio: snapshot.hit_ratio,
            promoted_bytes: snapshot.promoted_bytes,
            demoted_bytes: snapshot.demoted_bytes,
        },
    }
}

/// Where the guest's RAM lies: by rising address, those that touch as one, the longest ones if there are
/// too many.
fn ram(map: &GuestMemoryMap) -> Vec<(u64, u64)> {
    let mut ram: Vec<(u64, u64)> = Vec::new();
    for range in map.unique_hva_ranges() {
        match ram.last_mut() {
            Some((start, bytes)) if *start + *bytes >= range.start.0 => {
                *bytes = (*bytes).max(range.start.0 + range.len - *start);
            }
            _ => ram.push((range.start.0, range.len)),
        }
    }
    if ram.len() > MOST_RANGES {
        ram.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        ram.truncate(MOST_RANGES);
        ram.sort_unstable();
    }
    ram
}

/// Begins to speak with the host daemon, if there is to be one.
pub(super) fn start(
    socket: Option<&Path>,
    control: Option<&Path>,
    vm: &Vm,
    engine: &VmEngine,
) -> anyhow::Result<Option<HostLink>> {
    use anyhow::Context as _;
    let Some(socket) = socket else {
        return Ok(None);
    };
    let stat = process::stat(&vm.root, vm.pid).context("QEMU's process can't be read")?;
    let identity = Identity {
        name: vm.name.clone(),
        pid: vm.pid,
        pid_start: stat.start_ticks,
        // Where this fails the daemon can't ask the agent, and all else goes on.
        control: control
            .and_then(|path| std::path::absolute(path).ok())
            .and_then(|path| path.into_os_string().into_string().ok()),
    };
    let limit = engine.settings().fast_limit_bytes;
    let link = HostLink::start(socket, identity, limit);
    link.map(Some)
        .context("the thread that speaks with the host daemon can't be started")
}

#[cfg(test)]
mod tests;
