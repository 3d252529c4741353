//! The codec against examples of QEMU's behaviour, and its promises for arbitrary bytes.

use proptest::prelude::*;
use qmp::codec::{DecodeError, Decoder, Limits, encode_crlf, encode_line};
use serde_json::{Value, json};

type Message = Result<Value, DecodeError>;

fn decode_all(limits: Limits, pieces: &[&[u8]]) -> Vec<Message> {
    let mut decoder = Decoder::new(limits);
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        messages.extend(std::iter::from_fn(|| decoder.next_message()));
    }
    messages
}

fn decode(text: impl AsRef<[u8]>) -> Vec<Message> {
    decode_all(Limits::REQUESTS, &[text.as_ref()])
}

fn execute(name: &str) -> Message {
    Ok(json!({ "execute": name }))
}

#[test]
fn messages_come_out_when_there_is_no_line_ending() {
    assert_eq!(
        decode(r#"{"execute":"a"}{"execute":"b"}"#),
        [execute("a"), execute("b")]
    );
}

#[test]
fn message_comes_out_when_it_spans_lines_and_stands_in_single_quotes() {
    assert_eq!(decode("{\n'execute'\t:\r\n 'a'\n}"), [execute("a")]);
}

#[test]
fn numbers_are_exact_when_they_fit_64_bits() {
    let text = "[18446744073709551615, -9223372036854775808, 9223372036854775807, -0, 1.5e3]";

    let value = decode(text).remove(0).unwrap();

    assert_eq!(value[0].as_u64(), Some(u64::MAX));
    assert_eq!(value[1].as_i64(), Some(i64::MIN));
    assert_eq!(value[2].as_i64(), Some(i64::MAX));
    assert_eq!(value[3].as_i64(), Some(0));
    assert_eq!(value[4].as_f64(), Some(1500.0));
    // Beyond 64 bits QEMU too takes the nearest double.
    assert_eq!(
        decode("[18446744073709551616]")[0],
        Ok(json!([18_446_744_073_709_551_616.0]))
    );
}

#[test]
fn escapes_are_decoded_when_they_are_legal() {
    let text = r#"["\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00", 'it\'s "so"', "it's"]"#;

    let value = decode(text).remove(0).unwrap();

    assert_eq!(
        value,
        json!(["\"\\/\u{8}\u{c}\n\r\té😀", "it's \"so\"", "it's"])
    );
}

#[test]
fn broken_message_is_one_error_and_its_neighbour_survives() {
    for broken in [
        "{\"execute\": @\"a\", \"arguments\": {\"b\": [1]}}",
        "{\"execute\" \"a\"}",
        "{\"execute\": \"a\"]}",
        "{\"a\": 1, \"a\": 2}",
        "{'a': 01}",
        "{'a': 1.}",
        "{'a': 1.e5}",
        "{'a': -}",
        "{'a': +1}",
        "{'a': 1e999}",
        "{'a': nul}",
        "{'a': '\\x'}",
        "{'a': '\\u12g4'}",
        "{'a': '\\ud800'}",
        "{'a': '\\ud800\\u0041'}",
        "{'a': [1 2]}",
        "{1: 2}",
        "{,}",
        "{'a':}",
        "[1,]",
        "}",
        ",",
        "GET / HTTP/1.1",
        "Host: example",
    ] {
        let messages = decode(format!("{broken}\n{{'execute':'ok'}}"));

        assert!(messages[0].is_err(), "{broken}: {messages:?}");
        // A well-formed object inside a broken message is taken for one, as QEMU does.
        let rest: Vec<_> = messages[1..]
            .iter()
            .filter(|&message| *message != Ok(json!({"b": [1]})))
            .collect();
        assert_eq!(rest, [&execute("ok")], "{broken}");
    }
}

#[test]
fn neighbour_survives_when_a_string_is_cut_by_the_line_ending() {
    let messages = decode("{\"execute\": \"a\n{\"execute\": \"ok\"}\n");

    assert_eq!(
        messages,
        [Err(DecodeError::Stray { byte: b'\n' }), execute("ok")]
    );
}

#[test]
fn byte_ff_gives_one_error_and_a_fresh_start_from_any_state() {
    for begun in [
        "", "{", "{'a': [", "{'a", "{'a\\", "[12", "[tru", "[[[[", "@ x",
    ] {
        let mut bytes = begun.as_bytes().to_vec();
        bytes.extend_from_slice(b"\xff{'execute':'ok'}");

        let messages = decode(&bytes);

        let last = messages.last();
        assert_eq!(last, Some(&execute("ok")), "{begun}");
        let errors = messages.iter().filter(|message| message.is_err()).count();
        // After '@' an error was told already, and 0xFF starts a new one.
        assert_eq!(
            errors,
            if begun == "@ x" { 2 } else { 1 },
            "{begun}: {messages:?}"
        );
    }
}

#[test]
fn deep_message_is_one_error_when_it_is_beyond_the_limit() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let limits = Limits {
        nesting: 1024,
        ..Limits::REPLIES
    };

    let fits = decode_all(limits, &[nested(1024).as_bytes()]);
    let deep = decode_all(limits, &[nested(5000).as_bytes(), b"{'execute':'ok'}"]);

    assert!(matches!(fits[..], [Ok(Value::Array(_))]));
    assert_eq!(
        deep,
        [Err(DecodeError::TooDeep { limit: 1024 }), execute("ok")]
    );
}

#[test]
fn nesting_limit_is_capped_when_asked_for_more_than_the_stack_bears() {
    let limits = Limits {
        nesting: usize::MAX,
        ..Limits::REPLIES
    };

    let messages = decode_all(limits, &["[".repeat(100_000).as_bytes()]);

    assert_eq!(messages, [Err(DecodeError::TooDeep { limit: 1024 })]);
}

#[test]
fn long_message_is_one_error_when_it_is_beyond_the_limit() {
    let limits = Limits {
        message_bytes: 100,
        tokens: 20,
        nesting: 8,
    };
    let long = format!("{{'a': '{}'}}", "x".repeat(200));
    let many = format!("[{}0]", "0,".repeat(20));
    let number = format!("{} ", "1".repeat(200));

    assert_eq!(
        decode_all(limits, &[long.as_bytes(), b"{'execute':'ok'}"]),
        [Err(DecodeError::TooLong { limit: 100 }), execute("ok")]
    );
    assert_eq!(
        decode_all(limits, &[many.as_bytes(), b"{'execute':'ok'}"]),
        [Err(DecodeError::TooManyTokens { limit: 20 }), execute("ok")]
    );
    assert_eq!(
        decode_all(limits, &[number.as_bytes(), b"{'execute':'ok'}"]),
        [Err(DecodeError::TooLong { limit: 100 }), execute("ok")]
    );
}

#[test]
fn message_exactly_at_the_limit_fits_and_one_byte_more_does_not() {
    let text = b"{'execute':'0123456789'}";
    for (bytes, fits) in [
        (text.len(), true),
        (text.len() - 1, false),
        (text.len() - 2, false),
    ] {
        let limits = Limits {
            message_bytes: bytes,
            ..Limits::REQUESTS
        };

        let messages = decode_all(limits, &[text, b"{'execute':'ok'}"]);

        assert_eq!(messages.len(), 2, "{bytes}: {messages:?}");
        assert_eq!(messages[0].is_ok(), fits, "{bytes}");
        assert_eq!(messages[1], execute("ok"));
    }
}

#[test]
fn white_space_costs_nothing_when_a_message_is_indented() {
    let limits = Limits {
        message_bytes: 30,
        ..Limits::REQUESTS
    };
    let text = format!("{{{0}'execute'{0}:{0}'a'{0}}}", " \n\t".repeat(100));

    assert_eq!(decode_all(limits, &[text.as_bytes()]), [execute("a")]);
}

#[test]
fn error_text_is_qemus_when_bytes_are_no_message() {
    let text = |bytes: &[u8]| decode(bytes)[0].clone().unwrap_err().to_string();

    assert_eq!(text(b"\xff"), "JSON parse error, stray '\\xff'");
    assert_eq!(text(b"}"), "JSON parse error, expecting value");
    assert_eq!(
        text(b"{'a' 1}"),
        "JSON parse error, missing : in object pair"
    );
    assert_eq!(text(b"[nope]"), "JSON parse error, invalid keyword 'nope'");
    assert!(text(b"{'a':1,'a':1}").starts_with("JSON parse error, duplicate key"));
    assert!(text(&[b'['; 65]).starts_with("JSON nesting depth limit exceeded"));
    // Hostile text in an error is shortened.
    assert!(text(format!("[{}]", "n".repeat(5000)).as_bytes()).len() < 200);
}

#[test]
fn encoded_line_is_ascii_when_strings_are_not() {
    let message = json!({"a": "é😀\u{7f}\u{0}\n\"\\"});

    let line = encode_crlf(&message).unwrap();

    assert!(line.is_ascii() && line.ends_with(b"\r\n"));
    let text = std::str::from_utf8(&line).unwrap();
    assert_eq!(
        text.trim_end(),
        r#"{"a":"\u00e9\ud83d\ude00\u007f\u0000\n\"\\"}"#
    );
    assert_eq!(decode(&line), [Ok(message)]);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| if number.is_finite() {
            json!(number)
        } else {
            json!(0)
        }),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn json_object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-z]{1,8}", json_value(), 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

/// Bytes of which many mean something to the lexer.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => prop::sample::select(b"{}[],:\"'\\ \n\t0123456789-.eEtrufalsn\xff\xfe@".to_vec()),
        1 => any::<u8>(),
    ];
    prop::collection::vec(byte, 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn value_is_the_same_when_encoded_and_decoded(object in json_object()) {
        let line = encode_line(&object).unwrap();

        prop_assert!(line.is_ascii());
        prop_assert_eq!(decode(&line), [Ok(object)]);
    }

    #[test]
    fn messages_are_the_same_when_the_stream_is_split_anywhere(
        bytes in noise(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut rest = 0;
        for cut in cuts {
            pieces.push(&bytes[rest..cut]);
            rest = cut;
        }
        pieces.push(&bytes[rest..]);
        let limits = Limits { message_bytes: 60, tokens: 20, nesting: 6 };
        let single: Vec<&[u8]> = bytes.chunks(1).collect();

        let whole = decode_all(limits, &[&bytes]);

        prop_assert_eq!(&whole, &decode_all(limits, &pieces));
        prop_assert_eq!(&whole, &decode_all(limits, &single));
    }

    #[test]
    fn messages_stay_within_the_limits_when_bytes_are_arbitrary(bytes in noise()) {
        let limits = Limits { message_bytes: 60, tokens: 20, nesting: 3 };

        for message in decode_all(limits, &[&bytes]).into_iter().flatten() {
            prop_assert!(depth(&message) <= 3);
            prop_assert!(encode_line(&message).unwrap().len() <= 60 * 24);
        }
    }

    #[test]
    fn message_is_found_when_it_follows_noise_and_byte_ff(
        noise in noise(),
        object in json_object(),
    ) {
        let mut bytes = noise;
        bytes.push(0xff);
        bytes.extend(encode_line(&object).unwrap());

        prop_assert_eq!(decode(&bytes).pop(), Some(Ok(object)));
    }

    #[test]
    fn neighbours_are_found_when_a_balanced_message_between_them_is_broken(
        objects in (json_object(), json_object()),
        broken in prop::sample::select(vec![
            "{\"a\" 1}", "{'a':1,'a':2}", "[nope]", "{,}", "[01]", "]", "{]}", "[1 2]", "{'\\q':1}",
        ]),
    ) {
        let mut bytes = encode_line(&objects.0).unwrap();
        bytes.extend_from_slice(broken.as_bytes());
        bytes.extend(encode_line(&objects.1).unwrap());

        let messages = decode(&bytes);

        prop_assert_eq!(messages.len(), 3);
        prop_assert_eq!(&messages[0], &Ok(objects.0));
        prop_assert!(messages[1].is_err());
        prop_assert_eq!(&messages[2], &Ok(objects.1));
    }

    #[test]
    fn text_parsers_do_not_panic_when_the_text_is_arbitrary(
        text in "\\PC{0,80}",
        row in "[ 0-9a-fxKMGiBrowu\u{2003}é]{0,90}",
    ) {
        let _ = qmp::hmp::parse_gpa2hva(&text);
        let _ = qmp::hmp::parse_gpa2hva(&format!("Host virtual address for 0x{row}"));
        let parsed = qmp::hmp::parse_ramblocks(
            &format!("Block Name PSize Offset Used Total HVA RO\n{row}"));
        if let Ok(blocks) = parsed {
            for block in blocks {
                prop_assert!(block.page_size.is_power_of_two() && block.used <= block.total);
            }
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
