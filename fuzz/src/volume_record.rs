//! A volume's record of any content is refused with one line, or is a volume.

use std::cell::RefCell;
use std::fs;

use casita::dirs::Dirs;
use casita::volume::Store;

thread_local! {
    static PLACE: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().expect("a folder"));
}

/// What is in the record.
pub fn run(data: &[u8]) {
    PLACE.with_borrow(|place| {
        let dirs = Dirs::below(place.path());
        let store = Store::open(&dirs).expect("a store");
        let folder = dirs.data().join("volumes/v");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("volume.json"), data).expect("room");
        match store.get("v") {
            Ok(found) => assert_eq!(found.expect("it is there").name(), "v"),
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
        assert!(store.list().expect("a folder that can be read").len() <= 1);
    });
}
