//! The curves of hits over DRAM, drawn if the program is built with the feature `charts`: it takes two
//! crates that an agent has no use for.

use super::report::{Report, Trace};

/// Whether this program draws.
pub(super) const ARE_BUILT: bool = cfg!(any(feature = "charts", test));

/// This program draws no curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this vmm-tier draws no curves; one that does: cargo build --release -p vmm-tier --features charts"
)]
pub(crate) struct NoCharts;

/// There is no picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PictureError(String);

impl From<NoCharts> for PictureError {
    fn from(error: NoCharts) -> Self {
        Self(error.to_string())
    }
}

#[cfg(any(feature = "charts", test))]
impl From<super::svg::SvgError> for PictureError {
    fn from(error: super::svg::SvgError) -> Self {
        Self(error.to_string())
    }
}

/// A trace's curves, with characters.
///
/// # Errors
/// If this program draws none.
#[cfg(any(feature = "charts", test))]
pub(super) fn text(report: &Report, trace: &Trace) -> Result<String, NoCharts> {
    Ok(super::chart::draw(report, trace))
}

/// As above.
#[cfg(not(any(feature = "charts", test)))]
pub(super) fn text(_: &Report, _: &Trace) -> Result<String, NoCharts> {
    Err(NoCharts)
}

/// All traces' curves as SVG.
///
/// # Errors
/// If the drawing fails, or this program draws none.
#[cfg(any(feature = "charts", test))]
pub(super) fn picture(report: &Report, target: f64) -> Result<String, PictureError> {
    Ok(super::svg::draw(report, target)?)
}

/// As above.
#[cfg(not(any(feature = "charts", test)))]
pub(super) fn picture(_: &Report, _: f64) -> Result<String, PictureError> {
    Err(NoCharts.into())
}
