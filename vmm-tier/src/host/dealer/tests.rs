//! The dealer, stepped by hand: agents that obey, that lie, that die, and a daemon that starts again.

use std::time::Duration;

use qmp::server::TypeSpec;
use tier_core::{arbiter::alarms::AlarmBook, text::size::Size};
use tier_sys::process::now;

use super::{super::desk::tests::report, *};
use crate::{
    host::{
        control::answers,
        pools::Holdings,
        protocol::Report,
        published::Figures,
        recorder::Recorder,
        report::DrainState,
        settings::HostArgs,
        watcher::{Alive, Held},
    },
    reply::value,
};

const MIB: u64 = 1 << 20;

/// A guest with an agent that does what it is told.
#[derive(Clone, Debug)]
struct Guest {
    name: String,
    pid: u32,
    memory: u64,
    /// The size of its hugetlb pages.
    hugetlb: Option<u64>,
    /// What it holds of DRAM in small pages although it has hugetlb pages.
    small: u64,
    /// What it uses, in bytes; that is evenly hot.
    uses: u64,
    /// What it holds of DRAM.
    fast: u64,
    share: Option<u64>,
    connection: Option<u64>,
    number: u64,
    /// Adds to what the agent tells of what it holds.
    lie: i64,
}

impl Guest {
    fn new(name: &str, pid: u32, uses: u64, fast: u64) -> Self {
        Self {
            name: name.to_owned(),
            pid,
            memory: 256 * MIB,
            hugetlb: None,
            small: 0,
            uses: uses * MIB,
            fast: fast * MIB,
            share: None,
            connection: None,
            number: 0,
            lie: 0,
        }
    }

    fn qemu(&self) -> Qemu {
        qemu(self.pid)
    }

    fn told(&self) -> Register {
        Register {
            name: self.name.clone(),
            pid: self.pid,
            pid_start: 100,
            memory_bytes: self.memory,
            page_bytes: 4096,
            hugetlb_page_bytes: self.hugetlb,
            limit_bytes: None,
            share_bytes: self.share,
            control: None,
        }
    }

    fn report(&self, now: Time) -> Report {
        // Each 4 KiB is accessed a hundred times a second.
        let hits = self.uses as f64 / 4096.0 * 100.0;
        Report {
            curve: vec![(self.uses, hits)],
            fast_bytes: self.fast.saturating_add_signed(self.lie),
            limit_bytes: Some(self.memory),
            ..report(self.number, now)
        }
    }

    fn on_huge_pages(self, small_mib: u64) -> Self {
        Self {
            hugetlb: Some(2 * MIB),
            small: small_mib * MIB,
            ..self
        }
    }

    /// What the kernel says.
    fn holdings(&self) -> Holdings {
        let small = self.small.min(self.fast);
        match self.hugetlb {
            None => Holdings::from([(PoolId::Plain, self.fast)]),
            Some(size) => Holdings::from([
                (PoolId::Hugetlb(size), self.fast - small),
                (PoolId::Plain, small),
            ]),
        }
    }

    /// Moves pages for a second: never above the share, towards what it uses.
    fn obey(&mut self, most_moved: u64) {
        let share = self.share.unwrap_or(self.memory);
        let wants = share.min(self.memory);
        self.fast = match self.fast > wants {
            true => wants.max(self.fast.saturating_sub(most_moved)),
            false => wants.min(self.fast + most_moved),
        };
    }
}

fn qemu(pid: u32) -> Qemu {
    Qemu {
        pid,
        start: 100,
        uid: 64055,
        name: Some(format!("cmd{pid}")),
        uuid: Some(format!("uuid-{pid}")),
    }
}

/// A daemon and its guests.
struct Rig {
    dealer: Dealer,
    toml: String,
    /// What the nodes have, in bytes.
    memory: u64,
    now: Time,
    guests: Vec<Guest>,
    /// Bytes of the hugetlb pool of 2 MiB pages.
    hugetlb: u64,
    next_connection: u64,
    notices: Vec<Notice>,
}

impl Rig {
    fn new(toml: &str, guests: Vec<Guest>) -> Self {
        Self::on(1 << 30, toml, guests)
    }

    /// On nodes that have `memory` bytes.
    fn on(memory: u64, toml: &str, guests: Vec<Guest>) -> Self {
        let now = Time(0) + Duration::from_secs(1000);
        Self {
            dealer: dealer(now, toml, Overrides::default(), memory),
            toml: toml.to_owned(),
            memory,
            now,
            guests,
            hugetlb: 0,
            next_connection: 1,
            notices: Vec::new(),
        }
    }

    /// The daemon ends without a word, and another starts.
    fn restart(&mut self) {
        for guest in &mut self.guests {
            guest.connection = None;
        }
        let overrides = self.dealer.overrides.clone();
        self.dealer = dealer(self.now, &self.toml, overrides, self.memory);
    }

    fn register(&mut self, at: usize) -> Result<Lease, RegisterError> {
        let connection = self.next_connection;
        self.next_connection += 1;
        let guest = &mut self.guests[at];
        let lease = self
            .dealer
            .register(self.now, connection, 0, guest.qemu(), &guest.told())?;
        guest.connection = Some(connection);
        guest.number = 0;
        // As an agent does: no word on a share leaves the one that it has.
        guest.share = lease.share_bytes.or(guest.share);
        Ok(lease)
    }

    fn register_all(&mut self) {
        for at in 0..self.guests.len() {
            self.register(at).unwrap();
        }
    }

    /// A second passes.
    fn second(&mut self) {
        self.now = self.now + Duration::from_secs(1);
        let now = self.now;
        let mut reports = Vec::new();
        for guest in &mut self.guests {
            guest.obey(64 * MIB);
            if let Some(connection) = guest.connection {
                guest.number += 1;
                reports.push(Taken {
                    connection,
                    at: now,
                    report: guest.report(now),
                });
            }
        }
        let ran = Duration::from_secs_f64(now.as_secs_f64());
        let alive = self.guests.iter().map(|guest| Alive {
            pid: guest.pid,
            ran,
        });
        let held = self.guests.iter().map(|guest| Held {
            pid: guest.pid,
            start: 100,
            holdings: guest.holdings(),
        });
        self.dealer.sight(Sighting {
            at: now,
            alive: alive.collect(),
            gone: Vec::new(),
            held: held.collect(),
            found: Some(self.guests.iter().map(Guest::qemu).collect()),
            hugetlb: Some(BTreeMap::from([(2 * MIB, self.hugetlb)])),
        });
        self.dealer.take(reports, &[]);
        self.dealer.tick(now);
        for (connection, lease) in self.dealer.leases() {
            let guest = self
                .guests
                .iter_mut()
                .find(|it| it.connection == Some(connection));
            if let Some(guest) = guest {
                guest.share = lease.share_bytes.or(guest.share);
            }
        }
        self.notices.extend(self.dealer.take_notices());
    }

    fn seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.second();
        }
    }

    /// The agent dies, and its connection with it.
    fn kill_agent(&mut self, at: usize) {
        if let Some(connection) = self.guests[at].connection.take() {
            self.dealer.take(Vec::new(), &[connection]);
        }
    }

    fn info(&self) -> HostInfo {
        self.dealer.info(self.now)
    }

    fn vm(&self, name: &str) -> HostVm {
        let mut vms = self.info().vms.into_iter();
        vms.find(|vm| vm.name == name).unwrap()
    }

    /// What the guests hold, in MiB.
    fn fast(&self) -> Vec<u64> {
        self.guests.iter().map(|guest| guest.fast / MIB).collect()
    }

    fn changes(&mut self) -> Vec<(String, VmChange)> {
        let notices = std::mem::take(&mut self.notices).into_iter();
        notices
            .filter_map(|notice| match notice {
                Notice::Vm(vm) => Some((vm.name, vm.change)),
                _ => None,
            })
            .collect()
    }
}

fn dealer(now: Time, toml: &str, overrides: Overrides, memory: u64) -> Dealer {
    let settings = HostSettings::of_text(HostArgs::default(), toml).unwrap();
    let memory = FastMemory {
        nodes: "0".parse().unwrap(),
        total: memory,
        ..FastMemory::default()
    };
    Dealer::new(now, settings, overrides, memory, Latency::default())
}

/// The example of docs/fairness.md: 84 MiB, guarantees of 8 MiB, weights 1, 1 and 2.
const EXAMPLE: &str = "[pool]\nbytes = '84M'\n[defaults]\nguarantee = '8M'\n[vm.c]\nweight = 2.0";

fn three() -> Vec<Guest> {
    vec![
        Guest::new("a", 7, 24, 84),
        Guest::new("b", 8, 48, 0),
        Guest::new("c", 9, 96, 0),
    ]
}

#[test]
fn shares_when_three_want_more_than_there_is_are_as_in_the_example_within_20_s() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    assert_eq!(rig.fast(), [23, 23, 38]);
    let entitled = |name| rig.vm(name).entitled_bytes.unwrap() / MIB;
    assert_eq!(["a", "b", "c"].map(entitled), [23, 23, 38]);
    let info = rig.info();
    assert!(info.fairness.jain > 0.99, "{:?}", info.fairness);
    assert_eq!((info.pool_bytes, info.charged_bytes), (84 * MIB, 0));
    assert!(info.free_bytes < MIB && !info.starting);
    assert_eq!(rig.vm("c").state, VmState::Reporting);
    assert_eq!(rig.vm("c").demand_bytes.unwrap() / MIB, 96);
    assert_eq!(rig.vm("c").slowdown.map(|it| it > 1.0), Some(true));
}

#[test]
fn dram_when_a_guest_is_idle_works_for_the_others_and_comes_back_within_10_s() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    rig.guests[0].uses = 0;
    rig.seconds(20);
    // 75 % of 23 MiB are lent: 5.75 stay.
    assert_eq!(rig.fast(), [5, 28, 49]);
    rig.guests[0].uses = 24 * MIB;
    rig.seconds(10);
    assert!(rig.guests[0].fast >= 8 * MIB, "{:?}", rig.fast());
    assert!(
        rig.notices
            .iter()
            .all(|it| !matches!(it, Notice::Deficit(_)))
    );
}

#[test]
fn pool_when_a_qemu_has_no_agent_is_less_by_what_it_holds() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register(1).unwrap();
    rig.register(2).unwrap();
    rig.guests[0].share = Some(20 * MIB);
    rig.seconds(20);
    let info = rig.info();
    assert_eq!((info.pool_bytes, info.charged_bytes), (64 * MIB, 20 * MIB));
    let stranger = rig.vm("cmd7");
    assert_eq!(
        (stranger.state, stranger.fast_bytes),
        (VmState::Unmanaged, 20 * MIB)
    );
    // 64 − 16 = 48 by 1 : 2.
    assert_eq!(rig.fast(), [20, 24, 40]);
    rig.register(0).unwrap();
    rig.seconds(20);
    assert_eq!(rig.fast(), [23, 23, 38]);
    assert_eq!(rig.info().vms.len(), 3);
}

/// Two guests on small pages, and two on pages of 2 MiB, of whose pool DRAM has 64 MiB.
fn on_two_sizes() -> Rig {
    let guests = vec![
        Guest::new("a", 7, 96, 80),
        Guest::new("b", 8, 96, 0),
        Guest::new("c", 9, 96, 0).on_huge_pages(0),
        Guest::new("d", 10, 96, 0).on_huge_pages(0),
    ];
    let mut rig = Rig::new(EXAMPLE, guests);
    rig.hugetlb = 64 * MIB;
    rig.dealer.memory.hugetlb = BTreeMap::from([(2 * MIB, rig.hugetlb)]);
    rig
}

#[test]
fn pools_when_guests_have_pages_of_two_sizes_are_dealt_apart() {
    let mut rig = on_two_sizes();
    rig.register_all();
    rig.seconds(20);
    // 84 / 2; and 64 − 16 = 48 by 2 : 1 are 32 and 16 above the guarantees of 8.
    assert_eq!(rig.fast(), [42, 42, 40, 24]);
    let info = rig.info();
    let pools: Vec<(&str, Option<u64>, u64)> = (info.pools.iter())
        .map(|pool| (pool.name.as_str(), pool.page_bytes, pool.pool_bytes / MIB))
        .collect();
    assert_eq!(
        pools,
        [("plain", None, 84), ("hugetlb-2M", Some(2 * MIB), 64)]
    );
    assert_eq!(
        (info.pool_bytes, info.configured_bytes),
        (148 * MIB, 148 * MIB)
    );
    assert_eq!(info.charged_bytes, 0);
    let free: u64 = info.pools.iter().map(|pool| pool.free_bytes).sum();
    assert_eq!(info.free_bytes, free);
    assert_eq!(info.fairness.envy, 0);
    assert_eq!(rig.vm("a").pool.as_deref(), Some("plain"));
    assert_eq!(rig.vm("d").pool.as_deref(), Some("hugetlb-2M"));
    let share = rig.vm("d").share_bytes.unwrap();
    assert_eq!(share % (2 * MIB), 0, "shares are whole pages");
    // The kernel's pool grows, and is emptied: VMs that are there keep their pool.
    rig.hugetlb = 100 * MIB;
    rig.seconds(20);
    assert_eq!(rig.fast()[2] + rig.fast()[3], 100);
    rig.hugetlb = 0;
    rig.seconds(20);
    let info = rig.info();
    assert_eq!(
        (info.pools[1].pool_bytes, info.pools[1].shortfall_bytes),
        (0, 16 * MIB)
    );
    assert_eq!(rig.fast(), [42, 42, 0, 0]);
}

#[test]
fn pool_when_others_hold_its_pages_is_less_by_these() {
    let mut rig = on_two_sizes();
    // d has no agent, and holds 20 MiB of huge pages and 4 MiB of small pages.
    rig.guests[3].small = 4 * MIB;
    rig.guests[3].share = Some(24 * MIB);
    // c has an agent, and 10 MiB of small pages beside its huge pages.
    rig.guests[2].small = 10 * MIB;
    for at in 0..3 {
        rig.register(at).unwrap();
    }
    rig.seconds(30);
    let info = rig.info();
    let charged: Vec<u64> = info.pools.iter().map(|it| it.charged_bytes / MIB).collect();
    assert_eq!(charged, [14, 20]);
    assert_eq!(info.charged_bytes, 34 * MIB);
    // 84 − 14 = 70; and 64 − 20 = 44 of huge pages, with which c has its 10 MiB of small pages.
    assert_eq!(rig.fast(), [35, 35, 54, 24]);
    let c = rig.vm("c");
    assert_eq!((c.share_bytes, c.fast_bytes), (Some(44 * MIB), 54 * MIB));
    assert_eq!(info.reports.mismatches, 0);
    assert_eq!(rig.vm("cmd10").pool, None);
}

#[test]
fn agent_when_it_names_a_pool_that_its_qemu_does_not_use_takes_nothing_from_its_own() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register(0).unwrap();
    rig.register(1).unwrap();
    // c is on small pages, and claims a pool that nobody shares with it.
    let told = Register {
        memory_bytes: 4 << 30,
        hugetlb_page_bytes: Some(1 << 30),
        ..rig.guests[2].told()
    };
    let c = &mut rig.guests[2];
    (c.fast, c.share, c.connection) = (40 * MIB, Some(40 * MIB), Some(77));
    let error = rig.dealer.register(rig.now, 77, 0, qemu(9), &told);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("take 0 of the pool's 0 bytes"), "{error}");
    let grant = Grant {
        guarantee: Some(Size::Bytes(0)),
        ..Grant::default()
    };
    rig.dealer.set_vm("c", &grant).unwrap();
    rig.dealer.register(rig.now, 77, 0, qemu(9), &told).unwrap();
    rig.seconds(20);
    let info = rig.info();
    let names: Vec<&str> = info.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["plain", "hugetlb-1G"]);
    let held = rig.guests[2].fast;
    assert_eq!(
        info.pools[0].charged_bytes, held,
        "it is charged where it is"
    );
    assert_eq!(info.pools[0].pool_bytes, (84 * MIB).saturating_sub(held));
}

#[test]
fn admission_when_asked_of_a_pool_counts_the_guarantees_of_that_pool() {
    let mut rig = on_two_sizes();
    rig.register_all();
    let ask = |name: Option<&str>, pool, mib: u64| {
        let terms = Terms {
            guarantee_bytes: mib * MIB,
            cap_bytes: u64::MAX,
            weight: 1.0,
            page_bytes: 2 * MIB,
            goal: None,
        };
        let reply = rig.dealer.would_admit(name, pool, &terms);
        (reply.fits, reply.pool, reply.unguaranteed_bytes / MIB)
    };
    let huge = Some(PoolId::Hugetlb(2 * MIB));
    let (plain, two) = ("plain".to_owned(), "hugetlb-2M".to_owned());
    assert_eq!(ask(None, None, 68), (true, plain, 0));
    assert_eq!(ask(None, huge, 68), (false, two.clone(), 48));
    assert_eq!(ask(None, huge, 48), (true, two.clone(), 0));
    assert_eq!(ask(Some("c"), None, 56), (true, two, 0));
    let other = ask(None, Some(PoolId::Hugetlb(1 << 30)), 1);
    assert_eq!(other, (false, "hugetlb-1G".to_owned(), 0));
    rig.guests.push(Guest::new("e", 11, 8, 0).on_huge_pages(0));
    let grant = Grant {
        guarantee: Some(Size::Bytes(50 * MIB)),
        ..Grant::default()
    };
    rig.dealer.set_vm("e", &grant).unwrap();
    let error = rig.register(4).unwrap_err().to_string();
    assert!(
        error.starts_with("pool hugetlb-2M: VM e can't be guaranteed"),
        "{error}"
    );
}

#[test]
fn drain_when_there_are_two_pools_leaves_each_the_same_part() {
    let mut rig = on_two_sizes();
    rig.register_all();
    rig.seconds(20);
    // A quarter of 148 MiB.
    rig.dealer.drain_to(37 * MIB);
    rig.seconds(30);
    let pools = rig.info().pools;
    let dealt: Vec<u64> = pools.iter().map(|pool| pool.pool_bytes / MIB).collect();
    assert_eq!(dealt, [21, 16]);
    assert!(rig.info().drain.unwrap().done);
    rig.dealer.drain_to(0);
    rig.seconds(20);
    assert_eq!(rig.fast(), [0; 4]);
}

#[test]
fn agent_when_it_dies_leaves_its_share_until_the_lease_ends_and_then_what_qemu_holds() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    rig.kill_agent(2);
    // Its QEMU stays where it is; nobody gets its DRAM.
    rig.guests[2].share = Some(38 * MIB);
    rig.seconds(5);
    assert_eq!(rig.vm("c").state, VmState::Quiet);
    assert_eq!(rig.vm("c").share_bytes, Some(38 * MIB));
    assert_eq!(rig.fast(), [23, 23, 38]);
    rig.seconds(7);
    assert_eq!(rig.vm("c").state, VmState::Expired);
    assert_eq!(
        (rig.vm("c").share_bytes, rig.info().charged_bytes),
        (None, 38 * MIB)
    );
    assert_eq!(rig.fast(), [23, 23, 38]);
    // Half of it goes of itself: the others may have that.
    rig.guests[2].share = Some(18 * MIB);
    rig.seconds(20);
    assert_eq!(rig.fast()[2], 18);
    assert!(rig.fast()[0] + rig.fast()[1] >= 65, "{:?}", rig.fast());
    rig.register(2).unwrap();
    rig.seconds(30);
    assert_eq!(rig.fast(), [23, 23, 38]);
    let changes: Vec<VmChange> = (rig.changes().into_iter())
        .filter_map(|(name, change)| (name == "c").then_some(change))
        .collect();
    let expected = [
        VmChange::Registered,
        VmChange::Quiet,
        VmChange::Expired,
        VmChange::Back,
    ];
    assert_eq!(changes, expected);
}

#[test]
fn agent_when_it_is_started_again_within_the_lease_takes_its_share_again() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    for at in 0..3 {
        rig.kill_agent(at);
        rig.seconds(4);
        let lease = rig.register(at).unwrap();
        assert_eq!(lease.share_bytes, rig.guests[at].share);
        rig.seconds(2);
        assert_eq!(rig.fast(), [23, 23, 38]);
    }
    assert_eq!(rig.info().fairness.deficit_byte_seconds, 0.0);
}

#[test]
fn daemon_when_it_is_killed_ten_times_deals_no_storm_and_leaves_no_deficit() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    for round in 0..10 {
        rig.restart();
        // Agents are back one after the other.
        rig.register(0).unwrap();
        rig.second();
        let info = rig.info();
        assert!(info.starting && info.pool_bytes <= 84 * MIB, "{info:?}");
        rig.register(1).unwrap();
        rig.second();
        rig.register(2).unwrap();
        rig.seconds(8);
        let info = rig.info();
        assert!(!info.starting);
        assert_eq!(rig.fast(), [23, 23, 38], "round {round}");
        assert_eq!(info.fairness.deficit_byte_seconds, 0.0);
        assert_eq!(info.fairness.redealt_bytes, 0);
    }
}

#[test]
fn vm_when_it_comes_late_to_a_full_pool_is_admitted_by_its_guarantee_alone() {
    // What all hold fills the pool, which is all that the nodes have, and guarantees are all of it.
    let toml = "[pool]\nbytes = '84M'\n[defaults]\nguarantee = '28M'";
    let mut rig = Rig::on(84 * MIB, toml, three());
    rig.guests[0].share = Some(20 * MIB);
    rig.guests[1].share = Some(24 * MIB);
    rig.guests[2].share = Some(40 * MIB);
    rig.seconds(8);
    assert_eq!(rig.info().charged_bytes, 84 * MIB);
    // Strangers beside a hold 64 MiB.
    let error = rig.register(0).unwrap_err().to_string();
    assert!(error.contains("can't be guaranteed"), "{error}");
    rig.register(2).unwrap();
    rig.second();
    rig.register(0).unwrap();
    rig.second();
    rig.register(1).unwrap();
    rig.seconds(20);
    // a uses 24 MiB and lends the rest.
    assert!(rig.fast().iter().all(|&mib| mib >= 24), "{:?}", rig.fast());
    // A daemon that starts takes strangers for VMs that come back, in any order.
    rig.restart();
    rig.second();
    rig.register_all();
    rig.seconds(20);
    assert!(rig.fast().iter().all(|&mib| mib >= 24), "{:?}", rig.fast());
}

#[test]
fn vms_when_they_hold_more_than_the_pool_and_come_one_by_one_are_all_admitted() {
    let toml = "[pool]\nbytes = '84M'\n[defaults]\nguarantee = '8M'";
    let guests = (0..8).map(|at| Guest::new(&format!("vm{at}"), 7 + at, 40, 40));
    let mut rig = Rig::new(toml, guests.collect());
    for guest in &mut rig.guests {
        guest.share = Some(40 * MIB);
    }
    rig.seconds(8);
    assert_eq!(rig.info().charged_bytes, 320 * MIB);
    for at in 0..8 {
        rig.register(at).unwrap();
        rig.seconds(4);
        // Strangers take none of what is guaranteed.
        assert!(
            rig.fast()[..=at].iter().all(|&mib| mib >= 8),
            "{:?}",
            rig.fast()
        );
        assert_eq!(rig.info().shortfall_bytes, 0);
    }
    rig.seconds(20);
    assert!(
        rig.fast().iter().all(|&mib| mib == 10 || mib == 11),
        "{:?}",
        rig.fast()
    );
    assert_eq!(rig.info().fairness.deficit_byte_seconds, 0.0);
}

#[test]
fn guarantees_when_strangers_hold_what_the_nodes_have_are_less_by_the_same_share() {
    let toml = "[pool]\nbytes = '84M'\n[defaults]\nguarantee = '28M'";
    let mut rig = Rig::on(84 * MIB, toml, three());
    rig.guests[0].share = Some(20 * MIB);
    rig.register(1).unwrap();
    rig.register(2).unwrap();
    rig.seconds(20);
    assert_eq!(rig.info().shortfall_bytes, 0);
    // The stranger takes more: 34 of 84 MiB are left for guarantees of 56.
    rig.guests[0].share = Some(50 * MIB);
    rig.seconds(20);
    assert_eq!(rig.info().shortfall_bytes, 22 * MIB);
    assert_eq!(rig.fast(), [50, 17, 17]);
}

#[test]
fn daemon_when_an_agent_does_not_come_back_starts_without_it() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    rig.restart();
    rig.register(0).unwrap();
    rig.register(1).unwrap();
    rig.seconds(4);
    assert!(rig.info().starting);
    rig.seconds(2);
    assert!(!rig.info().starting);
    assert_eq!(rig.info().charged_bytes, 38 * MIB);
    rig.seconds(20);
    assert_eq!(rig.fast(), [23, 23, 38]);
}

#[test]
fn share_of_an_earlier_daemon_when_it_is_a_lie_is_no_more_than_there_is() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.guests[0].share = Some(40 * MIB);
    rig.guests[1].share = Some(u64::MAX);
    rig.guests[2].share = Some(38 * MIB);
    assert_eq!(rig.register(0).unwrap().share_bytes, Some(40 * MIB));
    assert_eq!(rig.register(1).unwrap().share_bytes, Some(44 * MIB));
    assert_eq!(rig.register(2).unwrap().share_bytes, Some(0));
    rig.seconds(30);
    assert_eq!(rig.fast(), [23, 23, 38]);
    // Later nobody's word is taken for it.
    rig.guests.push(Guest::new("d", 10, 48, 0));
    rig.guests[3].share = Some(60 * MIB);
    assert_eq!(rig.register(3).unwrap().share_bytes, None);
}

#[test]
fn vm_when_another_has_its_name_pid_or_place_is_refused_by_name() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(3);
    let mut refused = |name: &str, pid, uid| {
        let told = Register {
            pid,
            ..Guest::new(name, pid, 1, 0).told()
        };
        let error = rig.dealer.register(rig.now, 99, uid, qemu(pid), &told);
        error.unwrap_err().to_string()
    };
    assert_eq!(
        refused("a", 7, 0),
        "VM a has an agent that is connected: a VM has one agent"
    );
    assert_eq!(
        refused("a", 70, 0),
        "VM a is QEMU 7, which runs: give each VM a name of its own"
    );
    assert_eq!(
        refused("z", 7, 0),
        "QEMU 7 is VM a: an agent registered it by that name"
    );
    assert!(refused("z", 71, 1000).contains("user 1000 may not speak for QEMU 71"));
    assert!(refused("", 72, 0).contains("'' is no name"));
    assert!(refused("z\n", 73, 0).contains("is no name"));
    assert_eq!(rig.info().reports.refused_registrations, 6);
    rig.seconds(17);
    assert_eq!(rig.fast(), [23, 23, 38], "the others are untouched");
    // The user of QEMU may.
    let told = Guest::new("z", 74, 1, 0).told();
    assert!(
        rig.dealer
            .register(rig.now, 99, 64055, qemu(74), &told)
            .is_ok()
    );
}

#[test]
fn vm_when_its_guarantee_does_not_fit_is_refused_with_the_sums_and_charged() {
    let mut rig = Rig::new(&format!("{EXAMPLE}\n[vm.d]\nguarantee = '61M'"), three());
    rig.register_all();
    rig.guests.push(Guest::new("d", 10, 48, 6));
    rig.guests[3].share = Some(6 * MIB);
    let error = rig.register(3).unwrap_err().to_string();
    assert!(
        error.contains("VM d can't be guaranteed 63963136 bytes")
            && error.contains("25165824 of the pool's 88080384"),
        "{error}"
    );
    rig.seconds(20);
    let d = rig.vm("d");
    assert_eq!((d.state, d.fast_bytes), (VmState::Unmanaged, 6 * MIB));
    assert_eq!(d.refused, Some(error));
    assert_eq!(rig.info().pool_bytes, 78 * MIB);
    // It tries again and again: that is said once.
    let refusals = |changes: Vec<(String, VmChange)>| {
        let refusals = changes.iter().filter(|(_, it)| *it == VmChange::Refused);
        refusals.count()
    };
    assert_eq!(refusals(rig.changes()), 1);
    assert!(rig.register(3).is_err());
    rig.second();
    let again = refusals(rig.changes());
    assert!(again <= 1, "the pool changed, so the sums did");
    assert!(rig.register(3).is_err());
    rig.second();
    assert_eq!(refusals(rig.changes()), 0);
    let grant = Grant {
        guarantee: Some(Size::Bytes(10 * MIB)),
        ..Grant::default()
    };
    rig.dealer.set_vm("d", &grant).unwrap();
    rig.register(3).unwrap();
    rig.seconds(3);
    assert_eq!(rig.vm("d").state, VmState::Reporting);
}

#[test]
fn vm_when_it_is_the_1001st_is_refused_by_name() {
    let guests = (0..=MAX_VMS).map(|vm| Guest::new(&format!("vm{vm:04}"), 1000 + vm as u32, 1, 0));
    let mut rig = Rig::new("[pool]\nbytes = '1G'", guests.collect());
    for at in 0..MAX_VMS {
        rig.register(at).unwrap();
    }
    let error = rig.register(MAX_VMS).unwrap_err().to_string();
    assert!(
        error.contains("VM vm1000 would be one more than the 1000 VMs"),
        "{error}"
    );
    rig.seconds(5);
    let info = rig.info();
    assert_eq!(info.vms.len(), 1001);
    let reporting = info.vms.iter().filter(|vm| vm.state == VmState::Reporting);
    assert_eq!(reporting.count(), 1000);
}

#[test]
fn account_when_an_agent_lies_is_the_kernels() {
    let mut rig = Rig::new("[pool]\nbytes = '200M'", three());
    rig.guests[0].uses = 200 * MIB;
    rig.register_all();
    rig.seconds(20);
    let honest = rig.vm("a").fast_bytes;
    assert!(honest > 60 * MIB);
    rig.guests[0].lie = -60 * (MIB as i64);
    rig.seconds(3);
    let a = rig.vm("a");
    assert_eq!(Some(a.fast_bytes), a.kernel_bytes);
    assert_eq!(rig.info().reports.mismatches, 1);
    rig.guests[0].lie = 0;
    rig.seconds(3);
    assert_eq!(rig.info().reports.mismatches, 1);
    // Pages on their way make no lie.
    rig.guests[0].lie = 20 * MIB as i64;
    rig.seconds(3);
    assert_eq!(rig.info().reports.mismatches, 1);
}

#[test]
fn qemu_when_it_ends_is_forgotten_and_its_connection_loses_its_place() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    let gone = rig.guests.remove(0);
    rig.dealer.sight(Sighting {
        at: rig.now,
        gone: vec![(gone.pid, 100)],
        ..Sighting::default()
    });
    assert_eq!(rig.dealer.take_unseated(), [gone.connection.unwrap()]);
    rig.seconds(20);
    // 84 − 16 = 68 by 1 : 2 are 22.67 and 45.33.
    assert_eq!(rig.fast(), [30, 53]);
    assert!(rig.changes().contains(&("a".to_owned(), VmChange::Gone)));
    // Its name is free.
    rig.guests.push(Guest::new("a", 70, 24, 0));
    assert!(rig.register(2).is_ok());
}

#[test]
fn clock_when_it_jumps_does_no_harm() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    // The machine slept for a day.
    rig.now = rig.now + Duration::from_secs(86_400);
    rig.seconds(20);
    assert_eq!(rig.fast(), [23, 23, 38]);
    assert_eq!(rig.info().fairness.deficit_byte_seconds, 0.0);
    // A clock that goes back is none, and must not matter either.
    rig.now = Time(rig.now.0 - 3_600_000_000_000);
    rig.seconds(5);
    assert!(
        rig.info()
            .vms
            .iter()
            .all(|vm| vm.share_bytes > Some(20 * MIB))
    );
}

#[test]
fn terms_when_commands_set_them_hold_and_are_taken_back() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    let set = |weight, guarantee: Option<u64>| Grant {
        weight,
        guarantee: guarantee.map(|mib| Size::Bytes(mib * MIB)),
        ..Grant::default()
    };
    rig.dealer.set_vm("b", &set(Some(2.0), None)).unwrap();
    rig.dealer.set_vm("b", &set(None, Some(10))).unwrap();
    rig.seconds(20);
    // 84 − 26 = 58 by 1 : 2 : 2 are 11.6, 23.2 and 23.2.
    assert_eq!(rig.fast(), [19, 33, 31]);
    let error = rig.dealer.set_vm("b", &set(None, Some(69))).unwrap_err();
    assert!(error.to_string().contains("can't be guaranteed"), "{error}");
    assert_eq!(rig.vm("b").guarantee_bytes, 10 * MIB);
    let error = rig
        .dealer
        .set_vm("b", &set(Some(f64::NAN), None))
        .unwrap_err();
    assert!(error.to_string().contains("0.001 to 1000"), "{error}");
    // The next daemon has them too.
    rig.restart();
    rig.register_all();
    rig.seconds(10);
    assert_eq!(rig.vm("b").weight, 2.0);
    rig.dealer.set_vm("b", &Grant::default()).unwrap();
    rig.seconds(20);
    assert_eq!(rig.fast(), [23, 23, 38]);
    assert_eq!(rig.dealer.overrides, Overrides::default());
    rig.dealer.set_mode(Some(Mode::Static), Some(0.5)).unwrap();
    assert!(rig.dealer.set_mode(None, Some(1.5)).is_err());
    let info = rig.info();
    assert_eq!((info.mode, info.band), (Mode::Static, 0.5));
    rig.dealer.set_mode(None, None).unwrap();
    assert_eq!(rig.info().mode, Mode::Weighted);
}

#[test]
fn admission_when_asked_for_says_what_fits() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    let ask = |name: Option<&str>, mib: u64| {
        let terms = Terms {
            guarantee_bytes: mib * MIB,
            cap_bytes: u64::MAX,
            weight: 1.0,
            page_bytes: 4096,
            goal: None,
        };
        let reply = rig.dealer.would_admit(name, None, &terms);
        (
            reply.fits,
            reply.unguaranteed_bytes / MIB,
            reply.reason.is_some(),
        )
    };
    assert_eq!(ask(None, 60), (true, 0, false));
    assert_eq!(ask(None, 61), (false, 60, true));
    assert_eq!(ask(Some("a"), 68), (true, 0, false));
}

#[test]
fn guests_when_a_drain_is_ordered_leave_at_its_rate_and_come_back_after_it() {
    let toml = format!("{EXAMPLE}\n[moves]\nbytes-per-s = '8M'");
    let mut rig = Rig::new(&toml, three());
    rig.register_all();
    rig.seconds(20);
    rig.dealer.drain_to(20 * MIB);
    rig.seconds(3);
    let held: u64 = rig.fast().iter().sum();
    assert!((60..=76).contains(&held), "{held}");
    rig.seconds(10);
    let drain = rig.info().drain.unwrap();
    assert!(drain.done && drain.held_bytes <= 20 * MIB, "{drain:?}");
    assert_eq!(rig.info().shortfall_bytes, 4 * MIB);
    let told = rig
        .notices
        .iter()
        .filter(|it| matches!(it, Notice::Drain(_)));
    assert!(told.count() > 3);
    // It holds over a restart.
    rig.restart();
    rig.register_all();
    rig.seconds(10);
    assert!(rig.info().drain.unwrap().done);
    rig.dealer.end_drain();
    rig.seconds(30);
    assert_eq!(rig.fast(), [23, 23, 38]);
    assert_eq!(rig.info().drain, None);
}

#[test]
fn node_when_it_is_drained_is_empty_by_the_kernels_account_and_its_end_is_told() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    let error = rig.dealer.drain_node(NodeId(1)).unwrap_err().to_string();
    assert!(error.contains("node 1 is none of the nodes"), "{error}");
    assert_eq!(rig.info().drain, None);
    rig.dealer.drain_node(NodeId(0)).unwrap();
    // An agent that tells of less than the kernel does not end the drain.
    rig.guests[2].lie = -8 * (MIB as i64);
    rig.seconds(1);
    let drain = rig.info().drain.unwrap();
    assert_eq!((drain.node, drain.state), (Some(0), DrainState::Running));
    let kernel: u64 = rig.info().vms.iter().filter_map(|vm| vm.kernel_bytes).sum();
    assert_eq!(drain.held_bytes, kernel);
    // It holds over a restart.
    rig.restart();
    rig.register_all();
    rig.seconds(20);
    assert_eq!(rig.fast(), [0, 0, 0]);
    let drain = rig.info().drain.unwrap();
    assert_eq!((drain.node, drain.state), (Some(0), DrainState::Done));
    rig.guests[2].lie = 0;
    rig.notices.clear();
    rig.dealer.end_drain();
    rig.dealer.end_drain();
    rig.seconds(30);
    let told: Vec<DrainState> = (rig.notices.iter())
        .filter_map(|notice| match notice {
            Notice::Drain(drain) => Some(drain.state),
            _ => None,
        })
        .collect();
    assert_eq!(told, [DrainState::Cancelled], "what is over is told once");
    assert_eq!(rig.fast(), [23, 23, 38]);
}

#[test]
fn budget_of_moves_when_many_want_to_move_is_never_exceeded() {
    let toml = format!("{EXAMPLE}\n[moves]\nbytes-per-s = '8M'");
    let mut rig = Rig::new(&toml, three());
    rig.register_all();
    for _ in 0..20 {
        rig.second();
        let budgets = rig.dealer.leases().into_iter();
        let all: u64 = budgets.map(|(_, lease)| lease.move_bytes_per_s).sum();
        assert!(all <= 8 * MIB, "{all}");
        assert!(all > 7 * MIB, "{all}");
    }
}

#[test]
fn deficit_when_a_guarantee_is_not_met_for_long_is_told_once_and_its_end_too() {
    let mut rig = Rig::new(EXAMPLE, three());
    rig.register_all();
    rig.seconds(20);
    // The agent can't promote: something else fills the node.
    rig.guests[0].memory = 2 * MIB;
    rig.guests[0].fast = 2 * MIB;
    rig.seconds(30);
    let deficits = |rig: &mut Rig| {
        let notices = std::mem::take(&mut rig.notices).into_iter();
        notices
            .filter_map(|it| match it {
                Notice::Deficit(deficit) => Some((deficit.ended, deficit.deficit_bytes / MIB)),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(deficits(&mut rig), [(false, 6)]);
    rig.guests[0].memory = 256 * MIB;
    rig.seconds(5);
    assert_eq!(deficits(&mut rig), [(true, 0)]);
}

/// Each answer has what docs/host-qmp.md says, and each member that it names is in an answer.
#[test]
fn answers_when_compared_with_their_descriptions_have_each_member_and_no_other() {
    let mut rig = on_two_sizes();
    rig.register_all();
    let goal = Grant {
        goal: Some(0.9),
        ..Grant::default()
    };
    rig.dealer.set_vm("a", &goal).unwrap();
    rig.guests.push(Guest::new("e", 11, 8, 0));
    rig.guests[4].share = Some(4 * MIB);
    let too_much = Grant {
        guarantee: Some(Size::Bytes(1 << 40)),
        ..Grant::default()
    };
    rig.dealer.set_vm("e", &too_much).unwrap();
    rig.register(4).unwrap_err();
    rig.seconds(20);
    // b's agent can't promote for a while, so its guarantee is not met.
    (rig.guests[1].memory, rig.guests[1].fast) = (2 * MIB, 2 * MIB);
    rig.seconds(20);
    // In the first second all keep what they hold.
    rig.dealer.drain_node(NodeId(0)).unwrap();
    rig.second();
    let mut info = rig.info();
    // What the daemon adds to what the dealer tells.
    info.state_file_error = Some("it can't be written".to_owned());
    (info.vms[0].control, info.vms[0].agent_pid) = (Some("/run/a.sock".to_owned()), Some(70));
    let mut book = AlarmBook::default();
    info.alarms = info.alarms_at(rig.now, &mut book);
    assert!(!info.alarms.is_empty());
    let recorder = Recorder::default();
    recorder.add(&Figures {
        made: now(),
        host: info.clone(),
    });
    let terms = |mib: u64| Terms {
        guarantee_bytes: mib * MIB,
        cap_bytes: u64::MAX,
        weight: 1.0,
        page_bytes: 4096,
        goal: None,
    };
    let answers = [
        ("query-host", value(&info).unwrap()),
        (
            "query-host-history",
            recorder.answer(serde_json::Map::new()).unwrap(),
        ),
        (
            "host-admit",
            value(rig.dealer.would_admit(None, None, &terms(1))).unwrap(),
        ),
        (
            "host-admit",
            value(rig.dealer.would_admit(None, None, &terms(999))).unwrap(),
        ),
        ("host-report", value(rig.dealer.lease("a")).unwrap()),
    ];
    let (mut seen, mut all) = (BTreeSet::new(), BTreeSet::new());
    for (command, answer) in answers {
        let kind = answers::returned_by(command);
        answers::compare(kind, &answer, command, &mut seen);
        let TypeSpec::Object(object) = kind else {
            panic!("{command} returns {kind:?}");
        };
        answers::described(object.members, command, &mut all);
    }
    for notice in &rig.notices {
        let event = notice.event();
        let members = answers::data_of(&event.name);
        answers::compare_members(members, &event.data, &event.name, &mut seen);
        answers::described(members, &event.name, &mut all);
    }
    assert!(all.iter().any(|member| member.starts_with("HOST_DEFICIT.")));
    let unseen: Vec<&String> = all.difference(&seen).collect();
    assert_eq!(unseen, [] as [&String; 0], "described, and in no answer");
}
