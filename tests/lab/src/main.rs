//! The lab's two ends in one static program.
//!
//! On the machine it is the relay: it starts QEMU, hands the command over, and passes the three
//! standard streams and the exit status through. Inside the lab it is PID 1: it joins the machine's
//! files with a throw-away layer, runs the command, and sends back what comes of it.

mod command;
mod init;
mod relay;
mod request;
mod stream;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::main()
    } else {
        relay::main()
    }
}
