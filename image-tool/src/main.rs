//! `casita-image`: fetches images from registries and reads them from archives, into the store.
//!
//! `casita image pull` and `casita image import` start it. It is a program of its own so that
//! `casita` itself needs no network, no TLS and no threads for either.

mod import;
mod pull;
mod section;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use casita::cli::{self, CliError, EXIT_CASITA, Format, Global};
use casita::dirs::Dirs;
use casita::disk::parse_size;
use casita_images::{Image, Limits, Reference, Store};
use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::Serialize;

/// Casita's helper program for images.
#[derive(Debug, Parser)]
#[command(name = "casita-image", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Place {
    /// The store [default: casita's own]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// How to print the result
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Refuse an image whose layers have more than this
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch an image from a registry
    Pull {
        /// The image, such as nginx, nginx:1.29 or registry.example:5000/team/app@sha256:...
        #[arg(value_name = "IMAGE")]
        image: Reference,
        /// File with logins [default: those of docker, podman and skopeo]
        #[arg(long, value_name = "FILE")]
        authfile: Option<PathBuf>,
        /// Accept a registry without TLS, or with a certificate that is not trusted
        #[arg(long)]
        insecure: bool,
    },
    /// Read an image from an OCI layout, an archive, a tar or a directory
    Import {
        /// Directory or file; - for standard input
        #[arg(value_name = "SOURCE")]
        source: String,
        /// The image's name; chooses one of several
        #[arg(value_name = "NAME")]
        name: Option<Reference>,
    },
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Report<'a> {
    digest: String,
    references: &'a [String],
    size: u64,
    fetched: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::report_usage(&error),
    };
    cli::init_log(cli.global);
    confine();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::report(&*error, cli.global.is_verbose());
            EXIT_CASITA.into()
        }
    }
}

/// Registries and archives are hostile until proven otherwise, so the little that is given up here
/// is given up first. Neither can fail in a way that matters.
fn confine() {
    let _ = rustix::thread::set_no_new_privs(true);
    // A core would hold passwords.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
}

fn run(cli: &Cli) -> Result<(), CliError> {
    let store = match &cli.place.store {
        Some(dir) => Store::open(dir)?,
        None => Store::open(&Dirs::from_env()?.data().join("images"))?,
    };
    let mut limits = Limits::default();
    if let Some(size) = cli.place.max_size {
        limits.max_size = size;
    }
    let (image, fetched) = match &cli.command {
        Command::Pull {
            image,
            authfile,
            insecure,
        } => {
            let request = pull::Request {
                image,
                authfile: authfile.as_deref(),
                insecure: *insecure,
            };
            pull::pull(&store, &request, &limits)?
        }
        Command::Import { source, name } => {
            let image = import::import(&store, source, name.as_ref(), &limits)?;
            (image, true)
        }
    };
    print(&image, fetched, cli.place.format)
}

/// The digest alone, for scripts to take further.
fn print(image: &Image, fetched: bool, format: Format) -> Result<(), CliError> {
    let digest = image.digest.to_string();
    let line = match format {
        Format::Text => digest,
        Format::Json => serde_json::to_string(&Report {
            digest,
            references: &image.references,
            size: image.size,
            fetched,
        })?,
    };
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
