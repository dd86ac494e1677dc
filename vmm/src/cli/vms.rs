//! What verbs on VMs have in common.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::thread;

use super::{CliError, EXIT_CASITA, report};
use crate::dirs::Dirs;
use crate::vms::{Registry, Vm};

/// Why a verb failed for one VM.
pub type VerbError = Box<dyn Error + Send + Sync + 'static>;

/// The user's VMs.
///
/// # Errors
/// If their folder can't be used.
pub fn registry() -> Result<Registry, CliError> {
    Ok(Registry::open(&Dirs::from_env()?)?)
}

/// Does something with each of the VMs that are named, at the same time, and prints what it
/// returns in their order. One that fails is told of and keeps nobody from the others.
///
/// # Errors
/// If the records can't be read at all, or the result can't be printed.
pub fn each(
    names: &[String],
    act: impl Fn(&Registry, Vm) -> Result<String, VerbError> + Sync,
) -> Result<ExitCode, CliError> {
    let registry = registry()?;
    let one = |name: &String| act(&registry, registry.find(name)?);
    let mut all_well = true;
    thread::scope(|scope| {
        let mut started = names[1.min(names.len())..]
            .iter()
            .map(|name| scope.spawn(move || one(name)))
            .collect::<Vec<_>>()
            .into_iter();
        let mut next = names.first().map(one);
        while let Some(result) = next {
            match result {
                Ok(text) => writeln!(std::io::stdout(), "{text}")?,
                Err(error) => {
                    report(&*error, false);
                    all_well = false;
                }
            }
            next = started.next().map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
        }
        Ok::<_, std::io::Error>(())
    })?;
    Ok(if all_well {
        ExitCode::SUCCESS
    } else {
        EXIT_CASITA.into()
    })
}
