//! `casita image`: the images in the store. Pulling and importing is the helper program's.

use std::ffi::OsString;
use std::io::{Write, stdout};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use casita_images::{Image, Reference, Removed, Store, StoreError};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{CliError, Format, Global, ask, json, table};
use crate::dirs::Dirs;
use crate::helpers::{self, HelperError};
use crate::images::{self, ImagesError};
use crate::staging;
use crate::time::{now, rough};

/// Options of `casita image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Fetch an image from a registry
    Pull(PullArgs),
    /// Read an image from an OCI layout, an archive, a tar or a directory
    Import(ImportArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Tell all about images
    Inspect(InspectArgs),
    /// Remove images that have no name any more, and broken-off downloads
    Prune(PruneArgs),
}

/// Options of `casita image pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The image, such as nginx, nginx:1.29 or registry.example:5000/team/app@sha256:...
    #[arg(value_name = "IMAGE")]
    image: Reference,
    /// File with logins [default: those of docker, podman and skopeo]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Accept a registry without TLS, or with a certificate that is not trusted
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    made: Made,
}

/// Options of `casita image import`.
#[derive(Debug, Args)]
#[command(after_help = "\
The content of SOURCE says what it is: a directory or a tar with an OCI layout, what `docker save` \
writes, or a plain root file system as a directory or a tar. Archives may be compressed by gzip or \
zstd.")]
struct ImportArgs {
    /// Directory or file; - for standard input
    #[arg(value_name = "SOURCE")]
    source: OsString,
    /// The image's name [default: as the source says]; chooses one of several
    #[arg(value_name = "NAME")]
    name: Option<Reference>,
    #[command(flatten)]
    made: Made,
}

/// What pulling and importing have in common.
#[derive(Debug, Args)]
struct Made {
    /// Refuse an image whose layers have more than this [default: 64G]
    #[arg(long, value_name = "SIZE", value_parser = crate::disk::parse_size)]
    max_size: Option<u64>,
    /// How to print the result; as text it is the image's digest
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Options of `casita image ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Digests only
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// How to print the list
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Options of `casita image rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names, digests, or beginnings of digests
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Take all names of an image away; say nothing of one that is not there
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Names, digests, or beginnings of digests
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// The only format there is
    #[arg(long, value_name = "FORMAT", default_value = "json", value_parser = ["json"])]
    format: String,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// All images that no VM uses, with a name or without
    #[arg(short, long)]
    all: bool,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
}

/// Does what `casita image` was told.
///
/// # Errors
/// If it can't be done.
pub fn image(args: &ImageArgs, global: Global) -> Result<ExitCode, CliError> {
    match &args.command {
        ImageCommand::Pull(args) => pull(args, global),
        ImageCommand::Import(args) => import(args, global),
        ImageCommand::Ls(args) => ls(args, global),
        ImageCommand::Rm(args) => rm(args),
        ImageCommand::Inspect(args) => inspect(args),
        ImageCommand::Prune(args) => prune(args),
    }
}

/// `casita image pull`, and `casita pull`.
///
/// # Errors
/// If the helper program can't be started; all else it says itself.
pub fn pull(args: &PullArgs, global: Global) -> Result<ExitCode, CliError> {
    let mut command = helper(&args.made, global)?;
    command.arg("pull");
    if let Some(file) = &args.authfile {
        command.arg("--authfile").arg(file);
    }
    if args.insecure {
        command.arg("--insecure");
    }
    become_it(command.arg("--").arg(args.image.to_string()))
}

fn import(args: &ImportArgs, global: Global) -> Result<ExitCode, CliError> {
    let mut command = helper(&args.made, global)?;
    command.arg("import").arg("--").arg(&args.source);
    become_it(command.args(args.name.iter().map(ToString::to_string)))
}

fn helper(made: &Made, global: Global) -> Result<Command, CliError> {
    let mut command = Command::new(helpers::find(helpers::IMAGE)?);
    let folder = images::folder(&Dirs::from_env()?);
    command.arg("--store").arg(folder);
    command.args(global.is_quiet().then_some("--quiet"));
    command.args((0..global.verbosity()).map(|_| "--verbose"));
    if made.format == Format::Json {
        command.args(["--format", "json"]);
    }
    if let Some(size) = made.max_size {
        command.arg("--max-size").arg(size.to_string());
    }
    Ok(command)
}

/// Lets the helper take this process over.
fn become_it(command: &mut Command) -> Result<ExitCode, CliError> {
    let path = PathBuf::from(command.get_program());
    let source = command.exec();
    Err(HelperError::Start { path, source }.into())
}

/// `casita image ls`, and `casita images`.
///
/// # Errors
/// If the store can't be read.
pub fn ls(args: &LsArgs, global: Global) -> Result<ExitCode, CliError> {
    let images = images::store(&Dirs::from_env()?)?.list()?;
    let mut out = stdout().lock();
    if args.quiet || global.is_quiet() {
        for image in &images {
            writeln!(out, "{}", image.digest)?;
        }
    } else if args.format == Format::Json {
        let list: Vec<_> = images.iter().map(summary).collect();
        json::write(&mut out, &list)?;
    } else {
        let head = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        table::write(&mut out, &head, &rows(&images, now()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `casita image rm`, and `casita rmi`. Does what it can, and fails with the first failure.
///
/// # Errors
/// If one of the images can't be removed.
pub fn rm(args: &RmArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let store = images::store(&dirs)?;
    let used = images::in_use(&dirs)?;
    let mut failed = None;
    for name in &args.images {
        match store.remove(name, args.force, &|digest| used.contains(digest)) {
            Ok(removed) => tell(&removed)?,
            Err(StoreError::NotFound(_)) if args.force => (),
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn tell(removed: &Removed) -> Result<(), CliError> {
    let mut out = stdout().lock();
    for name in &removed.references {
        writeln!(out, "Untagged: {}", familiar(name))?;
    }
    if removed.deleted {
        writeln!(out, "Deleted: {}", removed.digest)?;
    }
    Ok(())
}

fn inspect(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let store = images::store(&Dirs::from_env()?)?;
    let find = |name: &String| match store.get(name)? {
        Some(image) => Ok(image),
        None => Err(ImagesError::Missing(name.clone())),
    };
    let found: Vec<Value> = args
        .images
        .iter()
        .map(|name| find(name).map(|image| details(&image)))
        .collect::<Result<_, _>>()?;
    json::write_found(&mut stdout(), &found, args.images.len())?;
    Ok(ExitCode::SUCCESS)
}

fn prune(args: &PruneArgs) -> Result<ExitCode, CliError> {
    let question = if args.all {
        "Remove all images that no VM uses?"
    } else {
        "Remove all images without a name?"
    };
    if !args.force && !ask::confirmed(question)? {
        return Ok(ExitCode::SUCCESS);
    }
    let dirs = Dirs::from_env()?;
    let store = images::store(&dirs)?;
    let downloads = abandoned(&store)?;
    let used = images::in_use(&dirs)?;
    let removed = store.prune(args.all, &|digest| used.contains(digest))?;
    for image in &removed {
        tell(image)?;
    }
    let images: u64 = removed.iter().map(|image| image.bytes).sum();
    writeln!(stdout(), "Reclaimed {}", table::bytes(images + downloads))?;
    Ok(ExitCode::SUCCESS)
}

/// Removes downloads that nobody goes on with, and returns how much they were.
fn abandoned(store: &Store) -> Result<u64, CliError> {
    let folder = store.blobs()?;
    let space = || -> std::io::Result<u64> {
        std::fs::read_dir(&folder)?.try_fold(0, |sum, entry| {
            Ok(sum + entry?.metadata().map_or(0, |found| found.len()))
        })
    };
    let before = space()?;
    staging::sweep(&folder);
    Ok(before.saturating_sub(space()?))
}

fn summary(image: &Image) -> Value {
    serde_json::json!({
        "digest": image.digest,
        "references": image.references,
        "created": image.created,
        "size": image.size,
    })
}

fn details(image: &Image) -> Value {
    let mut value = summary(image);
    value["path"] = image.path.to_string_lossy().into();
    value["config"] = serde_json::json!(image.config);
    value
}

/// A row for each name, as `docker images` has it.
fn rows(images: &[Image], now: u64) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for image in images {
        let row = |(repository, tag): (String, String)| {
            let id = image.digest.hex()[..12].to_owned();
            let age = rough(now.saturating_sub(image.created));
            vec![
                repository,
                tag,
                id,
                format!("{age} ago"),
                table::bytes(image.size),
            ]
        };
        if image.references.is_empty() {
            rows.push(row(("<none>".into(), "<none>".into())));
        }
        rows.extend(image.references.iter().map(|name| row(split(name))));
    }
    rows
}

fn familiar(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) => reference.familiar(),
        Err(_) => name.to_owned(),
    }
}

/// A short name without its tag, and the tag.
fn split(name: &str) -> (String, String) {
    let short = familiar(name);
    let tag = |tag: &str| (tag.to_owned(), "<none>".to_owned());
    match (short.split_once('@'), short.rsplit_once(':')) {
        (Some((repository, _)), _) => tag(repository),
        (None, Some((repository, tag))) => (repository.to_owned(), tag.to_owned()),
        (None, None) => tag(&short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casita_images::{Digest, ImageConfig};

    #[test]
    fn a_row_for_each_name() {
        let image = |references: &[&str]| Image {
            digest: Digest::of(b""),
            references: references.iter().map(|name| (*name).to_owned()).collect(),
            path: "x".into(),
            size: 5 << 20,
            created: 1000,
            config: ImageConfig::default(),
        };
        let images = [
            image(&["docker.io/library/nginx:latest", "localhost:5000/a/b:v1"]),
            image(&[]),
        ];
        assert_eq!(
            rows(&images, 1000 + 3 * 86400),
            [
                ["nginx", "latest"],
                ["localhost:5000/a/b", "v1"],
                ["<none>", "<none>"]
            ]
            .map(|[repository, tag]| [
                repository,
                tag,
                "e3b0c44298fc",
                "3 days ago",
                "5.0 MiB"
            ])
        );
    }

    #[test]
    fn a_name_by_digest_has_no_tag() {
        let digest = Digest::of(b"");
        assert_eq!(
            split(&format!("docker.io/library/a@{digest}")),
            ("a".into(), "<none>".into())
        );
    }
}
