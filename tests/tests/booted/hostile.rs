//! The attacks of `tests/hostile.rs` in full, on a KVM that runs guests as hardware does, and some
//! that only take place there.

use casita_tests::attacker::{self, attack};
use casita_tests::suite::Suite;

pub fn tests(suite: &mut Suite) {
    let lacks = attacker::lacks;
    suite.test_if(lacks(), "an_attack_on_every_register", || {
        attack("registers", &[])
    });
    suite.test_if(lacks(), "an_attack_on_queues_and_chains", || {
        attack("queues,chains", &[])
    });
    suite.test_if(lacks(), "an_attack_by_storms_and_resets", || {
        attack("kicks,resets", &[])
    });
    suite.test_if(lacks(), "an_attack_by_packets", || attack("vsock", &[]));
    suite.test_if(lacks(), "an_attack_on_all_ports", || attack("ports", &[]));
    suite.test_if(lacks(), "an_attack_by_two_processors", || {
        attack("headers cpus=2", &["--cpus", "2"])
    });
    suite.test_if(lacks(), "an_attack_with_memory_above_4_gib", || {
        attack("queues,chains", &["--memory", "5G"])
    });
    suite.test_if(lacks(), "an_attack_at_random", || {
        attack("random turns=20000 seed=3", &[])
    });
}
