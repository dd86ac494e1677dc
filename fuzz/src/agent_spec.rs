//! A guest spec of any bytes is refused, or is one that the host could have written.

use casita_agent::spec::{MAGIC, VERSION, decode, encode};

/// One input.
pub fn run(body: &[u8]) {
    let _ = decode(body);
    // The same bytes behind a header that is right, for a fuzzer is long in finding one.
    let Ok(len) = u32::try_from(body.len()) else {
        return;
    };
    let header = [&MAGIC[..], &VERSION.to_le_bytes(), &len.to_le_bytes()].concat();
    if let Ok(spec) = decode(&[&header, body].concat()) {
        let encoded = encode(&spec).expect("what is accepted can be sent");
        assert_eq!(decode(&encoded), Ok(spec));
    }
}
