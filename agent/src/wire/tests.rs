use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn key() -> impl Strategy<Value = Key> {
    any::<[u8; 16]>().prop_map(Key)
}

fn size() -> impl Strategy<Value = WindowSize> {
    (any::<u16>(), any::<u16>()).prop_map(|(rows, cols)| WindowSize { rows, cols })
}

fn group() -> impl Strategy<Value = GroupLimits> {
    any::<(u64, u32)>().prop_map(|(memory, processes)| GroupLimits { memory, processes })
}

prop_compose! {
    fn process()(
        program in prop_oneof![
            vec(bytes(), 0..4).prop_map(Program::Command),
            bytes().prop_map(Program::CopyOut),
            bytes().prop_map(Program::CopyIn),
            bytes().prop_map(Program::Find),
        ],
        env in vec(bytes(), 0..4),
        workdir in bytes(),
        user in ".{0,20}",
        terminal in option::of(size()),
        group in option::of(group()),
        limits in vec((any::<u8>(), any::<u64>(), any::<u64>()), 0..4),
    ) -> ProcessSpec {
        let limits = limits.into_iter();
        let limits = limits.map(|(resource, soft, hard)| Limit { resource, soft, hard });
        ProcessSpec { program, env, workdir, user, terminal, limits: limits.collect(), group }
    }
}

fn host_message() -> impl Strategy<Value = HostMessage> {
    let keys = (option::of(key()), option::of(key()), option::of(key()));
    prop_oneof![
        (any::<u32>(), process(), keys).prop_map(|(id, process, (stdin, stdout, stderr))| {
            HostMessage::Start(Start {
                id,
                process,
                stdin,
                stdout,
                stderr,
            })
        }),
        any::<(u32, u8)>().prop_map(|(id, signal)| HostMessage::Signal { id, signal }),
        (any::<u32>(), size()).prop_map(|(id, size)| HostMessage::Resize { id, size }),
        any::<u32>().prop_map(|request| HostMessage::List { request }),
        any::<u8>().prop_map(|status| HostMessage::Shutdown { status }),
    ]
}

fn info() -> impl Strategy<Value = ProcessInfo> {
    (any::<[u32; 3]>(), any::<u8>(), any::<[u64; 2]>(), ".{0,20}").prop_map(
        |([pid, parent, uid], state, [cpu_ms, rss_kib], command)| ProcessInfo {
            pid,
            parent,
            uid,
            state,
            cpu_ms,
            rss_kib,
            command,
        },
    )
}

fn agent_message() -> impl Strategy<Value = AgentMessage> {
    let exit = prop_oneof![
        any::<u8>().prop_map(Exit::Code),
        any::<u8>().prop_map(Exit::Signal)
    ];
    let limit = prop_oneof![
        Just(GroupLimit::Memory),
        Just(GroupLimit::Processes),
        Just(GroupLimit::Disk),
    ];
    prop_oneof![
        Just(AgentMessage::Ready),
        any::<(u32, u32)>().prop_map(|(id, pid)| AgentMessage::Started { id, pid }),
        (any::<u32>(), limit).prop_map(|(id, limit)| AgentMessage::Exceeded { id, limit }),
        (any::<u32>(), any::<[u64; 5]>()).prop_map(|(id, figures)| {
            let [user_us, system_us, memory_peak, processes_peak, disk] = figures;
            let usage = GroupUsage {
                user_us,
                system_us,
                memory_peak,
                processes_peak,
                disk,
            };
            AgentMessage::Used { id, usage }
        }),
        (any::<u32>(), any::<u8>(), ".{0,20}").prop_map(|(id, status, message)| {
            AgentMessage::Failed {
                id,
                status,
                message,
            }
        }),
        (any::<u32>(), exit).prop_map(|(id, exit)| AgentMessage::Exited { id, exit }),
        (any::<u32>(), vec(info(), 0..4))
            .prop_map(|(request, processes)| { AgentMessage::Processes { request, processes } }),
    ]
}

/// All messages in `stream`, which comes in pieces of `piece` bytes.
fn read<M: DeserializeOwned>(stream: &[u8], piece: usize) -> Result<Vec<M>, WireError> {
    let mut reader = FrameReader::default();
    let mut messages = Vec::new();
    for mut bytes in stream.chunks(piece) {
        while let Some(message) = reader.next(&mut bytes)? {
            messages.push(message);
        }
        assert!(bytes.is_empty(), "bytes were left");
    }
    Ok(messages)
}

fn frames<M: Serialize>(messages: &[M]) -> Vec<u8> {
    let frames = messages
        .iter()
        .map(|message| encode_frame(message).unwrap());
    frames.collect::<Vec<_>>().concat()
}

proptest! {
    #[test]
    fn a_hello_arrives_as_it_was_sent(key in key(), control in any::<bool>()) {
        let purpose = if control { Purpose::Control } else { Purpose::Stream };
        let hello = Hello { purpose, key };
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }

    #[test]
    fn any_hello_is_decoded_or_refused(bytes in any::<[u8; HELLO_LEN]>(), good in 0..=HELLO_LEN) {
        let start = Hello { purpose: Purpose::Stream, key: Key([0; 16]) }.encode();
        let bytes: Vec<u8> = start[..good].iter().chain(&bytes[good..]).copied().collect();
        let bytes = bytes.try_into().unwrap();
        if let Ok(hello) = Hello::decode(&bytes) {
            prop_assert_eq!(hello.encode(), bytes);
        }
    }

    #[test]
    fn the_hosts_messages_arrive_in_any_pieces(
        messages in vec(host_message(), 0..4),
        piece in 1..200_usize,
    ) {
        prop_assert_eq!(read(&frames(&messages), piece), Ok(messages));
    }

    #[test]
    fn the_agents_messages_arrive_in_any_pieces(
        messages in vec(agent_message(), 0..4),
        piece in 1..200_usize,
    ) {
        prop_assert_eq!(read(&frames(&messages), piece), Ok(messages));
    }

    #[test]
    fn any_bytes_are_messages_or_refused(bytes in vec(any::<u8>(), 0..300), piece in 1..50_usize) {
        let _ = read::<HostMessage>(&bytes, piece);
        let _ = read::<AgentMessage>(&bytes, piece);
    }

    #[test]
    fn a_frame_whose_length_lies_is_refused_or_waited_for(
        message in host_message(),
        length in 0..300_u32,
    ) {
        let mut frame = encode_frame(&message).unwrap();
        let real = frame.len() - LENGTH_LEN;
        frame[..LENGTH_LEN].copy_from_slice(&length.to_le_bytes());
        let messages = read::<HostMessage>(&frame, 7);
        if length as usize > real {
            prop_assert_eq!(messages, Ok(Vec::new()));
        } else if length as usize != real {
            // What is cut off may look like a frame of its own, but never like the message.
            prop_assert_ne!(messages, Ok(vec![message]));
        }
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_at_once() {
    let too_long = u32::try_from(MAX_FRAME + 1).unwrap();
    assert_eq!(
        read::<HostMessage>(&too_long.to_le_bytes(), 4),
        Err(WireError::FrameLength(MAX_FRAME + 1))
    );
    let process = Program::CopyIn(vec![0; MAX_FRAME]);
    assert!(matches!(
        encode_frame(&process),
        Err(WireError::FrameLength(_))
    ));
}

#[test]
fn a_frame_with_more_than_its_message_is_refused() {
    let mut frame = encode_frame(&AgentMessage::Ready).unwrap();
    frame.push(0);
    frame[0] += 1;
    assert_eq!(read::<AgentMessage>(&frame, 64), Err(WireError::Message));
}

#[test]
fn memory_for_a_frame_is_taken_as_its_bytes_come() {
    let mut reader = FrameReader::default();
    let length = u32::try_from(MAX_FRAME).unwrap().to_le_bytes();
    let mut bytes = length.as_slice();
    assert_eq!(reader.next::<AgentMessage>(&mut bytes), Ok(None));
    assert!(reader.frame.capacity() < 64, "{}", reader.frame.capacity());
}
