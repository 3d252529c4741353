//! Pictures of heat: the colours, and PNG.

/// Viridis in eight steps (Stéfan van der Walt and Nathaniel Smith, 2015, CC0). Lightness rises evenly,
/// so the colour-blind see the same order, and so does paper without colours.
const COLOURS: [[u8; 3]; 8] = [
    [0x44, 0x01, 0x54],
    [0x46, 0x32, 0x7e],
    [0x36, 0x5c, 0x8d],
    [0x27, 0x7f, 0x8e],
    [0x1f, 0xa1, 0x87],
    [0x4a, 0xc1, 0x6d],
    [0xa0, 0xda, 0x39],
    [0xfd, 0xe7, 0x25],
];
/// The scale of heat spans a factor of 1000: what is colder has the colour of the coldest.
const DECADES: f64 = 3.0;
/// The largest picture, in pixels: 48 MiB.
const MOST_PIXELS: usize = 1 << 24;

/// Where a heat stands on the scale that ends at `hottest`: 0 is the cold end, 1 the hot end. The scale
/// is logarithmic, as heats of pages differ by orders of magnitude.
#[must_use]
pub fn on_scale(heat: f64, hottest: f64) -> f64 {
    let part = heat / hottest;
    if !part.is_finite() || part <= 0.0 {
        return 0.0;
    }
    (1.0 + part.log10() / DECADES).clamp(0.0, 1.0)
}

/// The colour of a place on the scale, 0 to 1, as red, green and blue.
#[must_use]
pub fn colour(place: f64) -> [u8; 3] {
    let steps = COLOURS.len() - 1;
    let at = place.clamp(0.0, 1.0) * steps as f64;
    let below = (at as usize).min(steps - 1);
    let part = at - below as f64;
    let mut mixed = [0; 3];
    for (channel, out) in mixed.iter_mut().enumerate() {
        let [from, to] = [below, below + 1].map(|step| f64::from(COLOURS[step][channel]));
        *out = (from + (to - from) * part).round() as u8;
    }
    mixed
}

/// A picture that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// Its pixels are not those of its size.
    #[error("a picture of {width} by {height} pixels can't be made of {bytes} bytes")]
    Size {
        /// Pixels of a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Bytes of all pixels.
        bytes: usize,
    },
    /// The encoder refuses it.
    #[error("the picture can't be encoded")]
    Encode(#[from] png::EncodingError),
}

/// A PNG of pixels, row by row from the top: red, green and blue, a byte each.
///
/// # Errors
/// If there are not three bytes for each pixel, or too many pixels.
pub fn png(width: u32, height: u32, pixels: &[u8]) -> Result<Vec<u8>, PictureError> {
    let wanted = (width as usize).checked_mul(height as usize);
    let wanted = wanted.filter(|pixels| *pixels <= MOST_PIXELS);
    if wanted.map(|pixels| 3 * pixels) != Some(pixels.len()) {
        return Err(PictureError::Size {
            width,
            height,
            bytes: pixels.len(),
        });
    }
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_when_heat_is_a_thousandth_or_no_number_is_cold() {
        assert_eq!(on_scale(5.0, 5.0), 1.0);
        assert!((on_scale(1.0, 1e3_f64.sqrt()) - 0.5).abs() < 1e-9);
        for cold in [0.0, -1.0, 1e-9, f64::NAN] {
            assert_eq!(on_scale(cold, 5.0), 0.0, "{cold}");
        }
        for hottest in [0.0, f64::NAN, f64::INFINITY] {
            assert_eq!(on_scale(1.0, hottest), 0.0, "{hottest}");
        }
        assert_eq!(on_scale(9.0, 5.0), 1.0);
    }

    #[test]
    fn colours_when_heat_rises_grow_lighter() {
        let lightness = |place| {
            let [red, green, blue] = colour(place).map(f64::from);
            0.2126 * red + 0.7152 * green + 0.0722 * blue
        };
        let steps: Vec<f64> = (0..=100).map(|n| lightness(f64::from(n) / 100.0)).collect();
        assert!(steps.is_sorted(), "{steps:?}");
        assert_eq!(colour(-1.0), COLOURS[0]);
        assert_eq!(colour(2.0), COLOURS[7]);
    }

    #[test]
    fn png_when_read_again_has_the_pixels() {
        let pixels: Vec<u8> = (0..3 * 5 * 4).collect();
        let encoded = png(5, 4, &pixels).unwrap();
        let decoder = png::Decoder::new(std::io::Cursor::new(encoded));
        let mut reader = decoder.read_info().unwrap();
        let mut read = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut read).unwrap();
        assert_eq!((info.width, info.height), (5, 4));
        assert_eq!(read, pixels);
        for (width, height) in [(5, 5), (0, 4), (u32::MAX, u32::MAX)] {
            let error = png(width, height, &pixels).unwrap_err();
            assert!(matches!(error, PictureError::Size { .. }), "{error}");
        }
    }
}
