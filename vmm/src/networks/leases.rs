//! Which VM has which number in a network's ranges. A VM keeps its number while it exists.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use casita_net::{Cidr, subnet};

use super::NetworkError;
use crate::staging;

const FILE: &str = "leases.json";

/// Numbers by the VMs' IDs.
pub(super) type Leases = BTreeMap<String, u32>;

/// Reads them from a network's folder. What is damaged counts as none: whoever runs has its number
/// in its own record, too.
pub(super) fn read(folder: &Path) -> Leases {
    let text = staging::read_record(&folder.join(FILE));
    text.ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// The number of the VM `id`: the one that it had, or a free one. The network is locked.
/// `running` are the numbers of those that run; `exists` tells whether there is such a VM still.
pub(super) fn take(
    folder: &Path,
    range: Cidr,
    id: &str,
    running: &BTreeMap<String, u32>,
    exists: impl Fn(&str) -> bool,
) -> Result<Option<u32>, NetworkError> {
    let mut leases = read(folder);
    leases.extend(running.iter().map(|(id, number)| (id.clone(), *number)));
    let taken_by_another = |leases: &Leases, number: u32| {
        leases
            .iter()
            .any(|(other, taken)| other != id && *taken == number)
    };
    if let Some(number) = leases.get(id).copied()
        && subnet::host(range, number).is_some()
        && !taken_by_another(&leases, number)
    {
        return Ok(Some(number));
    }
    leases.retain(|other, _| other != id && (running.contains_key(other) || exists(other)));
    let taken: BTreeSet<u32> = leases.values().copied().collect();
    let Some(number) = subnet::free_member(range, &taken) else {
        return Ok(None);
    };
    leases.insert(id.to_owned(), number);
    let path = folder.join(FILE);
    serde_json::to_vec_pretty(&leases)
        .map_err(io::Error::from)
        .and_then(|text| staging::replace(&path, &text, false))
        .map_err(NetworkError::io("write", &path))?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_keeps_its_number_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let range = "10.1.0.0/29".parse().unwrap();
        let none = BTreeMap::new();
        let take = |id: &str, gone: &str| {
            take(folder.path(), range, id, &none, |other| other != gone).unwrap()
        };
        assert_eq!((take("a", ""), take("b", "")), (Some(4), Some(5)));
        assert_eq!(take("a", "b"), Some(4));
        assert_eq!(take("c", "b"), Some(5));
        assert_eq!((take("d", ""), take("e", "")), (Some(6), None));
        assert_eq!(take("e", "c"), Some(5));
    }

    #[test]
    fn numbers_of_those_who_run_are_taken_even_if_the_file_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let range = "10.1.0.0/24".parse().unwrap();
        let running = BTreeMap::from([("a".to_owned(), 4)]);
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(
            take(folder.path(), range, "b", &running, |_| false).unwrap(),
            Some(5)
        );
    }
}
