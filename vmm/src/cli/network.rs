//! `casita network`.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use casita_net::Cidr;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{CliError, EXIT_CASITA, Format, ask, json, table};
use crate::dirs::Dirs;
use crate::networks::{Member, Network, NetworkError, Networks, Subnet6};
use crate::vms::Registry;

/// What to do with networks.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network, on which VMs reach each other by name
    Create(CreateArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Tell all that is known of networks
    Inspect(InspectArgs),
    /// Remove networks
    Rm(RmArgs),
    /// Remove all networks that no VM uses
    Prune(PruneArgs),
}

/// Options of `casita network create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Range of its IPv4 addresses, such as 10.1.2.0/24 [default: one that is free]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Cidr>,
    /// Give it IPv6 addresses, too: a range such as fd12:3456::/64 [default: one by chance]
    #[arg(long, value_name = "CIDR", num_args = 0..=1, require_equals = true)]
    #[allow(
        clippy::option_option,
        reason = "an option whose value may be left out"
    )]
    ipv6: Option<Option<Cidr>>,
    /// Its name
    name: String,
}

/// Options of `casita network ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Names only
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Options of `casita network inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Names of networks
    #[arg(required = true)]
    names: Vec<String>,
}

/// Options of `casita network rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Also those that VMs use which have ended; and don't mind those that are missing
    #[arg(short, long)]
    force: bool,
    /// Names of networks
    #[arg(required = true)]
    names: Vec<String>,
}

/// Options of `casita network prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// All that is known of a network.
#[derive(Debug, Serialize)]
struct Description {
    name: String,
    subnet: Cidr,
    gateway: Option<IpAddr>,
    subnet6: Option<Cidr>,
    gateway6: Option<IpAddr>,
    created: String,
    path: PathBuf,
    /// Those that run.
    members: Vec<Member>,
    /// The VMs that are to be on it when they run.
    vms: Vec<String>,
}

/// Runs `casita network`.
///
/// # Errors
/// As the command says.
pub fn network(command: &NetworkCommand) -> Result<ExitCode, CliError> {
    match command {
        NetworkCommand::Create(args) => create(args),
        NetworkCommand::Ls(args) => ls(args),
        NetworkCommand::Inspect(args) => inspect(args),
        NetworkCommand::Rm(args) => rm(args),
        NetworkCommand::Prune(args) => prune(args),
    }
}

fn create(args: &CreateArgs) -> Result<ExitCode, CliError> {
    let subnet6 = match args.ipv6 {
        None => Subnet6::None,
        Some(None) => Subnet6::Random,
        Some(Some(range)) => Subnet6::Given(range),
    };
    let networks = Networks::open(&Dirs::from_env()?)?;
    let network = networks.create(&args.name, args.subnet, subnet6)?;
    writeln!(io::stdout(), "{}", network.name())?;
    Ok(ExitCode::SUCCESS)
}

/// The network of each VM that is to be on one.
struct Users(Vec<(String, String)>);

impl Users {
    fn find(dirs: &Dirs) -> Result<Self, CliError> {
        let vms = Registry::open(dirs)?.list()?;
        let of = |vm: &crate::vms::Vm| {
            let record = vm.record();
            Some((record.name.clone(), record.config.network.clone()?))
        };
        Ok(Self(vms.iter().filter_map(of).collect()))
    }

    fn of(&self, network: &str) -> Vec<String> {
        let users = self.0.iter().filter(|(_, on)| on == network);
        users.map(|(vm, _)| vm.clone()).collect()
    }
}

fn describe(network: &Network, users: &Users) -> Description {
    Description {
        name: network.name().to_owned(),
        subnet: network.subnet(),
        gateway: network.gateway(),
        subnet6: network.subnet6(),
        gateway6: network.gateway6(),
        created: crate::time::rfc3339(network.created()),
        path: network.folder().to_owned(),
        members: network.members(),
        vms: users.of(network.name()),
    }
}

fn ls(args: &LsArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let networks = Networks::open(&dirs)?.list()?;
    let mut out = io::stdout().lock();
    if args.quiet {
        for network in &networks {
            writeln!(out, "{}", network.name())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let users = Users::find(&dirs)?;
    let described: Vec<_> = networks.iter().map(|one| describe(one, &users)).collect();
    if args.format == Format::Json {
        json::write(&mut out, &described)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = described
        .into_iter()
        .map(|network| {
            let range = |range: Option<Cidr>| {
                range.map_or_else(|| "-".to_owned(), |range| range.to_string())
            };
            vec![
                network.name,
                range(Some(network.subnet)),
                range(network.subnet6),
                network.members.len().to_string(),
                network.vms.join(","),
            ]
        })
        .collect();
    table::write(
        &mut out,
        &["NAME", "SUBNET", "IPV6", "RUNNING", "VMS"],
        &rows,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let (networks, users) = (Networks::open(&dirs)?, Users::find(&dirs)?);
    let described = args
        .names
        .iter()
        .map(|name| Ok(describe(&networks.find(name)?, &users)))
        .collect::<Result<Vec<_>, NetworkError>>()?;
    let mut out = io::stdout().lock();
    match args.format {
        Format::Json => json::write_found(&mut out, &described, args.names.len())?,
        Format::Text => {
            for network in &described {
                print(&mut out, network)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl Write, network: &Description) -> io::Result<()> {
    let mut line = |name: &str, value: Option<String>| match value {
        Some(value) => writeln!(out, "{name:<10} {value}"),
        None => Ok(()),
    };
    line("name", Some(network.name.clone()))?;
    line("subnet", Some(network.subnet.to_string()))?;
    line("gateway", network.gateway.map(|ip| ip.to_string()))?;
    line("subnet6", network.subnet6.map(|range| range.to_string()))?;
    line("gateway6", network.gateway6.map(|ip| ip.to_string()))?;
    line("created", Some(network.created.clone()))?;
    line("path", Some(network.path.display().to_string()))?;
    for member in &network.members {
        let addresses: Vec<_> = member.addresses().iter().map(ToString::to_string).collect();
        let text = format!(
            "{} {} {}",
            member.names.join(","),
            addresses.join(" "),
            member.mac
        );
        line("member", Some(text))?;
    }
    let vms = (!network.vms.is_empty()).then(|| network.vms.join(" "));
    line("vms", vms)
}

fn rm(args: &RmArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let (networks, users) = (Networks::open(&dirs)?, Users::find(&dirs)?);
    let remove = |name: &String| {
        let vms = users.of(name);
        match networks.get(name)? {
            None if args.force => return Ok(()),
            Some(network) if !vms.is_empty() && !args.force && network.members().is_empty() => {
                return Err(NetworkError::Referred {
                    name: name.clone(),
                    users: vms.join(" "),
                });
            }
            _ => {}
        }
        match networks.remove(name) {
            Err(NetworkError::Missing(_)) if args.force => Ok(()),
            result => result,
        }
    };
    let mut well = true;
    for name in &args.names {
        match remove(name) {
            Ok(()) => writeln!(io::stdout(), "{name}")?,
            Err(error) => {
                well = false;
                super::report(&error, false);
            }
        }
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        EXIT_CASITA.into()
    })
}

fn prune(args: &PruneArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let (networks, users) = (Networks::open(&dirs)?, Users::find(&dirs)?);
    let mut unused = networks.list()?;
    unused.retain(|one| users.of(one.name()).is_empty() && one.members().is_empty());
    let names: Vec<_> = unused.iter().map(Network::name).collect();
    let question = format!("Remove {} for good?", names.join(", "));
    if names.is_empty() || !(args.force || ask::confirmed(&question)?) {
        return Ok(ExitCode::SUCCESS);
    }
    for network in unused {
        match networks.remove(network.name()) {
            Ok(()) => writeln!(io::stdout(), "{}", network.name())?,
            // Somebody has just begun to use it, or was faster.
            Err(NetworkError::InUse { .. } | NetworkError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
