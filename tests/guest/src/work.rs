//! The description of a workload, and its words on a guest's command line.

use core::fmt;

use crate::{HotSet, Plan};

/// A workload: random updates, most of them to a hot set. Times count from the end of the first
/// touch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, rename_all = "kebab-case", default)
)]
pub struct Work {
    /// Working set.
    pub set_mib: u64,
    /// How much of it is touched at first; the rest when an order says so. Absent: all.
    pub begin_mib: Option<u64>,
    /// Hot set.
    pub hot_mib: u64,
    /// Where the hot set begins in the working set; absent: so that it ends at the end, which
    /// is touched last and spills to the slow node.
    pub hot_at_mib: Option<u64>,
    /// Distance between hot pages, in pages: 1 is contiguous. A set that reaches the end goes on at
    /// the begin.
    pub hot_stride: u64,
    /// Of 1000 accesses, how many go to the hot set.
    pub hot_permille: u32,
    /// Of 1000 accesses, how many go to the page after the last one scanned, round the working set.
    pub scan_permille: u32,
    /// If not 0, pages are accessed by Zipf's law with this exponent, in thousandths, from the
    /// first hot page on in steps of the stride; the hot set is then the pages that are accessed
    /// most.
    pub zipf_permille: u32,
    /// Most accesses a second; 0: as many as the machine can do. From three million on the cold pages of
    /// the default set are accessed in most of DAMON's intervals at rest (200 ms), and look hot.
    pub most_per_s: u64,
    /// Words are read and not changed.
    pub reads_only: bool,
    /// Transparent huge pages inside a Linux guest.
    pub guest_thp: bool,
    /// Seed of the random numbers.
    pub seed: u64,
    /// What changes, and when.
    pub plan: Plan,
}

impl Default for Work {
    /// The GUPS set-up of Demeter (SOSP'25), scaled down with its ratios kept.
    fn default() -> Self {
        Self {
            set_mib: 300,
            begin_mib: None,
            hot_mib: 32,
            hot_at_mib: None,
            hot_stride: 1,
            hot_permille: 900,
            scan_permille: 0,
            zipf_permille: 0,
            most_per_s: 1_000_000,
            reads_only: false,
            guest_thp: false,
            seed: 1,
            plan: Plan::default(),
        }
    }
}

/// Why a command line describes no workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotUnderstood<'a> {
    /// A word that begins with `lab.` and names nothing.
    Unknown(&'a str),
    /// A word's value is none that it can have.
    Value(&'a str),
    /// The hot set does not fit the working set.
    HotSet,
    /// More than a thousand of a thousand accesses.
    Shares,
}

impl fmt::Display for NotUnderstood<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "word '{word}' of the command line is unknown"),
            Self::Value(word) => write!(
                f,
                "word '{word}' of the command line has no value that it can have"
            ),
            Self::HotSet => f.write_str("the hot set does not fit the working set"),
            Self::Shares => {
                f.write_str("the shares of hot and scanned accesses exceed 1000 of 1000")
            }
        }
    }
}

impl core::error::Error for NotUnderstood<'_> {}

impl Work {
    /// The workload as words of a guest's command line.
    #[must_use]
    pub fn words(&self) -> impl fmt::Display + '_ {
        Words(self)
    }

    /// Reads the workload from a command line; words that do not begin with `lab.` belong to
    /// others.
    ///
    /// # Errors
    /// When a word is unknown or its value impossible, naming the word, or when the hot set does
    /// not fit.
    pub fn from_command_line(line: &str) -> Result<Self, NotUnderstood<'_>> {
        let mut work = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some(rest) = word.strip_prefix("lab.") else {
                continue;
            };
            let (key, value) = rest.split_once('=').ok_or(NotUnderstood::Unknown(word))?;
            let wrong = NotUnderstood::Value(word);
            let number = || value.parse::<u64>().map_err(|_| wrong);
            let small = || value.parse::<u32>().map_err(|_| wrong);
            match key {
                "set_mib" => work.set_mib = number()?,
                "begin_mib" => work.begin_mib = Some(number()?),
                "hot_mib" => work.hot_mib = number()?,
                "hot_at_mib" => work.hot_at_mib = Some(number()?),
                "hot_stride" => work.hot_stride = number()?,
                "hot_permille" => work.hot_permille = small()?,
                "scan_permille" => work.scan_permille = small()?,
                "zipf_permille" => work.zipf_permille = small()?,
                "most_per_s" => work.most_per_s = number()?,
                "reads_only" => work.reads_only = number()? != 0,
                "thp" => work.guest_thp = number()? != 0,
                "seed" => work.seed = number()?,
                "plan" => work.plan = Plan::parse(value).ok_or(wrong)?,
                _ => return Err(NotUnderstood::Unknown(word)),
            }
        }
        work.check()?;
        Ok(work)
    }

    /// The hot set at the start.
    #[must_use]
    pub fn hot_set(&self) -> Option<HotSet> {
        HotSet::new(self.hot_mib, self.hot_stride, self.hot_at_mib, self.set_mib)
    }

    /// Whether the description makes sense, whatever the guest's memory.
    ///
    /// # Errors
    /// When the hot set does not fit the working set, or shares exceed the whole.
    pub fn check(&self) -> Result<(), NotUnderstood<'static>> {
        if self.hot_set().is_none() || self.begin_mib.is_some_and(|mib| mib > self.set_mib) {
            return Err(NotUnderstood::HotSet);
        }
        if self.hot_permille.saturating_add(self.scan_permille) > 1000 {
            return Err(NotUnderstood::Shares);
        }
        Ok(())
    }
}

/// A workload as words of a command line.
struct Words<'a>(&'a Work);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let work = self.0;
        for (key, value) in [
            ("set_mib", Some(work.set_mib)),
            ("begin_mib", work.begin_mib),
            ("hot_mib", Some(work.hot_mib)),
            ("hot_at_mib", work.hot_at_mib),
            ("hot_stride", Some(work.hot_stride)),
            ("hot_permille", Some(work.hot_permille.into())),
            ("scan_permille", Some(work.scan_permille.into())),
            ("zipf_permille", Some(work.zipf_permille.into())),
            ("most_per_s", Some(work.most_per_s)),
            ("reads_only", Some(work.reads_only.into())),
            ("thp", Some(work.guest_thp.into())),
        ] {
            if let Some(value) = value {
                write!(f, "lab.{key}={value} ")?;
            }
        }
        write!(f, "lab.seed={}", work.seed)?;
        if !work.plan.orders().is_empty() {
            write!(f, " lab.plan={}", work.plan)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_when_written_to_a_command_line_reads_back_equal() {
        let work = Work {
            set_mib: 100,
            begin_mib: Some(50),
            hot_mib: 8,
            hot_at_mib: Some(12),
            hot_stride: 4,
            hot_permille: 750,
            scan_permille: 100,
            zipf_permille: 990,
            most_per_s: 5,
            reads_only: true,
            guest_thp: true,
            seed: 99,
            plan: Plan::parse("5:hot/0/16/2,20:idle,30:busy").unwrap(),
        };

        let line = format!("console=ttyS0 quiet {}", work.words());

        assert_eq!(Work::from_command_line(&line), Ok(work));
        let work = Work::default();
        let line = work.words().to_string();
        assert_eq!(Work::from_command_line(&line), Ok(work));
    }

    #[test]
    fn work_when_not_understood_says_which_word() {
        let told = |line: &str| Work::from_command_line(line).unwrap_err().to_string();

        assert!(told("quiet lab.dance=1").contains("'lab.dance=1'"));
        assert!(told("lab.set_mib=many").contains("'lab.set_mib=many'"));
        assert!(told("lab.set_mib").contains("'lab.set_mib'"));
        assert!(told("lab.plan=5:dance").contains("'lab.plan=5:dance'"));
        assert!(told("lab.hot_mib=400").contains("does not fit"));
        assert!(told("lab.scan_permille=101").contains("1000"));
    }
}
