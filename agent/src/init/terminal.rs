//! How the console behaves: as a terminal for a person, or as a pipe for bytes.
#![allow(
    unsafe_code,
    reason = "the console's descriptor comes from the kernel, owned by nobody"
)]

use casita_agent::spec::WindowSize;
use rustix::fd::BorrowedFd;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, Winsize,
    tcgetattr, tcsetattr, tcsetwinsize,
};

use crate::failure::{Doing, Failure};

/// The console, which the kernel opened for PID 1.
pub(crate) fn console() -> BorrowedFd<'static> {
    // SAFETY: the agent never closes its standard error. Had the kernel no console to open, then
    // whatever is done with this descriptor fails.
    unsafe { rustix::stdio::stderr() }
}

/// Sets the console up for a person at a terminal of the given size, or for bytes.
pub(crate) fn prepare(size: Option<WindowSize>) -> Result<(), Failure> {
    let console = console();
    let what = || "cannot set up the console";
    let mut termios = tcgetattr(console).doing(what)?;
    match size {
        None => carry_bytes(&mut termios),
        // What the kernel starts with suits a person, but for erasing a character of several bytes.
        Some(_) => termios.input_modes |= InputModes::IUTF8,
    }
    tcsetattr(console, OptionalActions::Now, &termios).doing(what)?;
    if let Some(size) = size {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(console, size).doing(what)?;
    }
    Ok(())
}

/// Input still comes by lines, for only so can it end without the line going down: `^D`. Of the
/// modes that a serial port's driver acts upon none changes, for it would program the port anew.
fn carry_bytes(termios: &mut Termios) {
    let translated = InputModes::ICRNL
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ISTRIP
        | InputModes::IXON
        | InputModes::IXOFF
        | InputModes::IXANY
        | InputModes::IUCLC;
    let edited = LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ISIG | LocalModes::IEXTEN;
    termios.input_modes -= translated;
    termios.output_modes -= OutputModes::OPOST;
    termios.local_modes -= edited;
    termios.local_modes |= LocalModes::ICANON;
    for code in [
        SpecialCodeIndex::VERASE,
        SpecialCodeIndex::VKILL,
        SpecialCodeIndex::VEOL,
        SpecialCodeIndex::VEOL2,
    ] {
        termios.special_codes[code] = 0; // _POSIX_VDISABLE
    }
    termios.special_codes[SpecialCodeIndex::VEOF] = 4; // ^D
}
