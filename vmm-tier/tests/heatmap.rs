//! `vmm-tier heatmap` beside an agent: into a pipe, and as PNG.

use std::process::{Command, Output};

use tempfile::TempDir;

use crate::played::{Agent, MIB, Qemu};

fn heatmap(agent: &Agent, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .arg("heatmap")
        .arg("--control")
        .arg(agent.control())
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn heatmap_when_drawn_into_a_pipe_and_a_file_shows_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    let pictures: TempDir = tempfile::tempdir().unwrap();
    let file = pictures.path().join("heat.png");

    let output = heatmap(
        &agent,
        &["--columns", "40", "--png", file.to_str().unwrap()],
    );

    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("31 MiB of RAM"), "{text}");
    let row = "  0x100000 ";
    let first = text.lines().find(|line| line.contains(row)).unwrap();
    // All of it is in DRAM, whatever the source has seen so far.
    let cells = first.trim_start().trim_start_matches("0x100000 ");
    assert_eq!(cells.chars().count(), 24, "{text}");
    assert!(cells.chars().all(|cell| "▁░▒▓█".contains(cell)), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 40),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "{text}");
    let picture = std::fs::read(&file).unwrap();
    assert_eq!(picture[..8], *b"\x89PNG\r\n\x1a\n");
    assert_eq!(std::fs::read_dir(pictures.path()).unwrap().count(), 1);
}

#[test]
fn heatmap_when_its_file_or_agent_is_missing_says_so_first() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let agent = Agent::start(folder);
    let output = heatmap(&agent, &["--png", "/nonexistent/heat.png"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("/nonexistent/heat.png.part can't be written"),
        "{said}"
    );
    assert!(output.stdout.is_empty());

    let pictures = tempfile::tempdir().unwrap();
    let file = pictures.path().join("heat.png");
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .args(["heatmap", "--control", "/nonexistent/agent.sock", "--png"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_dir(pictures.path()).unwrap().count(), 0);
}

#[test]
fn heatmap_when_no_agent_runs_says_that_heat_is_not_known() {
    let folder = tempfile::tempdir().unwrap();
    let qmp = folder.path().join("qmp");
    let _server = Qemu::new().serve(&qmp);
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .args(["heatmap", "--qmp"])
        .arg(&qmp)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no agent runs beside this guest"), "{said}");
}
