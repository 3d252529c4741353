//! The steps of a run and the checks of what it measured.

use serde::{Deserialize, Serialize};

/// MiB of the smallest hugetlb page.
const fn small_huge_page() -> u64 {
    2
}

const fn whole() -> f64 {
    1.0
}

/// One step of a run. `guest` is the guest's name; empty means the run's first guest. Where a step
/// says so, `*` means all, one after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    tag = "do",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Step {
    /// Starts a guest and waits until it is up; its workload waits. Takes `*`.
    StartGuest {
        /// Which.
        #[serde(default)]
        guest: String,
        /// Starts its workload too, before the next guest: a guest that waits halts ten times a second.
        #[serde(default)]
        with_work: bool,
    },
    /// Waits until a guest that was reset is up again.
    AwaitGuestUp {
        /// Which.
        #[serde(default)]
        guest: String,
    },
    /// Fills a node with memory that stays until the run's end, so that this much is free.
    Ballast {
        /// Which node.
        #[serde(default)]
        node: u32,
        /// What is left free.
        leave_free_mib: u64,
    },
    /// Lets the workload begin and waits until it has touched its working set. Takes `*`.
    StartWork {
        /// Which.
        #[serde(default)]
        guest: String,
    },
    /// Types a line on the guest's console: an order of `lab_guest::Order`, or in a guest with an
    /// agent `agent start`, `agent kill` or `agent end`. Takes `*`.
    Say {
        /// Which guest.
        #[serde(default)]
        guest: String,
        /// The line.
        line: String,
    },
    /// Sets the pools of hugetlb pages, node by node. Pages that are in use stay, as surplus.
    SetPools {
        /// Pages of each node.
        pages: Vec<u64>,
        /// Their size in MiB; 2 if not given.
        #[serde(default = "small_huge_page")]
        page_mib: u64,
    },
    /// Takes the hot pages away from the guest, as a balloon would: punches holes into the file that
    /// backs them. Waits until the guest has touched them again, and notes on which nodes they came
    /// back. Their content is lost, so the run can't end with `finish-work`.
    PunchHot {
        /// Which.
        #[serde(default)]
        guest: String,
        /// The note's name.
        note: String,
        /// Least share of the pages that must come back on node 0, 0 to 1.
        #[serde(default)]
        min: f64,
        /// Largest such share.
        #[serde(default = "whole")]
        max: f64,
    },
    /// Moves the hot set within the working set.
    MoveHot {
        /// Which.
        #[serde(default)]
        guest: String,
        /// Where it begins.
        to_mib: u64,
    },
    /// Lets time pass while the sampler measures.
    Wait {
        /// How long.
        seconds: u64,
        /// What to call this stretch in the series.
        #[serde(default)]
        phase: String,
    },
    /// Waits until so much of the hot set is on node 0; fails when the share no longer rises.
    AwaitShare {
        /// Which. Takes `*`.
        #[serde(default)]
        guest: String,
        /// Least share, 0 to 1.
        min: f64,
        /// What to call this stretch in the series.
        #[serde(default)]
        phase: String,
    },
    /// Starts `vmm-tier run` beside a guest and waits for its control socket. Takes `*`.
    StartAgent {
        /// Which.
        #[serde(default)]
        guest: String,
        /// More arguments, `{pmu}` standing for the file of the software PMU's records, `{host}` for the
        /// socket of the host daemon.
        #[serde(default)]
        args: Vec<String>,
    },
    /// Starts `vmm-tier host`, and waits for its socket.
    StartHost {
        /// The configuration, TOML text; without it the one of the last start.
        #[serde(default)]
        config: String,
    },
    /// Sends a signal to the host daemon and waits for its end.
    EndHost {
        /// How.
        with: Signal,
    },
    /// Runs `vmm-tier ctl` on the host daemon's socket, as `ctl` does on an agent's.
    HostCtl {
        /// The command.
        execute: String,
        /// Its arguments as JSON text.
        #[serde(default)]
        arguments: String,
        /// The name of the note that keeps the reply; without one, the command's.
        #[serde(default)]
        note: String,
        /// Ask again each second until the reply is so; fails when that does not come about.
        #[serde(default)]
        until: Option<Until>,
    },
    /// Takes steps several times.
    Repeat {
        /// How often.
        times: u32,
        /// Which.
        steps: Vec<Self>,
    },
    /// Sends a signal to the agent and waits for its end. Takes `*`.
    EndAgent {
        /// Which.
        #[serde(default)]
        guest: String,
        /// How.
        with: Signal,
    },
    /// Waits until the agent ends by itself.
    AwaitAgentEnd {
        /// Which.
        #[serde(default)]
        guest: String,
        /// At most this long.
        within_s: u64,
    },
    /// Kills the guest's QEMU.
    KillGuest {
        /// Which.
        #[serde(default)]
        guest: String,
    },
    /// Sends one QMP command to the guest's QEMU.
    Qmp {
        /// Which.
        #[serde(default)]
        guest: String,
        /// The command.
        execute: String,
        /// Its arguments as JSON text.
        #[serde(default)]
        arguments: String,
    },
    /// Writes to a file of the emulated host's `/proc` or `/sys`. A setting is as it was when the run has
    /// ended; a folder for a control group is made, and stays.
    SetFile {
        /// The file.
        file: String,
        /// What is written, `{qemu}` and `{agent}` standing for the processes of the run's first guest.
        to: String,
        /// The kernel may refuse it, as it does where `memory.reclaim` finds too little; the log tells.
        #[serde(default)]
        may_fail: bool,
    },
    /// Runs `vmm-tier ctl` on the agent's control socket.
    Ctl {
        /// Which; `*` for each.
        #[serde(default)]
        guest: String,
        /// The command.
        execute: String,
        /// Its arguments as JSON text.
        #[serde(default)]
        arguments: String,
        /// The name of the note that keeps the reply; without one, the command's.
        #[serde(default)]
        note: String,
        /// Ask again each second until the reply is so; fails when that does not come about.
        #[serde(default)]
        until: Option<Until>,
    },
    /// Lets clients on the developer's machine reach the agent's control socket, through `qmp.sock`
    /// in the folder of the logs.
    Bridge {
        /// Which agent.
        #[serde(default)]
        guest: String,
    },
    /// Runs another command of `vmm-tier` and keeps its answer as a note.
    Ask {
        /// The note's name.
        name: String,
        /// The arguments, `{qmp}` and `{control}` standing for the agent's monitor and the agent's own socket of
        /// the run's first guest, and `{hot}` for the address of a page
        /// in the middle of its hot set: a page at the edge may share a region of DAMON's with cold ones.
        args: Vec<String>,
        /// Steps to take while the command runs.
        #[serde(default)]
        during: Vec<Self>,
    },
    /// Starts `vmm-tier` with something wrong and records how it ends.
    Attempt(Attempt),
    /// Reads the software PMU's records as an agent would and notes what they are: those of the
    /// guest's memory as accepted, the others as dropped. While an agent reads them nobody else
    /// may.
    ReadRecords {
        /// Which guest.
        #[serde(default)]
        guest: String,
        /// The note's name.
        note: String,
        /// For how long.
        seconds: u64,
    },
    /// Moves pages of the lab's own memory between nodes 0 and 1 as an agent does and by a bare
    /// `move_pages`, in turns, and notes both as answers to a command are noted. Transparent huge pages
    /// must be off, and both nodes have room for a batch.
    BareMoves {
        /// The note's name.
        note: String,
        /// Pages of 4 KiB in a batch.
        pages: usize,
        /// How often there and back.
        rounds: usize,
    },
    /// Records what the agent left behind: kdamonds, sockets, processes.
    Look {
        /// Checks refer to it by this name.
        name: String,
    },
    /// Records what all guests and agents cost in memory and CPU time.
    Costs,
    /// Ends the workload and compares its memory with all updates. Takes `*`.
    FinishWork {
        /// Which.
        #[serde(default)]
        guest: String,
    },
}

/// What a reply must say.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Until {
    /// Where, as a JSON pointer.
    pub at: String,
    /// What must stand there.
    #[serde(default)]
    pub is: Option<serde_json::Value>,
    /// Or the least number that must stand there.
    #[serde(default)]
    pub at_least: Option<f64>,
}

impl Until {
    /// Whether a reply says so.
    #[must_use]
    pub fn holds(&self, reply: &serde_json::Value) -> bool {
        let Some(found) = reply.pointer(&self.at) else {
            return false;
        };
        let is = self.is.as_ref().is_none_or(|is| is == found);
        is && self
            .at_least
            .is_none_or(|least| found.as_f64().is_some_and(|number| number >= least))
    }
}

/// How to end an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// SIGTERM: an orderly end.
    Term,
    /// SIGKILL: a crash.
    Kill,
}

/// A start of `vmm-tier` that should end with one clear line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attempt {
    /// Unique within the run.
    pub name: String,
    /// What the agent finds at its `--qmp` path.
    pub peer: Peer,
    /// Everything after `vmm-tier run --qmp PATH`.
    #[serde(default)]
    pub args: Vec<String>,
    /// User to run as; root when absent.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Mount points that are covered with an empty folder for the time of the attempt.
    #[serde(default)]
    pub hide: Vec<String>,
    /// Ends the attempt, with SIGTERM, after this long: a program that goes on is a finding.
    #[serde(default = "default_attempt_s")]
    pub within_s: u64,
    /// For an agent that starts blind instead of ending: the state that `query-tier` must tell.
    #[serde(default)]
    pub expect_state: Option<String>,
}

fn default_attempt_s() -> u64 {
    20
}

/// What stands behind a socket path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Nothing: the path does not exist.
    None,
    /// A socket file whose server is gone.
    Stale,
    /// The guest's QEMU, on a monitor that another client holds.
    Busy,
    /// A server that greets like an SMTP server.
    NotQemu,
    /// The guest's QEMU.
    Guest,
}

fn default_accounting_note() -> String {
    "query-tier".to_owned()
}

fn default_account() -> String {
    "/reply/source".to_owned()
}

/// What must hold of a run's measurements.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    tag = "that",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Check {
    /// The hot set's share on the fast node this long after the start of tiering.
    ShareAt {
        /// After the start of tiering.
        seconds: f64,
        /// Least share, 0 to 1.
        min: f64,
    },
    /// Mean and standard deviation of the share over the last seconds of the last phase.
    Plateau {
        /// How many.
        over_s: f64,
        /// Least mean.
        min: f64,
        /// Largest standard deviation.
        max_std: f64,
    },
    /// Bytes moved as the kernel counts them, over the least bytes possible.
    MovedOverLeast {
        /// Largest ratio.
        max: f64,
    },
    /// Bytes moved as the kernel counts them.
    MovedAtMost {
        /// Largest number of mebibytes.
        mib: f64,
    },
    /// From so long after a phase began until its end, each guest has the DRAM that the host daemon
    /// entitles it to, by what the kernel says.
    DramAsEntitled {
        /// The phase.
        phase: String,
        /// From how many seconds after its begin on.
        after_s: f64,
        /// Largest difference, as a share of the entitlement.
        tolerance: f64,
    },
    /// From so long after a phase began until its end, no guest has less DRAM than the lesser of its
    /// guarantee and what the host daemon says that it uses.
    GuaranteesKept {
        /// The phase.
        phase: String,
        /// From how many seconds after its begin on.
        after_s: f64,
    },
    /// Jain's index over what guests have of what they are entitled to, or of what they use if that is
    /// less: the least of all seconds from so long after a phase began until its end.
    Jain {
        /// The phase.
        phase: String,
        /// From how many seconds after its begin on.
        after_s: f64,
        /// The least.
        min: f64,
    },
    /// So soon after a phase began a guest has so much DRAM, and keeps it until the phase's end.
    DramReaches {
        /// Which guest.
        guest: String,
        /// The phase.
        phase: String,
        /// How much.
        mib: f64,
        /// So soon.
        within_s: f64,
    },
    /// So soon after a phase began a guest has at most so much DRAM, and no more until the phase's end.
    DramFalls {
        /// Which guest.
        guest: String,
        /// The phase.
        phase: String,
        /// How much.
        mib: f64,
        /// So soon.
        within_s: f64,
    },
    /// From so long after a phase began until its end, so much of each guest's DRAM holds hot pages, or
    /// all hot pages lie there: the least of the means of the guests.
    DramHoldsHot {
        /// The phase.
        phase: String,
        /// From how many seconds after its begin on.
        after_s: f64,
        /// The least share.
        min: f64,
    },
    /// After every move of the hot set that lasted so long, 0.95 of it was in DRAM so soon.
    Changes {
        /// How many such moves there must be.
        count: usize,
        /// Most seconds from the move.
        within_s: f64,
    },
    /// Bytes moved after all moves of the hot set together, over the least possible.
    ChangesMovedOverLeast {
        /// Largest ratio.
        max: f64,
    },
    /// Total and surplus of each node's pool of hugetlb pages are, at each look after the last step that
    /// set them, what they were at the first. At least one pool has pages.
    PoolsUnchanged {
        /// Pages that a look in the middle of a pair of moves may find on the slow node instead: the
        /// next look must find them back. None if not given.
        #[serde(default)]
        pair_pages: u64,
    },
    /// Bytes moved in a phase.
    PhaseMovedAtMost {
        /// The phase.
        phase: String,
        /// Largest number of mebibytes.
        mib: f64,
    },
    /// The longest time in which the guest made no progress during tiering; that without an agent is
    /// told beside it.
    LongestGap {
        /// Milliseconds at most.
        max_ms: u64,
    },
    /// Median throughput at the plateau over the median without the agent.
    ThroughputRatio {
        /// Least ratio.
        min: f64,
    },
    /// No update was lost.
    Integrity,
    /// How the nth agent of the run (from 0) ended.
    AgentEnd {
        /// Which.
        #[serde(default)]
        nth: usize,
        /// Exit code.
        code: i32,
        /// A word that its output must hold.
        #[serde(default)]
        says: String,
    },
    /// Nothing was left when a `look` step looked.
    NothingLeft {
        /// The step's name.
        look: String,
    },
    /// This many kdamonds were running when a `look` step looked.
    Kdamonds {
        /// The step's name.
        look: String,
        /// How many.
        count: u64,
        /// How many more may have been: an agent has a second one now and then, which looks page by page.
        #[serde(default)]
        or_more: u64,
    },
    /// A number that two notes hold grows by so much at most from one to the other.
    GrowsAtMost {
        /// The earlier note's name.
        from: String,
        /// The later note's name.
        to: String,
        /// Where in the answers, as a JSON pointer.
        at: String,
        /// The most.
        max: f64,
    },
    /// A note of this name (a command's answer) holds this value.
    Note {
        /// The note's name.
        note: String,
        /// Where, as a JSON pointer; an answer stands at `/reply`, its exit code at `/code`.
        at: String,
        /// What must stand there.
        is: serde_json::Value,
    },
    /// A note of this name (a command's answer) holds these words somewhere.
    NoteSays {
        /// The note's name.
        note: String,
        /// The words.
        says: String,
    },
    /// A note of this name holds at least this number.
    NoteAtLeast {
        /// The note's name.
        note: String,
        /// Where, as a JSON pointer.
        at: String,
        /// The least.
        min: f64,
    },
    /// The agent's hit ratio against that of all accesses as the software PMU counted them, over
    /// the last seconds of tiering: how far it is off on average.
    HitRatioError {
        /// How many seconds.
        over_s: f64,
        /// Largest error, as a share of all accesses.
        max: f64,
    },
    /// What became of a source's records, in a note that holds the answer to `query-tier`: as many
    /// arrived as were accepted or dropped.
    Accounting {
        /// The note's name.
        #[serde(default = "default_accounting_note")]
        note: String,
        /// Where the account stands, as a JSON pointer.
        #[serde(default = "default_account")]
        at: String,
        /// Least number of accepted records.
        min_accepted: u64,
    },
    /// An attempt ended with a code other than 0 and one line, or in the state expected.
    AttemptRefused {
        /// The attempt's name.
        attempt: String,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn until_when_the_reply_says_less_or_nothing_does_not_hold() {
        let until = |text: &str| toml::from_str::<Until>(text).unwrap();
        let reply = json!({"drain": {"done": true}, "source": {"accepted": 12}});

        assert!(until("at = '/drain/done'\nis = true").holds(&reply));
        assert!(!until("at = '/drain/done'\nis = false").holds(&reply));
        assert!(until("at = '/source/accepted'\nat-least = 12").holds(&reply));
        assert!(!until("at = '/source/accepted'\nat-least = 13").holds(&reply));
        assert!(!until("at = '/source/none'").holds(&reply));
    }
}
