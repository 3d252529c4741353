//! How fast this machine emulates, and when a wait is in vain.
//!
//! Machines differ by a factor of three, and what else they do changes it from minute to minute. So
//! no wait ends because a time has passed. It ends when nothing moves any more: no byte on a
//! console, no CPU time; or when something that should have spoken has used much CPU time without a
//! word.

use std::time::{Duration, Instant};

/// What the emulated host's clock says when its first process begins, on the reference machine: two
/// CPUs on which a Python 3.11 loop of 10 million additions takes 0.64 s. Measured as 1.6 s on an
/// idle machine where that loop takes 0.42 s.
const REFERENCE_BOOT_S: f64 = 2.4;

/// How much slower than the reference machine this one emulates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace(f64);

impl Pace {
    /// The pace that a boot of the emulated host shows.
    #[must_use]
    pub fn of_boot(seconds: f64) -> Self {
        Self(seconds / REFERENCE_BOOT_S)
    }

    /// How many times as long as on the reference machine things take.
    #[must_use]
    pub fn factor(self) -> f64 {
        self.0
    }

    /// What takes so long on the reference machine takes as long as this here. A machine that
    /// booted fast may have been idle just then, so nothing is expected to take less.
    #[must_use]
    pub fn scaled(self, reference: Duration) -> Duration {
        reference.mul_f64(self.0.clamp(1.0, 100.0))
    }

    /// "this machine emulates 2.6 × slower than the reference: expect 4 minutes"
    #[must_use]
    pub fn told(self, reference: Duration) -> String {
        let speed = match self.0 {
            slower if slower >= 1.1 => format!("{slower:.1} × slower than"),
            faster if faster <= 0.9 => format!("{:.1} × faster than", 1.0 / faster),
            _ => "as fast as".to_owned(),
        };
        let seconds = reference.as_secs_f64() * self.0;
        let time = if seconds < 90.0 {
            format!("{:.0} seconds", (seconds / 10.0).ceil() * 10.0)
        } else {
            format!("{:.0} minutes", (seconds / 60.0).ceil())
        };
        format!("this machine emulates {speed} the reference: expect {time}")
    }
}

/// What a thing that is waited for has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moved {
    /// Bytes that it said.
    pub bytes: u64,
    /// CPU time that it used.
    pub cpu_s: f64,
}

/// How long nothing may move, and how much CPU time may be used without a word.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Nothing at all has moved for so long.
    pub still: Duration,
    /// So much CPU time was used, and nothing was said.
    pub silent_cpu: Duration,
}

impl Limits {
    /// The limits of the reference machine, for one of this pace.
    #[must_use]
    pub fn at(self, pace: Pace) -> Self {
        Self {
            still: pace.scaled(self.still),
            silent_cpu: pace.scaled(self.silent_cpu),
        }
    }
}

/// Watches one wait.
#[derive(Debug)]
pub struct Patience {
    limits: Limits,
    last: Moved,
    moved_at: Instant,
    cpu_at_word: f64,
}

/// Why a wait is in vain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InVain {
    /// Nothing moves.
    Still(Duration),
    /// Much is done, and nothing said. Seconds of CPU time.
    Silent(f64),
}

impl std::fmt::Display for InVain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Still(time) => write!(
                f,
                "stands still: no byte and no CPU time for {:.0} s",
                time.as_secs_f64()
            ),
            Self::Silent(cpu_s) => write!(f, "used {cpu_s:.0} s of CPU time without a word"),
        }
    }
}

impl Patience {
    /// Begins a wait.
    #[must_use]
    pub fn new(limits: Limits, first: Moved, now: Instant) -> Self {
        Self {
            limits,
            last: first,
            moved_at: now,
            cpu_at_word: first.cpu_s,
        }
    }

    /// Looks again; tells if to wait on is in vain.
    pub fn look(&mut self, moved: Moved, now: Instant) -> Option<InVain> {
        if moved != self.last {
            self.moved_at = now;
        }
        if moved.bytes != self.last.bytes {
            self.cpu_at_word = moved.cpu_s;
        }
        self.last = moved;
        let still = now.duration_since(self.moved_at);
        let silent = moved.cpu_s - self.cpu_at_word;
        if still >= self.limits.still {
            Some(InVain::Still(still))
        } else if silent >= self.limits.silent_cpu.as_secs_f64() {
            Some(InVain::Silent(silent))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        still: Duration::from_secs(20),
        silent_cpu: Duration::from_secs(30),
    };

    /// Looks once a second at something that follows `moved`; when and why it is given up.
    fn given_up(moved: impl Fn(u64) -> Moved) -> Option<(u64, InVain)> {
        let begin = Instant::now();
        let mut patience = Patience::new(LIMITS, moved(0), begin);
        (1..1000).find_map(|second| {
            let found = patience.look(moved(second), begin + Duration::from_secs(second))?;
            Some((second, found))
        })
    }

    #[test]
    fn wait_when_something_speaks_now_and_then_never_ends() {
        let slow = |second| Moved {
            bytes: second / 25,
            cpu_s: second as f64,
        };

        assert_eq!(given_up(slow), None);
    }

    #[test]
    fn wait_when_cpu_time_trickles_goes_on_until_the_limit_of_silence() {
        // A hundredth of a CPU: after 3000 s of the clock it would be given up.
        let starved = |second| Moved {
            bytes: 0,
            cpu_s: second as f64 / 100.0,
        };
        let busy = |second| Moved {
            bytes: 0,
            cpu_s: second as f64 * 2.0,
        };

        assert_eq!(given_up(starved), None);
        assert_eq!(given_up(busy), Some((15, InVain::Silent(30.0))));
    }

    #[test]
    fn wait_when_nothing_moves_ends() {
        let dead = |second: u64| Moved {
            bytes: second.min(40),
            cpu_s: 0.0,
        };

        assert_eq!(
            given_up(dead),
            Some((60, InVain::Still(Duration::from_secs(20))))
        );
    }

    #[test]
    fn pace_when_told_says_what_to_expect() {
        let minute = Duration::from_secs(60);
        let told = |factor| Pace(factor).told(minute);

        assert_eq!(
            told(2.6),
            "this machine emulates 2.6 × slower than the reference: expect 3 minutes"
        );
        assert_eq!(
            told(0.5),
            "this machine emulates 2.0 × faster than the reference: expect 30 seconds"
        );
        assert!(told(1.0).contains("as fast as the reference"));
        assert_eq!(Pace(0.5).scaled(minute), minute);
        assert_eq!(Pace(2.0).scaled(minute), 2 * minute);
    }
}
