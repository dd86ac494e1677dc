//! A machine file of any content is refused, or says the same when it is written again.

use std::cell::RefCell;
use std::fs;

use casita::config::MachineConfig;

thread_local! {
    static PLACE: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().expect("a folder"));
}

/// What is in the file.
pub fn run(data: &[u8]) {
    PLACE.with_borrow(|place| {
        let path = place.path().join("machine.toml");
        fs::write(&path, data).expect("room");
        match MachineConfig::read(&path) {
            Ok(config) => {
                let text = serde_json::to_vec(&config).expect("what is read can be written");
                fs::write(&path, text).expect("room");
                let again = MachineConfig::read(&path).expect("what is written can be read");
                assert_eq!(again, config);
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    });
}
