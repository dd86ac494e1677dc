//! Where in a chain a request's data lies.

use vm_memory::GuestAddress;

use super::backend::Buffers;
use super::layout::HEADER_LEN;
use super::request::Request;
use crate::virtio::chain::{Chain, Segment};

/// Points `buffers` at the data of a read or write.
pub(super) fn point_at_data(
    buffers: &mut Buffers,
    chain: &Chain,
    request: &Request,
) -> Result<(), vm_memory::GuestMemoryError> {
    let (segments, skip, len) = match request {
        Request::Read { len, .. } => (chain.writable(), 0, *len),
        Request::Write { len, .. } => (chain.readable(), HEADER_LEN, *len),
        _ => return Ok(()),
    };
    for (addr, len) in cut(segments, skip, len) {
        buffers.push(addr, len as usize)?;
    }
    Ok(())
}

/// The pieces of `segments` that hold `len` bytes after the first `skip`.
fn cut(
    segments: &[Segment],
    mut skip: u32,
    mut left: u32,
) -> impl Iterator<Item = (GuestAddress, u32)> {
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len);
        skip -= skipped;
        let len = (segment.len - skipped).min(left);
        left -= len;
        // Segments lie in memory as a whole, so the sum cannot wrap.
        (len > 0).then(|| {
            (
                GuestAddress(segment.addr.0.wrapping_add(skipped.into())),
                len,
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_skips_and_stops_inside_of_segments() {
        let segments: Vec<Segment> = [(0, 10), (100, 10), (200, 10)]
            .map(|(addr, len)| Segment {
                addr: GuestAddress(addr),
                len,
            })
            .into();
        let pieces: Vec<_> = cut(&segments, 12, 10)
            .map(|(at, len)| (at.0, len))
            .collect();
        assert_eq!(pieces, [(102, 8), (200, 2)]);
        let pieces: Vec<_> = cut(&segments, 20, 10)
            .map(|(at, len)| (at.0, len))
            .collect();
        assert_eq!(pieces, [(200, 10)]);
        assert_eq!(cut(&segments, 0, 0).count(), 0);
    }
}
