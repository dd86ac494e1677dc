//! The `casita` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    casita::cli::main()
}
