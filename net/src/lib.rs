//! What a guest may send, decided outside the guest.
//!
//! Everything here is pure: bytes come in, a verdict or other bytes go out. There are no sockets,
//! no threads and no clock; whoever calls says what time it is. Frames, names and addresses are
//! written by guests and by strangers, so each is checked once, at its parser, and what can't be
//! understood is refused.
//!
//! - [`frame`] reads Ethernet frames; [`dns`] reads and writes messages of the domain name system.
//! - [`EgressPolicy`] is what the user allows, as text and as data.
//! - [`Guard`] judges each frame that a guest sends.
//! - [`names`] answers for the names of a network's members; [`subnet`] gives addresses out.

#![forbid(unsafe_code)]

mod cidr;
pub mod dns;
mod egress;
pub mod frame;
mod guard;
mod mac;
pub mod names;
pub mod reply;
pub mod subnet;

pub use cidr::{Cidr, CidrError};
pub use egress::{
    EgressError, EgressItem, EgressPolicy, HostName, MAX_ITEMS, Resolved, Target, Transport,
};
pub use guard::{Guard, GuardConfig, Reason, Verdict};
pub use mac::Mac;
