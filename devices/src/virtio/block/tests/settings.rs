//! What can be a disk, what it looks like to its driver, and what survives a save.

use std::os::fd::OwnedFd;

use super::*;
use crate::virtio::block::layout::{TYPE_GET_ID, TYPE_IN};

fn refusal(file: File, config: &BlockConfig) -> String {
    match Block::new(file, Path::new("/some/disk.img"), config) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    }
}

fn read_only() -> BlockConfig {
    BlockConfig {
        read_only: true,
        ..BlockConfig::default()
    }
}

#[test]
fn only_files_that_can_be_disks_are_taken() {
    let open = |path: &str| File::open(path).unwrap();
    let (pipe, _writer) = io::pipe().unwrap();
    let cases = [
        (open("/"), "a directory"),
        (open("/dev/null"), "a character device"),
        (File::from(OwnedFd::from(pipe)), "a FIFO"),
        (reopen_read_only(&file_with(b"")), "holds 0 bytes"),
    ];
    for (file, expected) in cases {
        let message = refusal(file, &read_only());
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("/some/disk.img"), "{message}");
    }
    let message = refusal(file_with(&[0; 511]), &BlockConfig::default());
    assert!(message.contains("holds 511 bytes"), "{message}");
}

#[test]
fn the_open_mode_has_to_match() {
    let file = file_with(&[0; 512]);
    let message = refusal(reopen_read_only(&file), &BlockConfig::default());
    assert!(message.contains("reading alone"), "{message}");
    let message = refusal(file.try_clone().unwrap(), &read_only());
    assert!(message.contains("open for writing"), "{message}");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let append = File::options().read(true).append(true).open(path);
    let message = refusal(append.unwrap(), &BlockConfig::default());
    assert!(message.contains("appending"), "{message}");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let default = BlockConfig::default;
    let cases = [
        (
            BlockConfig {
                queues: 0,
                ..default()
            },
            "queues 0",
        ),
        (
            BlockConfig {
                queues: 33,
                ..default()
            },
            "queues 33",
        ),
        (
            BlockConfig {
                queue_size: 1,
                ..default()
            },
            "queue_size 1 ",
        ),
        (
            BlockConfig {
                queue_size: 48,
                ..default()
            },
            "queue_size 48",
        ),
        (
            BlockConfig {
                queue_size: 2048,
                ..default()
            },
            "queue_size 2048",
        ),
        (
            BlockConfig {
                serial: "x".repeat(21),
                ..default()
            },
            "20 bytes",
        ),
    ];
    for (config, expected) in cases {
        let message = refusal(file_with(&[0; 512]), &config);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_config_needs_no_field_and_refuses_unknown_ones() {
    let config: BlockConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(config, BlockConfig::default());
    let config: BlockConfig = serde_json::from_str(r#"{"engine":"sync","queues":2}"#).unwrap();
    assert_eq!((config.engine, config.queues), (Engine::Sync, 2));
    assert!(serde_json::from_str::<BlockConfig>(r#"{"readonly":true}"#).is_err());
}

#[test]
fn configuration_space_tells_capacity_and_limits() {
    let config = BlockConfig {
        queues: 3,
        queue_size: 64,
        ..BlockConfig::default()
    };
    // The last 100 bytes are no whole sector, and a writable disk leaves them out.
    let rig = Rig::new(block(&file_with(&[0; 8292]), &config));
    let read = |offset: u64, len: usize| {
        let mut bytes = [0; 8];
        rig.driver.read_config(offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(read(0, 8), 16);
    assert_eq!(read(12, 4), 62);
    assert_eq!(read(20, 4), 512);
    assert_eq!(read(24, 1), 3);
    assert_eq!(read(34, 2), 3);
    assert_eq!(read(56, 1), 1);
    assert_eq!(read(60, 4), 0);
    assert_eq!(read(0xffc, 4), 0);
}

#[test]
fn a_saved_disk_goes_on_in_another_device() {
    for engine in engines() {
        let bytes = pattern(4096);
        let file = file_with(&bytes);
        let config = BlockConfig {
            serial: "first".to_owned(),
            ..with_engine(engine)
        };
        let mut rig = Rig::started(&file, &config);
        assert_eq!(rig.ask(&[&header(TYPE_IN, 0)], &[512, 1]).0, 0);
        let state = rig.transport.save().unwrap();
        let json = serde_json::to_string(&state).unwrap();
        let state = serde_json::from_str(&json).unwrap();

        let interrupt = Arc::clone(rig.driver.interrupt());
        let memory = Arc::clone(rig.driver.guest_memory());
        let events = EventLoop::spawn("second", |_| {}).unwrap();
        let second = MmioTransport::new(
            Box::new(block(&file, &with_engine(engine))),
            memory,
            interrupt,
            events.handle(),
        );
        let second = Arc::new(second.unwrap());
        second.restore(&state).unwrap();
        second.resume().unwrap();
        rig.driver.set_device(second);
        let (status, data) = rig.ask(&[&header(TYPE_IN, 7)], &[512, 1]);
        assert_eq!(status, 0, "{engine:?}");
        assert!(data == bytes[7 * 512..]);
        let (_, id) = rig.ask(&[&header(TYPE_GET_ID, 0)], &[20, 1]);
        assert_eq!(&id[..6], b"first\0");
    }
}

#[test]
fn a_state_of_another_disk_is_refused() {
    let mut block = block(&file_with(&[0; 4096]), &BlockConfig::default());
    let good = BlockState {
        capacity: 8,
        read_only: false,
        serial: String::new(),
    };
    let mut restore = |state| block.restore(&DeviceState::Block(state));
    assert!(restore(good.clone()).is_ok());
    let wrong = [
        BlockState {
            capacity: 9,
            ..good.clone()
        },
        BlockState {
            read_only: true,
            ..good.clone()
        },
        BlockState {
            serial: "x".repeat(21),
            ..good
        },
    ];
    for state in wrong {
        assert!(matches!(restore(state), Err(RestoreError::Mismatch { .. })));
    }
    let other = DeviceState::Rng(crate::virtio::rng::RngState::default());
    let refused = block.restore(&other);
    assert!(matches!(refused, Err(RestoreError::WrongDevice { .. })));
}

#[test]
fn requests_pass_at_the_rate_and_none_is_lost() {
    for engine in engines() {
        let bytes = pattern(1 << 16);
        let config = BlockConfig {
            rate: Some("1M,burst=512,ops=400,ops-burst=1".parse().unwrap()),
            queues: 2,
            ..with_engine(engine)
        };
        let mut rig = Rig::new(block(&file_with(&bytes), &config));
        rig.driver.start(ALL);
        for sector in 0..10 {
            let queue = (sector % 2) as u16;
            rig.driver
                .send(queue, &[&header(TYPE_IN, sector)], &[512, 1]);
            rig.driver.kick(queue);
        }
        for queue in 0..2 {
            for used in rig.driver.wait_used(queue, 5) {
                assert_eq!(used.data[512], Status::Ok as u8, "{engine:?}");
            }
        }
    }
}
