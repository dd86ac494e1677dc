//! The store's files of any content are refused with one line, or lead from names to images.

use std::cell::RefCell;
use std::fs;

use casita_images::Store;

/// The digest of the one image that there is.
const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

thread_local! {
    static PLACE: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().expect("a folder"));
}

/// The first byte says which file it is: the names, or what is known of an image.
pub fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    PLACE.with_borrow(|place| {
        let store = Store::open(place.path()).expect("a store");
        let record = include_bytes!("../seeds/image_store/record");
        let names = include_bytes!("../seeds/image_store/names");
        let files = [
            ("refs.json".to_owned(), &names[1..]),
            (format!("{HEX}.json"), &record[1..]),
            (format!("{HEX}.erofs"), b"image"),
        ];
        for (at, (name, content)) in files.iter().enumerate() {
            let content = if at == usize::from(which % 2) { bytes } else { content };
            fs::write(place.path().join(name), content).expect("room");
        }
        for name in ["a", "e3b0c442", &format!("sha256:{HEX}")] {
            if let Err(error) = store.get(name) {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
        if let Ok(images) = store.list() {
            assert!(images.len() <= 1);
        }
    });
}
