//! docs/host-qmp.md: made of the descriptions that the daemon's socket itself goes by.

use std::sync::Arc;

use qmp::server;
use tier_sys::sysroot::SysRoot;

use super::{Commands, SharedDesk};
use crate::generated_page;

#[test]
fn host_reference_when_compared_with_the_commands_is_up_to_date() {
    let root = SysRoot::at("/nowhere".as_ref());
    let (commands, _) = Commands::new(root, SharedDesk::default(), Arc::default());
    generated_page::check("host-qmp.md", &server::reference(&commands));
}
