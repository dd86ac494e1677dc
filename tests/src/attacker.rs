//! A guest that attacks its monitor (`tests/attacker`), and what has to be true of the monitor
//! afterwards: it lives, has not grown, and rests when its guest does.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;

use crate::place::Place;
use crate::run::{Finished, Running};
use crate::{machine, proc};

/// What a monitor may grow by while it is attacked, in bytes.
const MAX_GROWTH: u64 = 1 << 20;
/// What a monitor may have left to do when its guest has stopped, in turns of the observer's.
const ROUNDS: usize = 20;

/// Why there is no attacker, if there is none.
pub fn lacks() -> Option<String> {
    machine::lacks("cc", "gcc")
}

/// Compiles the attacker into `place`, as `attacker`, and an initrd for it, which plain boots ask
/// for.
///
/// # Errors
/// If it can't be compiled.
pub fn build(place: &Place) -> Result<()> {
    let source = machine::checkout().join("tests/attacker");
    let mut files: Vec<_> = fs::read_dir(&source)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|kind| kind == "c"));
    files.sort();
    let link = format!("-Wl,--build-id=none,-T,{}", text(&source.join("link.ld")));
    let built = Command::new("cc")
        .args(["-O1", "-ffreestanding", "-nostdlib", "-static", "-no-pie"])
        .args(["-fno-pic", "-fno-stack-protector", "-mno-red-zone"])
        .args(["-mgeneral-regs-only", "-fno-asynchronous-unwind-tables"])
        .args([&link, "-Wl,-z,max-page-size=4096,--no-warn-rwx-segments"])
        .arg("-o")
        .arg(place.path("attacker"))
        .arg(source.join("start.S"))
        .args(files)
        .status()?;
    ensure!(built.success(), "the attacker does not compile");
    place.write("initrd", "INITRD")?;
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A port of the host that takes each connection and reads nothing: whoever writes to it finds its
/// buffers full. It ends with the test.
pub struct Listener {
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Listener {
    /// Listens at a path.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn at(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let streams = Arc::new(Mutex::new(Vec::new()));
        let taken = streams.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                // Those of machines that were reset are closed at their other end.
                if taken.len() >= 256 {
                    taken.clear();
                }
                taken.push(stream);
            }
        });
        Ok(Self { streams })
    }

    /// Whether anybody has connected.
    pub fn was_reached(&self) -> bool {
        let streams = self.streams.lock();
        !streams.unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// A VM whose guest is the attacker.
pub struct Attacker {
    running: Running,
    /// What the monitor had before the attack.
    before: Option<Possessions>,
}

struct Possessions {
    memory: u64,
    files: usize,
    threads: usize,
}

impl Possessions {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            memory: proc::anonymous_memory(pid)?,
            files: proc::open_files(pid)?,
            threads: proc::turns(pid)?.len(),
        })
    }
}

impl Attacker {
    /// Boots it with `words` on its command line and `options` for its machine.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(place: &Place, words: &str, options: &[&str]) -> Result<Self> {
        let arguments = ["run", "--skip-kvm-check", "--boot", "plain"];
        let files = ["--kernel", "attacker", "--initrd", "initrd"];
        let line = ["--cmdline", words];
        let program = place.casita([&arguments[..], &files, &line, options].concat());
        Ok(Self {
            running: program.start_piped()?,
            before: None,
        })
    }

    /// Lets it begin, once it has tried that all devices work, and waits for its end.
    ///
    /// # Errors
    /// If it reports that something did not hold.
    pub fn attack(&mut self) -> Result<()> {
        self.running.wait_for("ready\n")?;
        self.before = Some(Possessions::of(self.running.id())?);
        self.running.send("g")?;
        self.running.wait_for("idle\n")
    }

    /// Whether the monitor is what it was before the attack.
    ///
    /// # Errors
    /// If it has grown.
    pub fn has_not_grown(&self) -> Result<()> {
        let Some(before) = &self.before else {
            bail!("there was no attack");
        };
        let after = Possessions::of(self.running.id())?;
        let grown = after.memory.saturating_sub(before.memory);
        println!("the monitor has grown by {grown} bytes");
        ensure!(
            grown <= MAX_GROWTH,
            "the monitor has grown by {grown} bytes"
        );
        ensure!(
            after.files <= before.files && after.threads <= before.threads,
            "{} files and {} threads have become {} and {}",
            before.files,
            before.threads,
            after.files,
            after.threads
        );
        Ok(())
    }

    /// Whether nothing runs in the monitor while its guest does nothing: no thread of it has a turn
    /// while another machine works.
    ///
    /// # Errors
    /// If it does not come to rest.
    pub fn rests(&self, other: &mut Observer) -> Result<()> {
        let mut seen = proc::turns(self.running.id())?;
        let mut busy = Vec::new();
        for _ in 0..ROUNDS {
            other.is_fine()?;
            let now = proc::turns(self.running.id())?;
            if now == seen {
                return Ok(());
            }
            let ran = now
                .iter()
                .filter(|(name, count)| seen.get(*name) != Some(*count));
            busy = ran.map(|(name, _)| name.clone()).collect();
            seen = now;
        }
        bail!("{busy:?} run although the guest does nothing")
    }

    /// Ends the machine, whose guest does not listen to anybody.
    ///
    /// # Errors
    /// If it does not end as it should.
    pub fn end(self) -> Result<Finished> {
        self.running.signal(Signal::TERM)?;
        self.running.finish()?.expect(143)
    }
}

/// A machine with a good guest, beside one that is attacked.
pub struct Observer {
    running: Running,
    asked: usize,
}

impl Observer {
    /// Boots it.
    ///
    /// # Errors
    /// If its devices do not work.
    pub fn start(place: &Place, options: &[&str]) -> Result<Self> {
        let attacker = Attacker::start(place, "attack=observe", options)?;
        attacker.running.wait_for("fine\n")?;
        let running = attacker.running;
        Ok(Self { running, asked: 1 })
    }

    /// Whether each of its devices answers a request.
    ///
    /// # Errors
    /// If one does not.
    pub fn is_fine(&mut self) -> Result<()> {
        self.running.send("x")?;
        self.asked += 1;
        self.running.wait_for_times("fine\n", self.asked)
    }

    /// Lets it power off.
    ///
    /// # Errors
    /// If it does not end as it should.
    pub fn end(mut self) -> Result<()> {
        self.running.send("q")?;
        self.running.finish()?.expect(0)?;
        Ok(())
    }
}

/// Two machines with a disk and streams. One is attacked as `words` say; it holds, has not grown and
/// comes to rest, and the other does not notice.
///
/// # Errors
/// If any of that is not so.
pub fn attack(words: &str, more: &[&str]) -> Result<()> {
    let place = Place::new()?;
    build(&place)?;
    let machine = |name: &str| -> Result<Vec<String>> {
        let disk = place.write(name, vec![0; 4 << 20])?;
        let sockets = format!("{disk}.v");
        Ok(["--disk", &disk, "--vsock", &sockets]
            .map(str::to_owned)
            .to_vec())
    };
    let (own, others) = (machine("a")?, machine("b")?);
    let listener = Listener::at(&place.path("a.v_1"))?;
    let small = ["--memory", "16M"];
    let memory = if more.contains(&"--memory") {
        &[][..]
    } else {
        &small
    };
    let others: Vec<_> = others.iter().map(String::as_str).chain(small).collect();
    let mut observer = Observer::start(&place, &others)?;
    let words = format!("attack={words}");
    let own = own.iter().map(String::as_str).chain(memory.iter().copied());
    let own: Vec<_> = own.chain(more.iter().copied()).collect();
    let mut attacker = Attacker::start(&place, &words, &own)?;
    attacker.attack()?;
    ensure!(
        !words.contains("vsock") || listener.was_reached(),
        "no connection was opened"
    );
    attacker.has_not_grown()?;
    attacker.rests(&mut observer)?;
    attacker.end()?;
    observer.end()
}

/// The same with a machine that has an agent's devices and a shared directory, whose kernel is the
/// attacker. The program that serves the directory may end; the monitor holds.
///
/// # Errors
/// If it does not.
pub fn attack_share(words: &str) -> Result<()> {
    let place = Place::new()?;
    build(&place)?;
    for folder in ["root", "share"] {
        fs::create_dir(place.path(folder))?;
    }
    place.write("root/file", "something")?;
    let line = format!("alone=1 attack={words}");
    let files = [
        "--kernel",
        "attacker",
        "--rootfs",
        "./root",
        "-v",
        "./share:/x",
    ];
    let arguments = [
        "run",
        "--rm",
        "--skip-kvm-check",
        "--memory",
        "16M",
        "--cmdline",
        &line,
    ];
    let program = place.casita([&arguments[..], &files, &["--", "none"]].concat());
    program.finish()?.expect(0)?;
    let left = place.listing()?;
    let left: Vec<_> = left.iter().filter(|name| name.contains("/vms/")).collect();
    ensure!(left.len() <= 1, "{left:?} were left");
    Ok(())
}
