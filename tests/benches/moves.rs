//! Moves of the agent beside a bare `move_pages(2)` over the same pages, in the same run. On a host with
//! one memory node no page can move: then what the agent's questions and classes take for a page.

use std::env;

use lab::moves::{BATCH_PAGES, measure, overhead_ns};
use tier_core::addr::NodeSet;
use tier_sys::sysroot::{SysRoot, read_value};

const ROUNDS: usize = 31;

fn main() {
    let mut filters = env::args().skip(1).filter(|word| !word.starts_with('-'));
    if !filters.all(|filter| "moves".contains(&filter)) {
        return;
    }
    let file = SysRoot::real().sys("devices/system/node/has_memory");
    let nodes: NodeSet = read_value(&file).unwrap_or_default();
    let nodes: Vec<u32> = nodes.iter().map(|node| u32::from(node.0)).collect();
    // An exchange is half a batch each way; a batch may be set larger.
    for pages in [BATCH_PAGES / 2, BATCH_PAGES, 8 * BATCH_PAGES] {
        let told = match nodes.as_slice() {
            [near, .., far] => measure(*near, *far, pages, ROUNDS).map(|found| {
                format!(
                    "agent {:>9.0} pages/s, bare {:>9.0} pages/s, ratio {:.3}",
                    found.agent_pages_per_s, found.bare_pages_per_s, found.ratio
                )
            }),
            [only] => overhead_ns(*only, pages, ROUNDS).map(|ns| {
                format!("SKIPPED: one memory node; the agent's questions take {ns:.0} ns a page")
            }),
            [] => Err(anyhow::anyhow!("no memory node is known")),
        };
        match told {
            Ok(told) => println!("moves/{pages} pages: {told}"),
            Err(error) => println!("moves/{pages} pages: SKIPPED: {error:#}"),
        }
    }
}
