//! `casita-takeover`: casita as if a guest had taken its monitor over. For tests; see the module.

use std::process::ExitCode;

fn main() -> ExitCode {
    casita::cli::main()
}
