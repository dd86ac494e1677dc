//! Bytes on the agent's connections, in both directions: hellos, and frames that come in pieces.

use casita_agent::wire::{
    AgentMessage, FrameReader, HELLO_LEN, Hello, HostMessage, decode_body, encode_frame,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One input.
pub fn run(input: &[u8]) {
    if let Some(hello) = input.first_chunk::<HELLO_LEN>()
        && let Ok(decoded) = Hello::decode(hello)
    {
        assert_eq!(decoded.encode(), *hello);
    }
    check::<HostMessage>(input);
    check::<AgentMessage>(input);
}

/// The first byte says how long the pieces are.
fn check<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) {
    let Some((piece, stream)) = input.split_first() else {
        return;
    };
    let mut reader = FrameReader::default();
    'stream: for mut bytes in stream.chunks(usize::from(*piece).max(1)) {
        loop {
            match reader.next::<M>(&mut bytes) {
                Ok(Some(message)) => arrives(&message),
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
        assert!(bytes.is_empty());
    }
    // The same bytes as one message, for a fuzzer is long in finding a length.
    if let Ok(message) = decode_body::<M>(stream) {
        arrives(&message);
    }
}

fn arrives<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: &M) {
    if let Ok(frame) = encode_frame(message) {
        let again = FrameReader::default().next::<M>(&mut frame.as_slice());
        assert_eq!(again.as_ref().map(Option::as_ref), Ok(Some(message)));
    }
}
