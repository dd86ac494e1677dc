//! What the end-to-end tests stand on: the program `casita` as people start it, places to start it
//! in, terminals to start it at, and things to start.
//!
//! Every wait has a deadline, and whatever fails says what the program and its guest had written.

pub mod attacker;
pub mod image;
pub mod kernel;
pub mod machine;
pub mod oci;
pub mod place;
pub mod proc;
pub mod run;
pub mod suite;
pub mod terminal;
pub mod vm;
