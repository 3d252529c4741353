//! The player: shows a recording on the page, second by second, without a daemon's owner.

use std::{path::Path, process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use axum::body::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::{
    http::{self, Site, address::Address},
    published::Published,
    recording::Recording,
};

/// The pause before the recording begins again.
const PAUSE: Duration = Duration::from_secs(3);
/// The longest gap of a recording that is waited for.
const LONGEST_GAP: Duration = Duration::from_secs(10);

/// A moment of a recording: its time, in milliseconds, on a clock that never falls, and the text of its
/// figures, one line of JSON.
#[derive(Clone, Debug)]
pub(super) struct Played {
    pub(super) at_ms: u64,
    pub(super) text: Bytes,
}

/// `vmm-tier host --replay`: plays the recording again and again until the process ends.
pub(super) fn run(
    path: &Path,
    address: Option<Address>,
    names: Vec<String>,
) -> anyhow::Result<ExitCode> {
    let address = address.context("a recording is shown by HTTP: give --http, too")?;
    let recording = Recording::open(path)?;
    let (frames, played) = watch::channel(None);
    let mut site = Site::from(Arc::<Published>::default());
    site.played = Some(played);
    http::serve(address, names, site)?;
    tracing::info!(
        moments = recording.len(),
        is_cut = recording.is_cut(),
        "a recording is played"
    );
    // Pages reckon with a clock that goes on when the recording begins again.
    let mut clock_ms = 0;
    loop {
        let mut before = 0;
        for moment in 0..recording.len() {
            let since = recording.since_ms(moment);
            let gap = Duration::from_millis(since - before).min(LONGEST_GAP);
            thread::sleep(gap);
            clock_ms += gap.as_millis() as u64;
            before = since;
            frames.send_replace(Some(Arc::new(frame(&recording, moment, clock_ms)?)));
        }
        thread::sleep(PAUSE);
        clock_ms += PAUSE.as_millis() as u64;
    }
}

fn frame(recording: &Recording, moment: usize, clock_ms: u64) -> anyhow::Result<Played> {
    let mut told = recording.read(moment)?;
    if let Value::Object(told) = &mut told {
        told.insert("at-ms".to_owned(), recording.at_ms(moment).into());
    }
    Ok(Played {
        at_ms: clock_ms,
        text: told.to_string().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{
        http,
        recording::{Bounds, Writer},
    };

    #[test]
    fn moment_when_played_is_what_was_told_with_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hour");
        let mut writer = Writer::create(&path, Bounds::default()).unwrap();
        writer
            .add(1_700_000_000_000, &http::tests::host(2))
            .unwrap();
        writer
            .add(1_700_000_001_000, &http::tests::host(1))
            .unwrap();
        drop(writer);
        let recording = Recording::open(&path).unwrap();
        let played = frame(&recording, 1, 77).unwrap();
        let told: Value = serde_json::from_slice(&played.text).unwrap();
        assert_eq!(told["at-ms"], 1_700_000_001_000_u64);
        assert_eq!(told["vms"].as_array().unwrap().len(), 1);
        assert_eq!(played.at_ms, 77);
        assert!(!played.text.contains(&b'\n'));
        let error = run(&path, None, Vec::new()).unwrap_err().to_string();
        assert!(error.contains("--http"), "{error}");
    }
}
