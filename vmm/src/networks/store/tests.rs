use super::*;
use crate::networks::NetworkError;
use crate::vms::lock;

struct Place {
    _dir: tempfile::TempDir,
    networks: Networks,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let networks = Networks::open(&Dirs::below(dir.path())).unwrap();
        Self {
            _dir: dir,
            networks,
        }
    }

    fn create(&self, name: &str) -> Result<Network, NetworkError> {
        self.networks.create(name, None, Subnet6::None)
    }

    fn join(&self, id: &str, last: u8) -> Result<Membership, NetworkError> {
        let join = Join {
            id: id.to_owned(),
            names: vec![format!("vm-{id}")],
            mac: format!("02:00:00:00:00:{last:02x}").parse().unwrap(),
            process: std::process::id(),
        };
        self.networks.join("n", &join)
    }

    fn address(&self, id: &str, last: u8) -> String {
        self.join(id, last).unwrap().member().ipv4.to_string()
    }
}

#[test]
fn networks_get_ranges_of_their_own_and_are_found_again() {
    let place = Place::new();
    let (a, b) = (place.create("a").unwrap(), place.create("b").unwrap());
    assert!(!a.subnet().overlaps(b.subnet()));
    assert!(!host_ranges().iter().any(|range| range.overlaps(a.subnet())));
    assert_eq!(place.networks.find("a").unwrap(), a);
    assert_eq!(place.networks.list().unwrap(), [a, b]);
    assert!(matches!(place.create("a"), Err(NetworkError::Exists(_))));
    for bad in ["", "../a", "-a", "a b", ".half-a"] {
        assert!(
            matches!(place.create(bad), Err(NetworkError::Name(_))),
            "{bad}"
        );
    }
    let given = place.networks.create(
        "c",
        Some("192.168.77.0/24".parse().unwrap()),
        Subnet6::Given("fd77::/64".parse().unwrap()),
    );
    let given = given.unwrap();
    assert_eq!(given.gateway(), Some("192.168.77.1".parse().unwrap()));
    assert_eq!(given.gateway6(), Some("fd77::1".parse().unwrap()));
    let random = place.networks.create("d", None, Subnet6::Random).unwrap();
    assert!(random.subnet6().unwrap().to_string().starts_with("fd"));
}

#[test]
fn what_is_refused_or_half_done_leaves_nothing() {
    let place = Place::new();
    let wrong = place
        .networks
        .create("a", Some("10.0.0.0/31".parse().unwrap()), Subnet6::None);
    assert!(matches!(wrong, Err(NetworkError::Subnet(_))));
    let half = place.networks.folder.join(".half-b");
    fs::create_dir_all(half.join("x")).unwrap();
    assert!(place.networks.list().unwrap().is_empty());
    place.create("c").unwrap();
    assert!(!half.exists());
    fs::write(place.networks.folder.join("c").join(META), "{}").unwrap();
    assert!(matches!(
        place.networks.find("c"),
        Err(NetworkError::Damaged { .. })
    ));
    assert!(matches!(
        place.networks.find("x"),
        Err(NetworkError::Missing(_))
    ));
}

#[test]
fn a_network_is_in_use_while_a_member_lives() {
    let place = Place::new();
    place.create("n").unwrap();
    let member = place.join("a", 1).unwrap();
    let error = place.networks.remove("n").unwrap_err().to_string();
    assert!(error.contains("vm-a") && !error.contains('\n'), "{error}");
    drop(member);
    place.networks.remove("n").unwrap();
    assert!(!place.networks.runtime.join("n").exists());
    assert!(matches!(place.join("a", 1), Err(NetworkError::Missing(_))));
}

#[test]
fn a_member_has_its_address_again_when_it_comes_back() {
    let place = Place::new();
    let network = place.create("n").unwrap();
    for id in ["a", "b"] {
        // Their records, by which they exist.
        fs::create_dir_all(place.networks.vms.join(id)).unwrap();
    }
    let a = place.address("a", 1);
    let b = place.address("b", 2);
    assert_ne!(a, b);
    assert_eq!(
        (place.address("b", 2), place.address("a", 1)),
        (b, a.clone())
    );
    assert!(network.members().is_empty());
    fs::remove_dir(place.networks.vms.join("a")).unwrap();
    let held = place.join("c", 3).unwrap();
    assert_eq!(held.member().ipv4.to_string(), a, "of one that is removed");
    // It is told by its record alone when the leases are lost.
    fs::remove_file(network.folder().join("leases.json")).unwrap();
    assert_ne!(place.address("d", 4), a);
}

#[test]
fn what_a_killed_monitor_leaves_is_no_member() {
    let place = Place::new();
    let network = place.create("n").unwrap();
    let member = place.join("a", 1).unwrap();
    assert_eq!(network.members().len(), 1);
    // As when its process ends.
    let file = lock::open(&network.runtime().join("a/lock"), false).unwrap();
    assert!(lock::is_owned(&file).unwrap());
    std::mem::forget({
        let mut member = member;
        member.forget_lock();
        member
    });
    assert!(network.members().is_empty());
    assert!(network.runtime().join("a").exists());
    let again = place.join("a", 1).unwrap();
    assert_eq!(network.members(), [again.member().clone()]);
    drop(again);
    place.networks.remove("n").unwrap();
}

#[test]
fn nobody_takes_the_name_of_a_vm_or_its_mac_address_twice() {
    let place = Place::new();
    place.create("n").unwrap();
    let _a = place.join("a", 1).unwrap();
    assert!(matches!(
        place.join("a", 2),
        Err(NetworkError::Twice { .. })
    ));
    let error = place.join("b", 1).unwrap_err().to_string();
    assert!(error.contains("vm-a") && error.contains("--mac"), "{error}");
    let join = Join {
        id: "c".to_owned(),
        names: vec!["good".to_owned(), "not good".to_owned()],
        mac: "02:00:00:00:00:09".parse().unwrap(),
        process: std::process::id(),
    };
    assert!(matches!(
        place.networks.join("n", &join),
        Err(NetworkError::Alias(_))
    ));
}

#[test]
fn lines_of_the_hosts_routes_are_ranges() {
    let line = "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0";
    assert_eq!(range_of_route(line), Some("10.0.0.0/8".parse().unwrap()));
    let default = "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0";
    assert_eq!(range_of_route(default), None);
}
