//! docs/qmp.md: made of the descriptions that the control socket itself goes by.

use qmp::server;

use super::Commands;
use crate::generated_page;

#[test]
fn reference_when_compared_with_the_commands_is_up_to_date() {
    let (commands, _) = Commands::new();
    generated_page::check("qmp.md", &server::reference(&*commands));
}
