//! What the guest is told: its command line and, when casita's agent runs in it, its spec.

use casita_agent::initrd;
use casita_agent::spec::{FsType, GuestSpec, Mount, Network, SpecError};
use casita_agent::wire::Key;
use casita_boot::{Cmdline, CmdlineError};

use crate::config::{BootMode, MachineConfig};
use crate::disk::Disk;
use crate::rootfs::RootDevice;
use crate::volume::{PlannedMount, guest_mounts};

/// The agent's program, built by `build.rs`.
static AGENT: &[u8] = include_bytes!(env!("CASITA_AGENT"));

/// The root image's device: the only one of its kind, or the first disk.
const fn root_node(device: RootDevice) -> &'static str {
    match device {
        RootDevice::Pmem => "/dev/pmem0",
        RootDevice::Block => "/dev/vda",
    }
}

/// The writable disk's device: the first disk behind the root image.
const fn disk_node(root: RootDevice) -> &'static str {
    match root {
        RootDevice::Pmem => "/dev/vda",
        RootDevice::Block => "/dev/vdb",
    }
}

/// For every guest: the serial port is the console, and a kernel that panics resets the machine,
/// which ends it.
const CONSOLE: &str = "console=ttyS0";
const PANIC: &str = "panic=-1";

/// For our own boot. Nothing is printed but errors: each byte on the serial port is an exit. The
/// host's KVM vouches for its clocks, so the kernel need not compare them. Two calls of the kernel's
/// start are left out, a tenth of the boot: they only fill `/sys/kernel/slab` and the parameters in
/// `/sys/module`. Free memory is reported in pieces of 64 KiB: with the 2 MiB that Linux would take it
/// reports nothing while less than 64 MiB are free.
const AGENT_BOOT: &str = "quiet loglevel=3 tsc=reliable no_timer_check \
    initcall_blacklist=slab_late_init,param_sysfs_builtin_init page_reporting.page_reporting_order=4";

/// The kernel's command line for `config`, whose root image is attached as `root`, if it has one, and
/// whose network it sets up itself, in a plain boot, as `ip` says.
///
/// # Errors
/// If the user's part has a NUL or is too long.
pub fn cmdline(
    config: &MachineConfig,
    root: Option<RootDevice>,
    ip: Option<&str>,
) -> Result<Cmdline, CmdlineError> {
    let own = config.cmdline.as_deref().unwrap_or_default();
    let says = |name: &str| own.split_whitespace().any(|word| word.starts_with(name));
    let mut line = Cmdline::new("")?;
    if !says("console=") {
        line.push(CONSOLE)?;
    }
    if !says("panic=") {
        line.push(PANIC)?;
    }
    match config.boot.unwrap_or_default() {
        BootMode::Agent => line.push(AGENT_BOOT)?,
        BootMode::Plain if config.initrd.is_none() && !says("root=") => match root {
            Some(RootDevice::Pmem) => {
                let node = root_node(RootDevice::Pmem);
                line.push(format!(
                    "root={node} ro rootfstype=erofs rootflags=dax=always"
                ))?;
            }
            Some(device) => line.push(format!("root={} ro", root_node(device)))?,
            None => {}
        },
        BootMode::Plain => {}
    }
    let plain = config.boot == Some(BootMode::Plain);
    if let Some(ip) = ip.filter(|_| plain && !says("ip=")) {
        line.push(ip)?;
    }
    line.push(own)?;
    Ok(line)
}

/// The initrd with the agent and its spec: a guest as `config` says on a root image of type
/// and device `root`, with `mounts` beside that, on this `network`, and an agent that shows `key`.
///
/// # Errors
/// If the name can't be given to a guest.
pub fn agent_initrd(
    config: &MachineConfig,
    key: Key,
    (device, fs): (RootDevice, FsType),
    disk: Option<&Disk>,
    mounts: &[PlannedMount],
    network: Option<&Network>,
) -> Result<Vec<u8>, SpecError> {
    let spec = GuestSpec {
        hostname: config.hostname().to_owned(),
        root: Mount {
            device: root_node(device).to_owned(),
            fs,
        },
        disk: disk.is_some().then(|| Mount {
            device: disk_node(device).to_owned(),
            fs: FsType::Ext4,
        }),
        keep_disk: disk.is_some_and(|disk| disk.kept),
        key,
        network: network.cloned(),
        mounts: guest_mounts(
            mounts,
            u8::from(device == RootDevice::Block) + u8::from(disk.is_some()),
        ),
    };
    initrd::build(AGENT, &spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(config: &MachineConfig) -> String {
        String::from_utf8(
            cmdline(config, Some(RootDevice::Block), Some("ip=1.2.3.4"))
                .unwrap()
                .as_bytes()
                .to_vec(),
        )
        .unwrap()
    }

    #[test]
    fn a_plain_boot_adds_only_what_the_user_does_not_say() {
        let mut config = MachineConfig {
            boot: Some(BootMode::Plain),
            ..MachineConfig::default()
        };
        assert_eq!(
            line(&config),
            "console=ttyS0 panic=-1 root=/dev/vda ro ip=1.2.3.4"
        );
        config.cmdline = Some("root=/dev/vdb rw console=tty0 panic=5 init=/bin/sh".to_owned());
        assert_eq!(
            line(&config),
            "ip=1.2.3.4 root=/dev/vdb rw console=tty0 panic=5 init=/bin/sh"
        );
        config.cmdline = None;
        config.initrd = Some("initrd".into());
        assert_eq!(line(&config), "console=ttyS0 panic=-1 ip=1.2.3.4");
        config.cmdline = Some("ip=dhcp".to_owned());
        assert_eq!(line(&config), "console=ttyS0 panic=-1 ip=dhcp");
    }

    #[test]
    fn the_users_parameters_come_last_so_that_they_win() {
        let config = MachineConfig {
            cmdline: Some("loglevel=7".to_owned()),
            ..MachineConfig::default()
        };
        assert!(line(&config).ends_with(" loglevel=7"), "{}", line(&config));
    }

    #[test]
    fn a_nul_in_the_command_line_is_refused() {
        let config = MachineConfig {
            cmdline: Some("a\0b".to_owned()),
            ..MachineConfig::default()
        };
        assert!(cmdline(&config, None, None).is_err());
    }
}
