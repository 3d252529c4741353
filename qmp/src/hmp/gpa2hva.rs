//! The answer of HMP `gpa2hva ADDRESS` (`hmp_gpa2hva` in QEMU's monitor).

use super::excerpt;

/// What stands at a guest-physical address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpa2Hva {
    /// RAM (or a ROM that reads like RAM).
    Mapped {
        /// The address in QEMU's own address space.
        hva: u64,
        /// The name of the memory region. It need not be the name of its RAM block.
        region: String,
    },
    /// Nothing.
    Unmapped,
    /// Device registers.
    NotRam,
}

/// A text that is no answer of `gpa2hva`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an answer of gpa2hva; this QEMU may lack the command")]
pub struct ParseGpa2HvaError {
    /// The start of the text, escaped.
    pub text: String,
}

/// Parses the answer of `gpa2hva`.
///
/// # Errors
/// When the text is none of the three answers. QEMU tells even failures as plain text.
pub fn parse_gpa2hva(text: &str) -> Result<Gpa2Hva, ParseGpa2HvaError> {
    let line = text.trim();
    let line = line.strip_prefix("Error: ").unwrap_or(line);
    if line.starts_with("No memory is mapped at address 0x") {
        return Ok(Gpa2Hva::Unmapped);
    }
    if line.starts_with("Memory at address 0x") && line.ends_with(" is not RAM") {
        return Ok(Gpa2Hva::NotRam);
    }
    mapped(line).ok_or_else(|| ParseGpa2HvaError {
        text: excerpt(text),
    })
}

/// `Host virtual address for 0x100000 (pc.ram) is 0x7f5397f00000`
fn mapped(line: &str) -> Option<Gpa2Hva> {
    let rest = line.strip_prefix("Host virtual address for 0x")?;
    let (gpa, rest) = rest.split_once(" (")?;
    u64::from_str_radix(gpa, 16).ok()?;
    // A region's name may hold anything, so the address is taken from the end.
    let (region, hva) = rest.rsplit_once(") is 0x")?;
    let hva = u64::from_str_radix(hva, 16).ok()?;
    Some(Gpa2Hva::Mapped {
        hva,
        region: region.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_region_are_read_when_ram_is_mapped() {
        let text = "Host virtual address for 0x100000 (pc.ram) is 0x7f5397f00000\r\n";

        let parsed = parse_gpa2hva(text);

        let region = "pc.ram".to_owned();
        assert_eq!(
            parsed,
            Ok(Gpa2Hva::Mapped {
                hva: 0x7f53_97f0_0000,
                region
            })
        );
    }

    #[test]
    fn region_is_whole_when_its_name_holds_spaces_and_brackets() {
        let text = "Host virtual address for 0xfee00000 (a (b) is 0x1) is 0x2000\n";

        let parsed = parse_gpa2hva(text);

        assert_eq!(
            parsed,
            Ok(Gpa2Hva::Mapped {
                hva: 0x2000,
                region: "a (b) is 0x1".to_owned()
            })
        );
    }

    #[test]
    fn failures_are_told_apart_when_qemu_says_them_in_plain_text() {
        assert_eq!(
            parse_gpa2hva("No memory is mapped at address 0x8000000000\r\n"),
            Ok(Gpa2Hva::Unmapped)
        );
        assert_eq!(
            parse_gpa2hva("Error: Memory at address 0xfee00000 is not RAM\n"),
            Ok(Gpa2Hva::NotRam)
        );
    }

    #[test]
    fn error_is_bounded_and_printable_when_the_text_is_something_else() {
        for text in [
            "",
            "unknown command: 'gpa2hva'\r\n",
            "Host virtual address for 0x100000 (pc.ram) is 0x",
            "Host virtual address for 0x100000 (pc.ram) is 0x10000000000000000",
            "Host virtual address for 0xzz (pc.ram) is 0x1000",
            &"\u{7}".repeat(10_000),
        ] {
            let error = parse_gpa2hva(text).expect_err(text);

            assert!(error.text.len() <= 80 * 10, "{}", error.text.len());
            assert!(!error.text.chars().any(char::is_control), "{error}");
        }
    }
}
