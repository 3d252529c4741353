//! What the engine shows.

mod check;
pub(super) mod explain;
pub(super) mod heatmap;
pub(super) mod snapshot;
