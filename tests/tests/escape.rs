//! A monitor that was taken over (`casita-takeover`) attacks its host, from each of its threads. For
//! each attack: what denies it, and, with that layer left out, what denies it then, down to the
//! last; where it is harmless, that nothing else would have.

use std::net::TcpListener;
use std::process::{Child, Command, ExitCode};

use anyhow::{Context, Result, ensure};
use casita_tests::kernel::Payload;
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;

type Body = fn() -> Result<()>;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    let binary = machine::takeover();
    suite.all_miss(
        machine::lacks_kvm()
            .or_else(|| machine::lacks_file(&binary))
            .or_else(|| (!machine::is_root()).then(|| "it takes root".to_owned())),
    );
    let tests: &[(&str, Body)] = &[
        ("files_of_the_host_can_not_be_opened", files),
        ("secrets_of_the_host_can_not_be_read", secrets),
        ("other_processes_can_not_be_looked_at", processes),
        ("the_hosts_disk_can_not_be_filled", fill_disk),
        ("its_own_disk_can_not_grow", grow_file),
        ("other_processes_can_not_be_signalled", signals),
        ("other_processes_can_not_be_traced", trace),
        ("nothing_can_be_connected_to", connect),
        ("modules_can_not_be_loaded", modules),
        ("nothing_can_be_mounted", mounts),
        ("root_can_not_be_had_again", root),
        ("programs_can_not_be_executed", programs),
        ("machines_can_not_be_made", machines),
        ("code_can_not_be_made", code),
        ("nothing_is_typed_into_the_terminal", terminal),
        ("processes_can_not_be_forked", fork),
        ("rings_that_open_files_can_not_be_made", rings),
        ("threads_come_to_an_end", threads),
        ("memory_comes_to_an_end", memory),
        ("strict_refuses_what_is_missing", strict),
        ("the_next_command_tells_of_the_violation", told),
    ];
    for (name, body) in tests {
        suite.test(name, *body);
    }
    suite.run(&Arguments::from_args())
}

/// The attack's system call is in no filter.
const KILLED: &str = "killed";
/// Nothing stands in the way.
const DONE: &str = "done";

struct Attack<'a> {
    name: &'a str,
    env: Vec<(&'a str, String)>,
    options: &'a [&'a str],
}

impl<'a> Attack<'a> {
    fn new(name: &'a str) -> Self {
        Self {
            name,
            env: Vec::new(),
            options: &[],
        }
    }

    fn with(mut self, variable: &'a str, value: u32) -> Self {
        self.env.push((variable, value.to_string()));
        self
    }

    fn run(&self, role: &str, without: &[&str]) -> Result<Finished> {
        let place = Place::new()?;
        place.write("payload", Payload::default().power_off().elf())?;
        place.write("initrd", "INITRD")?;
        let run = [
            "run",
            "--skip-kvm-check",
            "--boot",
            "plain",
            "--memory",
            "16M",
        ];
        let files = ["--kernel", "payload", "--initrd", "initrd"];
        let mut program = place
            .casita([&run[..], &files, self.options].concat())
            .binary(&machine::takeover())
            .env("CASITA_TAKEOVER", format!("{role}:{}", self.name))
            .env("CASITA_TAKEOVER_WITHOUT", without.join(","));
        for (variable, value) in &self.env {
            program = program.env(variable, value);
        }
        program.finish()
    }

    /// What came of it: [`KILLED`], [`DONE`] or the error.
    fn outcome(&self, role: &str, without: &[&str]) -> Result<String> {
        use std::os::unix::process::ExitStatusExt;
        const SIGSYS: i32 = 31;
        let finished = self.run(role, without)?;
        let mark = format!("takeover: {role} {}: ", self.name);
        let complaint = finished.complaint();
        if finished.status.signal() == Some(SIGSYS) {
            ensure!(
                complaint.contains("the sandbox ended the VM's monitor"),
                "nobody was told why:\n{finished}"
            );
            return Ok(KILLED.to_owned());
        }
        let told = complaint.lines().find_map(|line| line.strip_prefix(&mark));
        let told = told.with_context(|| format!("it was not attacked:\n{finished}"))?;
        Ok(told.trim_start_matches("denied by error ").to_owned())
    }

    /// Checks each step: the layer that denies it, with the ones before left out, and how. A vCPU's
    /// thread attacks; at first all do.
    fn is_denied(&self, steps: &[(&str, &str)]) -> Result<()> {
        let mut without: Vec<&str> = Vec::new();
        for (layer, expected) in steps {
            let roles: &[&str] = if without.is_empty() {
                &["vcpu", "io", "control"]
            } else {
                &["vcpu"]
            };
            for role in roles {
                let outcome = self.outcome(role, &without)?;
                ensure!(
                    outcome == *expected,
                    "{} by {role}: {layer} was to make it {expected:?}, and it was {outcome:?} \
                     without {without:?}",
                    self.name
                );
            }
            without.push(layer);
        }
        Ok(())
    }
}

/// Files are denied by the filters, the empty root and Landlock; beyond these, a user may read what
/// all may read.
fn files() -> Result<()> {
    Attack::new("read-file").is_denied(&[
        ("seccomp", "EACCES"),
        ("mount-namespace", "ENOENT"),
        ("landlock", "EACCES"),
        ("nothing", DONE),
    ])
}

fn secrets() -> Result<()> {
    Attack::new("read-secret").is_denied(&[
        ("seccomp", "EACCES"),
        ("mount-namespace", "ENOENT"),
        ("landlock", "EACCES"),
        ("uid", "EACCES"),
        ("nothing", DONE),
    ])
}

fn processes() -> Result<()> {
    Attack::new("read-process").is_denied(&[
        ("seccomp", "EACCES"),
        ("mount-namespace", "ENOENT"),
        ("landlock", "EACCES"),
        ("uid", "EACCES"),
    ])
}

fn fill_disk() -> Result<()> {
    let result = Attack::new("fill-disk").is_denied(&[
        ("seccomp", "EACCES"),
        ("mount-namespace", "ENOENT"),
        ("landlock", "EACCES"),
        ("nothing", DONE),
    ]);
    let _ = std::fs::remove_file("/tmp/casita-takeover");
    result
}

fn grow_file() -> Result<()> {
    let attack = Attack {
        options: &["--disk", "disk.raw,size=16M"],
        ..Attack::new("grow-file")
    };
    attack.is_denied(&[("resource-limits", "EFBIG"), ("nothing", DONE)])
}

/// A process of this test's to be attacked.
struct Victim(Child);

impl Victim {
    fn new() -> Result<Self> {
        Ok(Self(Command::new("sleep").arg("1000").spawn()?))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Landlock ends signals at the process from its version 6 on.
fn signals() -> Result<()> {
    let victim = Victim::new()?;
    let attack = Attack::new("signal").with("CASITA_TAKEOVER_PID", victim.0.id());
    attack.is_denied(&[
        ("seccomp", "EPERM"),
        ("landlock", "EPERM"),
        ("uid", "EPERM"),
        ("nothing", DONE),
    ])?;
    let attack = Attack::new("queue-signal").with("CASITA_TAKEOVER_PID", victim.0.id());
    attack.is_denied(&[("seccomp", KILLED)])
}

fn trace() -> Result<()> {
    let victim = Victim::new()?;
    let attack = Attack::new("trace").with("CASITA_TAKEOVER_PID", victim.0.id());
    attack.is_denied(&[
        ("seccomp", KILLED),
        ("landlock", "EPERM"),
        ("uid", "EPERM"),
        ("user-namespace", "EPERM"),
        ("capabilities", "EPERM"),
        ("nothing", DONE),
    ])
}

fn connect() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = u32::from(listener.local_addr()?.port());
    let attack = Attack::new("connect").with("CASITA_TAKEOVER_PORT", port);
    attack.is_denied(&[
        ("seccomp", KILLED),
        ("landlock", "EACCES"),
        ("network-namespace", "ENETUNREACH"),
        ("nothing", DONE),
    ])
}

fn modules() -> Result<()> {
    let has_modules = std::path::Path::new("/proc/modules").exists();
    let last = if has_modules { "EPERM" } else { "ENOSYS" };
    Attack::new("load-module").is_denied(&[("seccomp", KILLED), ("capabilities", last)])
}

fn mounts() -> Result<()> {
    Attack::new("mount").is_denied(&[
        ("seccomp", KILLED),
        ("landlock", "EPERM"),
        ("capabilities", "EPERM"),
    ])
}

fn root() -> Result<()> {
    Attack::new("become-root").is_denied(&[
        ("seccomp", KILLED),
        ("user-namespace", "EINVAL"),
        ("uid", "EPERM"),
    ])
}

fn programs() -> Result<()> {
    Attack::new("execute").is_denied(&[
        ("seccomp", KILLED),
        ("mount-namespace", "ENOENT"),
        ("landlock", "EACCES"),
    ])
}

fn machines() -> Result<()> {
    Attack::new("make-machine").is_denied(&[("seccomp", KILLED)])?;
    // Without the filter there is no descriptor of KVM's own to ask.
    let attack = Attack::new("make-machine");
    ensure!(attack.outcome("vcpu", &["seccomp"])? != DONE);
    Ok(())
}

fn code() -> Result<()> {
    Attack::new("new-code").is_denied(&[("seccomp", KILLED), ("nothing", DONE)])
}

fn terminal() -> Result<()> {
    Attack::new("type-into-terminal").is_denied(&[("seccomp", KILLED)])
}

fn fork() -> Result<()> {
    Attack::new("fork").is_denied(&[("seccomp", KILLED), ("nothing", DONE)])
}

/// What goes through a ring of io_uring's is seen by no filter; those that a monitor has were made
/// before, and can't open anything.
fn rings() -> Result<()> {
    Attack::new("new-ring").is_denied(&[("seccomp", KILLED), ("nothing", DONE)])
}

fn threads() -> Result<()> {
    let attack = Attack {
        options: &["--pids-limit", "64"],
        ..Attack::new("thread-bomb")
    };
    for role in ["vcpu", "control"] {
        let outcome = attack.outcome(role, &[])?;
        let count = outcome
            .strip_prefix("EAGAIN after ")
            .and_then(|rest| rest.strip_suffix(" threads"));
        let count: u32 = count.with_context(|| outcome.clone())?.parse()?;
        ensure!(count < 64, "{role} has started {count} threads");
    }
    // The thread of the queues starts none. Whoever starts one holds signals back meanwhile, so that
    // nobody is told why.
    attack.run("io", &[])?.expect_killed()?;
    Ok(())
}

fn memory() -> Result<()> {
    let attack = Attack {
        options: &["--pids-limit", "64"],
        ..Attack::new("eat-memory")
    };
    for role in ["vcpu", "io", "control"] {
        let outcome = attack.outcome(role, &[])?;
        ensure!(outcome.starts_with("ENOMEM after "), "{role}: {outcome}");
    }
    Ok(())
}

/// A layer that the host does not give: a user that there is not.
fn strict() -> Result<()> {
    let attack = Attack {
        options: &["--sandbox=strict", "--uid", "4294967295"],
        ..Attack::new("none")
    };
    let finished = attack.run("nobody", &[])?.expect(125)?;
    let complaint = finished.complaint();
    ensure!(
        complaint.lines().count() == 1 && complaint.contains("the sandbox has no "),
        "{finished}"
    );
    Ok(())
}

/// A VM with a record: its end is explained to whoever looks.
fn told() -> Result<()> {
    let place = Place::new()?;
    place.write("payload", Payload::default().power_off().elf())?;
    place.write("initrd", "INITRD")?;
    let run = [
        "run",
        "-d",
        "--name",
        "hit",
        "--skip-kvm-check",
        "--boot",
        "plain",
    ];
    let files = [
        "--memory", "16M", "--kernel", "payload", "--initrd", "initrd",
    ];
    let _ = place
        .casita([&run[..], &files].concat())
        .binary(&machine::takeover())
        .env("CASITA_TAKEOVER", "vcpu:connect")
        .finish()?;
    let listed = place.casita(["ps", "-a", "--format", "json"]).finish()?;
    let listed = listed.expect(0)?;
    if !listed.text().contains("\"hit\"") {
        // It was over before its start had been told, and nothing is left of it.
        return Ok(());
    }
    let ended = place.casita(["wait", "hit"]).finish()?.expect(0)?;
    ended.says(&["159"])?;
    let told = place.casita(["inspect", "hit"]).finish()?.expect(0)?;
    told.says(&["dead", "159", "41 (socket)"])?;
    Ok(())
}
