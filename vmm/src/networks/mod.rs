//! Networks: VMs of one user that reach each other by name, without root and without a daemon.
//!
//! ```text
//! $XDG_DATA_HOME/casita/networks/       locked while a network is made, removed or joined
//!   NAME/network.json  its ranges of addresses
//!   NAME/leases.json   which VM has which number in them, for as long as the VM exists
//! $XDG_RUNTIME_DIR/casita/networks/NAME/
//!   ID/member.json     a running VM: its names, MAC and IP addresses, the process that connects
//!   ID/lock            locked by that monitor; free when it is gone, however it went
//!   ID/sock            takes the frames of other members
//! ```
//!
//! There is no switch process. Each monitor is its guest's port of the switch ([`Switch`]): it
//! answers address resolution and names for the members that it finds in the folder ([`members`]),
//! sends a frame straight to the monitor whose guest has the destination ([`mesh`]), and everything
//! else to the uplink, if the guest's policy lets it. What comes in is checked again by the monitor
//! that gets it. A monitor that is confined has its keeper look into the folder and connect
//! ([`Outside`]). Whoever is in one network's folder knows nothing of another's.

mod error;
mod guarded;
mod leases;
pub mod members;
mod mesh;
mod outside;
mod roster;
mod store;
mod switch;

pub use error::NetworkError;
pub use guarded::{Guarded, resolve};
pub use members::{Join, Member, Membership};
pub use outside::{Folder, Outside};
pub use store::{Network, Networks, Subnet6};
pub use switch::{Switch, SwitchConfig};
