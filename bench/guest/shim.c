/*
 * Interposed (LD_PRELOAD) in a monitor under test: notes the time of one event, so that every
 * monitor is measured by the same clock at the same point, whatever it reports itself.
 *
 * BENCH_STAMP_FILE  where CLOCK_MONOTONIC goes, in nanoseconds, as text
 * BENCH_STAMP_AT    "kvm-run": before the first ioctl(KVM_RUN), which then ends the process;
 *                   "exit": in exit(), which QEMU calls when a guest writes to isa-debug-exit
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int stamp_file = -1;

/* At the start: a monitor that confines itself can't open anything by the time of the event. */
__attribute__((constructor)) static void open_stamp_file(void)
{
    const char *path = getenv("BENCH_STAMP_FILE");

    if (path)
        stamp_file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}

static void stamp(const struct timespec *now)
{
    char text[32];
    int length = snprintf(text, sizeof text, "%lld", now->tv_sec * 1000000000LL + now->tv_nsec);

    if (pwrite(stamp_file, text, length, 0) != length)
        _exit(99);
}

static int asked_for(const char *event)
{
    const char *at = getenv("BENCH_STAMP_AT");

    return at && strcmp(at, event) == 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    struct timespec now;
    va_list list;
    void *argument;

    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    if (request == KVM_RUN) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (asked_for("kvm-run")) {
            stamp(&now);
            _exit(0);
        }
    }
    return syscall(SYS_ioctl, fd, request, argument);
}

void exit(int status)
{
    struct timespec now;
    void (*real)(int) __attribute__((noreturn)) = dlsym(RTLD_NEXT, "exit");

    clock_gettime(CLOCK_MONOTONIC, &now);
    if (asked_for("exit"))
        stamp(&now);
    real(status);
}
