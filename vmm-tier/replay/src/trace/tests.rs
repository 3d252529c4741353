//! Traces of every format, read as they are written by others.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tier_core::{sample::AccessKind, time::Time};

use super::*;
use crate::format::{Encoder, Header};

fn access(at: u64, address: u64, kind: AccessKind) -> Access {
    Access {
        at: Time(at),
        address,
        len: 1,
        weight: 1,
        kind,
    }
}

fn file(folder: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("trace");
    let mut file = File::create(&path).unwrap();
    file.write_all(bytes).unwrap();
    path
}

fn read(path: &Path, options: Options) -> Result<(Vec<Access>, TraceFile, TraceInfo), TraceError> {
    let Opened { mut accesses, info } = open(path, Format::Auto, options)?;
    let mut all = Vec::new();
    while accesses.fill(&mut all)? {}
    Ok((all, accesses, info))
}

fn read_text(text: &str) -> Result<(Vec<Access>, TraceFile, TraceInfo), TraceError> {
    let folder = tempfile::tempdir().unwrap();
    read(&file(&folder, text.as_bytes()), Options::default())
}

fn error_of(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, bytes);
    let error = read(&path, Options::default()).unwrap_err();
    // With its causes, in one line.
    let first: &dyn std::error::Error = &error;
    let causes = std::iter::successors(Some(first), |error| error.source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

#[test]
fn csv_when_it_is_written_in_any_style_is_read() {
    let text = "# made by hand\r\ntime_ns,address,kind\r\n10,0x1000,load\r\n\r\n10, 8192 ,S\r\n20,0X2fff,w\n\
                30,1,R\n40,2,any\n50,3";
    let (all, accesses, info) = read_text(text).unwrap();
    assert_eq!(
        all,
        [
            access(10, 0x1000, AccessKind::Load),
            access(10, 8192, AccessKind::Store),
            access(20, 0x2fff, AccessKind::Store),
            access(30, 1, AccessKind::Load),
            access(40, 2, AccessKind::Any),
            access(50, 3, AccessKind::Any),
        ]
    );
    assert_eq!((info.format, info.bytes), (Format::Csv, text.len() as u64));
    assert_eq!(accesses.position(), info.bytes);
    assert_eq!(accesses.counts().other_lines, 3);
}

#[test]
fn lackey_when_read_gives_data_accesses_a_microsecond_each() {
    let text = "==77== Lackey, an example Valgrind tool\n==77== \nI  0401ab70,3\n S 1fff000728,8\n \
                L 04222c84,4\nI  0401ab73,5\n M 0421c7cc,4\n==77== \n";
    let (all, accesses, info) = read_text(text).unwrap();
    assert_eq!(
        all,
        [
            access(0, 0x1f_ff00_0728, AccessKind::Store),
            access(1000, 0x0422_2c84, AccessKind::Load),
            access(2000, 0x0421_c7cc, AccessKind::Store),
        ]
    );
    assert_eq!(info.format, Format::Lackey);
    let counts = Counts {
        accesses: 3,
        outside: 0,
        fetches: 2,
        other_lines: 3,
    };
    assert_eq!(accesses.counts(), counts);
}

#[test]
fn line_when_wrong_is_told_with_its_number_and_byte() {
    for (text, parts) in [
        (
            "1,2,load\nx,2,load\n",
            ["line 2 (byte 9)", "'x' is no time"],
        ),
        ("5,2\n6,0xg\n", ["line 2 (byte 4)", "'0xg' is no address"]),
        (
            "5,2\n6,3,jump\n",
            ["line 2 (byte 4)", "'jump' is none of load"],
        ),
        (
            "5,2\n6,3,l,1\n",
            ["line 2 (byte 4)", "more than three fields"],
        ),
        ("5,2\n7\n", ["line 2 (byte 4)", "'7' is no line"]),
        ("5,2\n4,3\n", ["line 2 (byte 4)", "4 ns stands behind 5 ns"]),
        ("5,2\n5,18446744073709551615\n", ["line 2", "is no address"]),
        ("5,2\n18446744073709551616,1\n", ["line 2", "is no time"]),
        (
            "I  04,3\n L 04\n",
            ["line 2 (byte 8)", "is no line of valgrind"],
        ),
        (
            "I  04,3\nhello\n",
            ["line 2 (byte 8)", "'hello' is no line"],
        ),
        (
            "I  04,3\n S 0x4,8\n",
            ["line 2 (byte 8)", "is no line of valgrind"],
        ),
    ] {
        let error = error_of(text.as_bytes());
        for part in parts {
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}

#[test]
fn file_when_it_is_no_trace_is_refused_with_what_was_tried() {
    let long = "x".repeat(1 << 20);
    for (bytes, part) in [
        (&b""[..], "it has no bytes"),
        (b"\x7fELF\x02\x01\x01\n", "neither those of a recording"),
        (b"hello\n", "--format native, csv or lackey"),
        (long.as_bytes(), "of no format that is known"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"# only a comment\n", "of no format that is known"),
        (b"time_ns,address,kind\n", "no access in it"),
        (b"==1== Lackey\n", "no access in it"),
        (b"\xC3vmT\r\n", "ends at byte 6"),
        (b"\xC3vmT\r\n\x1A\n\x07\0\0\0", "has version 7"),
    ] {
        let error = error_of(bytes);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn native_when_it_was_cut_is_refused_or_read_as_far_as_it_is_whole() {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&Header::import("csv", "x"), &mut bytes).unwrap();
    let all: Vec<_> = (0..100_000)
        .map(|i| access(i * 10, i * 64, AccessKind::Load))
        .collect();
    for access in &all {
        encoder.access(access, &mut bytes).unwrap();
    }
    encoder.finish(&mut bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (whole, accesses, info) = read(&file(&folder, &bytes), Options::default()).unwrap();
    assert_eq!(whole, all);
    assert_eq!(accesses.position(), info.bytes);
    assert_eq!(info.end.unwrap().accesses, 100_000);

    let cut = &bytes[..bytes.len() - 1];
    let error = error_of(cut);
    assert!(
        error.contains(&format!("does not end at byte {}", cut.len())),
        "{error}"
    );
    let path = file(&folder, cut);
    let partial = Options {
        partial: true,
        ..Options::default()
    };
    let (saved, accesses, info) = read(&path, partial).unwrap();
    assert_eq!(saved, all);
    assert!(info.end.is_none());
    let doubt = accesses.doubt().unwrap();
    assert!(doubt.contains("only what is whole"), "{doubt}");

    // The second block is damaged.
    let mut damaged = bytes.clone();
    let last = damaged.len() - 400;
    damaged[last] ^= 1;
    let error = error_of(&damaged);
    assert!(error.contains("damaged at byte"), "{error}");
    let (saved, accesses, _) = read(&file(&folder, &damaged), partial).unwrap();
    assert_eq!(saved, all[..65_536]);
    let doubt = accesses.doubt().unwrap();
    assert!(doubt.contains("damaged at byte"), "{doubt}");

    bytes.push(0);
    let error = error_of(&bytes);
    assert!(error.contains("something was added"), "{error}");
    let (saved, accesses, _) = read(&file(&folder, &bytes), partial).unwrap();
    assert_eq!(saved, all);
    let doubt = accesses.doubt().unwrap();
    assert!(doubt.contains("something stands behind its end"), "{doubt}");
}

#[test]
fn line_when_the_last_has_no_end_is_read_and_doubted() {
    for (text, doubted) in [
        ("1,4096,load\n2,0x20\n", false),
        ("1,4096,load\n2,0x20", true),
        ("1,4096,load\r\n2,8,load\r\n", false),
        ("==1== Lackey\n L 10,8", true),
    ] {
        let (all, accesses, _) = read_text(text).unwrap();
        assert!(!all.is_empty());
        let doubt = accesses.doubt();
        assert_eq!(doubt.is_some(), doubted, "{text:?}: {doubt:?}");
        if let Some(doubt) = doubt {
            assert!(
                doubt.contains(&format!("at byte {}", text.len())),
                "{doubt}"
            );
        }
    }
}
