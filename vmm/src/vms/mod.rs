//! The user's VMs, without a daemon: what each is, who runs it, how it ended, what it said.
//!
//! ```text
//! $XDG_DATA_HOME/casita/vms/   locked while a record is made, renamed away or takes a name
//!   names/NAME      symbolic link to the ID: a name belongs to one VM
//!   ID/config.json  the Record: what it is
//!   ID/state.json   the State, as its owner last told
//!   ID/lock         locked by the owner; see `lock`
//!   ID/log.0, log.1 what its command wrote, if nobody was attached
//!   ID/console.log  what its kernel wrote
//!   ID/disk.raw     its own disk
//!   ID/violation    why its monitor was ended by its sandbox, until somebody takes notice
//! $XDG_RUNTIME_DIR/casita/ID/   control socket, while it runs
//! ```
//!
//! A VM has an owner exactly while `ID/lock` is locked: the process that runs it, from before the
//! start until its end. Nobody else writes into its folder. The lock dies with its owner, so a
//! state that says `running` beside a free lock is the trace of a monitor that was killed: whoever
//! looks next takes the lock, writes what is true, and cleans up.
//!
//! A record appears whole or not at all: it is made as `.new.ID` and renamed, and goes as
//! `.old.ID`. Both are only ever made under the folder's lock, so whoever holds that may remove
//! what it finds of them.

mod error;
pub(crate) mod lock;
pub mod log;
mod names;
mod owned;
mod record;
mod registry;
#[cfg(test)]
mod tests;
mod vm;

pub use error::VmsError;
pub use names::Id;
pub use owned::{Hears, OwnedVm, Teller};
pub use record::{ImageUse, NewVm, News, Record, RestartPolicy, State, Status};
pub use registry::Registry;
pub use vm::Vm;
