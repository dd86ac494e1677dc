//! Features of the device, and the offloads that they stand for.

use super::backend::{Abilities, Offloads};
use super::layout::{
    F_CSUM, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_CTRL_VQ,
    F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, F_HOST_ECN,
    F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO, F_MAC, F_MRG_RXBUF, F_STATUS,
};

/// All that a driver can choose by the control queue.
pub(super) const GUEST_OFFLOADS: u64 =
    F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_USO4 | F_GUEST_USO6;

/// What a device offers with any back end.
pub(super) const ALWAYS: u64 = F_MAC
    | F_STATUS
    | F_MRG_RXBUF
    | F_CTRL_VQ
    | F_CTRL_RX
    | F_CTRL_RX_EXTRA
    | F_CTRL_MAC_ADDR
    | F_CTRL_GUEST_OFFLOADS;

/// The features that say what a back end can do.
pub(super) fn of_abilities(abilities: Abilities) -> u64 {
    let bit = |offloads: Offloads, offload, feature| {
        if offloads.contains(offload) {
            feature
        } else {
            0
        }
    };
    let Abilities {
        from_guest: from,
        to_guest: to,
    } = abilities;
    bit(from, Offloads::CHECKSUM, F_CSUM)
        | bit(from, Offloads::CHECKSUM | Offloads::TSO4, F_HOST_TSO4)
        | bit(from, Offloads::CHECKSUM | Offloads::TSO6, F_HOST_TSO6)
        | bit(from, Offloads::CHECKSUM | Offloads::ECN, F_HOST_ECN)
        | bit(from, Offloads::CHECKSUM | Offloads::USO, F_HOST_USO)
        | bit(to, Offloads::CHECKSUM, F_GUEST_CSUM)
        | bit(to, Offloads::CHECKSUM | Offloads::TSO4, F_GUEST_TSO4)
        | bit(to, Offloads::CHECKSUM | Offloads::TSO6, F_GUEST_TSO6)
        | bit(to, Offloads::CHECKSUM | Offloads::ECN, F_GUEST_ECN)
        | bit(
            to,
            Offloads::CHECKSUM | Offloads::USO,
            F_GUEST_USO4 | F_GUEST_USO6,
        )
}

/// What the driver takes, by the features that it has negotiated or chosen. Each needs checksums, too
/// (section 5.1.3.1), and USO counts when both versions of IP have it.
pub(super) fn to_guest(features: u64) -> Offloads {
    let has = |feature| features & feature == feature;
    if !has(F_GUEST_CSUM) {
        return Offloads::NONE;
    }
    Offloads::CHECKSUM
        .with(Offloads::TSO4, has(F_GUEST_TSO4))
        .with(Offloads::TSO6, has(F_GUEST_TSO6))
        .with(Offloads::ECN, has(F_GUEST_ECN))
        .with(Offloads::USO, has(F_GUEST_USO4 | F_GUEST_USO6))
}

/// What the driver may ask of the device.
pub(super) fn from_guest(features: u64) -> Offloads {
    let has = |feature| features & feature == feature;
    if !has(F_CSUM) {
        return Offloads::NONE;
    }
    Offloads::CHECKSUM
        .with(Offloads::TSO4, has(F_HOST_TSO4))
        .with(Offloads::TSO6, has(F_HOST_TSO6))
        .with(Offloads::ECN, has(F_HOST_ECN))
        .with(Offloads::USO, has(F_HOST_USO))
}
