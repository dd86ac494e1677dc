//! Each kind of request, in each framing, with each engine.

use super::*;
use crate::virtio::block::layout::{
    TYPE_DISCARD, TYPE_FLUSH, TYPE_GET_ID, TYPE_IN, TYPE_OUT, TYPE_WRITE_ZEROES,
};

const OK: u8 = Status::Ok as u8;
const IOERR: u8 = Status::IoErr as u8;
const UNSUPP: u8 = Status::Unsupported as u8;

#[test]
fn a_read_returns_the_files_bytes() {
    let bytes = pattern(1 << 20);
    for engine in engines() {
        let file = file_with(&bytes);
        let mut rig = Rig::started(&file, &with_engine(engine));
        for (sector, len) in [(0, 512), (1, 4096), (100, 300 * 1024), (2047, 512)] {
            let (status, data) = rig.ask(&[&header(TYPE_IN, sector)], &[len, 1]);
            assert_eq!(status, OK, "{engine:?}");
            let from = sector as usize * 512;
            assert!(data == bytes[from..from + len as usize], "{engine:?}");
        }
    }
}

#[test]
fn a_read_that_the_page_cache_cannot_serve_completes_through_the_ring() {
    // More than a cached read may have, so that it takes the ring.
    let bytes = pattern(1 << 20);
    for engine in engines() {
        let file = file_with(&bytes);
        let mut rig = Rig::started(&file, &with_engine(engine));
        let (status, data) = rig.ask(&[&header(TYPE_IN, 0)], &[1 << 19, 1 << 19, 1]);
        assert_eq!(status, OK, "{engine:?}");
        assert!(data == bytes, "{engine:?}");
    }
}

#[test]
fn a_write_changes_its_sectors_and_no_others() {
    let cases = engines()
        .into_iter()
        .flat_map(|engine| [(engine, false), (engine, true)]);
    for (engine, dedicated_thread) in cases {
        let file = file_with(&vec![0; 64 * 1024]);
        let config = BlockConfig {
            dedicated_thread,
            ..with_engine(engine)
        };
        let mut rig = Rig::started(&file, &config);
        let data = pattern(8192);
        let (status, _) = rig.ask(&[&header(TYPE_OUT, 3), &data], &[1]);
        assert_eq!(status, OK, "{engine:?}");
        let mut expected = vec![0; 64 * 1024];
        expected[1536..1536 + 8192].copy_from_slice(&data);
        assert!(content(&file) == expected, "{engine:?}");
    }
}

#[test]
fn what_succeeds_is_counted() {
    for engine in engines() {
        let file = file_with(&vec![0; 64 * 1024]);
        let block = block(&file, &with_engine(engine));
        let traffic = block.traffic();
        let mut rig = Rig::new(block);
        rig.driver.start(ALL);
        rig.ask(&[&header(TYPE_OUT, 3), &pattern(8192)], &[1]);
        rig.ask(&[&header(TYPE_IN, 0)], &[512, 1]);
        rig.ask(&[&header(TYPE_IN, 8)], &[4096, 1]);
        rig.ask(&[&header(TYPE_FLUSH, 0)], &[1]);
        // Beyond the end.
        let (status, _) = rig.ask(&[&header(TYPE_IN, 1 << 20)], &[512, 1]);
        assert_eq!(status, IOERR);
        assert_eq!((traffic.writes(), traffic.write_bytes()), (1, 8192));
        assert_eq!((traffic.reads(), traffic.read_bytes()), (2, 4608));
    }
}

#[test]
fn a_request_may_be_cut_into_descriptors_anywhere() {
    let data = pattern(1024);
    let mut bytes = header(TYPE_OUT, 1);
    bytes.extend_from_slice(&data);
    for engine in engines() {
        for cut in [1, 7, 15, 16, 17, 500, 1039] {
            let file = file_with(&[0; 4096]);
            let mut rig = Rig::started(&file, &with_engine(engine));
            let (status, _) = rig.ask(&[&bytes[..cut], &bytes[cut..]], &[1]);
            assert_eq!(status, OK, "{engine:?} {cut}");
            assert!(content(&file)[512..1536] == data, "{engine:?} {cut}");
            // Data and status in one descriptor, and cut at an odd place.
            for writable in [&[1025][..], &[1, 1024], &[511, 514], &[1024, 1]] {
                let (status, read) = rig.ask(&[&header(TYPE_IN, 1)], writable);
                assert_eq!(status, OK, "{engine:?} {writable:?}");
                assert!(read == data, "{engine:?} {writable:?}");
            }
        }
    }
}

#[test]
fn data_may_lie_in_many_segments_of_an_indirect_table() {
    let bytes = pattern(128 * 512);
    for engine in engines() {
        let file = file_with(&vec![0; bytes.len()]);
        let mut rig = Rig::started(&file, &with_engine(engine));
        let head = header(TYPE_OUT, 0);
        let mut readable: Vec<&[u8]> = vec![&head];
        readable.extend(bytes.chunks(512));
        rig.driver.send_indirect(0, &readable, &[1]);
        rig.driver.kick(0);
        assert_eq!(rig.answer().0, OK, "{engine:?}");
        assert!(content(&file) == bytes, "{engine:?}");
        let mut writable = vec![512; 128];
        writable.push(1);
        rig.driver
            .send_indirect(0, &[&header(TYPE_IN, 0)], &writable);
        rig.driver.kick(0);
        let (status, data) = rig.answer();
        assert_eq!(status, OK, "{engine:?}");
        assert!(data == bytes, "{engine:?}");
    }
}

#[test]
fn discard_and_write_zeroes_clear_all_their_ranges() {
    let bytes = pattern(1 << 20);
    for engine in engines() {
        for (kind, flags) in [
            (TYPE_DISCARD, 0),
            (TYPE_WRITE_ZEROES, 0),
            (TYPE_WRITE_ZEROES, 1),
        ] {
            let file = file_with(&bytes);
            let mut rig = Rig::started(&file, &with_engine(engine));
            let mut ranges = range(8, 8, flags);
            ranges.extend(range(0, 0, flags));
            ranges.extend(range(1024, 512, flags));
            let (status, _) = rig.ask(&[&header(kind, 0), &ranges], &[1]);
            assert_eq!(status, OK, "{engine:?} {kind}");
            let mut expected = bytes.clone();
            expected[8 * 512..16 * 512].fill(0);
            expected[1024 * 512..1536 * 512].fill(0);
            assert!(content(&file) == expected, "{engine:?} {kind} {flags}");
        }
    }
}

#[test]
fn flush_succeeds_with_each_engine() {
    for engine in engines() {
        let mut rig = Rig::started(&file_with(&[0; 512]), &with_engine(engine));
        assert_eq!(rig.ask(&[&header(TYPE_FLUSH, 0)], &[1]).0, OK);
    }
}

#[test]
fn get_id_returns_the_serial_padded_with_zeroes() {
    let config = BlockConfig {
        serial: "casita-42".to_owned(),
        ..BlockConfig::default()
    };
    let mut rig = Rig::started(&file_with(&[0; 512]), &config);
    let (status, id) = rig.ask(&[&header(TYPE_GET_ID, 0)], &[20, 1]);
    assert_eq!(status, OK);
    assert_eq!(id, b"casita-42\0\0\0\0\0\0\0\0\0\0\0");
    let (status, id) = rig.ask(&[&header(TYPE_GET_ID, 0)], &[4, 1]);
    assert_eq!((status, &id[..]), (OK, &b"casi"[..]));
}

#[test]
fn a_request_without_data_succeeds() {
    let mut rig = Rig::started(&file_with(&[0; 512]), &BlockConfig::default());
    assert_eq!(rig.ask(&[&header(TYPE_IN, 0)], &[1]).0, OK);
    assert_eq!(rig.ask(&[&header(TYPE_OUT, 1)], &[1]).0, OK);
}

#[test]
fn unknown_types_are_unsupported() {
    let mut rig = Rig::started(&file_with(&[0; 512]), &BlockConfig::default());
    for kind in [2, 3, 5, 7, 14, 15, 16, u32::MAX] {
        assert_eq!(rig.ask(&[&header(kind, 0)], &[1]).0, UNSUPP, "{kind}");
    }
}

#[test]
fn requests_beyond_the_disk_fail_and_touch_nothing() {
    for engine in engines() {
        let bytes = pattern(4096);
        let file = file_with(&bytes);
        let mut rig = Rig::started(&file, &with_engine(engine));
        for sector in [8, 7, u64::MAX, u64::MAX / 512, 1 << 55] {
            let out = rig.ask(&[&header(TYPE_OUT, sector), &[1; 1024]], &[1]);
            assert_eq!(out.0, IOERR, "{sector}");
            let ask = rig.ask(&[&header(TYPE_IN, sector)], &[1024, 1]);
            assert_eq!(ask.0, IOERR, "{sector}");
        }
        assert!(content(&file) == bytes);
    }
}

#[test]
fn a_chain_without_a_status_byte_comes_back_empty_and_the_queue_goes_on() {
    let mut rig = Rig::started(&file_with(&[0; 512]), &BlockConfig::default());
    rig.driver.send(0, &[&header(TYPE_FLUSH, 0)], &[]);
    rig.driver.kick(0);
    assert_eq!(rig.driver.wait_used(0, 1)[0].len, 0);
    assert_eq!(rig.ask(&[&header(TYPE_FLUSH, 0)], &[1]).0, OK);
}

#[test]
fn a_short_header_is_an_error_and_the_queue_goes_on() {
    let mut rig = Rig::started(&file_with(&[0; 512]), &BlockConfig::default());
    assert_eq!(rig.ask(&[&header(TYPE_FLUSH, 0)[..15]], &[1]).0, IOERR);
    assert_eq!(rig.ask(&[], &[1]).0, IOERR);
    assert_eq!(rig.ask(&[&header(TYPE_FLUSH, 0)], &[1]).0, OK);
}

#[test]
fn a_read_only_disk_refuses_writes_and_stays_as_it_is() {
    for engine in engines() {
        let bytes = pattern(4096);
        let file = file_with(&bytes);
        let config = BlockConfig {
            read_only: true,
            ..with_engine(engine)
        };
        let mut rig = Rig::new(block(&file, &config));
        let features = rig.driver.start(ALL);
        assert_eq!(features & F_RO, F_RO);
        assert_eq!(features & (F_FLUSH | F_DISCARD | F_WRITE_ZEROES), 0);
        let out = rig.ask(&[&header(TYPE_OUT, 0), &[0; 512]], &[1]);
        assert_eq!(out.0, IOERR, "{engine:?}");
        for kind in [TYPE_DISCARD, TYPE_WRITE_ZEROES] {
            let status = rig.ask(&[&header(kind, 0), &range(0, 8, 0)], &[1]).0;
            assert_eq!(status, IOERR, "{engine:?}");
        }
        let (status, data) = rig.ask(&[&header(TYPE_IN, 0)], &[4096, 1]);
        assert!(status == OK && data == bytes, "{engine:?}");
        assert!(content(&file) == bytes, "{engine:?}");
    }
}

#[test]
fn the_last_partial_sector_of_an_image_reads_padded_with_zeroes() {
    for engine in engines() {
        let bytes = pattern(1000);
        let file = file_with(&bytes);
        let config = BlockConfig {
            read_only: true,
            ..with_engine(engine)
        };
        let mut rig = Rig::started(&file, &config);
        let (status, data) = rig.ask(&[&header(TYPE_IN, 0)], &[1024, 1]);
        assert_eq!(status, OK, "{engine:?}");
        assert_eq!(data[..1000], bytes[..]);
        assert_eq!(data[1000..], [0; 24]);
        assert_eq!(rig.ask(&[&header(TYPE_IN, 2)], &[512, 1]).0, IOERR);
    }
}

#[test]
fn a_file_that_was_cut_short_is_an_error_and_the_device_goes_on() {
    for engine in engines() {
        let file = file_with(&pattern(8192));
        let mut rig = Rig::started(&file, &with_engine(engine));
        file.set_len(4096).unwrap();
        let ask = rig.ask(&[&header(TYPE_IN, 4)], &[4096, 1]);
        assert_eq!(ask.0, IOERR, "{engine:?}");
        let ask = rig.ask(&[&header(TYPE_IN, 0)], &[4096, 1]);
        assert_eq!(ask.0, OK, "{engine:?}");
    }
}

#[test]
fn a_full_ring_is_served_to_the_last_request() {
    for engine in engines() {
        for event_idx in [0, EVENT_IDX] {
            let bytes = pattern(256 * 512);
            let file = file_with(&bytes);
            let mut rig = Rig::new(block(&file, &with_engine(engine)));
            rig.driver.start(ALL & !EVENT_IDX | event_idx);
            for _ in 0..3 {
                let mut heads = std::collections::HashMap::new();
                for sector in 0..128 {
                    let head = rig.driver.send(0, &[&header(TYPE_IN, sector)], &[513]);
                    heads.insert(head, sector as usize);
                }
                rig.driver.kick(0);
                for used in rig.driver.wait_used(0, 128) {
                    let from = heads[&used.head] * 512;
                    assert_eq!(used.data[512], OK);
                    assert!(used.data[..512] == bytes[from..from + 512]);
                }
            }
        }
    }
}

#[test]
fn several_queues_serve_side_by_side() {
    for engine in engines() {
        for dedicated_thread in [false, true] {
            let bytes = pattern(1 << 20);
            let config = BlockConfig {
                queues: 4,
                dedicated_thread,
                ..with_engine(engine)
            };
            let mut rig = Rig::new(block(&file_with(&bytes), &config));
            let features = rig.driver.start(ALL);
            assert_eq!(features & F_MQ, F_MQ);
            for sector in 0..64u64 {
                let queue = (sector % 4) as u16;
                rig.driver
                    .send(queue, &[&header(TYPE_IN, sector)], &[512, 1]);
            }
            for queue in 0..4 {
                rig.driver.kick(queue);
            }
            for queue in 0..4 {
                for used in rig.driver.wait_used(queue, 16) {
                    assert_eq!(used.data[512], OK, "{engine:?}");
                }
            }
        }
    }
}
