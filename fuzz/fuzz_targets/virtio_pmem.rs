#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| casita_fuzz::virtio_pmem::run(data));
