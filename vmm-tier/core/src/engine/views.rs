//! Views: what the engine shows. They read the engine and change nothing.

pub(crate) mod explain;
pub(crate) mod heatmap;
pub mod sentences;
pub(crate) mod snapshot;
