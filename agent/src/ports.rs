//! The I/O ports through which the agent speaks to the host.
//!
//! They are write-only, and a guest without the agent never touches them. The host's side is the
//! stamp device. Nothing that arrives here is trusted: it is the guest's word about itself.

/// The agent writes a [stage](Stage) here with an 8-bit `out` when it reaches it; the host notes
/// the time.
pub const STAGE_PORT: u16 = 0x6c0;

/// The agent writes the command's exit status here with a 32-bit `out`, after the disk has been
/// written back and before the machine is powered off: 0-255, where 128 + n means that signal n
/// ended the command, and [`EXIT_AGENT_FAILED`] that there was no command to run.
pub const EXIT_STATUS_PORT: u16 = 0x6c4;

/// How many ports from [`STAGE_PORT`] on belong to this interface.
pub const PORT_COUNT: u16 = 8;

/// The exit status when the guest could not be prepared: a bad spec, a corrupt image, a broken
/// disk. A line on the console that starts with `casita: ` says which.
pub const EXIT_AGENT_FAILED: u8 = 125;

/// The exit status when the command exists but cannot be run.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;

/// The exit status when there is no such command.
pub const EXIT_NOT_FOUND: u8 = 127;

/// How far the guest has come. The numbers are part of the interface: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// User space runs: the agent's first instruction but for asking for the port.
    Init = 0x10,
    /// The guest's root, its file systems and its terminal are ready. Input that reaches the
    /// console earlier is echoed and edited as the kernel likes, so a host holds it back until
    /// this stage.
    AgentReady = 0x20,
    /// The command is about to be executed.
    CommandStarted = 0x30,
    /// The command has ended.
    CommandExited = 0x40,
}
