//! Whatever a DHCP server sends is passed over, or is something that the guest can be told to do; and
//! so is what the kernel answers to that.
use casita_agent::dhcp::{Answer, Client};
use casita_agent::hosts;
use casita_agent::rtnetlink::{Requests, count_answers};

const CLIENT: Client<'_> = Client {
    mac: [2, 0, 0, 0, 0, 1],
    transaction: 7,
    hostname: "yard",
};

/// Runs the target on one input.
pub fn run(bytes: &[u8]) {
    // Behind what makes it an answer to us, for a fuzzer is long in finding that.
    let mut answer = CLIENT.discover();
    answer.truncate(240);
    answer[0] = 2;
    answer[16..20].copy_from_slice(&[10, 0, 2, 15]);
    answer.extend_from_slice(bytes);
    for message in [bytes, &answer] {
        if let Some(Answer::Lease(lease)) = CLIENT.answer(message) {
            assert!(lease.network.addresses.iter().all(|own| own.prefix <= 32));
            let requests = Requests::new(2, &lease.network);
            assert!(requests.failures(bytes).count() <= count_answers(bytes));
            let _ = hosts::resolv_conf(&lease.network);
        }
    }
}
