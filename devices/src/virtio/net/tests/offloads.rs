//! Headers, and who may ask for what.

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::super::header::{Checksum, HeaderError, Segmentation, VnetHeader, WireHeader};
use super::super::layout::{
    F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_HOST_USO, F_MRG_RXBUF,
};
use super::super::*;
use super::wire::*;

/// flags, kind, headers' length, segments' length, start and offset of the checksum
fn wire_header(flags: u8, kind: u8, numbers: [u16; 4]) -> Vec<u8> {
    let mut bytes = vec![flags, kind];
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend([0, 0]);
    bytes
}

fn check(bytes: &[u8], len: u32, allowed: Offloads) -> Result<VnetHeader, HeaderError> {
    VnetHeader::check(&WireHeader::read_from_bytes(bytes).unwrap(), len, allowed)
}

#[test]
fn header_of_a_segmented_frame_reaches_the_back_end() {
    let (mut bench, cable) = bench(F_CSUM | F_HOST_TSO4);
    let header = wire_header(1, 1, [54, 1448, 34, 16]);
    bench.send(&[&header, &frame([2; 6], 60_000, 1)]);
    let (got, bytes) = cable.take();
    assert_eq!(got.as_bytes(), header);
    assert_eq!(bytes.len(), 60_000);
}

#[test]
fn nonsense_is_refused_by_name() {
    let all = Offloads::ALL;
    let refused = |bytes: &[u8], len| check(bytes, len, all).unwrap_err();
    let outside = |start, offset, len| HeaderError::ChecksumOutside { start, offset, len };
    for (start, offset) in [(99, 0), (0, 99), (50, 49), (u16::MAX, u16::MAX), (100, 0)] {
        let bytes = wire_header(1, 0, [0, 0, start, offset]);
        assert_eq!(refused(&bytes, 100), outside(start, offset, 100));
    }
    assert!(check(&wire_header(1, 0, [0, 0, 98, 0]), 100, all).is_ok());
    for kind in [2, 3, 6, 7, 0x7f, 0x83] {
        assert_eq!(
            refused(&wire_header(1, kind, [0, 9, 0, 0]), 100),
            HeaderError::Kind(kind & 0x7f)
        );
    }
    assert_eq!(
        refused(&wire_header(0, 1, [0, 9, 0, 0]), 100),
        HeaderError::Segments
    );
    assert_eq!(
        refused(&wire_header(1, 1, [0, 0, 0, 0]), 100),
        HeaderError::Segments
    );
    let not_asked_for = check(
        &wire_header(1, 4, [0, 9, 0, 0]),
        100,
        Offloads::CHECKSUM | Offloads::TSO4,
    );
    let asked = Offloads::CHECKSUM | Offloads::TSO6;
    assert_eq!(
        not_asked_for.unwrap_err(),
        HeaderError::NotNegotiated(asked)
    );
}

#[test]
fn what_was_not_negotiated_is_not_sent() {
    for (features, kind, passes) in [
        (0, 0, false),
        (F_CSUM, 0, true),
        (F_CSUM, 1, false),
        (F_CSUM | F_HOST_TSO4, 1, true),
        (F_CSUM | F_HOST_TSO4, 0x81, false),
        (F_CSUM | F_HOST_TSO4, 4, false),
        (F_CSUM | F_HOST_USO, 5, true),
        (F_HOST_TSO4, 1, false),
    ] {
        let (mut bench, cable) = bench(features);
        bench.send(&[
            &wire_header(1, kind, [54, 1448, 34, 16]),
            &frame([2; 6], 3000, 0),
        ]);
        bench.send(&[&plain(), &frame([2; 6], 100, 1)]);
        let dropped = bench.traffic.sent().dropped();
        assert_eq!(dropped == 0, passes, "features {features:#x}, kind {kind}");
        if passes {
            assert_eq!(cable.take().1.len(), 3000);
        }
        assert_eq!(cable.take().1.len(), 100);
    }
}

#[test]
fn back_end_is_told_what_the_driver_takes_and_held_to_it() {
    let (wire, cable) = wire(ALL_OFFLOADS);
    let mut bench = transport(net(&NetConfig::new(MAC), wire), None);
    bench
        .driver
        .start(RING | F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4);
    let taken = Offloads::CHECKSUM | Offloads::TSO4;
    assert_eq!(*cable.heard.offloads.lock().unwrap(), [taken]);
    for _ in 0..100 {
        bench.driver.send(RX, &[], &[1526]);
    }
    bench.driver.kick(RX);
    let segmented = |segmentation| VnetHeader {
        checksum: Checksum::Needed {
            start: 34,
            offset: 16,
        },
        segmentation,
        ecn: false,
        segment_len: 1448,
        headers_len: 54,
    };
    cable.put(segmented(Segmentation::Tcp6), &frame(MAC.0, 3000, 1));
    cable.put(segmented(Segmentation::Tcp4), &frame(MAC.0, 4000, 2));
    let used = bench.driver.wait_used(RX, 3);
    let (header, _) = received(&used[0]);
    let mut expected = segmented(Segmentation::Tcp4).to_wire();
    expected.num_buffers = 3.into();
    assert_eq!(header.as_bytes(), expected.as_bytes());
    assert_eq!(bench.traffic.received().dropped(), 1);
}

#[test]
fn features_follow_the_back_ends() {
    let offered = |abilities| {
        let (wire, _cable) = wire(abilities);
        transport(net(&NetConfig::new(MAC), wire), None)
            .driver
            .offered_features()
    };
    let all = offered(ALL_OFFLOADS);
    assert_eq!(
        all & (F_CSUM | F_HOST_USO | F_GUEST_TSO4),
        F_CSUM | F_HOST_USO | F_GUEST_TSO4
    );
    let none = offered(Abilities::default());
    assert_eq!(
        none & (F_CSUM | F_HOST_USO | F_HOST_TSO4 | features::GUEST_OFFLOADS),
        0
    );
    // Segments cannot be made without checksums.
    let odd = Abilities {
        from_guest: Offloads::TSO4,
        to_guest: Offloads::USO,
    };
    assert_eq!(offered(odd), none);
}

#[test]
fn checksums_are_finished_as_the_internet_has_them() {
    // RFC 1071's example: the sum of these words is ddf2.
    let mut frame = vec![0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0];
    let mut header = VnetHeader {
        checksum: Checksum::Needed {
            start: 0,
            offset: 8,
        },
        ..VnetHeader::default()
    };
    header.finish_checksum(&mut frame);
    assert_eq!(frame[8..], (!0xddf2_u16).to_be_bytes());
    assert_eq!(header.checksum, Checksum::Valid);
}

proptest! {
    /// Whatever a guest writes: what is passed on is within the frame and what was negotiated, and means
    /// to the host's kernel what it meant here.
    #[test]
    fn accepted_headers_keep_their_promises(
        bytes in prop::array::uniform12(any::<u8>()),
        len in 14..=65_553_u32,
        allowed in 0..32_u8,
    ) {
        let allowed = Offloads::from_bits(allowed);
        if let Ok(header) = check(&bytes, len, allowed) {
            prop_assert!(allowed.contains(header.asks_for()));
            prop_assert!(u32::from(header.headers_len) <= len);
            if let Checksum::Needed { start, offset } = header.checksum {
                prop_assert!(u32::from(start) + u32::from(offset) + 2 <= len);
            }
            if header.segmentation != Segmentation::None {
                prop_assert!(header.segment_len > 0 && header.checksum != Checksum::Unknown);
            }
            let again = VnetHeader::check(&header.to_wire(), len, allowed);
            prop_assert_eq!(again, Ok(header));
        }
    }

    #[test]
    fn finished_checksums_sum_up(mut bytes in prop::collection::vec(any::<u8>(), 40..100), start in 0..20_u16, offset in 0..10_u16) {
        let offset = offset & !1;
        let at = usize::from(start + offset);
        bytes[at..at + 2].fill(0);
        let mut header = VnetHeader { checksum: Checksum::Needed { start, offset }, ..VnetHeader::default() };
        header.finish_checksum(&mut bytes);
        let mut covered = bytes[usize::from(start)..].to_vec();
        covered.resize(covered.len().next_multiple_of(2), 0);
        let sum: u32 = covered.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        prop_assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
