//! The player: goes through a recording, at several speeds, back and forth.

use std::{path::Path, time::Instant};

use serde_json::Value;

use crate::host::recording::{Recording, RecordingError};

/// How many times as fast as it was.
const SPEEDS: [u32; 7] = [1, 2, 5, 10, 30, 60, 300];
/// A pause of the recording that is longer is passed over.
const LONGEST_GAP_MS: u64 = 10_000;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Player {
    recording: Recording,
    /// Where it is: time since the first moment.
    at_ms: f64,
    speed: usize,
    pub(super) is_paused: bool,
    last: Instant,
    /// The moment that was read last, if one was.
    read: Option<usize>,
}

impl Player {
    /// Opens a recording at this time since its first moment.
    ///
    /// # Errors
    /// What is wrong with the recording.
    pub(super) fn open(path: &Path, at_ms: u64, now: Instant) -> Result<Self, RecordingError> {
        let recording = Recording::open(path)?;
        let mut player = Self {
            recording,
            at_ms: 0.0,
            speed: 0,
            is_paused: false,
            last: now,
            read: None,
        };
        player.go_to(at_ms as f64);
        Ok(player)
    }

    /// The recording.
    pub(super) fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The current moment's number.
    pub(super) fn moment(&self) -> usize {
        self.recording.moment_at(self.at_ms as u64)
    }

    /// Time since the first moment.
    pub(super) fn since_ms(&self) -> u64 {
        self.at_ms as u64
    }

    /// The time of the last moment since the first.
    pub(super) fn length_ms(&self) -> u64 {
        self.recording.since_ms(self.recording.len() - 1)
    }

    /// How many times as fast as it was.
    pub(super) fn speed(&self) -> u32 {
        SPEEDS[self.speed]
    }

    /// Whether the last moment is shown.
    pub(super) fn is_at_end(&self) -> bool {
        self.since_ms() >= self.length_ms()
    }

    /// Goes on with the time that passed, and gives the moment that is current now, if another was.
    ///
    /// # Errors
    /// If the file has changed.
    pub(super) fn advance(&mut self, now: Instant) -> Result<Option<Value>, RecordingError> {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        if !self.is_paused {
            let next = self.recording.since_ms(self.moment() + 1) as f64;
            self.at_ms += passed.as_secs_f64() * 1000.0 * f64::from(self.speed());
            if next - self.at_ms > LONGEST_GAP_MS as f64 {
                self.at_ms = next;
            }
            self.at_ms = self.at_ms.min(self.length_ms() as f64);
        }
        let moment = self.moment();
        if self.read == Some(moment) {
            return Ok(None);
        }
        let told = self.recording.read(moment)?;
        self.read = Some(moment);
        Ok(Some(told))
    }

    /// Goes forth or back by so many milliseconds.
    pub(super) fn seek(&mut self, by_ms: f64) {
        self.go_to(self.at_ms + by_ms);
    }

    /// Goes forth or back by so many moments, and stays there.
    pub(super) fn step(&mut self, by: isize) {
        self.is_paused = true;
        let last = self.recording.len() - 1;
        let to = self.moment().saturating_add_signed(by).min(last);
        self.go_to(self.recording.since_ms(to) as f64);
    }

    /// Goes to a time since the first moment.
    pub(super) fn go_to(&mut self, at_ms: f64) {
        self.at_ms = at_ms.clamp(0.0, self.length_ms() as f64);
    }

    /// Plays faster, or slower, by so many steps.
    pub(super) fn faster(&mut self, steps: isize) {
        let speed = self.speed.saturating_add_signed(steps);
        self.speed = speed.min(SPEEDS.len() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn recording(at_s: &[u64]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = "{\"vmm-tier-host-recording\": 1}\n".to_owned();
        for at in at_s {
            text += &format!("{}\n", json!({"at-ms": at * 1000, "vms": [], "at": at}));
        }
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn shown(player: &mut Player, now: Instant) -> Option<u64> {
        player.advance(now).unwrap()?["at"].as_u64()
    }

    #[test]
    fn recording_when_played_advances_with_the_time_and_its_speed() {
        let file = recording(&[100, 101, 102, 103, 104, 105, 106]);
        let begin = Instant::now();
        let after = |ms: u64| begin + Duration::from_millis(ms);
        let mut player = Player::open(file.path(), 0, begin).unwrap();
        assert_eq!(shown(&mut player, begin), Some(100));
        assert_eq!(shown(&mut player, after(900)), None);
        assert_eq!(shown(&mut player, after(1100)), Some(101));
        player.faster(1);
        assert_eq!(
            (player.speed(), shown(&mut player, after(2100))),
            (2, Some(103))
        );
        player.is_paused = true;
        assert_eq!(shown(&mut player, after(9000)), None);
        player.step(1);
        assert_eq!(shown(&mut player, after(9000)), Some(104));
        player.step(-9);
        assert_eq!(shown(&mut player, after(9000)), Some(100));
        player.seek(2500.0);
        assert_eq!(shown(&mut player, after(9000)), Some(102));
        player.is_paused = false;
        assert_eq!(shown(&mut player, after(90_000)), Some(106));
        assert!(player.is_at_end());
        player.seek(-1e300);
        assert_eq!(shown(&mut player, after(90_000)), Some(100));
        player.faster(99);
        player.faster(-1);
        assert_eq!(player.speed(), 60);
    }

    #[test]
    fn recording_when_it_has_a_long_pause_does_not_wait_for_its_end() {
        let file = recording(&[0, 1, 10_000, 10_001]);
        let begin = Instant::now();
        let mut player = Player::open(file.path(), 1000, begin).unwrap();
        assert_eq!(shown(&mut player, begin), Some(10_000));
        assert_eq!(player.length_ms(), 10_001_000);
        let beyond = Player::open(file.path(), u64::MAX, begin).unwrap();
        assert_eq!(beyond.moment(), 3);
    }
}
