use proptest::prelude::*;

use super::*;

fn limits(capacity: u64) -> Limits {
    Limits {
        capacity,
        read_only: false,
        features: F_DISCARD | F_WRITE_ZEROES,
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    Header {
        kind: kind.into(),
        reserved: 0.into(),
        sector: sector.into(),
    }
    .as_bytes()
    .to_vec()
}

fn with_ranges(kind: u32, ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = header(kind, 0);
    for &(sector, sectors, flags) in ranges {
        let range = WireRange {
            sector: sector.into(),
            sectors: sectors.into(),
            flags: flags.into(),
        };
        bytes.extend_from_slice(range.as_bytes());
    }
    bytes
}

#[test]
fn the_last_sector_is_inside_and_the_next_one_is_not() {
    assert_eq!(
        parse_bytes(&header(TYPE_IN, 7), 513, &limits(8)),
        Ok(Request::Read {
            offset: 7 * 512,
            len: 512
        })
    );
    for sector in [8, u64::MAX, u64::MAX - 1, u64::MAX >> 9] {
        let result = parse_bytes(&header(TYPE_IN, sector), 513, &limits(8));
        assert!(
            matches!(result, Err(RequestError::OutOfRange { .. })),
            "{sector}: {result:?}"
        );
    }
}

#[test]
fn an_empty_read_at_the_end_of_the_disk_is_inside() {
    assert_eq!(
        parse_bytes(&header(TYPE_IN, 8), 1, &limits(8)),
        Ok(Request::Read {
            offset: 8 * 512,
            len: 0
        })
    );
}

#[test]
fn data_of_a_partial_sector_is_refused() {
    assert_eq!(
        parse_bytes(&header(TYPE_IN, 0), 512, &limits(8)),
        Err(RequestError::Unaligned(511))
    );
    let mut write = header(TYPE_OUT, 0);
    write.push(0);
    assert_eq!(
        parse_bytes(&write, 1, &limits(8)),
        Err(RequestError::Unaligned(1))
    );
}

#[test]
fn a_read_only_disk_refuses_each_request_that_changes_it() {
    let limits = Limits {
        read_only: true,
        ..limits(8)
    };
    for kind in [TYPE_OUT, TYPE_DISCARD, TYPE_WRITE_ZEROES] {
        let error = parse_bytes(&with_ranges(kind, &[(0, 1, 0)]), 1, &limits).unwrap_err();
        assert_eq!(error, RequestError::ReadOnly(kind));
        assert_eq!(error.status(), Status::IoErr);
    }
    assert_eq!(
        parse_bytes(&header(TYPE_FLUSH, 0), 1, &limits),
        Ok(Request::Flush)
    );
}

#[test]
fn types_that_were_not_negotiated_are_unsupported() {
    let limits = Limits {
        features: 0,
        ..limits(8)
    };
    for kind in [TYPE_DISCARD, TYPE_WRITE_ZEROES, 2, 3, 5, 10, 14, u32::MAX] {
        let error = parse_bytes(&with_ranges(kind, &[(0, 1, 0)]), 1, &limits).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported, "{kind}");
    }
}

#[test]
fn flags_limits_and_list_lengths_of_ranges_are_checked() {
    let check = |bytes: &[u8]| parse_bytes(bytes, 1, &limits(1 << 40)).unwrap_err();
    assert_eq!(
        check(&with_ranges(TYPE_DISCARD, &[(0, 1, 1)])),
        RequestError::RangeFlags(1)
    );
    assert_eq!(
        check(&with_ranges(TYPE_WRITE_ZEROES, &[(0, 1, 2)])),
        RequestError::RangeFlags(2)
    );
    assert_eq!(
        check(&with_ranges(
            TYPE_WRITE_ZEROES,
            &[(0, MAX_WRITE_ZEROES_SECTORS + 1, 1)]
        )),
        RequestError::LongRange {
            len: MAX_WRITE_ZEROES_SECTORS + 1,
            limit: MAX_WRITE_ZEROES_SECTORS
        }
    );
    assert_eq!(check(&header(TYPE_DISCARD, 0)), RequestError::RangeList(0));
    let many = vec![(0, 1, 0); MAX_RANGES as usize + 1];
    assert_eq!(
        check(&with_ranges(TYPE_DISCARD, &many)),
        RequestError::RangeList(17 * 16)
    );
}

#[test]
fn the_unmap_flag_reaches_the_range() {
    let bytes = with_ranges(TYPE_WRITE_ZEROES, &[(0, 1, 0), (2, 3, 1)]);
    let expected = vec![
        Range {
            offset: 0,
            len: 512,
            unmap: false,
        },
        Range {
            offset: 1024,
            len: 1536,
            unmap: true,
        },
    ];
    assert_eq!(
        parse_bytes(&bytes, 1, &limits(8)),
        Ok(Request::WriteZeroes(expected))
    );
}

#[test]
fn frames_without_header_or_status_are_refused() {
    assert_eq!(
        parse_bytes(&header(TYPE_FLUSH, 0), 0, &limits(8)),
        Err(RequestError::NoStatus)
    );
    assert_eq!(
        parse_bytes(&header(TYPE_FLUSH, 0)[..15], 1, &limits(8)),
        Err(RequestError::ShortHeader(15))
    );
}

proptest! {
    #[test]
    fn an_accepted_request_lies_within_the_disk(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..64, any::<u64>()],
        data in proptest::collection::vec(any::<u8>(), 0..2048),
        writable in prop_oneof![0u32..4096, any::<u32>()],
        capacity in prop_oneof![0u64..64, 0..(u64::MAX >> 9)],
        read_only: bool,
    ) {
        let limits = Limits { capacity, read_only, features: F_DISCARD | F_WRITE_ZEROES };
        let mut bytes = header(kind, sector);
        bytes.extend_from_slice(&data);
        let bytes_on_disk = u128::from(capacity) * 512;
        let inside = |offset: u64, len: u64| {
            u128::from(offset) + u128::from(len) <= bytes_on_disk
        };
        match parse_bytes(&bytes, writable, &limits) {
            Ok(Request::Read { offset, len }) => {
                prop_assert!(inside(offset, len.into()));
                prop_assert_eq!(len + 1, writable);
            }
            Ok(Request::Write { offset, len }) => {
                prop_assert!(!read_only);
                prop_assert!(inside(offset, len.into()));
                prop_assert_eq!(len as usize, data.len());
            }
            Ok(Request::Discard(ranges) | Request::WriteZeroes(ranges)) => {
                prop_assert!(!read_only);
                for range in ranges {
                    prop_assert!(range.len > 0);
                    prop_assert!(inside(range.offset, range.len));
                }
            }
            Ok(Request::Flush | Request::GetId { .. }) => prop_assert!(writable >= 1),
            Err(error) => prop_assert_ne!(error.status(), Status::Ok),
        }
    }

    #[test]
    fn random_ranges_never_leave_the_disk(
        ranges in proptest::collection::vec(
            (prop_oneof![0u64..32, any::<u64>()], prop_oneof![0u32..32, any::<u32>()], 0u32..3),
            1..17,
        ),
    ) {
        let capacity = 32;
        let bytes = with_ranges(TYPE_WRITE_ZEROES, &ranges);
        let fits = ranges.iter().all(|&(sector, sectors, flags)| {
            flags < 2
                && sectors <= MAX_WRITE_ZEROES_SECTORS
                && u128::from(sector) + u128::from(sectors) <= capacity
        });
        let limits = limits(u64::try_from(capacity).unwrap());
        prop_assert_eq!(parse_bytes(&bytes, 1, &limits).is_ok(), fits);
    }
}
