//! docs/qmp.md: made of the descriptions that the control socket itself goes by; and what
//! docs/operating.md says of the classes of moves, and of what moves wait for.

use std::fmt::Write as _;

use qmp::server;
use tier_core::{engine::Wait, moves::Outcome};

use super::Commands;
use crate::generated_page;

#[test]
fn reference_when_compared_with_the_commands_is_up_to_date() {
    let (commands, _) = Commands::new();
    generated_page::check("qmp.md", &server::reference(&*commands));
}

#[test]
fn classes_reference_when_compared_with_the_outcomes_is_up_to_date() {
    let mut table =
        String::from("| class | why | the agent | what you can do |\n|---|---|---|---|\n");
    for class in Outcome::ALL
        .into_iter()
        .filter(|&class| class != Outcome::Moved)
    {
        let (why, agent, remedy) = (class.cause(), class.retry(), class.remedy());
        let _ = writeln!(table, "| `{class}` | {why} | {agent} | {remedy} |");
    }
    table += "\n## What moves wait for\n\n`waits-for` of `query-tier` says it in one word, `waits-because` in a sentence. \
              Both are absent while pages move, or\ncould move at once. `access` and `gain` are what a guest has whose hot \
              pages are in their place.\n\n| `waits-for` | `waits-because` |\n|---|---|\n";
    for wait in Wait::ALL {
        let _ = writeln!(table, "| `{wait}` | {} |", wait.sentence());
    }
    generated_page::check("operating.md", &table);
}
