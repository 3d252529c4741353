//! Tracepoints: their number and where their fields lie, as tracefs tells.

use std::collections::BTreeMap;

use crate::sysroot::{ParseError, SMALL_FILE, SysRoot, SysRootError, read_text, read_value};

/// A field of a tracepoint's raw record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    name: String,
    offset: usize,
    size: usize,
    signed: bool,
}

impl Field {
    /// The field's value in a raw record, widened to 64 bits (by its sign if it has one); `None` if
    /// the record ends before the field does or the field is no number of 1, 2, 4 or 8 bytes.
    #[must_use]
    pub fn read(&self, raw: &[u8]) -> Option<u64> {
        let end = self.offset.checked_add(self.size)?;
        let bytes = raw.get(self.offset..end)?;
        let signed = self.signed;
        Some(match *bytes {
            [a] if signed => i64::from(a.cast_signed()).cast_unsigned(),
            [a] => u64::from(a),
            [a, b] if signed => i64::from(i16::from_ne_bytes([a, b])).cast_unsigned(),
            [a, b] => u64::from(u16::from_ne_bytes([a, b])),
            [a, b, c, d] if signed => i64::from(i32::from_ne_bytes([a, b, c, d])).cast_unsigned(),
            [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            _ => return None,
        })
    }
}

/// A tracepoint as `events/SYSTEM/NAME` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracepoint {
    /// `SYSTEM:NAME`.
    pub name: String,
    /// The `config` of a perf event of type `PERF_TYPE_TRACEPOINT`.
    pub id: u64,
    fields: Vec<Field>,
    format: String,
}

/// A tracepoint can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TracepointError {
    /// tracefs is not mounted, or the kernel has no such tracepoint.
    #[error(
        "tracepoint {name} can't be read under {}: run as root, mount tracefs (mount -t tracefs \
         tracefs /sys/kernel/tracing), and use a kernel that has this tracepoint",
        path.display()
    )]
    Unavailable {
        /// `SYSTEM:NAME`.
        name: String,
        /// The folder that was looked into.
        path: std::path::PathBuf,
        /// What went wrong.
        source: SysRootError,
    },
    /// The tracepoint has no number field of this name.
    #[error("tracepoint {name} has no number field '{field}'")]
    NoField {
        /// `SYSTEM:NAME`.
        name: String,
        /// The field's name.
        field: String,
    },
}

impl Tracepoint {
    /// Reads `events/SYSTEM/NAME/{id,format}`.
    ///
    /// # Errors
    /// [`TracepointError::Unavailable`].
    pub fn read(root: &SysRoot, system: &str, name: &str) -> Result<Self, TracepointError> {
        let folder = root.tracing("events").join(system).join(name);
        let full = format!("{system}:{name}");
        let read = || {
            let id = read_value(&folder.join("id"))?;
            let path = folder.join("format");
            let format = read_text(&path, SMALL_FILE)?;
            let fields = parse_format(&format).map_err(|e| e.in_file(&path))?;
            Ok((id, fields, format))
        };
        match read() {
            Ok((id, fields, format)) => Ok(Self {
                name: full,
                id,
                fields,
                format,
            }),
            Err(source) => Err(TracepointError::Unavailable {
                name: full,
                path: folder,
                source,
            }),
        }
    }

    /// The number field of this name.
    ///
    /// # Errors
    /// [`TracepointError::NoField`] if there is none, or it is no number.
    pub fn field(&self, name: &str) -> Result<Field, TracepointError> {
        self.fields
            .iter()
            .find(|field| field.name == name && matches!(field.size, 1 | 2 | 4 | 8))
            .cloned()
            .ok_or_else(|| TracepointError::NoField {
                name: self.name.clone(),
                field: name.to_owned(),
            })
    }
}

impl Tracepoint {
    /// The kernel's words for the values of a field, as its `print fmt` has them: they differ from
    /// kernel to kernel. Empty if the field has none.
    #[must_use]
    pub fn words(&self, field: &str) -> BTreeMap<u64, String> {
        parse_words(&self.format, field)
    }
}

/// The words in `__print_symbolic(REC->FIELD, {0, "failed"}, {1, "succeeded"})`.
fn parse_words(format: &str, field: &str) -> BTreeMap<u64, String> {
    let call = format!("__print_symbolic(REC->{field}, ");
    let Some((_, rest)) = format.split_once(&call) else {
        return BTreeMap::new();
    };
    let pairs = rest.split(')').next().unwrap_or_default().split('}');
    let pair = |text: &str| {
        let (value, word) = text.split_once('{')?.1.split_once(',')?;
        let word = word.trim().trim_matches('"');
        Some((value.trim().parse().ok()?, word.to_owned()))
    };
    pairs.filter_map(pair).collect()
}

/// The fields in the text of a `format` file: lines such as
/// `field:unsigned int age; offset:44; size:4; signed:0;` (with tabs between).
///
/// # Errors
/// [`ParseError`] if a field line lacks a part or a number is none.
pub fn parse_format(text: &str) -> Result<Vec<Field>, ParseError> {
    let mut fields = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some(rest) = line.trim().strip_prefix("field:") else {
            continue;
        };
        let mut parts = rest.split(';');
        let declaration = parts.next().unwrap_or_default().trim();
        let mut number = |key: &str| -> Result<usize, ParseError> {
            let part = parts.next().unwrap_or_default().trim();
            let value = part
                .strip_prefix(key)
                .and_then(|rest| rest.strip_prefix(':'));
            value
                .and_then(|value| value.parse().ok())
                .ok_or_else(|| ParseError::at(index, format!("no '{key}' in the field")))
        };
        let (offset, size, signed) = (number("offset")?, number("size")?, number("signed")? != 0);
        // `char comm[16]`: the name ends where the bracket begins; such a field is no number even
        // if its size is that of one.
        let name = declaration.rsplit(' ').next().unwrap_or_default();
        let (name, size) = match name.split_once('[') {
            Some((name, _)) => (name, 0),
            None => (name, size),
        };
        fields.push(Field {
            name: name.trim_start_matches('*').to_owned(),
            offset,
            size,
            signed,
        });
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAMON: &str = include_str!("../../tests/data/damon_aggregated.format");

    fn field(name: &str) -> Field {
        let fields = parse_format(DAMON).unwrap();
        fields.into_iter().find(|field| field.name == name).unwrap()
    }

    #[test]
    fn parse_format_when_kernel_wrote_it_finds_offset_size_and_sign() {
        assert_eq!(
            field("end"),
            Field {
                name: "end".into(),
                offset: 32,
                size: 8,
                signed: false
            }
        );
        assert_eq!(
            field("common_pid"),
            Field {
                name: "common_pid".into(),
                offset: 4,
                size: 4,
                signed: true
            }
        );
    }

    #[test]
    fn words_of_a_field_when_the_kernel_prints_it_by_name_are_found() {
        let format = include_str!("../../tests/data/mm_migrate_pages.format");
        let reasons = parse_words(format, "reason");
        assert_eq!(reasons[&3], "syscall_or_cpuset");
        assert_eq!(reasons.len(), 10);
        assert_eq!(parse_words(format, "mode")[&2], "MIGRATE_SYNC");
        assert_eq!(parse_words(format, "failed"), BTreeMap::new());
        let cut = parse_words(
            "__print_symbolic(REC->reason, {0, \"a\"}, {x, 3}, {4",
            "reason",
        );
        assert_eq!(cut, BTreeMap::from([(0, "a".to_owned())]));
    }

    #[test]
    fn parse_format_when_a_part_is_missing_names_the_line() {
        let error = parse_format("name: x\n\tfield:int a;\toffset:4;\tsize:four;\tsigned:1;\n");
        assert_eq!(
            error.unwrap_err().to_string(),
            "line 2: no 'size' in the field"
        );
    }

    #[test]
    fn field_when_signed_keeps_its_sign() {
        let raw = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(field("common_pid").read(&raw), Some(u64::MAX));
    }

    #[test]
    fn field_when_record_ends_before_it_is_none() {
        assert_eq!(field("age").read(&[0; 47]), None);
        assert_eq!(field("age").read(&[0; 48]), Some(0));
    }

    #[test]
    fn read_when_tracefs_is_not_mounted_says_how_to_mount_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());

        let error = Tracepoint::read(&root, "damon", "damon_aggregated")
            .unwrap_err()
            .to_string();

        assert!(error.contains("mount -t tracefs"), "{error}");
    }
}
