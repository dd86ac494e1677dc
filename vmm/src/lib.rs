//! Casita: a KVM micro-VM monitor. This crate alone knows KVM.
//!
//! [`assemble`] is the recipe that makes a machine from a [`config::MachineConfig`]; [`machine`]
//! owns what it made until the guest ends; [`vcpu`] is the loop between guest and devices.

pub mod assemble;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod cp;
pub mod dirs;
pub mod disk;
pub mod doctor;
pub mod files;
pub mod guest;
pub mod heap;
pub mod helpers;
pub mod images;
pub mod kvm;
pub mod life;
pub mod link;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod net;
pub mod networks;
pub mod platform;
pub mod process_config;
pub mod progress;
pub mod rootfs;
pub mod sandbox;
pub mod session;
pub mod share;
pub mod signals;
pub mod staging;
pub mod stats;
pub mod time;
pub mod vcpu;
pub mod vm_stats;
pub mod vms;
pub mod volume;
