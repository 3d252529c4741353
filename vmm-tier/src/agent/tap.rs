//! A tap on what the agent hears: `vmm-tier record` writes it down.

use tier_core::{map::GuestMemoryMap, sample::SampleBatch};

/// Hears what the source that is believed delivers. With a tap the agent moves nothing, is not watched
/// less closely while it is at rest, and neither reads nor keeps what commands set.
pub(crate) trait Tap {
    /// Takes a batch that was made under `map`.
    fn batch(&mut self, batch: &SampleBatch, map: &GuestMemoryMap);

    /// Something changed that a reader of the recording should know.
    fn note(&mut self, text: &str);

    /// Called some ten times a second; whether enough was heard.
    fn tick(&mut self) -> bool;

    /// The agent ends. `why` is what is wrong with its sources, if none is believed.
    ///
    /// # Errors
    /// If what was heard could not be kept, or nothing was.
    fn finish(self: Box<Self>, why: Option<String>) -> anyhow::Result<()>;
}
