use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;

fn spec() -> GuestSpec {
    GuestSpec {
        hostname: "yard".into(),
        root: Mount {
            device: "/dev/vda".into(),
            fs: FsType::Erofs,
        },
        disk: Some(Mount {
            device: "/dev/vdb".into(),
            fs: FsType::Ext4,
        }),
        keep_disk: true,
        key: Key([7; 16]),
        mounts: vec![volume("/data")],
    }
}

fn volume(target: &str) -> GuestMount {
    GuestMount::Volume {
        device: "/dev/vdc".into(),
        target: target.into(),
        read_only: true,
    }
}

prop_compose! {
    fn any_spec()(
        hostname in "[A-Za-z0-9._-]{1,64}",
        device in "/[^\0]{0,20}",
        fs in prop_oneof![
            Just(FsType::Erofs),
            Just(FsType::Squashfs),
            Just(FsType::Ext4),
            Just(FsType::Iso9660),
        ],
        disk in option::of("/[^\0]{0,20}"),
        keep_disk in any::<bool>(),
        key in any::<[u8; 16]>(),
        targets in btree_set("/[a-z]{1,20}", 0..5),
    ) -> GuestSpec {
        GuestSpec {
            hostname,
            root: Mount { device, fs },
            disk: disk.map(|device| Mount { device, fs: FsType::Ext4 }),
            keep_disk,
            key: Key(key),
            mounts: targets.iter().map(|target| volume(target)).collect(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(spec in any_spec()) {
        prop_assert_eq!(decode(&encode(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn any_body_is_decoded_or_refused(body in vec(any::<u8>(), 0..200)) {
        let len = u32::try_from(body.len()).unwrap().to_le_bytes();
        let header = [&MAGIC[..], &VERSION.to_le_bytes(), &len].concat();
        if let Ok(spec) = decode(&[header, body].concat()) {
            // Whatever is accepted could have been sent.
            prop_assert!(encode(&spec).is_ok());
        }
    }

    #[test]
    fn a_truncated_spec_is_refused(spec in any_spec(), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&spec).unwrap();
        prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
    }
}

#[test]
fn trailing_bytes_are_refused() {
    let mut bytes = encode(&spec()).unwrap();
    bytes.push(0);
    let len = bytes.len() - HEADER_LEN;
    assert_eq!(
        decode(&bytes),
        Err(SpecError::Length {
            announced: len - 1,
            actual: len
        })
    );
    bytes[10..14].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
    assert_eq!(decode(&bytes), Err(SpecError::Body));
}

#[test]
fn another_version_is_refused() {
    let mut bytes = encode(&spec()).unwrap();
    bytes[8] = 9;
    assert_eq!(decode(&bytes), Err(SpecError::Version(9)));
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_the_body_is_read() {
    let mut bytes = encode(&spec()).unwrap();
    bytes[10..14].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode(&bytes), Err(SpecError::TooLong(u32::MAX as usize)));
}

#[test]
fn a_spec_beyond_the_limit_is_refused() {
    let mut spec = spec();
    spec.root.device = format!("/{}", "x".repeat(MAX_BODY_LEN));
    assert!(matches!(encode(&spec), Err(SpecError::TooLong(len)) if len > MAX_BODY_LEN));
}

#[test]
fn a_nul_is_refused_and_named() {
    let mut spec = spec();
    spec.root.device = "/dev\0".into();
    assert_eq!(
        encode(&spec).unwrap_err().to_string(),
        "device has a NUL byte at offset 4; leave it out"
    );
}

#[test]
fn a_hostname_that_would_add_to_a_file_is_refused() {
    for name in ["", "a b", "a\n127.0.0.1 b", "ü", &"x".repeat(65)] {
        let mut spec = spec();
        spec.hostname = name.into();
        assert_eq!(encode(&spec), Err(SpecError::Hostname(name.into())));
    }
}

#[test]
fn a_relative_device_is_refused() {
    let mut relative = spec();
    relative.root.device = "vda".into();
    assert_eq!(encode(&relative), Err(SpecError::Device("vda".into())));
}

#[test]
fn mounts_are_checked() {
    let mut relative = spec();
    relative.mounts = vec![volume("data")];
    assert_eq!(
        encode(&relative),
        Err(SpecError::Mount(MountError::Relative("data".into())))
    );
}

#[test]
fn a_disk_that_cannot_be_written_is_refused() {
    let mut spec = spec();
    spec.disk.as_mut().unwrap().fs = FsType::Erofs;
    assert_eq!(encode(&spec), Err(SpecError::DiskFs("erofs")));
}

/// Host and agent are built together, but a change of the layout should be seen.
#[test]
fn the_layout_is_the_one_of_version_3() {
    let expected = b"CASITA\0\x01\x03\0\x3d\0\0\0\
        \x04yard\x08/dev/vda\0\x01\x08/dev/vdb\x02\x01\
        \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
        \x01\0\x08/dev/vdc\x05/data\x01";
    assert_eq!(encode(&spec()).unwrap(), expected);
}
