//! The life of a guest, from its start to the comparison at its end.

use core::fmt;

use crate::{Comparison, Console, HotSet, Line, Order, PAGE_WORDS, PAGES_PER_MIB, Updates, Work};

/// Accesses between two looks at the clock.
const BATCH: u64 = 2048;
/// How often the console is looked at: a look leaves the guest, which costs an emulated host much.
const LISTEN_EVERY_US: u64 = 20_000;
/// How often the guest tells that it goes on.
const TELL_EVERY_US: u64 = 1_000_000;
/// How long a guest without work halts between two looks at the console.
const HALT_US: u64 = 100_000;

/// What a guest runs on.
pub trait Machine {
    /// What can go wrong there.
    type Error: fmt::Display;

    /// The time, in microseconds since whenever.
    fn micros(&mut self) -> u64;

    /// Tells a line.
    fn tell(&mut self, line: Line<'_>);

    /// The next byte that was typed, if there is one.
    fn typed(&mut self) -> Option<u8>;

    /// Halts the CPU for about this long.
    fn halt(&mut self, micros: u64);

    /// Tells where in guest-physical memory the hot pages of `memory` are.
    ///
    /// # Errors
    /// When that can't be found out.
    fn tell_hot(&mut self, memory: &[u64], hot: HotSet) -> Result<(), Self::Error>;

    /// Carries an order out that is none of the workload's; false if it is not the machine's
    /// either.
    ///
    /// # Errors
    /// When it could not be done.
    fn obey(&mut self, order: &str) -> Result<bool, Self::Error> {
        let _ = order;
        Ok(false)
    }

    /// A second has passed: what must be looked at now and then.
    ///
    /// # Errors
    /// When it could not be looked at.
    fn second(&mut self, memory: &[u64], hot: HotSet) -> Result<(), Self::Error> {
        let _ = (memory, hot);
        Ok(())
    }
}

/// Why a workload can't go on.
#[derive(Debug)]
pub enum Trouble<E> {
    /// The hot set does not fit the working set.
    HotSet,
    /// The guest's memory is smaller than the working set.
    Memory {
        /// The working set.
        needed_mib: u64,
        /// What there is.
        there_mib: usize,
    },
    /// An order that nobody understands, or that can't be carried out now.
    Order,
    /// The machine's.
    Machine(E),
}

impl<E: fmt::Display> fmt::Display for Trouble<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HotSet => f.write_str("the hot set does not fit the working set"),
            Self::Memory {
                needed_mib,
                there_mib,
            } => write!(
                f,
                "the working set of {needed_mib} MiB does not fit the {there_mib} MiB that the guest has for it"
            ),
            Self::Order => f.write_str("an order on the console is not understood"),
            Self::Machine(error) => error.fmt(f),
        }
    }
}

/// Lives: waits for `go`, touches the working set, works, obeys, and compares at `finish`.
///
/// # Errors
/// When the memory is too small, an order is not understood, or the machine fails. The caller tells
/// the error.
pub fn live<M: Machine>(
    machine: &mut M,
    work: &Work,
    memory: &mut [u64],
) -> Result<(), Trouble<M::Error>> {
    let pages = usize::try_from(work.set_mib)
        .unwrap_or(usize::MAX)
        .saturating_mul(PAGES_PER_MIB);
    let there = memory.len() / PAGE_WORDS;
    if pages > there {
        return Err(Trouble::Memory {
            needed_mib: work.set_mib,
            there_mib: there / PAGES_PER_MIB,
        });
    }
    let mut life = Life {
        updates: Updates::new(work).ok_or(Trouble::HotSet)?,
        memory: &mut memory[..pages * PAGE_WORDS],
        machine,
        work,
        console: Console::default(),
        idle: false,
        planned: 0,
        told: 0,
    };
    life.machine.tell(Line::Up);
    while life.listen()? != Some(Order::Go) {
        life.machine.halt(HALT_US);
    }
    let begin = work.begin_mib.unwrap_or(work.set_mib);
    life.touch(begin);
    life.tell_hot()?;
    life.machine.tell(Line::Ready);
    life.work()?;
    life.compare();
    Ok(())
}

struct Life<'a, M> {
    machine: &'a mut M,
    work: &'a Work,
    memory: &'a mut [u64],
    updates: Updates,
    console: Console,
    idle: bool,
    /// Orders of the plan that were carried out.
    planned: usize,
    /// When the guest last told that it goes on.
    told: u64,
}

impl<M: Machine> Life<'_, M> {
    /// The next order on the console; those of the machine are carried out at once.
    fn listen(&mut self) -> Result<Option<Order>, Trouble<M::Error>> {
        while let Some(byte) = self.machine.typed() {
            let Some(line) = self.console.take(byte) else {
                continue;
            };
            match Order::parse(line) {
                Some(order) => return Ok(Some(order)),
                None if self.machine.obey(line).map_err(Trouble::Machine)? => {}
                None => return Err(Trouble::Order),
            }
        }
        Ok(None)
    }

    /// Whether a second has passed since this last said so.
    fn second_passed(&mut self) -> Option<u64> {
        let now = self.machine.micros();
        let passed = now.saturating_sub(self.told);
        (passed >= TELL_EVERY_US).then(|| {
            self.told = now;
            passed
        })
    }

    fn touch(&mut self, to_mib: u64) {
        let to = usize::try_from(to_mib)
            .unwrap_or(usize::MAX)
            .saturating_mul(PAGES_PER_MIB);
        let to = to.min(self.memory.len() / PAGE_WORDS);
        self.told = self.machine.micros();
        while self.updates.touched() < to {
            self.updates.touch(self.memory, PAGES_PER_MIB);
            if self.second_passed().is_some() {
                let mib = self.updates.touched() / PAGES_PER_MIB;
                self.machine.tell(Line::Touched { mib });
            }
        }
    }

    fn tell_hot(&mut self) -> Result<(), Trouble<M::Error>> {
        let hot = self.updates.hot();
        self.machine
            .tell_hot(self.memory, hot)
            .map_err(Trouble::Machine)
    }

    /// Accesses the memory and obeys, until told to finish.
    fn work(&mut self) -> Result<(), Trouble<M::Error>> {
        let began = self.machine.micros();
        let (mut listened, mut count, mut gap) = (began, 0, 0);
        let mut pace = Pace::new(self.work.most_per_s, began);
        self.told = began;
        loop {
            if self.idle {
                self.machine.halt(HALT_US);
            } else {
                let before = self.machine.micros();
                self.updates.run(self.memory, BATCH);
                count += BATCH;
                gap = self.machine.micros().saturating_sub(before).max(gap);
                let due = pace.due(BATCH, self.machine.micros());
                // Nothing but reading the clock: the instruction for such loops would leave the guest.
                while self.machine.micros() < due {}
            }
            if let Some(micros) = self.second_passed() {
                let ms = micros / 1000;
                let gap_ms = gap / 1000;
                self.machine.tell(Line::Updates { count, ms, gap_ms });
                (count, gap) = (0, 0);
                let hot = self.updates.hot();
                self.machine
                    .second(self.memory, hot)
                    .map_err(Trouble::Machine)?;
            }
            let now = self.machine.micros();
            if let Some(planned) = self.work.plan.orders().get(self.planned)
                && now.saturating_sub(began) >= planned.at_s * 1_000_000
            {
                self.planned += 1;
                if planned.order == Order::Finish {
                    return Ok(());
                }
                self.obey(planned.order)?;
            }
            if now.saturating_sub(listened) >= LISTEN_EVERY_US {
                listened = now;
                match self.listen()? {
                    None => {}
                    Some(Order::Finish) => return Ok(()),
                    Some(order) => self.obey(order)?,
                }
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), Trouble<M::Error>> {
        match order {
            Order::Hot {
                at_mib,
                mib,
                stride,
            } => {
                let mib = mib.unwrap_or((self.updates.hot().pages / PAGES_PER_MIB) as u64);
                let stride = stride.unwrap_or(self.updates.hot().stride as u64);
                let hot = HotSet::new(mib, stride, Some(at_mib), self.work.set_mib);
                self.updates.move_hot(hot.ok_or(Trouble::HotSet)?);
                self.tell_hot()?;
            }
            Order::Grow { mib } => self.touch(mib),
            Order::Idle => self.idle = true,
            Order::Busy => self.idle = false,
            Order::Go | Order::Finish => return Err(Trouble::Order),
        }
        self.machine.tell(Line::Obeyed { order: &order });
        Ok(())
    }

    /// Compares the memory with all updates and tells the outcome.
    fn compare(&mut self) {
        let mut comparison = Comparison::default();
        let touched = self.updates.touched();
        self.told = self.machine.micros();
        while comparison.pages() < touched {
            let next = PAGES_PER_MIB.min(touched - comparison.pages());
            comparison.go_on(self.memory, next);
            if self.second_passed().is_some() {
                let mib = comparison.pages() / PAGES_PER_MIB;
                self.machine.tell(Line::Compared { mib });
            }
        }
        let (expected, found) = (self.updates.expected(), comparison.sum());
        self.machine.tell(Line::Integrity {
            ok: expected == found,
            updates: self.updates.done(),
            expected,
            found,
        });
    }
}

/// Spreads accesses over time.
struct Pace {
    /// 0: as they come.
    most_per_s: u64,
    /// When the next batch may begin.
    next: u64,
}

impl Pace {
    fn new(most_per_s: u64, now: u64) -> Self {
        Self {
            most_per_s,
            next: now,
        }
    }

    /// When the next batch may begin after one of so many accesses that ended now.
    fn due(&mut self, accesses: u64, now: u64) -> u64 {
        let takes = (accesses * 1_000_000).checked_div(self.most_per_s);
        // What a guest was kept from doing is not made up for.
        self.next = (self.next + takes.unwrap_or(0)).max(now);
        self.next
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::Plan;

    /// A machine whose clock goes on by a fixed step at each look, and on which lines are typed at
    /// their times.
    struct Fake {
        now: u64,
        step: u64,
        typing: VecDeque<(u64, &'static str)>,
        bytes: VecDeque<u8>,
        said: Vec<String>,
        halted: u64,
    }

    impl Fake {
        fn new(typing: &[(u64, &'static str)]) -> Self {
            Self {
                now: 0,
                step: 2_000,
                typing: typing.iter().copied().collect(),
                bytes: VecDeque::new(),
                said: Vec::new(),
                halted: 0,
            }
        }

        fn said(&self, part: &str) -> usize {
            self.said.iter().filter(|line| line.contains(part)).count()
        }
    }

    impl Machine for Fake {
        type Error = &'static str;

        fn micros(&mut self) -> u64 {
            self.now += self.step;
            self.now
        }

        fn tell(&mut self, line: Line<'_>) {
            self.said.push(line.to_string());
        }

        fn typed(&mut self) -> Option<u8> {
            if let Some((at, line)) = self.typing.front().copied()
                && at <= self.now
            {
                self.typing.pop_front();
                self.bytes.extend(line.bytes().chain([b'\n']));
            }
            self.bytes.pop_front()
        }

        fn halt(&mut self, micros: u64) {
            self.now += micros;
            self.halted += micros;
        }

        fn tell_hot(&mut self, _: &[u64], hot: HotSet) -> Result<(), Self::Error> {
            self.tell(Line::Hot {
                base: 0x20_0000,
                hot,
            });
            Ok(())
        }

        fn obey(&mut self, order: &str) -> Result<bool, Self::Error> {
            match order {
                "agent start" => Ok(true),
                "agent break" => Err("no agent"),
                _ => Ok(false),
            }
        }
    }

    const SECOND: u64 = 1_000_000;

    fn small(plan: &str) -> Work {
        Work {
            set_mib: 4,
            hot_mib: 1,
            plan: Plan::parse(plan).unwrap(),
            ..Work::default()
        }
    }

    fn lived(work: &Work, typing: &[(u64, &'static str)]) -> (Fake, Result<(), String>) {
        let mut machine = Fake::new(typing);
        let mut memory = vec![0; 4 * PAGES_PER_MIB * PAGE_WORDS];
        let result = live(&mut machine, work, &mut memory);
        (machine, result.map_err(|trouble| trouble.to_string()))
    }

    #[test]
    fn guest_when_told_to_go_and_finish_proves_its_memory() {
        let (machine, result) = lived(&small(""), &[(0, "go"), (5 * SECOND, "finish")]);

        assert_eq!(result, Ok(()));
        assert_eq!(machine.said[0], "@lab {\"guest\":\"up\"}");
        assert!(machine.said("\"ready\"") == 1 && machine.said("\"hot\"") == 1);
        assert!(
            (3..=5).contains(&machine.said("\"updates\"")),
            "{:?}",
            machine.said
        );
        assert_eq!(machine.said("\"ok\":true"), 1);
    }

    #[test]
    fn guest_when_it_may_do_so_many_accesses_does_no_more() {
        let mut work = small("10:finish");
        work.most_per_s = 50_000;

        let (machine, result) = lived(&work, &[(0, "go")]);

        assert_eq!(result, Ok(()));
        let told = machine.said.iter().find(|line| line.contains("integrity"));
        let updates = told.unwrap().split("\"updates\":").nth(1).unwrap();
        let updates: u64 = updates.split(',').next().unwrap().parse().unwrap();
        // Ten seconds, and a batch.
        assert!((480_000..=502_048).contains(&updates), "{updates}");
    }

    #[test]
    fn pace_when_time_was_lost_does_not_make_up_for_it() {
        let mut pace = Pace::new(1_000_000, 0);

        assert_eq!(pace.due(2000, 500), 2000);
        assert_eq!(pace.due(2000, 900_000), 900_000);
        assert_eq!(pace.due(2000, 900_100), 902_000);
        assert_eq!(Pace::new(0, 0).due(2000, 500), 500);
    }

    #[test]
    fn guest_when_its_plan_says_so_moves_sleeps_grows_and_ends() {
        let mut work = small("2:hot/0/2,4:idle,14:busy,15:grow/4,16:finish");
        work.begin_mib = Some(2);
        work.hot_at_mib = Some(0);

        let (machine, result) = lived(&work, &[(0, "agent start"), (0, "go")]);

        assert_eq!(result, Ok(()));
        assert_eq!(machine.said("\"hot\""), 2);
        assert_eq!(machine.said("obeyed"), 4);
        assert!(
            (9 * SECOND..=11 * SECOND).contains(&machine.halted),
            "{}",
            machine.halted
        );
        assert_eq!(machine.said("\"ok\":true"), 1);
    }

    #[test]
    fn guest_when_it_is_slow_tells_that_it_goes_on() {
        let mut machine = Fake::new(&[(0, "go"), (0, "finish")]);
        machine.step = 1_500_000;
        let mut memory = vec![0; 4 * PAGES_PER_MIB * PAGE_WORDS];

        live(&mut machine, &small(""), &mut memory).unwrap();

        assert_eq!(machine.said("touched"), 4);
        assert_eq!(machine.said("compared"), 4);
    }

    #[test]
    fn guest_when_something_is_wrong_says_what() {
        let big = Work {
            set_mib: 5,
            ..small("")
        };
        assert_eq!(
            lived(&big, &[]).1,
            Err(
                "the working set of 5 MiB does not fit the 4 MiB that the guest has for it"
                    .to_owned()
            )
        );
        let orders = |line| {
            lived(&small(""), &[(0, "go"), (SECOND, line)])
                .1
                .unwrap_err()
        };
        assert!(orders("dance").contains("not understood"));
        assert!(orders("go").contains("not understood"));
        assert!(orders("hot 4").contains("does not fit"));
        assert_eq!(orders("agent break"), "no agent");
    }
}
