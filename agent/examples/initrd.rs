//! Writes the initial RAM file system of a guest, to try the agent under any machine monitor.
//!
//! `initrd AGENT OUTPUT ROOT_FS [OPTION...] [-- COMMAND...]`, with the options `--disk`,
//! `--terminal`, `--stdin`, `--hostname NAME`, `--root-device NODE`, `--disk-device NODE`,
//! `-e NAME=VALUE`, `-w DIR`.

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use casita_agent::initrd;
use casita_agent::spec::{FsType, GuestSpec, Mount, WindowSize};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let mut next = |what: &str| args.next().ok_or(format!("{what} is missing"));
    let agent = std::fs::read(next("AGENT")?)?;
    let output = next("OUTPUT")?;
    let fs = match next("ROOT_FS")?.to_str() {
        Some("erofs") => FsType::Erofs,
        Some("squashfs") => FsType::Squashfs,
        Some("ext4") => FsType::Ext4,
        Some("iso9660") => FsType::Iso9660,
        _ => return Err("ROOT_FS is erofs, squashfs, ext4 or iso9660".into()),
    };
    let spec = parse(fs, args)?;
    std::fs::write(output, initrd::build(&agent, &spec)?)?;
    Ok(())
}

fn parse(
    fs: FsType,
    mut args: impl Iterator<Item = OsString>,
) -> Result<GuestSpec, Box<dyn Error>> {
    let mount = |device: &str, fs| Mount {
        device: device.into(),
        fs,
    };
    let mut spec = GuestSpec {
        hostname: "casita".into(),
        root: mount("/dev/vda", fs),
        disk: None,
        keep_disk: true,
        command: Vec::new(),
        env: Vec::new(),
        workdir: Vec::new(),
        terminal: None,
        stdin_open: false,
    };
    while let Some(option) = args.next() {
        let mut value = || args.next().ok_or("an option's value is missing");
        match option.to_str() {
            Some("--disk") => spec.disk = Some(mount("/dev/vdb", FsType::Ext4)),
            Some("--disk-device") => {
                spec.disk = Some(mount(&value()?.to_string_lossy(), FsType::Ext4));
            }
            Some("--root-device") => spec.root.device = value()?.to_string_lossy().into(),
            Some("--terminal") => spec.terminal = Some(WindowSize { rows: 24, cols: 80 }),
            Some("--stdin") => spec.stdin_open = true,
            Some("--hostname") => spec.hostname = value()?.to_string_lossy().into(),
            Some("-e") => spec.env.push(value()?.into_vec()),
            Some("-w") => spec.workdir = value()?.into_vec(),
            Some("--") => break,
            _ => return Err(format!("unknown option {}", option.display()).into()),
        }
    }
    spec.command = args.map(OsStringExt::into_vec).collect();
    Ok(spec)
}
