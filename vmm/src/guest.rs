//! What the guest is told: its command line and, when casita's agent runs in it, its spec.

use casita_agent::initrd;
use casita_agent::spec::{FsType, GuestSpec, Mount, Network, SpecError};
use casita_agent::wire::Key;
use casita_boot::{Cmdline, CmdlineError};

use crate::config::{BootMode, MachineConfig};
use crate::disk::Disk;
use crate::volume::{PlannedMount, guest_mounts};

/// The agent's program, built by `build.rs`.
static AGENT: &[u8] = include_bytes!(env!("CASITA_AGENT"));

/// The root image's device; it is the first on the bus.
const ROOT_DEVICE: &str = "/dev/vda";
/// The writable disk's device; it is the second.
const DISK_DEVICE: &str = "/dev/vdb";

/// For every guest: the serial port is the console, and a kernel that panics resets the machine,
/// which ends it.
const CONSOLE: &str = "console=ttyS0";
const PANIC: &str = "panic=-1";

/// For our own boot. Nothing is printed but errors: each byte on the serial port is an exit. The host's KVM vouches for its clocks, so the kernel need not compare them.
const AGENT_BOOT: &str = "quiet loglevel=3 tsc=reliable no_timer_check";

/// The kernel's command line for `config`, whose root image is attached if `root` is true, and whose
/// network it sets up itself, in a plain boot, as `ip` says.
///
/// # Errors
/// If the user's part has a NUL or is too long.
pub fn cmdline(
    config: &MachineConfig,
    root: bool,
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
        BootMode::Plain if root && config.initrd.is_none() && !says("root=") => {
            line.push(format!("root={ROOT_DEVICE} ro"))?;
        }
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
/// `root`, with `mounts` beside that, on this `network`, and an agent that shows `key`.
///
/// # Errors
/// If the name can't be given to a guest.
pub fn agent_initrd(
    config: &MachineConfig,
    key: Key,
    root: FsType,
    disk: Option<&Disk>,
    mounts: &[PlannedMount],
    network: Option<&Network>,
) -> Result<Vec<u8>, SpecError> {
    let spec = GuestSpec {
        hostname: config.hostname().to_owned(),
        root: Mount {
            device: ROOT_DEVICE.to_owned(),
            fs: root,
        },
        disk: disk.is_some().then(|| Mount {
            device: DISK_DEVICE.to_owned(),
            fs: FsType::Ext4,
        }),
        keep_disk: disk.is_some_and(|disk| disk.kept),
        key,
        mounts: guest_mounts(mounts, 1 + u8::from(disk.is_some())),
        network: network.cloned(),
    };
    initrd::build(AGENT, &spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(config: &MachineConfig) -> String {
        String::from_utf8(
            cmdline(config, true, Some("ip=1.2.3.4"))
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
        assert!(cmdline(&config, true, None).is_err());
    }
}
