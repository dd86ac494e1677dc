/*
 * /init of the peers' guests: the same steps to the same root as casita's agent takes, and then the
 * command in the kernel's own arguments (behind "--"), with the console as its standard streams.
 * There is no channel to the host, for these monitors are given none.
 *
 * It is linked with nothing: what a C library does at its start, CPUID above all, would count as
 * the monitor's.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/reboot.h>
#include <net/if.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define STAGE_PORT 0x6c0
#define STATUS_PORT 0x6c4
#define STAGE_INIT 0x10
#define FAILED 125

static long call(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

/* GCC may make calls of these two. */
void *memcpy(void *to, const void *from, unsigned long count)
{
    void *at = to;

    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
    return to;
}

void *memset(void *to, int byte, unsigned long count)
{
    void *at = to;

    __asm__ volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(byte) : "memory");
    return to;
}

static unsigned long length(const char *text)
{
    unsigned long count = 0;

    while (text[count])
        count++;
    return count;
}

static void print(const char *text)
{
    call(SYS_write, 2, (long)text, length(text), 0, 0);
}

static void write_file(const char *path, const char *text)
{
    long file = call(SYS_openat, AT_FDCWD, (long)path, O_WRONLY, 0, 0);

    if (file >= 0) {
        call(SYS_write, file, (long)text, length(text), 0, 0);
        call(SYS_close, file, 0, 0, 0, 0);
    }
}

/*
 * As casita --rm ends: the disk is not kept, so it is not written back. A status that is not 0 goes
 * to its port, where QEMU has a device that ends it with a failure.
 */
static void __attribute__((noreturn)) end(int status)
{
    write_file("/proc/sys/kernel/printk", "0");
    if (status)
        __asm__ volatile("outl %0, %1" : : "a"(status), "d"((unsigned short)STATUS_PORT));
    call(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0, 0);
    call(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, 0, 0);
    for (;;)
        call(SYS_pause, 0, 0, 0, 0, 0);
}

static long check(long result, const char *what)
{
    if (result < 0) {
        print("bench: cannot ");
        print(what);
        print("\n");
        end(FAILED);
    }
    return result;
}

static void make_directory(const char *path)
{
    long result = call(SYS_mkdir, (long)path, 0755, 0, 0, 0);

    if (result != -EEXIST)
        check(result, path);
}

static long try_mount(const char *what, const char *at, const char *type, long flags,
                      const char *options)
{
    return call(SYS_mount, (long)what, (long)at, (long)type, flags, (long)options);
}

/* The mount point is made if it is missing. */
static void mount(const char *what, const char *at, const char *type, long flags,
                  const char *options)
{
    long result = try_mount(what, at, type, flags, options);

    if (result == -ENOENT) {
        make_directory(at);
        result = try_mount(what, at, type, flags, options);
    }
    check(result, at);
}

static void make_root(void)
{
    const char *parts = "lowerdir=/image,upperdir=/disk/upper,workdir=/disk/work";

    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755");
    mount("/dev/vda", "/image", "erofs", MS_RDONLY | MS_NOATIME, 0);
    mount("/dev/vdb", "/disk", "ext4", MS_NOATIME, "discard,noinit_itable");
    make_directory("/disk/upper");
    make_directory("/disk/work");
    mount("overlay", "/joined", "overlay", MS_NOATIME, parts);
    check(try_mount("/dev", "/joined/dev", 0, MS_MOVE, 0), "move /dev");
    check(call(SYS_chdir, (long)"/joined", 0, 0, 0, 0), "enter the root");
    check(try_mount(".", "/", 0, MS_MOVE, 0), "move the root");
    check(call(SYS_chroot, (long)".", 0, 0, 0, 0), "change the root");
}

static void fill_root(void)
{
    static const char *const links[][2] = {
        { "/proc/self/fd", "/dev/fd" },
        { "/proc/self/fd/0", "/dev/stdin" },
        { "/proc/self/fd/1", "/dev/stdout" },
        { "/proc/self/fd/2", "/dev/stderr" },
    };
    const long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;

    mount("proc", "/proc", "proc", plain, "");
    mount("sysfs", "/sys", "sysfs", plain, "");
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    try_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", plain, "nsdelegate,memory_recursiveprot");
    for (unsigned i = 0; i < sizeof links / sizeof *links; i++)
        check(call(SYS_symlink, (long)links[i][0], (long)links[i][1], 0, 0, 0), links[i][1]);
}

static void bring_loopback_up(void)
{
    struct ifreq request = { .ifr_name = "lo" };
    long socket = call(SYS_socket, AF_INET, SOCK_DGRAM, 0, 0, 0);

    request.ifr_flags = IFF_UP;
    if (socket >= 0) {
        call(SYS_ioctl, socket, SIOCSIFFLAGS, (long)&request, 0, 0);
        call(SYS_close, socket, 0, 0, 0, 0);
    }
}

static int run(char *const *words)
{
    static char *const environment[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", 0 };
    int status = 0;
    long child = check(call(SYS_clone, SIGCHLD, 0, 0, 0, 0), "fork");

    if (child == 0) {
        call(SYS_setsid, 0, 0, 0, 0, 0);
        call(SYS_execve, (long)words[0], (long)words, (long)environment, 0, 0);
        call(SYS_exit, 127, 0, 0, 0, 0);
    }
    check(call(SYS_wait4, child, (long)&status, 0, 0, 0), "wait");
    return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

void __attribute__((noreturn, used)) start(long *stack)
{
    char *const *words = (char *const *)(stack + 1);

    check(call(SYS_ioperm, STAGE_PORT, 8, 1, 0, 0), "have the ports");
    __asm__ volatile("outb %0, %1" : : "a"((char)STAGE_INIT), "d"((unsigned short)STAGE_PORT));
    make_root();
    fill_root();
    call(SYS_sethostname, (long)"bench", 5, 0, 0, 0);
    bring_loopback_up();
    if (stack[0] < 2) {
        print("bench: no command\n");
        end(FAILED);
    }
    end(run(words + 1));
}

__asm__(".globl _start\n"
        "_start: xor %ebp, %ebp\n"
        "mov %rsp, %rdi\n"
        "and $-16, %rsp\n"
        "call start\n");
