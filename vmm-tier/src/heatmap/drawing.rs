//! A heat map as a picture: heat by colour, tier by pattern.

use std::convert::Infallible;

use embedded_graphics::{
    mono_font::{MonoTextStyle, ascii::FONT_8X13},
    pixelcolor::Rgb888,
    prelude::{
        Dimensions, DrawTarget, Drawable as _, OriginDimensions, Pixel, Point, RgbColor as _, Size,
    },
    primitives::Rectangle,
    text::{Alignment, Baseline, Text, TextStyleBuilder},
};
use tier_core::text::size::human;
use tier_replay::picture::{self, PictureError};

use super::map::{Cell, HeatMap, Lies, rate};

/// Cells of the picture.
pub(super) const ROWS: u32 = 64;
pub(super) const COLUMNS: u32 = 128;
/// Pixels of a cell's side.
const CELL: u32 = 8;
/// Pixels left of the cells, above and below them.
const LEFT: u32 = 140;
const TOP: u32 = 48;
const BOTTOM: u32 = 76;
const RIGHT: u32 = 20;
/// Every so many rows the address stands at the left.
const LABEL_EVERY: u32 = 4;
const PAPER: Rgb888 = Rgb888::WHITE;
const INK: Rgb888 = Rgb888::new(0x22, 0x22, 0x22);
/// Memory that is not present.
const ABSENT: Rgb888 = Rgb888::new(0xe4, 0xe4, 0xe4);

/// Pixels of the picture.
struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: u32, height: u32) -> Self {
        let bytes = 3 * width as usize * height as usize;
        Self {
            width,
            height,
            pixels: vec![PAPER.r(); bytes],
        }
    }

    fn set(&mut self, x: u32, y: u32, colour: Rgb888) {
        if x < self.width && y < self.height {
            let at = 3 * (y as usize * self.width as usize + x as usize);
            self.pixels[at..at + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
        }
    }

    fn write(&mut self, text: &str, x: u32, y: u32, alignment: Alignment) {
        let style = MonoTextStyle::new(&FONT_8X13, INK);
        let layout = TextStyleBuilder::new()
            .alignment(alignment)
            .baseline(Baseline::Middle)
            .build();
        let at = Point::new(x.cast_signed(), y.cast_signed());
        let Ok(_) = Text::with_text_style(text, at, style, layout).draw(self);
    }

    /// Fills a square with a heat's colour, and a pattern over it for the tier.
    fn cell(&mut self, x: u32, y: u32, lies: Option<Lies>, heat: f64) {
        let [red, green, blue] = picture::colour(heat);
        // The pattern must be seen on dark and on light colours.
        let mark = if heat > 0.6 {
            Rgb888::BLACK
        } else {
            Rgb888::WHITE
        };
        for row in 0..CELL {
            for column in 0..CELL {
                let (x, y) = (x + column, y + row);
                let colour = match lies {
                    None => ABSENT,
                    Some(Lies::Slow) if (x + y).is_multiple_of(4) => mark,
                    Some(Lies::Both) if x % 4 == 1 && y % 4 == 1 => mark,
                    Some(_) => Rgb888::new(red, green, blue),
                };
                self.set(x, y, colour);
            }
        }
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width, self.height)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        let whole: Rectangle = self.bounding_box();
        for Pixel(point, colour) in pixels {
            if whole.contains(point) {
                self.set(point.x.cast_unsigned(), point.y.cast_unsigned(), colour);
            }
        }
        Ok(())
    }
}

/// Draws a map as PNG.
///
/// # Errors
/// If it can't be encoded.
pub(super) fn draw(map: &HeatMap) -> Result<Vec<u8>, PictureError> {
    let width = LEFT + map.columns * CELL + RIGHT;
    let height = TOP + map.rows * CELL + BOTTOM;
    let mut canvas = Canvas::new(width, height);
    let hottest = map.hottest();
    let title = format!(
        "{} of guest RAM by guest-physical address, {} a row, {} a cell",
        human(map.ram_bytes),
        human(map.ram_bytes / u64::from(map.rows.max(1))),
        human(map.cell_bytes())
    );
    canvas.write(&title, LEFT, TOP / 2, Alignment::Left);
    for (number, row) in (0..).zip(map.rows()) {
        let y = TOP + number * CELL;
        if number % LABEL_EVERY == 0 {
            let start = row.first().map_or(0, |cell: &Cell| cell.gpa);
            canvas.write(
                &format!("{start:#x}"),
                LEFT - 8,
                y + CELL / 2,
                Alignment::Right,
            );
        }
        for (column, cell) in (0..).zip(row) {
            let heat = picture::on_scale(cell.rate, hottest);
            canvas.cell(LEFT + column * CELL, y, cell.lies(), heat);
        }
    }
    legend(&mut canvas, hottest, TOP + map.rows * CELL + 20);
    picture::png(width, height, &canvas.pixels)
}

/// The scale of heat, and the patterns.
fn legend(canvas: &mut Canvas, hottest: f64, y: u32) {
    const STEPS: u32 = 32;
    for step in 0..STEPS {
        let heat = f64::from(step) / f64::from(STEPS - 1);
        canvas.cell(LEFT + step * CELL, y, Some(Lies::Fast), heat);
    }
    let text = match hottest > 0.0 {
        true => format!(
            "{} and less to {} accesses/s of 4 KiB",
            rate(hottest / 1e3),
            rate(hottest)
        ),
        false => "no access was seen".to_owned(),
    };
    canvas.write(
        &text,
        LEFT + (STEPS + 1) * CELL,
        y + CELL / 2,
        Alignment::Left,
    );
    let y = y + 28;
    let mut x = LEFT;
    for (lies, name) in [
        (Some(Lies::Fast), "DRAM"),
        (Some(Lies::Both), "both tiers"),
        (Some(Lies::Slow), "slow memory"),
        (None, "not present"),
    ] {
        for column in 0..2 {
            for row in 0..2 {
                canvas.cell(x + column * CELL, y - CELL / 2 + row * CELL, lies, 0.45);
            }
        }
        canvas.write(name, x + 3 * CELL, y + CELL / 2, Alignment::Left);
        x += 3 * CELL + 8 * (name.len() as u32 + 3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_when_drawn_shows_heat_by_colour_and_tier_by_pattern() {
        let cell = |rate, fast_share| Cell {
            gpa: 1 << 32,
            rate,
            fast_share,
        };
        let cells = vec![
            cell(10.0, Some(1.0)),
            cell(10.0, Some(0.0)),
            cell(0.0, Some(0.5)),
            cell(0.0, None),
        ];
        let map = HeatMap {
            rows: 1,
            columns: 4,
            ram_bytes: 16384,
            cells,
        };

        let encoded = draw(&map).unwrap();

        assert_eq!(encoded[..4], *b"\x89PNG");
        let mut canvas = Canvas::new(4 * CELL, CELL);
        for (column, cell) in (0..).zip(&map.cells) {
            let heat = picture::on_scale(cell.rate, map.hottest());
            canvas.cell(column * CELL, 0, cell.lies(), heat);
        }
        let of = |column: usize| {
            let row = canvas
                .pixels
                .chunks(3 * CELL as usize)
                .skip(column)
                .step_by(4);
            let mut colours: Vec<&[u8]> = row.flat_map(|part| part.chunks(3)).collect();
            colours.sort_unstable();
            colours.dedup();
            colours
        };
        assert_eq!(of(0), [picture::colour(1.0)]);
        assert_eq!(of(1), [[0; 3], picture::colour(1.0)]);
        assert_eq!(of(2), [picture::colour(0.0), [255; 3]]);
        assert_eq!(of(3), [[0xe4; 3]]);
        // A map without rows has no picture to fill, and does no harm.
        let empty = HeatMap {
            rows: 0,
            columns: 0,
            ram_bytes: 0,
            cells: Vec::new(),
        };
        assert_eq!(draw(&empty).unwrap()[..4], *b"\x89PNG");
    }
}
