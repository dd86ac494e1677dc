//! An archive of any bytes that a guest sends is refused, or lands below the directory that it was
//! meant for.

use std::cell::RefCell;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};

use casita_agent::copy::{Top, Unpack, open_directory, unpack};

/// What the archives must not touch.
const WITNESS: &[u8] = b"untouched";

thread_local! {
    static PLACE: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().expect("a folder"));
}

/// The first byte says how names are taken, and whether headers get their checksums.
pub fn run(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let mut archive = bytes.to_vec();
    if how & 4 != 0 {
        crate::mend_checksums(&mut archive);
    }
    PLACE.with_borrow(|place| {
        let inside = place.path().join("inside");
        let _ = fs::remove_dir_all(&inside);
        fs::create_dir(&inside).expect("a folder");
        fs::write(place.path().join("witness"), WITNESS).expect("room");
        // Ways out that were there before.
        symlink("..", inside.join("up")).expect("a link");
        symlink("../witness", inside.join("w")).expect("a link");
        let file = rustix::fs::memfd_create("archive", rustix::fs::MemfdFlags::CLOEXEC);
        let file = fs::File::from(file.expect("a file in memory"));
        file.write_all_at(&archive, 0).expect("room");
        let directory = open_directory(inside.as_os_str().as_encoded_bytes()).expect("it is there");
        let rules = Unpack {
            top: [Top::Keep, Top::Content, Top::Rename(b"x"), Top::Keep][usize::from(how % 4)],
            owners: false,
            special: false,
            limit: 1 << 20,
        };
        let _ = unpack(directory.as_fd(), file.as_fd(), &rules, &mut |_| ());
        assert_eq!(fs::read(place.path().join("witness")).expect("it is there"), WITNESS);
        let names = fs::read_dir(place.path()).expect("a folder").count();
        assert_eq!(names, 2, "something is beside the directory");
    });
}
