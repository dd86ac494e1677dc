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
        network: Some(Network {
            mtu: Some(1500),
            addresses: vec![address("10.0.2.15", 24)],
            gateways: vec!["10.0.2.2".parse().unwrap()],
            dns: vec!["::1".parse().unwrap()],
            search: vec!["example".into()],
            hosts: vec![Host {
                ip: "10.0.2.9".parse().unwrap(),
                name: "other".into(),
            }],
            automatic: false,
        }),
    }
}

fn address(ip: &str, prefix: u8) -> Address {
    Address {
        ip: ip.parse().unwrap(),
        prefix,
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
    fn any_network()(
        mtu in option::of(any::<u16>()),
        addresses in vec((any::<IpAddr>(), 0..33_u8), 0..4),
        gateways in vec(any::<IpAddr>(), 0..3),
        dns in vec(any::<IpAddr>(), 0..4),
        search in vec("[a-z0-9._-]{1,255}", 0..3),
        hosts in vec((any::<IpAddr>(), "[a-zA-Z0-9_.-]{1,64}"), 0..3),
        automatic in any::<bool>(),
    ) -> Network {
        let addresses = addresses.into_iter().map(|(ip, prefix)| Address { ip, prefix }).collect();
        let hosts = hosts.into_iter().map(|(ip, name)| Host { ip, name }).collect();
        Network { mtu, addresses, gateways, dns, search, hosts, automatic }
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
        network in option::of(any_network()),
    ) -> GuestSpec {
        GuestSpec {
            hostname,
            root: Mount { device, fs },
            disk: disk.map(|device| Mount { device, fs: FsType::Ext4 }),
            keep_disk,
            key: Key(key),
            mounts: targets.iter().map(|target| volume(target)).collect(),
            network,
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

#[test]
fn a_network_that_cannot_be_set_up_is_refused() {
    let with = |change: &dyn Fn(&mut Network)| {
        let mut spec = spec();
        change(spec.network.as_mut().unwrap());
        encode(&spec)
    };
    let long = address("10.0.2.15", 33);
    assert_eq!(
        with(&|network| network.addresses = vec![long]),
        Err(SpecError::Prefix(long))
    );
    assert!(with(&|network| network.addresses = vec![address("::1", 128)]).is_ok());
    for domain in ["", "a b", "a\nnameserver 1.1.1.1", &"x".repeat(256)] {
        assert_eq!(
            with(&|network| network.search = vec![domain.into()]),
            Err(SpecError::Search(domain.into()))
        );
    }
}

#[test]
fn a_network_reaches_what_shares_its_prefix() {
    let reaches = |own: Address, other: &str| own.reaches(other.parse().unwrap());
    let own = address("10.0.2.15", 24);
    assert!(reaches(own, "10.0.2.2") && !reaches(own, "10.0.3.2") && !reaches(own, "::a00:202"));
    let own = address("fd00::15", 64);
    assert!(reaches(own, "fd00::2") && !reaches(own, "fd00:0:0:1::2"));
    assert!(reaches(address("1.2.3.4", 0), "200.0.0.1"));
    assert!(!reaches(address("1.2.3.4", 32), "1.2.3.5"));
}

/// Host and agent are built together, but a change of the layout should be seen.
#[test]
fn the_layout_is_the_one_of_version_4() {
    let expected = b"CASITA\0\x01\x04\0\x76\0\0\0\
        \x04yard\x08/dev/vda\0\x01\x08/dev/vdb\x02\x01\
        \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
        \x01\0\x08/dev/vdc\x05/data\x01\
        \x01\x01\xdc\x0b\x01\0\x0a\0\x02\x0f\x18\x01\0\x0a\0\x02\x02\
        \x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\x07example\
        \x01\0\x0a\0\x02\x09\x05other\0";
    assert_eq!(encode(&spec()).unwrap(), expected);
}
