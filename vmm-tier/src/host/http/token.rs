//! The token: who has it may give orders by HTTP.
//!
//! It is kept in a file of the run directory that its owner alone can read, beside the state file, so that
//! pages that are open when the daemon starts again go on.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use axum::http::{HeaderMap, header};
use rustix::{fs::OFlags, process::geteuid};
use tier_sys::sysroot::replace_file;

/// The file's name.
const NAME: &str = "http.token";
/// Random bytes of a token.
const BYTES: usize = 32;
/// Its hexadecimal digits.
const DIGITS: usize = 2 * BYTES;

/// See the [module](self).
#[derive(Clone)]
pub(crate) struct Token {
    digits: [u8; DIGITS],
    pub(super) path: PathBuf,
}

impl Token {
    /// The token of this run directory; made if there is none that only its owner can read. `None`, with
    /// a warning, if it can't be kept: nobody may give orders then.
    pub(crate) fn of(run_dir: &Path) -> Option<Self> {
        let path = run_dir.join(NAME);
        let digits = match kept(&path) {
            Some(digits) => digits,
            None => match made(&path) {
                Ok(digits) => digits,
                Err(error) => {
                    tracing::warn!(
                        "no orders can be given by HTTP: the token can't be kept in {}: {error}",
                        path.display()
                    );
                    return None;
                }
            },
        };
        Some(Self { digits, path })
    }

    /// The token as it is given.
    pub(super) fn text(&self) -> &str {
        // Hexadecimal digits are ASCII.
        str::from_utf8(&self.digits).unwrap_or_default()
    }

    /// Whether a request has it, as `Authorization: Bearer TOKEN`.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let mut told = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(told), None) = (told.next(), told.next()) else {
            return false;
        };
        let told = told.as_bytes();
        told.split_at_checked("Bearer ".len())
            .is_some_and(|(scheme, token)| {
                scheme.eq_ignore_ascii_case(b"Bearer ") && self.is(token)
            })
    }

    /// Takes as long wherever the first difference is.
    fn is(&self, told: &[u8]) -> bool {
        let different = |sum: u8, (a, b): (&u8, &u8)| std::hint::black_box(sum | (a ^ b));
        told.len() == DIGITS && self.digits.iter().zip(told).fold(0, different) == 0
    }
}

/// The token that an earlier daemon made, if nobody else can have read or written it.
fn kept(path: &Path) -> Option<[u8; DIGITS]> {
    let mut options = File::options();
    // A pipe in its place must not keep the daemon waiting, nor a link lead it elsewhere.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let mut file = options.open(path).ok()?;
    let about = file.metadata().ok()?;
    let is_private = about.is_file()
        && about.mode() & 0o077 == 0
        && about.uid() == geteuid().as_raw()
        && about.len() == DIGITS as u64 + 1;
    let mut digits = [0; DIGITS];
    let is_read = is_private && file.read_exact(&mut digits).is_ok();
    (is_read && digits.iter().all(u8::is_ascii_hexdigit)).then_some(digits)
}

fn made(path: &Path) -> io::Result<[u8; DIGITS]> {
    let mut random = [0; BYTES];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let mut digits = [0; DIGITS];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(random) {
        let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    let mut text = digits.to_vec();
    text.push(b'\n');
    replace_file(path, &text, 0o600)?;
    Ok(digits)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use axum::http::HeaderValue;

    use super::*;

    fn asked(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn token_when_made_is_private_random_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let token = Token::of(folder.path()).unwrap();
        let mode = std::fs::metadata(&token.path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            Token::of(folder.path()).unwrap().text(),
            token.text(),
            "kept"
        );
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Token::of(other.path()).unwrap().text(), token.text());
    }

    #[test]
    fn token_when_others_can_read_it_or_it_is_damaged_is_made_anew() {
        for (text, mode) in [
            ("a".repeat(DIGITS) + "\n", 0o644),
            ("a".repeat(DIGITS) + "\n", 0o620),
            ("a".repeat(DIGITS), 0o600),
            ("z".repeat(DIGITS) + "\n", 0o600),
            (String::new(), 0o600),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(NAME);
            std::fs::write(&path, &text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let token = Token::of(folder.path()).unwrap();
            assert_ne!(token.text(), text.trim_end(), "{text} {mode:o}");
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn token_when_a_link_or_a_file_is_in_its_way_leads_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, "a".repeat(DIGITS) + "\n").unwrap();
        std::os::unix::fs::symlink(&elsewhere, folder.path().join(NAME)).unwrap();
        let token = Token::of(folder.path()).unwrap();
        assert_ne!(token.text(), "a".repeat(DIGITS));
        assert!(std::fs::read(&elsewhere).unwrap().starts_with(b"aaaa"));
        assert!(Token::of(&elsewhere).is_none(), "a file is no folder");
    }

    #[test]
    fn request_when_it_has_not_exactly_the_token_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let token = Token::of(folder.path()).unwrap();
        let text = token.text().to_owned();
        assert!(token.is_in(&asked(&[&format!("Bearer {text}")])));
        assert!(token.is_in(&asked(&[&format!("bearer {text}")])));
        let almost = text.replacen(&text[..1], if text.starts_with('0') { "1" } else { "0" }, 1);
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            &text,
            &format!("Bearer {text}0"),
            &format!("Bearer {}", &text[1..]),
            &format!("Bearer {almost}"),
            &format!("Basic {text}"),
            "Bearer é",
        ] {
            assert!(!token.is_in(&asked(&[wrong])), "{wrong}");
        }
        let good = format!("Bearer {text}");
        assert!(!token.is_in(&asked(&[&good, &good])), "two headers");
        assert!(!token.is_in(&asked(&[])));
    }
}
