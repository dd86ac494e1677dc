use super::*;

fn config(net: &str) -> MachineConfig {
    MachineConfig {
        net: (!net.is_empty()).then(|| net.parse().unwrap()),
        ..MachineConfig::default()
    }
}

#[test]
fn a_mac_address_is_local_and_goes_with_the_id() {
    let mac = |id: &str| {
        let id = id.to_owned();
        Identity {
            id,
            ..Identity::default()
        }
        .mac()
    };
    let one = mac("0123456789ab");
    assert_eq!(one, mac("0123456789ab"));
    assert_ne!(one, mac("0123456789ac"));
    assert!(!one.is_group() && one.0[0] & 2 == 2);
}

#[test]
fn options_that_have_no_effect_together_are_refused() {
    let refused = |config: MachineConfig| check(&config).unwrap_err().to_string();
    let none = config("none");
    check(&none).unwrap();
    let publish: Vec<PortSpec> = vec!["80".parse().unwrap()];
    let error = refused(MachineConfig {
        publish: publish.clone(),
        ..none.clone()
    });
    assert!(
        error.contains("--net none") && error.contains("--publish"),
        "{error}"
    );
    let error = refused(MachineConfig {
        mtu: Some("1400".parse().unwrap()),
        ..none
    });
    assert!(error.contains("--mtu"), "{error}");
    let error = refused(MachineConfig {
        publish: publish.clone(),
        ..config("tap:t0")
    });
    assert!(error.contains("needs --net user"), "{error}");
    check(&MachineConfig {
        publish,
        ..config("")
    })
    .unwrap();
    let error = refused(MachineConfig {
        ip: vec!["fd00::1".parse().unwrap()],
        boot: Some(BootMode::Plain),
        ..config("tap")
    });
    assert!(error.contains("--boot plain"), "{error}");
}

#[test]
fn all_ports_of_the_image_are_published_but_those_that_are_already() {
    let config = MachineConfig {
        publish: vec!["8080:80".parse().unwrap()],
        publish_all: true,
        exposed: ["80/tcp", "53/udp", "80/udp", "443"]
            .map(str::to_owned)
            .into(),
        ..MachineConfig::default()
    };
    let texts: Vec<_> = published(&config)
        .unwrap()
        .iter()
        .map(PortSpec::to_string)
        .collect();
    assert_eq!(texts, ["8080:80", "53/udp", "80/udp", "443"]);
}

#[test]
fn the_kernel_is_told_only_what_the_user_has_said() {
    let guest = Network {
        addresses: vec![Address {
            ip: "10.1.2.3".parse().unwrap(),
            prefix: 20,
        }],
        gateways: vec!["10.1.0.1".parse().unwrap()],
        dns: vec!["::1".parse().unwrap(), "10.1.0.9".parse().unwrap()],
        ..Network::default()
    };
    let mut config = MachineConfig {
        hostname: Some("yard".to_owned()),
        ..MachineConfig::default()
    };
    assert_eq!(kernel_ip(&config, &guest), None);
    config.ip = vec!["10.1.2.3/20,gw=10.1.0.1".parse().unwrap()];
    assert_eq!(
        kernel_ip(&config, &guest).unwrap(),
        "ip=10.1.2.3::10.1.0.1:255.255.240.0:yard:eth0:off:10.1.0.9"
    );
}

#[test]
fn there_is_one_gateway_for_each_version_of_ip() {
    let ips = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
    let first: Vec<_> = first_of_each_version(ips.into_iter())
        .iter()
        .map(IpAddr::to_string)
        .collect();
    assert_eq!(first, ["10.0.0.1", "fd00::1"]);
}
