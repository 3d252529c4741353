//! Prometheus' own programs, for tests.

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The program that `scripts/setup` unpacked, or that of this host; `None`, said aloud, without both.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let cache = env::var_os("VMM_TIER_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || Some(Path::new(&env::var_os("HOME")?).join(".cache"));
            Some(base.or_else(home)?.join("vmm-tier"))
        });
    let unpacked = cache.map(|cache| cache.join("prometheus"));
    let unpacked = unpacked.filter(|folder| folder.join(".complete").exists());
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = unpacked.into_iter().chain(env::split_paths(&path));
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()));
    if found.is_none() {
        println!("SKIPPED: no {name} on this host; scripts/setup fetches it");
    }
    found
}

/// What promtool has against a text in Prometheus' own format; `None` if it is not here.
pub(crate) fn complaints(text: &str) -> Option<String> {
    let mut promtool = Command::new(tool("promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    Some(said)
}
