//! Lines out of the bytes that are typed on a guest's console.

/// Longer lines are no orders.
const LONGEST: usize = 128;

/// Gathers bytes until a line is whole.
#[derive(Debug)]
pub struct Console {
    line: [u8; LONGEST],
    length: usize,
    /// The line grew too long: its rest is passed over.
    too_long: bool,
}

impl Default for Console {
    fn default() -> Self {
        Self {
            line: [0; LONGEST],
            length: 0,
            too_long: false,
        }
    }
}

impl Console {
    /// Takes a byte; hands out the line that it ends, without white space around it.
    ///
    /// A line that is too long or no text comes out as `?`, which is no order.
    pub fn take(&mut self, byte: u8) -> Option<&str> {
        if byte == b'\n' || byte == b'\r' {
            let line = &self.line[..self.length];
            let line = if self.too_long {
                Ok("?")
            } else {
                core::str::from_utf8(line)
            };
            self.length = 0;
            self.too_long = false;
            let line = line.unwrap_or("?").trim();
            return (!line.is_empty()).then_some(line);
        }
        match self.line.get_mut(self.length) {
            Some(place) => {
                *place = byte;
                self.length += 1;
            }
            None => self.too_long = true,
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<String> {
        let mut console = Console::default();
        text.iter()
            .filter_map(|byte| console.take(*byte).map(str::to_owned))
            .collect()
    }

    #[test]
    fn console_when_lines_end_in_any_way_hands_them_out() {
        assert_eq!(lines(b"go\r\n hot 3 \n\nfin"), ["go", "hot 3"]);
    }

    #[test]
    fn console_when_a_line_is_no_order_says_so_and_goes_on() {
        let mut text = vec![b'x'; 500];
        text.extend(b"\ngo\n\xff\xfe\n");

        assert_eq!(lines(&text), ["?", "go", "?"]);
    }
}
