//! Credit flow control, section 5.10.6.3: who may send how much. All counters are modulo 2^32.

/// Less than this is left when a driver is told of new credit: half of what it had.
const ANNOUNCE_AT: u32 = 2;

/// What the guest lets us send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SendCredit {
    sent: u32,
    forwarded: u32,
    capacity: u32,
}

impl SendCredit {
    /// Takes in what a packet says. Packets may overtake each other inside of a driver, so an old
    /// count does not undo a newer one; a count of bytes that were never sent is no count at all.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.capacity = buf_alloc;
        if self.sent.wrapping_sub(fwd_cnt) < self.in_flight() {
            self.forwarded = fwd_cnt;
        }
    }

    /// Bytes that the guest has not dealt with yet.
    fn in_flight(self) -> u32 {
        self.sent.wrapping_sub(self.forwarded)
    }

    /// Bytes that may be sent.
    pub fn available(self) -> u32 {
        self.capacity.saturating_sub(self.in_flight())
    }

    /// `len` bytes were sent, at most as many as were available.
    pub fn consume(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }
}

/// What we let the guest send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceiveCredit {
    capacity: u32,
    received: u32,
    forwarded: u32,
    /// `forwarded` when the guest was last told.
    told: u32,
}

impl ReceiveCredit {
    /// Lets the guest send `capacity` bytes more than were forwarded.
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            received: 0,
            forwarded: 0,
            told: 0,
        }
    }

    /// Counts `len` bytes that arrived. False if the guest had no credit for them.
    pub fn receive(&mut self, len: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        if len > self.capacity.saturating_sub(held) {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// `len` of the bytes that arrived were passed on.
    pub fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether to tell the guest of new credit, because it can't send much with what it knows of.
    pub fn is_news(&self) -> bool {
        let seen = self.received.wrapping_sub(self.told);
        let left = self.capacity.saturating_sub(seen);
        self.forwarded != self.told && left < self.capacity / ANNOUNCE_AT
    }

    /// `buf_alloc` and `fwd_cnt` of a packet that is about to be sent.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.capacity, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn send_credit_is_capacity_less_what_is_in_flight() {
        let mut credit = SendCredit::default();
        assert_eq!(credit.available(), 0);
        credit.update(100, 0);
        credit.consume(60);
        assert_eq!(credit.available(), 40);
        credit.update(100, 50);
        assert_eq!(credit.available(), 90);
        // The guest makes its buffer smaller than what is on its way.
        credit.update(5, 50);
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn send_credit_ignores_old_and_impossible_counts() {
        let mut credit = SendCredit::default();
        credit.update(100, 0);
        credit.consume(60);
        credit.update(100, 50);
        for wrong in [40, 61, 1_000, u32::MAX] {
            credit.update(100, wrong);
            assert_eq!(credit.available(), 90, "{wrong}");
        }
    }

    #[test]
    fn send_credit_wraps() {
        let mut credit = SendCredit::default();
        for round in 0..5_u32 {
            credit.update(u32::MAX / 2, round.wrapping_mul(u32::MAX / 2));
            assert_eq!(credit.available(), u32::MAX / 2);
            credit.consume(u32::MAX / 2);
            assert_eq!(credit.available(), 0);
        }
    }

    #[test]
    fn receive_credit_is_never_exceeded() {
        let mut credit = ReceiveCredit::new(100);
        assert!(credit.receive(100));
        assert!(!credit.receive(1));
        credit.forward(30);
        assert!(!credit.receive(31));
        assert!(!credit.receive(u32::MAX));
        assert!(credit.receive(30));
    }

    #[test]
    fn news_come_when_half_is_used_and_not_before_bytes_went_on() {
        let mut credit = ReceiveCredit::new(100);
        assert!(credit.receive(51));
        assert!(!credit.is_news());
        credit.forward(1);
        assert!(credit.is_news());
        assert_eq!(credit.tell(), (100, 1));
        assert!(!credit.is_news());
        credit.forward(50);
        assert!(!credit.is_news(), "half is left");
    }

    /// A guest that was told of some credit and uses up all of it is always told again.
    #[test]
    fn a_guest_that_used_its_credit_is_told_of_more() {
        let mut credit = ReceiveCredit::new(64);
        let mut known = 64_u32;
        let mut sent = 0_u32;
        for _ in 0..1_000 {
            let len = known - sent;
            assert!(len > 0, "the guest is stuck");
            assert!(credit.receive(len));
            sent += len;
            credit.forward(len / 2 + 1);
            if credit.is_news() {
                let (capacity, forwarded) = credit.tell();
                known = forwarded + capacity;
            }
            credit.forward(len - (len / 2 + 1));
            if credit.is_news() {
                let (capacity, forwarded) = credit.tell();
                known = forwarded + capacity;
            }
        }
    }
}
