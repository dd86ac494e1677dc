#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| casita_fuzz::agent_tar::run(data));
