//! Records of VMs of any content are left out, or mean what they meant when they were written.

use std::cell::RefCell;
use std::fs;

use casita::dirs::Dirs;
use casita::vms::{Record, Registry, State};

const ID: &str = "0123456789ab";

thread_local! {
    static PLACE: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().expect("a folder"));
}

/// The first byte says which file it is: what the VM is, what became of it, or its log.
pub fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    if let Ok(record) = serde_json::from_slice::<Record>(bytes) {
        let text = serde_json::to_vec(&record).expect("what is read can be written");
        let again: Record = serde_json::from_slice(&text).expect("what is written can be read");
        assert_eq!(again, record);
    }
    if let Ok(state) = serde_json::from_slice::<State>(bytes) {
        let text = serde_json::to_vec(&state).expect("what is read can be written");
        let again: State = serde_json::from_slice(&text).expect("what is written can be read");
        assert_eq!(again, state);
    }
    PLACE.with_borrow(|place| {
        let dirs = Dirs::below(place.path());
        let registry = Registry::open(&dirs).expect("a registry");
        let folder = dirs.data().join("vms").join(ID);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a folder");
        let record = include_bytes!("../seeds/vm_record/record");
        let files: [(&str, &[u8]); 4] = [
            ("config.json", &record[1..]),
            ("state.json", b"{\"status\":\"exited\",\"exit_code\":0}"),
            ("log.0", b""),
            ("lock", b""),
        ];
        for (at, (name, content)) in files.iter().enumerate() {
            let content = if at == usize::from(which % 4) { bytes } else { content };
            fs::write(folder.join(name), content).expect("room");
        }
        for vm in registry.list().expect("a folder that can be read") {
            let _ = vm.state();
            let mut out = (Vec::new(), Vec::new());
            let _ = vm
                .log_reader()
                .print(Default::default(), &mut out.0, &mut out.1);
            assert!(out.0.len() + out.1.len() <= bytes.len());
        }
        for text in [ID, "0123", "fuzz"] {
            if let Err(error) = registry.find(text) {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    });
}
