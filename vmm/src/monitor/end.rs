//! What a VM's end means to whoever ran it.

use casita_agent::wire::Exit;

use crate::cli::EXIT_CASITA;
use crate::machine::{End, Outcome};
use crate::stats::RunStats;

use super::ConsoleLog;
use super::main_process::Told;

/// What `timeout(1)` ends with when the time is over.
const EXIT_TIMEOUT: u8 = 124;

/// How a VM ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status: the main process's, or what stands for another end.
    pub status: u8,
    /// If something went wrong, what: one line for people.
    pub error: Option<String>,
    /// If the guest went wrong, the last lines of its console.
    pub console: Vec<String>,
    /// What the run cost.
    pub stats: RunStats,
}

/// The end of a VM that has casita's agent, whose main process ended as `told`, if it is known.
pub(super) fn of_agent(
    outcome: Outcome,
    told: Option<Told>,
    timed_out: bool,
    log: &ConsoleLog,
) -> Ended {
    let (status, error, guest_failed) = match (outcome.end, told) {
        (_, _) if timed_out => (EXIT_TIMEOUT, None, false),
        (End::Failed(failure), _) => (EXIT_CASITA, Some(failure.to_string()), true),
        (End::Signal(number), _) => (by_signal(number), None, false),
        (End::Killed, _) => (by_signal(libc::SIGKILL), None, false),
        (End::Escape, _) => (EXIT_CASITA, None, false),
        (_, Some(Told::Exited(exit))) => (exit.status(), None, false),
        (_, Some(Told::Refused { status, message })) => (status, Some(message), false),
        (_, Some(Told::Failed(error))) => {
            let message = format!("the command's streams could not be used: {error}");
            (EXIT_CASITA, Some(message), false)
        }
        (End::AgentGone, _) => {
            let message = "the guest's agent is gone: something in the guest has broken it";
            (EXIT_CASITA, Some(message.to_owned()), true)
        }
        (End::Reset, _) => {
            let message = "the guest reset itself before its command had ended, as a kernel does \
                           that panics";
            (EXIT_CASITA, Some(message.to_owned()), false)
        }
        // The agent gave up before the command could be started, and has said why.
        (End::PowerOff, _) if outcome.exit_status == Some(EXIT_CASITA) => {
            let message = "the guest could not be prepared";
            (EXIT_CASITA, Some(message.to_owned()), true)
        }
        // Root in the guest may power it off.
        (End::PowerOff, _) => (outcome.exit_status.unwrap_or(0), None, false),
    };
    Ended {
        status,
        error,
        console: match (guest_failed, status) {
            (true, _) => log.last_lines(),
            (false, EXIT_CASITA) => log.panic(),
            (false, _) => Vec::new(),
        },
        stats: outcome.stats,
    }
}

/// The end of a VM that was booted plain: it has shown its console all along.
pub(super) fn of_plain(outcome: Outcome, timed_out: bool) -> Ended {
    let (status, error) = match outcome.end {
        _ if timed_out => (EXIT_TIMEOUT, None),
        End::Failed(failure) => (EXIT_CASITA, Some(failure.to_string())),
        End::Signal(number) => (by_signal(number), None),
        End::Killed => (by_signal(libc::SIGKILL), None),
        End::Escape | End::AgentGone => (EXIT_CASITA, None),
        // An image's init may power off or reboot.
        End::PowerOff | End::Reset => (outcome.exit_status.unwrap_or(0), None),
    };
    Ended {
        status,
        error,
        console: Vec::new(),
        stats: outcome.stats,
    }
}

fn by_signal(number: i32) -> u8 {
    Exit::Signal(u8::try_from(number).unwrap_or_default()).status()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(end: End, told: Option<Told>, exit_status: Option<u8>, timed_out: bool) -> u8 {
        let outcome = Outcome {
            end,
            exit_status,
            stats: RunStats::default(),
        };
        let log = ConsoleLog::new(None, false).unwrap();
        of_agent(outcome, told, timed_out, &log).status
    }

    #[test]
    fn the_command_s_end_is_the_vm_s() {
        let told = |exit| Some(Told::Exited(exit));
        assert_eq!(
            status(End::PowerOff, told(Exit::Code(3)), Some(3), false),
            3
        );
        assert_eq!(
            status(End::PowerOff, told(Exit::Signal(11)), Some(139), false),
            139
        );
        // What the agent said of it counts, not what anybody in the guest wrote into a port.
        assert_eq!(
            status(End::PowerOff, told(Exit::Code(0)), Some(9), false),
            0
        );
        assert_eq!(status(End::Reset, told(Exit::Code(4)), None, false), 4);
    }

    #[test]
    fn other_ends_have_the_statuses_that_shells_and_timeout_give() {
        assert_eq!(status(End::Signal(15), None, None, false), 143);
        assert_eq!(status(End::Killed, Some(Told::Gone), None, false), 137);
        assert_eq!(status(End::Reset, Some(Told::Gone), None, false), 125);
        assert_eq!(
            status(End::PowerOff, Some(Told::Gone), Some(125), false),
            125
        );
        assert_eq!(status(End::PowerOff, Some(Told::Gone), None, false), 0);
        let told = Some(Told::Exited(Exit::Signal(15)));
        assert_eq!(status(End::PowerOff, told, Some(143), true), 124);
        let refused = Told::Refused {
            status: 127,
            message: "x: not found".to_owned(),
        };
        assert_eq!(status(End::PowerOff, Some(refused), Some(127), false), 127);
    }
}
