//! The page of a short trace, read as text.

use std::fmt::Write as _;

use super::*;

fn args(file: PathBuf, policy: &str) -> PageArgs {
    PageArgs {
        file,
        policy: vec![policy.to_owned()],
        fast: vec!["25%".parse().unwrap(), "50%".parse().unwrap()],
        period: None,
        partial: false,
        memory: 1 << 24,
        quiet: true,
    }
}

/// Most accesses touch one page of eight, in a file with a name that is markup.
fn page_of(folder: &std::path::Path, policy: &str) -> String {
    let file = folder.join("<img onerror=alert(1)>.csv");
    let mut text = String::new();
    for number in 0..4000_u64 {
        let page = if number % 100 < 93 { 0 } else { number % 8 };
        let _ = writeln!(
            text,
            "{},{:#x},r",
            number * 1_000_000,
            0x10_0000 + page * 4096
        );
    }
    std::fs::write(&file, text).unwrap();
    make(&args(file, policy)).unwrap()
}

#[test]
fn page_when_made_stands_alone_and_is_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    let page = page_of(folder.path(), "all");

    assert!(
        page.starts_with("<!doctype html>") && page.len() < 200_000,
        "{}",
        page.len()
    );
    for outside in [
        "http://",
        "https://",
        "<script",
        "onclick",
        "<img onerror",
        "url(",
    ] {
        assert!(!page.contains(outside), "{outside} in {page}");
    }
    assert!(page.contains("&lt;img onerror=alert(1)&gt;"));
    assert!(!page.contains("NaN") && !page.contains("inf "), "{page}");
    // Each element that is opened is closed.
    let void = ["meta", "img", "!doctype"];
    let mut open = Vec::new();
    let (_, body) = page.split_once("</style>").unwrap();
    for tag in body
        .split('<')
        .skip(1)
        .map(|rest| rest.split_once('>').unwrap().0)
    {
        let name = tag
            .trim_start_matches('/')
            .split([' ', '/'])
            .next()
            .unwrap();
        match tag.strip_prefix('/') {
            Some(closed) if closed == "head" || closed == "html" => {}
            Some(closed) => assert_eq!(open.pop(), Some(closed), "{tag}"),
            None if void.contains(&name) || tag.ends_with('/') || name == "body" => {}
            None => open.push(name),
        }
        if open.is_empty() && tag == "/main" {
            break;
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn page_when_made_tells_demand_and_every_policy() {
    let folder = tempfile::tempdir().unwrap();
    let page = page_of(folder.path(), "all");
    // 93.9 % of the accesses go to one page of 4 KiB of eight.
    assert!(
        page.contains("<tr><th>90 %</th><td>4 KiB <span class=\"part\">12 %</span>"),
        "{page}"
    );
    assert!(page.contains("<dt>Accesses</dt><dd>4000</dd>"), "{page}");
    for policy in crate::policy::names().chain(["oracle", "oracle-free"]) {
        assert!(page.contains(&format!("<tr><th>{policy}</th>")), "{policy}");
    }
    assert_eq!(page.matches("data:image/png;base64,iVBOR").count(), 1);
    assert!(page.contains("played"), "the notes are told: {page}");
}

#[test]
fn page_when_its_input_is_wrong_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = make(&args(folder.path().join("none.vmt"), "all")).unwrap_err();
    assert!(missing.to_string().contains("none.vmt"), "{missing}");
    let file = folder.path().join("a.csv");
    std::fs::write(&file, "1,0x1000,r\n").unwrap();
    let unknown = make(&args(file, "best")).unwrap_err();
    assert!(unknown.to_string().contains("\"best\""), "{unknown}");
}
