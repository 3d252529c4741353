//! A guest of a host, generated or recorded: what it is granted, what it does when, and how it lies.

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE},
    arbiter::{DemandCurve, Terms, Vm},
    random::Random,
};

use super::course::Course;

const GIB: u64 = 1 << 30;
/// Parts of a guest's memory that differ in heat.
const PARTS: u32 = 24;
/// How late a change is measured, in seconds: a source needs some samples of the new hot pages.
pub(super) const LATE_S: u32 = 3;
/// By how much the heat of a part is measured wrong, at most.
const NOISE: f64 = 0.1;
/// The most accesses a second of a busy virtual CPU that slow memory would slow down: 150 ns each.
const MOST_HITS: f64 = 5e6;

/// How a guest lies about its heat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// A million times the accesses.
    Louder,
    /// All of its memory is in use.
    Larger,
    /// It loops over a little memory on all of its CPUs. That is no lie of what it does, but of what it
    /// needs.
    Spins,
}

/// A time in which a guest does one thing.
#[derive(Clone, Debug)]
struct Phase {
    until: u32,
    curve: DemandCurve,
    vcpu_s_per_s: f64,
}

/// What a guest does when.
#[derive(Clone, Debug)]
enum Life {
    /// It goes through phases.
    Generated {
        phases: Vec<Phase>,
        vcpus: f64,
        noise_seed: u64,
    },
    /// It does what a recording tells.
    Recorded(Course),
}

/// A guest.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) terms: Terms,
    pub(super) lie: Option<Lie>,
    arrives: u32,
    departs: u32,
    life: Life,
}

impl Guest {
    /// A guest that is there for some of `seconds` seconds: two of three from the beginning, four of
    /// five until the end.
    pub(super) fn new(number: usize, seconds: u32, random: &mut Random) -> Self {
        let memory = GIB << random.below(5);
        let vcpus = f64::from(1_u32 << random.below(4));
        let some_time = |random: &mut Random| random.below(u64::from(seconds)) as u32;
        let arrives = if random.happens(0.67) {
            0
        } else {
            some_time(random)
        };
        let departs = if random.happens(0.8) {
            seconds
        } else {
            some_time(random)
        };
        let lies = [Lie::Louder, Lie::Larger, Lie::Spins];
        let lie = random.happens(0.06).then(|| lies[random.below(3) as usize]);
        let mut phases = Vec::new();
        let mut until = 0;
        while until < seconds {
            until += 40 + random.below(160) as u32;
            phases.push(Phase::new(until, memory, vcpus, random));
        }
        Self {
            name: format!("vm-{number:04}"),
            terms: Terms {
                guarantee_bytes: if random.happens(0.5) { memory / 16 } else { 0 },
                cap_bytes: memory,
                weight: [1.0, 1.0, 2.0, 4.0][random.below(4) as usize],
                page_bytes: if random.happens(0.2) {
                    HUGE_PAGE
                } else {
                    BASE_PAGE
                },
                goal: None,
            },
            lie,
            arrives,
            departs: departs.max(arrives),
            life: Life::Generated {
                phases,
                vcpus,
                noise_seed: random.draw(),
            },
        }
    }

    /// A guest that is always there, and does what was recorded.
    pub(crate) const fn recorded(name: String, terms: Terms, course: Course) -> Self {
        Self {
            name,
            terms,
            lie: None,
            arrives: 0,
            departs: u32::MAX,
            life: Life::Recorded(course),
        }
    }

    pub(super) fn is_there(&self, second: u32) -> bool {
        (self.arrives..self.departs).contains(&second)
    }

    /// The number of the phase at this second. Of a recording all is one phase: its curves tell what
    /// cold pages its change of pages brings.
    pub(super) fn phase(&self, second: u32) -> usize {
        match &self.life {
            Life::Generated { phases, .. } => phase_at(phases, second),
            Life::Recorded(_) => 0,
        }
    }

    /// The guest as it is.
    pub(crate) fn so(&self, second: u32) -> Vm {
        match &self.life {
            Life::Generated { phases, .. } => {
                let phase = &phases[phase_at(phases, second)];
                self.vm(phase.curve.clone(), phase.vcpu_s_per_s)
            }
            Life::Recorded(course) => self.vm(course.so(second).clone(), course.vcpu_s_per_s),
        }
    }

    /// The guest as it is measured: late, with noise, and with its lie if it `lies`. A recording's noise
    /// is its own.
    pub(crate) fn measured(&self, second: u32, lies: bool) -> Vm {
        let (phases, vcpus, noise_seed) = match &self.life {
            Life::Generated {
                phases,
                vcpus,
                noise_seed,
            } => (phases, *vcpus, *noise_seed),
            Life::Recorded(course) => {
                return self.vm(course.measured(second).clone(), course.vcpu_s_per_s);
            }
        };
        let phase = &phases[phase_at(phases, second.saturating_sub(LATE_S))];
        // The kernel tells at once how long virtual CPUs ran.
        let vcpu_s_per_s = phases[phase_at(phases, second)].vcpu_s_per_s;
        let mut random = Random::new(noise_seed ^ u64::from(second));
        let noisy = phase.curve.pieces().map(|piece| {
            let bytes = piece.to - piece.from;
            let noise = 1.0 + NOISE * (2.0 * random.share() - 1.0);
            (bytes as u64, bytes * piece.slope * noise)
        });
        let memory = self.terms.cap_bytes;
        match self.lie.filter(|_| lies) {
            None => self.vm(DemandCurve::of_buckets(noisy), vcpu_s_per_s),
            Some(Lie::Louder) => {
                let louder = noisy.map(|(bytes, hits)| (bytes, hits * 1e6));
                self.vm(DemandCurve::of_buckets(louder), vcpu_s_per_s)
            }
            Some(Lie::Larger) => {
                let hits = phase.curve.total_hits().max(1e6);
                self.vm(DemandCurve::of_buckets([(memory, hits)]), vcpu_s_per_s)
            }
            Some(Lie::Spins) => {
                let spun = vcpus * MOST_HITS;
                let spinning = noisy.chain([(memory / 8, spun)]);
                self.vm(DemandCurve::of_buckets(spinning), vcpus)
            }
        }
    }

    fn vm(&self, curve: DemandCurve, vcpu_s_per_s: f64) -> Vm {
        Vm {
            terms: self.terms.clone(),
            curve,
            holds_bytes: 0,
            vcpu_s_per_s,
        }
    }
}

/// The number of the phase at this second.
fn phase_at(phases: &[Phase], second: u32) -> usize {
    let phase = phases.partition_point(|phase| phase.until <= second);
    phase.min(phases.len() - 1)
}

impl Phase {
    /// One of four phases is idle. In the others 3 to 40 % of the memory is hot, and heat falls by a
    /// power law from part to part.
    fn new(until: u32, memory: u64, vcpus: f64, random: &mut Random) -> Self {
        if random.happens(0.25) {
            return Self {
                until,
                curve: DemandCurve::default(),
                vcpu_s_per_s: 0.01,
            };
        }
        let hot = 0.03 + 0.37 * random.share();
        let skew = 0.3 + 1.2 * random.share();
        // From a fiftieth of what the CPUs could do, on a scale of factors.
        let vcpu_s_per_s = vcpus * (0.2 + 0.8 * random.share());
        let hits = vcpu_s_per_s * MOST_HITS * 50_f64.powf(random.share() - 1.0);
        let heat = |part: u32| f64::from(part).powf(-skew);
        let all: f64 = (1..=PARTS).map(heat).sum();
        let bytes = memory as f64 * hot / f64::from(PARTS);
        let parts = (1..=PARTS).map(|part| (bytes as u64, hits * heat(part) / all));
        Self {
            until,
            curve: DemandCurve::of_buckets(parts),
            vcpu_s_per_s,
        }
    }
}
