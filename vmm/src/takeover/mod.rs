//! A monitor that was taken over, for tests: one of its threads does what an attacker would, and
//! tells how far that got. In builds with the feature `takeover` only, and in no release build.
//!
//! `CASITA_TAKEOVER=ROLE:ATTACK` says which thread attacks how; `CASITA_TAKEOVER_WITHOUT`, a list of
//! layers' names, leaves these out, so that a test can see which of them stands in the way.

#![allow(unsafe_code, reason = "an attacker's system calls")]

use std::env;
use std::ffi::CStr;
use std::io;
use std::ptr;

use crate::confine::{Layer, Role};

#[cfg(not(debug_assertions))]
compile_error!("the feature takeover is for debug builds: it attacks the host");

/// Whether a layer is left out.
pub fn is_without(layer: Layer) -> bool {
    env::var("CASITA_TAKEOVER_WITHOUT")
        .is_ok_and(|without| without.split(',').any(|name| name == layer.name()))
}

/// Called by a thread of `role` once it is confined: attacks if it was told to.
pub fn strike(role: Role) {
    let Ok(order) = env::var("CASITA_TAKEOVER") else {
        return;
    };
    let Some((who, attack)) = order.split_once(':') else {
        return;
    };
    if who == role.name() {
        let result = run(attack);
        eprintln!("takeover: {who} {attack}: {result}");
    }
}

/// What a system call returned.
fn told(result: libc::c_long) -> String {
    if result < 0 {
        let number = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        format!("denied by error {}", name(number))
    } else {
        "done".to_owned()
    }
}

fn name(number: i32) -> String {
    let names = [
        (libc::EPERM, "EPERM"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOENT, "ENOENT"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EINVAL, "EINVAL"),
        (libc::EFBIG, "EFBIG"),
        (libc::EROFS, "EROFS"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
    ];
    let found = names.into_iter().find(|(known, _)| *known == number);
    found.map_or_else(|| number.to_string(), |(_, name)| name.to_owned())
}

fn number_of(variable: &str) -> i32 {
    let value = env::var(variable).unwrap_or_default();
    value.parse().unwrap_or(-1)
}

fn run(attack: &str) -> String {
    // SAFETY: the arguments of each call are what it takes; that the call is not meant to be made
    // is the point.
    unsafe {
        match attack {
            "read-file" => open(c"/etc/passwd", libc::O_RDONLY),
            "read-secret" => open(c"/etc/shadow", libc::O_RDONLY),
            "read-process" => open(c"/proc/1/environ", libc::O_RDONLY),
            "fill-disk" => open(c"/tmp/casita-takeover", libc::O_WRONLY | libc::O_CREAT),
            "grow-file" => grow(),
            "signal" => told(libc::kill(number_of("CASITA_TAKEOVER_PID"), 0).into()),
            "queue-signal" => told(libc::syscall(
                libc::SYS_rt_sigqueueinfo,
                number_of("CASITA_TAKEOVER_PID"),
                0,
                ptr::null::<u8>(),
            )),
            "trace" => told(libc::ptrace(
                libc::PTRACE_SEIZE,
                number_of("CASITA_TAKEOVER_PID"),
                0,
                0,
            )),
            "connect" => connect(),
            "load-module" => told(libc::syscall(
                libc::SYS_init_module,
                ptr::null::<u8>(),
                0,
                c"".as_ptr(),
            )),
            "mount" => told(
                libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    ptr::null(),
                )
                .into(),
            ),
            "become-root" => told(libc::syscall(libc::SYS_setuid, 0)),
            "execute" => {
                let arguments = [c"/bin/true".as_ptr(), ptr::null()];
                told(libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr()).into())
            }
            "make-machine" => make_machine(),
            "new-code" => told(libc::mmap(
                ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            ) as libc::c_long),
            "type-into-terminal" => told(libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()).into()),
            "fork" => match libc::fork() {
                0 => libc::_exit(0),
                other => told(other.into()),
            },
            "new-ring" => {
                let mut parameters = [0_u8; 120];
                told(libc::syscall(
                    libc::SYS_io_uring_setup,
                    8,
                    parameters.as_mut_ptr(),
                ))
            }
            "thread-bomb" => thread_bomb(),
            "eat-memory" => eat_memory(),
            other => format!("no such attack: {other}"),
        }
    }
}

unsafe fn open(path: &CStr, flags: libc::c_int) -> String {
    // SAFETY: the path is a string that ends.
    told(unsafe { libc::open(path.as_ptr(), flags, 0o600) }.into())
}

unsafe fn connect() -> String {
    let port = u16::try_from(number_of("CASITA_TAKEOVER_PORT")).unwrap_or(0);
    // SAFETY: the address is a plain structure, and as long as is said.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as libc::sa_family_t;
        address.sin_port = port.to_be();
        address.sin_addr.s_addr = u32::from(std::net::Ipv4Addr::LOCALHOST).to_be();
        told(
            libc::connect(
                socket,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
            .into(),
        )
    }
}

/// Asks each descriptor for a new machine: one of them may be KVM's.
unsafe fn make_machine() -> String {
    const KVM_CREATE_VM: libc::Ioctl = 0xae01;
    let made = (0..64).any(|fd| {
        // SAFETY: the call takes a number.
        unsafe { libc::ioctl(fd, KVM_CREATE_VM, 0) >= 0 }
    });
    if made { "done".to_owned() } else { told(-1) }
}

/// Writes far behind the end of each file that can be written to.
unsafe fn grow() -> String {
    let mut grown = false;
    let mut denied = String::new();
    for fd in 3..64 {
        // SAFETY: the byte is there, and the place is in a file or the call fails.
        unsafe {
            let mut found: libc::stat = std::mem::zeroed();
            if libc::fstat(fd, &raw mut found) < 0
                || found.st_mode & libc::S_IFMT != libc::S_IFREG
                || libc::fcntl(fd, libc::F_GETFL) & libc::O_ACCMODE == libc::O_RDONLY
            {
                continue;
            }
            match libc::pwrite(fd, c"x".as_ptr().cast(), 1, 1 << 42) {
                1 => grown = true,
                _ => denied = told(-1),
            }
        }
    }
    if grown { "done".to_owned() } else { denied }
}

/// More threads than a host has room for.
fn thread_bomb() -> String {
    let mut threads = Vec::new();
    loop {
        if threads.len() > 20_000 {
            return "done".to_owned();
        }
        match std::thread::Builder::new()
            .stack_size(16 << 10)
            .spawn(std::thread::park)
        {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let count = threads.len();
                for thread in threads {
                    thread.thread().unpark();
                    let _ = thread.join();
                }
                let number = error.raw_os_error().unwrap_or(0);
                return format!("denied by error {} after {count} threads", name(number));
            }
        }
    }
}

/// Maps and touches memory, up to 64 GiB.
unsafe fn eat_memory() -> String {
    const PIECE: usize = 64 << 20;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    for count in 0..1024 {
        // SAFETY: new memory, which nothing else uses.
        unsafe {
            let piece = libc::mmap(ptr::null_mut(), PIECE, protection, flags, -1, 0);
            if piece == libc::MAP_FAILED {
                return format!("{} after {} MiB", told(-1), count * (PIECE >> 20));
            }
            piece.cast::<u8>().write_volatile(1);
        }
    }
    "done".to_owned()
}
