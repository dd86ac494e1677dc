use super::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::dirs::Dirs;

fn registry(base: &Path) -> Registry {
    Registry::open(&Dirs::below(base)).unwrap()
}

fn named(name: &str) -> NewVm {
    NewVm {
        name: Some(name.to_owned()),
        ..NewVm::default()
    }
}

fn running(vm: &mut OwnedVm) {
    let state = State {
        status: Status::Running,
        pid: Some(std::process::id()),
        ..State::default()
    };
    vm.set_state(state).unwrap();
}

fn exited(vm: &mut OwnedVm, code: u8) {
    let state = State {
        status: Status::Exited,
        exit_code: Some(code),
        ..State::default()
    };
    vm.set_state(state).unwrap();
}

/// As after SIGKILL: the lock is gone, nothing else has changed.
fn kill(vm: OwnedVm) {
    drop(vm);
}

/// Everything in the folder of records.
fn left(base: &Path) -> BTreeSet<String> {
    let vms = Dirs::below(base).data().join("vms");
    let mut found = BTreeSet::new();
    for folder in [vms.clone(), vms.join("names")] {
        for entry in fs::read_dir(folder).unwrap() {
            found.insert(entry.unwrap().file_name().into_string().unwrap());
        }
    }
    found.remove("names");
    found
}

#[test]
fn a_vm_is_found_by_name_id_and_the_beginning_of_its_id() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let vm = registry.create(named("web")).unwrap();
    let id = vm.record().id.clone();
    for text in ["web", id.as_str(), &id.as_str()[..1], &id.as_str()[..11]] {
        assert_eq!(registry.find(text).unwrap().record(), vm.record(), "{text}");
    }
    for text in [
        "we", "", ".", "..", "names", ".lock", "../vms", "/", "WEB", "\0",
    ] {
        let error = registry.find(text).unwrap_err();
        assert!(matches!(error, VmsError::Unknown(_)), "{text:?}: {error}");
    }
}

#[test]
fn a_name_goes_before_the_beginning_of_an_id() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let other = registry.create(named("x")).unwrap();
    let prefix = &other.record().id.as_str()[..3];
    let vm = registry.create(named(prefix)).unwrap();
    assert_eq!(registry.find(prefix).unwrap().record(), vm.record());
}

#[test]
fn a_prefix_of_several_ids_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    // Seventeen IDs begin with sixteen digits.
    let vms: Vec<_> = (0..17)
        .map(|_| registry.create(NewVm::default()).unwrap())
        .collect();
    let first = |vm: &OwnedVm| vm.record().id.as_str()[..1].to_owned();
    let twice = vms
        .iter()
        .map(first)
        .find(|digit| vms.iter().filter(|vm| first(vm) == *digit).count() > 1)
        .unwrap();
    let error = registry.find(&twice).unwrap_err();
    assert!(matches!(error, VmsError::Ambiguous { .. }), "{error}");
}

#[test]
fn one_owner_at_a_time() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let mut owned = registry.create(named("a")).unwrap();
    running(&mut owned);
    let vm = registry.find("a").unwrap();
    assert!(matches!(vm.try_own(), Err(VmsError::InUse(_))));
    assert_eq!(vm.state().unwrap().status, Status::Running);
    exited(&mut owned, 3);
    drop(owned);
    let owned = vm.try_own().unwrap();
    assert_eq!(owned.state().exit_code, Some(3));
}

#[test]
fn a_killed_monitor_leaves_a_dead_vm_and_no_runtime_folder() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let mut owned = registry.create(named("a")).unwrap();
    running(&mut owned);
    let runtime = owned.runtime_dir().unwrap();
    fs::write(runtime.join("control.sock"), "").unwrap();
    kill(owned);
    let vm = registry.find("a").unwrap();
    let state = vm.state().unwrap();
    assert_eq!((state.status, state.exit_code), (Status::Dead, Some(137)));
    assert_eq!(state.pid, None);
    assert!(!runtime.exists());
    assert_eq!(vm.wait().unwrap(), state);
}

#[test]
fn a_killed_monitor_of_a_temporary_vm_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let rm = NewVm {
        rm: true,
        ..named("a")
    };
    let mut owned = registry.create(rm).unwrap();
    running(&mut owned);
    kill(owned);
    assert!(matches!(registry.find("a"), Err(VmsError::Unknown(_))));
    assert_eq!(left(base.path()), BTreeSet::new());
}

#[test]
fn a_creator_that_was_killed_leaves_a_dead_vm_or_nothing() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    kill(registry.create(named("a")).unwrap());
    assert_eq!(
        registry.find("a").unwrap().state().unwrap().status,
        Status::Dead
    );
    // Earlier still: half made, with the name already taken.
    let vms = Dirs::below(base.path()).data().join("vms");
    fs::create_dir(vms.join(".new.0123456789ab")).unwrap();
    for name in ["b", "c"] {
        std::os::unix::fs::symlink("../0123456789ab", vms.join("names").join(name)).unwrap();
    }
    fs::create_dir_all(vms.join(".old.ba9876543210/sub")).unwrap();
    let vm = registry.create(named("b")).unwrap();
    assert_eq!(registry.find("b").unwrap().record(), vm.record());
    let left = left(base.path());
    assert!(
        left.iter()
            .all(|name| !name.starts_with('.') && name != "c")
    );
}

#[test]
fn a_name_is_taken_over_only_from_what_has_nothing_to_lose() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let mut first = registry.create(named("a")).unwrap();
    running(&mut first);
    let error = registry.create(named("a")).unwrap_err();
    assert!(matches!(error, VmsError::NameRuns { .. }), "{error}");
    fs::write(first.disk_path(), "data").unwrap();
    exited(&mut first, 0);
    let disk = first.disk_path();
    drop(first);
    let error = registry.create(named("a")).unwrap_err();
    assert!(matches!(error, VmsError::NameKept { .. }), "{error}");
    fs::remove_file(disk).unwrap();
    let second = registry.create(named("a")).unwrap();
    let all = registry.list().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].record(), second.record());
}

#[test]
fn a_refused_or_failed_creation_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let unwritable = NewVm {
        config: crate::config::MachineConfig {
            kernel: Some(std::ffi::OsString::from_vec(b"\xff".to_vec()).into()),
            ..Default::default()
        },
        ..named("a")
    };
    let error = registry.create(unwritable).unwrap_err();
    assert!(matches!(error, VmsError::Unwritable(_)), "{error}");
    assert_eq!(left(base.path()), BTreeSet::new());
}

#[test]
fn a_removed_vm_is_gone_and_its_waiters_know_its_end() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let mut owned = registry.create(named("a")).unwrap();
    running(&mut owned);
    let vm = registry.find("a").unwrap();
    let waiting = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let (vm, waiting) = (vm.clone(), &waiting);
                scope.spawn(move || {
                    let lock = fs::File::open(vm.dir().join("lock")).unwrap();
                    waiting.fetch_add(1, Ordering::Release);
                    // What `wait` does once it has the file open.
                    super::lock::wait_free(&lock).unwrap();
                    super::vm::last_words(&lock).unwrap()
                })
            })
            .collect();
        while waiting.load(Ordering::Acquire) < 4 {
            std::thread::yield_now();
        }
        exited(&mut owned, 42);
        owned.remove().unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap().exit_code, Some(42));
        }
    });
    assert!(matches!(vm.state(), Err(VmsError::Removed(_))));
    assert!(matches!(vm.wait(), Err(VmsError::Removed(_))));
    assert_eq!(left(base.path()), BTreeSet::new());
}

#[test]
fn the_lock_goes_to_a_child_without_a_moment_in_between() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let owned = registry.create(named("a")).unwrap();
    let mut child = std::process::Command::new("cat")
        .stdin(owned.lock_fd().unwrap())
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut sleeper = std::process::Command::new("sleep")
        .arg("1000")
        .stdin(owned.lock_fd().unwrap())
        .spawn()
        .unwrap();
    let vm = registry.find("a").unwrap();
    owned.hand_over();
    assert!(vm.is_owned().unwrap());
    if let Ok(child) = &mut child {
        child.wait().unwrap();
    }
    assert!(vm.is_owned().unwrap());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(!vm.is_owned().unwrap());
}

#[test]
fn a_vm_is_adopted_with_its_lock_and_with_no_other() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let a = registry.create(named("a")).unwrap();
    let b = registry.create(named("b")).unwrap();
    let (id, fd) = (a.record().id.clone(), a.lock_fd().unwrap());
    let error = registry
        .adopt(&id, b.lock_fd().unwrap().into())
        .unwrap_err();
    assert!(matches!(error, VmsError::Removed(_)), "{error}");
    a.hand_over();
    let mut a = registry.adopt(&id, fd.into()).unwrap();
    assert_eq!(a.state().status, Status::Created);
    running(&mut a);
}

#[test]
fn a_damaged_record_is_named_and_spoils_nothing_else() {
    let base = tempfile::tempdir().unwrap();
    let registry = registry(base.path());
    let broken = registry.create(named("broken")).unwrap();
    let _good = registry.create(named("good")).unwrap();
    fs::write(broken.dir().join("config.json"), "{").unwrap();
    let error = registry.find("broken").unwrap_err().to_string();
    assert!(
        error.contains("config.json") && error.contains("damaged"),
        "{error}"
    );
    assert_eq!(registry.list().unwrap().len(), 1);
    // A state that can't be read is that of a VM that died early.
    let id = broken.record().id.clone();
    drop(broken);
    let vms = Dirs::below(base.path()).data().join("vms");
    fs::remove_dir_all(vms.join(id.as_str())).unwrap();
    assert!(matches!(registry.find("broken"), Err(VmsError::Unknown(_))));
}

/// Fifty at once, each with a registry and open files of its own, as processes have them.
#[test]
fn fifty_lives_at_once_leave_what_one_after_the_other_would() {
    let base = tempfile::tempdir().unwrap();
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..50 {
            let (base, won) = (base.path(), &won);
            scope.spawn(move || {
                let registry = registry(base);
                for _ in 0..4 {
                    let mut vm = registry.create(NewVm::default()).unwrap();
                    running(&mut vm);
                    let found = registry.find(vm.record().id.as_str()).unwrap();
                    assert_eq!(found.state().unwrap().status, Status::Running);
                    exited(&mut vm, 1);
                    drop(vm);
                    registry.list().unwrap();
                    found.try_own().unwrap().remove().unwrap();
                }
                match registry.create(named("one")) {
                    Ok(mut vm) => {
                        running(&mut vm);
                        won.fetch_add(1, Ordering::Relaxed);
                        // Kept by its lock, not by luck.
                        std::mem::forget(vm);
                    }
                    Err(VmsError::NameRuns { .. }) => {}
                    Err(error) => panic!("{number}: {error}"),
                }
            });
        }
    });
    assert_eq!(won.load(Ordering::Relaxed), 1);
    let all = registry(base.path()).list().unwrap();
    assert_eq!(all.len(), 1);
    let id = all[0].record().id.to_string();
    assert_eq!(left(base.path()), BTreeSet::from([id, "one".to_owned()]));
}
