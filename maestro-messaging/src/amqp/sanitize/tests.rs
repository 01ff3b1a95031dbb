use super::*;
use lapin::protocol::basic::parse_properties;
use lapin::types::parsing::parse_short_string;
use proptest::prelude::*;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 1];
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(payload);
    frame.push(0xce);
    frame
}

/// A content header with a type and a header table.
fn content_frame(kind: &[u8], table: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
    payload.extend_from_slice(&((1_u16 << 13) | (1 << 5)).to_be_bytes());
    payload.extend_from_slice(&u32::try_from(table.len()).unwrap().to_be_bytes());
    payload.extend_from_slice(table);
    payload.push(u8::try_from(kind.len()).unwrap());
    payload.extend_from_slice(kind);
    frame(CONTENT, &payload)
}

fn properties(frame: &[u8]) -> Option<lapin::BasicProperties> {
    let payload = &frame[HEADER..frame.len() - 1];
    parse_properties(&payload[12..])
        .ok()
        .map(|(_, properties)| properties)
}

fn nested(depth: usize, kind: u8) -> Vec<u8> {
    let mut inner = Vec::new();
    for _ in 0..depth {
        let mut outer = if kind == b'F' {
            vec![0, b'F']
        } else {
            vec![b'A']
        };
        outer.extend_from_slice(&u32::try_from(inner.len()).unwrap().to_be_bytes());
        outer.extend_from_slice(&inner);
        inner = outer;
    }
    if kind == b'A' {
        inner.insert(0, 0);
    }
    inner
}

#[test]
fn a_type_that_is_not_utf8_loses_its_bad_bytes_and_nothing_else() {
    let mut bytes = content_frame(b"caf\xe9.placed.v1", b"\x04caf\xe9S\x00\x00\x00\x01x");
    assert!(properties(&bytes).is_none(), "the driver reads it as it is");
    assert_eq!(Sanitizer::default().pass(&mut bytes), bytes.len());
    let properties = properties(&bytes).unwrap();
    assert_eq!(
        properties.kind().as_ref().unwrap().as_str(),
        "caf?.placed.v1"
    );
    assert!(properties.headers().as_ref().unwrap().contains_key("caf?"));
}

#[test]
fn a_routing_key_that_is_not_utf8_is_mended() {
    let mut payload = vec![
        0, 60, 0, 60, 1, b't', 0, 0, 0, 0, 0, 0, 0, 7, 0, 1, b'e', 2, 0xff, b'k',
    ];
    let mut bytes = frame(METHOD, &payload);
    assert_eq!(Sanitizer::default().pass(&mut bytes), bytes.len());
    payload[18] = b'?';
    assert_eq!(bytes, frame(METHOD, &payload));
    assert!(parse_short_string(&payload[17..]).is_ok());
}

#[test]
fn tables_nested_thousands_deep_become_bytes() {
    for (depth, kind) in [(18_000, b'F'), (18_000, b'A'), (17, b'F')] {
        let mut bytes = content_frame(b"t", &nested(depth, kind));
        assert_eq!(Sanitizer::default().pass(&mut bytes), bytes.len());
        let properties = properties(&bytes).unwrap();
        assert_eq!(properties.kind().as_ref().unwrap().as_str(), "t");
    }
    // What is nested as usual stays as it is.
    let before = content_frame(b"t", &nested(15, b'F'));
    let mut after = before.clone();
    Sanitizer::default().pass(&mut after);
    assert_eq!(before, after);
}

#[test]
fn what_is_no_amqp_is_passed_on_untouched() {
    let mut bytes = b"HTTP/1.1 400 Bad Request\r\n".to_vec();
    let before = bytes.clone();
    assert_eq!(Sanitizer::default().pass(&mut bytes), before.len());
    assert_eq!(bytes, before);
}

proptest! {
    #[test]
    fn a_stream_comes_out_whole_however_it_is_cut(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8),
        kinds in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..8),
        cuts in proptest::collection::vec(1_usize..200, 1..40),
    ) {
        let mut stream = Vec::new();
        for (body, kind) in bodies.iter().zip(kinds.iter().cycle()) {
            stream.extend(content_frame(kind, b"\x01\xe9V"));
            stream.extend(frame(BODY, body));
            stream.extend(frame(HEARTBEAT, b""));
        }
        let mut whole = stream.clone();
        Sanitizer::default().pass(&mut whole);

        let mut sanitizer = Sanitizer::default();
        let mut pending: Vec<u8> = Vec::new();
        let mut out = Vec::new();
        let mut input = stream.as_slice();
        for cut in cuts.iter().cycle() {
            let (now, later) = input.split_at((*cut).min(input.len()));
            pending.extend_from_slice(now);
            input = later;
            let passed = sanitizer.pass(&mut pending);
            out.extend(pending.drain(..passed));
            if input.is_empty() {
                break;
            }
        }
        prop_assert!(pending.is_empty());
        prop_assert_eq!(out, whole);
    }

    #[test]
    fn arbitrary_payloads_keep_their_size_and_never_panic(
        kind in 0_u8..10, payload in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = frame(kind, &payload);
        let size = bytes.len();
        let passed = Sanitizer::default().pass(&mut bytes);
        prop_assert!(passed <= size);
        prop_assert_eq!(bytes.len(), size);
    }
}
