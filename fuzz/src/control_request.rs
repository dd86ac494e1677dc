//! A request to a VM's control socket of any bytes is refused, or is one that a client could have
//! sent.

use casita::control::protocol::decode_request;

/// One input.
pub fn run(bytes: &[u8]) {
    if let Ok(request) = decode_request(bytes) {
        let sent = serde_json::to_vec(&request).expect("what is accepted can be sent");
        assert_eq!(decode_request(&sent), Ok(request));
    }
}
