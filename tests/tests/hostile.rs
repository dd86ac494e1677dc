//! Guests that attack their monitor, wherever there is a KVM: slices of what `booted` does in full
//! where Linux guests run.

use std::process::ExitCode;

use casita_tests::attacker::{self, attack, attack_share};
use casita_tests::machine;
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_kvm().or_else(attacker::lacks));
    suite.test("registers_in_every_status", || {
        attack("registers step=3", &[])
    });
    suite.test("queues_that_are_not_in_memory", || attack("queues", &[]));
    suite.test("chains_that_break_the_rules", || attack("chains", &[]));
    suite.test("kicks_in_a_storm", || attack("kicks", &[]));
    suite.test("resets_with_requests_in_flight", || attack("resets", &[]));
    suite.test("packets_in_every_state", || attack("vsock", &[]));
    suite.test("ports_in_a_storm", || {
        attack("ports step=2 ports=8192", &[])
    });
    suite.test("requests_that_change_while_they_are_served", || {
        attack("headers cpus=2", &["--cpus", "2"])
    });
    suite.test("anything_in_any_order", || {
        attack("random turns=5000 seed=7", &[])
    });
    let share = || machine::lacks_file(&machine::casita().with_file_name("casita-fs"));
    suite.test_if(share(), "a_share_with_bad_chains", || {
        attack_share("chains")
    });
    suite.test_if(share(), "a_share_with_bad_queues_and_registers", || {
        attack_share("registers,queues step=9")
    });
    suite.test_if(share(), "a_share_in_a_storm", || {
        attack_share("resets,kicks step=4")
    });
    suite.run(&Arguments::from_args())
}
