//! What this process has used, getrusage(2).
#![allow(unsafe_code, reason = "a system call of the C library's")]

use super::result::MonitorUsage;

/// Of all its threads, since its start.
pub(super) fn of_this_process() -> MonitorUsage {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: a whole rusage, of which all zeros are one too, in case that it fails.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let ms = |time: libc::timeval| {
        let ms = time.tv_sec * 1000 + time.tv_usec / 1000;
        u64::try_from(ms).unwrap_or_default()
    };
    let kib = u64::try_from(usage.ru_maxrss).unwrap_or_default();
    MonitorUsage {
        user_ms: ms(usage.ru_utime),
        system_ms: ms(usage.ru_stime),
        memory_peak_bytes: kib << 10,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_used_memory() {
        assert!(super::of_this_process().memory_peak_bytes > 1 << 20);
    }
}
