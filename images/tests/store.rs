//! The store: names, prefixes, removal, and what is left of imports that died.

mod support;

use std::path::Path;

use casita_images::{Digest, Image, Import, LayerInput, Limits, Reference, Store, StoreError};
use support::{Stores, Tar, inputs};

fn add(store: &Store, name: &str, content: &str) -> Image {
    let reference: Reference = name.parse().unwrap();
    let import = Import {
        reference: Some(&reference),
        digest: Digest::of(content.as_bytes()),
        config: br#"{"config":{"Cmd":["sh"]},"created":"2024-05-01T12:00:00Z"}"#,
        layers: inputs(&[Tar::new().file("f", content).done()]),
    };
    store.import(import, &Limits::default(), &|_| ()).unwrap()
}

fn unused(_: &Digest) -> bool {
    false
}

#[test]
fn an_image_is_found_by_each_of_its_names() {
    let stores = Stores::new();
    let image = add(&stores.store, "nginx:1", "one");
    assert_eq!(image.references, ["docker.io/library/nginx:1"]);
    assert_eq!(image.config.cmd, ["sh"]);
    assert_eq!(image.created, 1_714_564_800);
    let hex = image.digest.hex();
    let by_digest = format!("nginx@{}", image.digest);
    stores
        .store
        .tag(&image.digest, &by_digest.parse().unwrap())
        .unwrap();
    for name in [
        "nginx:1",
        "docker.io/library/nginx:1",
        &by_digest,
        &image.digest.to_string(),
        &hex,
        &hex[..6],
        &format!("sha256:{}", &hex[..12]),
    ] {
        let found = stores.store.get(name).unwrap();
        assert_eq!(
            found.map(|found| found.digest),
            Some(image.digest),
            "{name}"
        );
    }
    for name in ["nginx", "nginx:2", &hex[..5], &hex[1..9], "", "../x"] {
        assert_eq!(stores.store.get(name).unwrap(), None, "{name}");
    }
}

#[test]
fn a_name_moves_and_the_image_without_one_is_pruned() {
    let stores = Stores::new();
    let first = add(&stores.store, "app", "one");
    let second = add(&stores.store, "app", "two");
    assert_eq!(
        stores.store.get("app").unwrap().unwrap().digest,
        second.digest
    );
    assert!(
        stores
            .store
            .by_digest(&first.digest)
            .unwrap()
            .unwrap()
            .references
            .is_empty()
    );
    let in_use = |digest: &Digest| *digest == first.digest;
    assert!(stores.store.prune(false, &in_use).unwrap().is_empty());
    let removed = stores.store.prune(false, &unused).unwrap();
    assert_eq!(removed.len(), 1);
    assert_eq!(
        (removed[0].digest, removed[0].deleted),
        (first.digest, true)
    );
    assert!(removed[0].bytes > 0);
    assert_eq!(stores.store.list().unwrap().len(), 1);
    assert_eq!(stores.store.prune(true, &unused).unwrap().len(), 1);
    assert_eq!(stores.files(), ["refs.json"]);
}

#[test]
fn removal_takes_names_first_and_the_image_with_the_last() {
    let stores = Stores::new();
    let image = add(&stores.store, "a", "one");
    stores
        .store
        .tag(&image.digest, &"b".parse().unwrap())
        .unwrap();
    let removed = stores.store.remove("a", false, &unused).unwrap();
    assert_eq!((removed.references.len(), removed.deleted), (1, false));
    let removed = stores.store.remove("b", false, &unused).unwrap();
    assert!(removed.deleted);
    assert!(!image.path.exists());
    let error = stores.store.remove("b", false, &unused).unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)));
}

#[test]
fn by_digest_all_names_go_only_by_force() {
    let stores = Stores::new();
    let image = add(&stores.store, "a", "one");
    stores
        .store
        .tag(&image.digest, &"b".parse().unwrap())
        .unwrap();
    let prefix = &image.digest.hex()[..8];
    let error = stores.store.remove(prefix, false, &unused).unwrap_err();
    assert!(matches!(error, StoreError::SeveralNames { .. }));
    let removed = stores.store.remove(prefix, true, &unused).unwrap();
    assert_eq!((removed.references.len(), removed.deleted), (2, true));
}

#[test]
fn an_image_in_use_loses_its_name_and_stays() {
    let stores = Stores::new();
    let image = add(&stores.store, "a", "one");
    let removed = stores.store.remove("a", false, &|_| true).unwrap();
    assert!(!removed.deleted);
    assert!(image.path.exists());
    assert_eq!(stores.store.get("a").unwrap(), None);
}

#[test]
fn an_image_that_is_there_is_only_named() {
    let stores = Stores::new();
    let image = add(&stores.store, "a", "one");
    let reference = "b".parse().unwrap();
    let layers = vec![LayerInput {
        name: "unread".into(),
        reader: Box::new(std::io::empty()),
        diff_id: Some(Digest::of(b"wrong")),
        len: None,
    }];
    let import = Import {
        reference: Some(&reference),
        digest: image.digest,
        config: b"{}",
        layers,
    };
    let again = stores
        .store
        .import(import, &Limits::default(), &|_| ())
        .unwrap();
    assert_eq!(again.references.len(), 2);
}

#[test]
fn what_a_dead_import_left_is_swept_and_a_living_ones_file_is_not() {
    let stores = Stores::new();
    let dir = stores.dir.path().join("images");
    let dead = dir.join(".partial-0123456789abcdef");
    std::fs::write(&dead, "half an image").unwrap();
    let alive = dir.join(".partial-fedcba9876543210");
    let held = std::fs::File::create(&alive).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    add(&stores.store, "a", "one");
    assert!(!dead.exists());
    assert!(alive.exists());
}

#[test]
fn imports_and_removals_at_once_lose_nothing() {
    let stores = Stores::new();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let store = &stores.store;
            scope.spawn(move || {
                add(
                    store,
                    &format!("kept{number}"),
                    &format!("kept {}", number / 2),
                );
                add(store, &format!("gone{number}"), &format!("gone {number}"));
                let removed = store
                    .remove(&format!("gone{number}"), false, &unused)
                    .unwrap();
                assert!(removed.deleted);
            });
        }
    });
    let images = stores.store.list().unwrap();
    assert_eq!(images.len(), 8);
    assert!(
        images.iter().all(|image| image.references.len() == 2),
        "{images:?}"
    );
}

#[test]
fn a_damaged_list_of_names_is_an_error_that_names_it() {
    let stores = Stores::new();
    std::fs::write(stores.dir.path().join("images/refs.json"), "{").unwrap();
    let error = stores.store.get("a").unwrap_err();
    assert!(error.to_string().contains("refs.json"), "{error}");
}

#[test]
fn a_plain_tar_becomes_an_image_by_its_content() {
    let stores = Stores::new();
    let import = |tar: &[Vec<u8>]| {
        let tar = inputs(tar).pop().unwrap();
        stores
            .store
            .import_rootfs(None, b"{}", tar, &Limits::default(), &|_| ())
    };
    let tar = [Tar::new().file("f", "1").done()];
    let first = import(&tar).unwrap();
    assert_eq!(import(&tar).unwrap().digest, first.digest);
    assert_ne!(
        import(&[Tar::new().file("f", "2").done()]).unwrap().digest,
        first.digest
    );
    let error = import(&[Tar::new().file("/etc/evil", "1").done()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("absolute name \"/etc/evil\""), "{error}");
}

#[test]
fn a_directory_becomes_an_image_as_it_is() {
    let stores = Stores::new();
    let root = stores.dir.path().join("root");
    let write = |name: &str, content: &str| std::fs::write(root.join(name), content).unwrap();
    std::fs::create_dir_all(root.join("d/e")).unwrap();
    write("d/f", "data");
    std::fs::hard_link(root.join("d/f"), root.join("g")).unwrap();
    std::os::unix::fs::symlink("/nowhere/../..", root.join("l")).unwrap();
    write("large", &"x".repeat(3 << 20));
    let import = |path: &Path| {
        stores
            .store
            .import_directory(None, b"{}", path, &Limits::default(), &|_| ())
    };
    let image = import(&root).unwrap();
    support::fsck(&image.path);
    let tree = support::erofs::read(&image.path);
    let paths: Vec<&str> = tree.keys().map(String::as_str).collect();
    assert_eq!(paths, ["/", "d", "d/e", "d/f", "g", "l", "large"]);
    assert_eq!(
        (&tree["g"].content[..], tree["g"].nid),
        (&b"data"[..], tree["d/f"].nid)
    );
    assert_eq!(tree["l"].content, b"/nowhere/../..");
    assert_eq!(tree["large"].content.len(), 3 << 20);
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&root).unwrap());
    assert_eq!(tree["d"].uid, owner);
    assert_eq!(import(&root).unwrap().digest, image.digest);
    write("d/f", "DATA");
    assert_ne!(import(&root).unwrap().digest, image.digest);
    let error = import(&root.join("none")).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}
