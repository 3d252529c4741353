//! The picture of loss over DRAM, drawn if the program is built with the feature `charts`.

use super::report::{WhatIf, WhatIfHost};
use crate::comparison::PictureError;
#[cfg(not(any(feature = "charts", test)))]
use crate::comparison::charts::NoCharts;

/// Whether this program draws.
///
/// # Errors
/// If it does not.
#[cfg(any(feature = "charts", test))]
pub(super) const fn check() -> Result<(), PictureError> {
    Ok(())
}

/// As above.
#[cfg(not(any(feature = "charts", test)))]
pub(super) fn check() -> Result<(), PictureError> {
    Err(NoCharts.into())
}

/// The picture as SVG.
///
/// # Errors
/// If the drawing fails, or this program draws none.
#[cfg(any(feature = "charts", test))]
pub(super) fn picture(answer: &WhatIf, curve: &[WhatIfHost]) -> Result<String, PictureError> {
    Ok(super::svg::draw(answer, curve)?)
}

/// As above.
#[cfg(not(any(feature = "charts", test)))]
pub(super) fn picture(_: &WhatIf, _: &[WhatIfHost]) -> Result<String, PictureError> {
    Err(NoCharts.into())
}
