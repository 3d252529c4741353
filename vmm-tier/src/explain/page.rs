//! The explanation of a page: the agent's sentences, or without an agent what QEMU and the kernel tell.

use std::path::Path;

use anyhow::{Context as _, bail};
use qmp::{Client, ErrorClass, client::ExecuteError};
use serde_json::{Value, json};
use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva},
    dual_heap::Placement,
    engine::sentences,
};
use tier_sys::{
    folios::Folios,
    holds,
    pagemap::Pagemap,
    pages::{self, PageStatus},
    sysroot::SysRoot,
};

use super::{RUN_DIR, agent_beside, connect};
use crate::discover::{Discovered, discover};

/// The command that an agent, or its proxy of QEMU's monitor, knows.
const COMMAND: &str = "tier-explain";

/// Explains the page at `address` in sentences.
pub(super) fn explain(
    qmp: Option<&Path>,
    control: Option<&Path>,
    address: Gpa,
    root: &SysRoot,
) -> anyhow::Result<Vec<String>> {
    if let Some(control) = control {
        return told(&ask(&connect(control)?, address)?);
    }
    let qmp = qmp.context("name a socket with --qmp or --control")?;
    if let Some(agent) = agent_beside(qmp, Path::new(RUN_DIR))? {
        return told(&ask(&agent, address)?);
    }
    let client = connect(qmp).with_context(|| {
        format!("no agent in {RUN_DIR} serves this guest; name the agent's control socket with --control")
    })?;
    // An agent's proxy of the monitor knows the command, too.
    match ask(&client, address) {
        Err(ExecuteError::Refused { error, .. }) if error.class == ErrorClass::CommandNotFound => {
            without_agent(&client, address, root)
        }
        reply => told(&reply?),
    }
}

fn ask(client: &Client, address: Gpa) -> Result<Value, ExecuteError> {
    client.execute_raw(COMMAND, Some(json!({"address": address.0})))
}

/// The sentences of an agent's reply.
fn told(reply: &Value) -> anyhow::Result<Vec<String>> {
    let sentences = reply["sentences"].as_array();
    let sentences =
        sentences.context("the agent is older than this program: ask it with vmm-tier ctl")?;
    let texts = sentences.iter().filter_map(Value::as_str);
    Ok(texts.map(str::to_owned).collect())
}

/// What can be told of a page beside which no agent runs.
fn without_agent(client: &Client, address: Gpa, root: &SysRoot) -> anyhow::Result<Vec<String>> {
    let Discovered { pid, map, .. } = discover(client, root)?;
    let Some((hva, range)) = map.gpa_to_hva(address) else {
        bail!("guest address {:#x} is not guest RAM", address.0);
    };
    let block = map.block(range.block);
    let page_bytes = page_bytes(root, pid, hva, block.page_size);
    let offset = range.offset + (address.0 - range.gpa.0);
    let mut told = vec![sentences::address(address, block, offset, page_bytes)];
    let head = hva.align_down(BASE_PAGE);
    let status = pages::query_nodes(pid, &[head])?;
    let node = status.first().copied().and_then(PageStatus::node);
    told.push(sentences::place(node, Placement::Untracked));
    if let Ok(holds) = holds::read(root, pid, map.total_bytes()) {
        told.extend(holds.sentences());
    }
    told.push(
        "No agent runs beside this guest: the heat of the page is not known, and nothing is planned for it.".to_owned(),
    );
    Ok(told)
}

/// The size of the page at `hva`: a transparent huge page, or a smaller folio, is larger than its
/// block's pages.
fn page_bytes(root: &SysRoot, pid: u32, hva: Hva, block_page: u64) -> u64 {
    if block_page > BASE_PAGE {
        return block_page;
    }
    let head = hva.align_down(HUGE_PAGE);
    let pagemap = Pagemap::open(root, pid).ok();
    let Some(pagemap) = pagemap else {
        return block_page;
    };
    if pagemap.is_huge(hva).ok().flatten() == Some(true) {
        return HUGE_PAGE;
    }
    let folios = Folios::open(root).and_then(|folios| folios.find(&pagemap, head, HUGE_PAGE));
    let mut folios = folios.into_iter().flatten();
    let folio = folios.find(|page| hva >= page.hva && hva.0 < page.hva.0 + page.bytes);
    folio.map_or(block_page, |page| page.bytes)
}
