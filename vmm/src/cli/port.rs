//! `casita port`.

use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;

use super::{CliError, vms};
use crate::net::PublishedPort;
use crate::net::spec::Protocol;

/// Options of `casita port`.
#[derive(Debug, Args)]
pub struct PortArgs {
    /// VM, by name or ID
    vm: String,
    /// A port of the guest's: only where that is reached
    #[arg(value_name = "GUEST[/PROTOCOL]")]
    port: Option<GuestPort>,
}

/// A port of the guest's, such as `80` or `53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GuestPort {
    number: u16,
    protocol: Protocol,
}

impl FromStr for GuestPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = match text.split_once('/') {
            None => (text, Protocol::default()),
            Some((number, protocol)) => (number, protocol.parse()?),
        };
        match number.parse() {
            Ok(number) if number > 0 => Ok(Self { number, protocol }),
            _ => Err(format!("{number:?} is not a port from 1 to 65535")),
        }
    }
}

/// Lists where ports of a running VM are reached.
///
/// # Errors
/// If there is no such VM, it does not run, or the port is not published.
pub fn port(args: &PortArgs) -> Result<ExitCode, CliError> {
    let vm = vms::registry()?.find(&args.vm)?;
    let state = vm.state()?;
    if state.status.has_ended() {
        return Err(format!("VM {} is not running", vm.record().name).into());
    }
    let ports = state
        .network
        .map(|network| network.ports)
        .unwrap_or_default();
    let mut out = BufWriter::new(std::io::stdout().lock());
    match args.port {
        None => {
            for port in &ports {
                writeln!(
                    out,
                    "{}/{} -> {}",
                    port.guest_port,
                    port.protocol,
                    port.host()
                )?;
            }
        }
        Some(GuestPort { number, protocol }) => {
            let wanted =
                |port: &&PublishedPort| port.guest_port == number && port.protocol == protocol;
            let mut found = ports.iter().filter(wanted).peekable();
            if found.peek().is_none() {
                let name = &vm.record().name;
                return Err(
                    format!("port {number}/{protocol} of VM {name} is not published").into(),
                );
            }
            for port in found {
                writeln!(out, "{}", port.host())?;
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_guests_are_tcp_unless_they_say_so() {
        let port = |text: &str| text.parse::<GuestPort>();
        let (number, protocol) = (80, Protocol::Tcp);
        assert_eq!(port("80"), Ok(GuestPort { number, protocol }));
        assert_eq!(port("80/tcp"), port("80"));
        assert_eq!(port("53/udp").unwrap().protocol, Protocol::Udp);
        for bad in ["", "0", "x", "80/", "80/x", "65536"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
