//! A pseudo-terminal with a program at it, and the person in front of it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::run::{Program, Said, wait};

/// A program at a terminal. It is killed if it is dropped before its end.
pub struct Seat {
    child: Child,
    /// Held open so that the terminal outlives the program and can be looked at.
    terminal: OwnedFd,
    keyboard: File,
    screen: Arc<Said>,
    read_up_to: usize,
    before: Termios,
}

impl Seat {
    /// Starts `program` as the leader of a session at a new terminal of this size.
    ///
    /// # Errors
    /// If there is no terminal, or the program can't be started.
    pub fn start(program: Program, rows: u16, cols: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let terminal: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(name.to_str()?)
            .context("opening the terminal")?
            .into();
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, size)?;
        let before = tcgetattr(&terminal)?;
        // It makes the terminal the session's and then becomes the program: the same process.
        let child = program
            .under(&["setsid", "--ctty"])
            .env("TERM", "vt100")
            .command()?
            .stdin(Stdio::from(terminal.try_clone()?))
            .stdout(Stdio::from(terminal.try_clone()?))
            .stderr(Stdio::from(terminal.try_clone()?))
            .spawn()
            .context("starting setsid")?;
        let keyboard = File::from(master);
        let screen = Said::of_terminal(keyboard.try_clone()?);
        Ok(Self {
            child,
            terminal,
            keyboard,
            screen,
            read_up_to: 0,
            before,
        })
    }

    /// Types `keys`.
    ///
    /// # Errors
    /// If the terminal does not take them.
    pub fn types(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Waits until the screen shows `text`, after what was waited for before.
    ///
    /// # Errors
    /// If it does not.
    pub fn shows(&mut self, text: &str) -> Result<()> {
        self.read_up_to = self.screen.wait_for(text, self.read_up_to)?;
        Ok(())
    }

    /// Checks that the terminal passes every key on as it is.
    ///
    /// # Errors
    /// If it does not.
    pub fn is_raw(&self) -> Result<()> {
        let modes = tcgetattr(&self.terminal)?.local_modes;
        let cooked = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        ensure!(
            !modes.intersects(cooked),
            "the terminal is not raw: {modes:?}\n{}",
            self.screen.transcript()
        );
        Ok(())
    }

    /// Changes the size of the terminal; the kernel tells whoever is in the foreground.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.terminal, size)?)
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for the program's end, which has to be with this exit status and with the terminal as
    /// it was.
    ///
    /// # Errors
    /// If it ends otherwise, or not at all.
    pub fn ends_with(mut self, code: i32) -> Result<()> {
        let status = wait(&mut self.child).with_context(|| self.screen.transcript())?;
        ensure!(
            status.code() == Some(code),
            "exit status {code} was expected: {status}\n{}",
            self.screen.transcript()
        );
        let after = tcgetattr(&self.terminal)?;
        let settings = |t: &Termios| {
            let codes = format!("{:?}", t.special_codes);
            (
                t.input_modes,
                t.output_modes,
                t.control_modes,
                t.local_modes,
                codes,
            )
        };
        ensure!(
            settings(&self.before) == settings(&after),
            "the terminal is not as it was: {:?}, now {:?}",
            settings(&self.before),
            settings(&after)
        );
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
