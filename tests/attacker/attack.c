/* A guest that attacks its monitor. It says "ready" and waits for a byte; then it carries out what
 * the command line asks for (`attack=NAME,NAME`, all if it does not say), checks after each attack
 * that each device works again, says "idle" and does nothing for ever.
 *
 * With `attack=observe` it is a good guest instead: for each byte that it hears it sends one
 * request to each device, and says "fine". A `q` ends it. */
#include "attacks.h"

static const struct attack {
    const char *name;
    void (*run)(struct device *);
} attacks[] = {
    { "registers", attack_registers },
    { "queues", attack_queues },
    { "chains", attack_chains },
    { "kicks", attack_kicks },
    { "resets", attack_resets },
    { "vsock", attack_vsock },
    { "headers", attack_headers },
    { "random", attack_random },
};

static struct device devices[MAX_SLOTS];
static u32 count;

static void all_work(const char *after) {
    for (u32 at = 0; at < count; at++) works(&devices[at], after);
}

static void carry_out(const struct attack *attack) {
    if (!asked_for(attack->name)) return;
    for (u32 at = 0; at < count; at++) {
        attack->run(&devices[at]);
        works(&devices[at], attack->name);
        say(devices[at].kind->name);
        say(" works\n");
    }
    all_work(attack->name);
    say(attack->name);
    say(": held\n");
}

static void observe(void) {
    do {
        all_work("observation");
        say("fine\n");
    } while (hear() != 'q');
    power_off(0);
}

/* What the attacks use of RAM belongs to the monitor before they begin, so that what grows is the
 * monitor. */
static void touch(void) {
    u64 some = low_ram_end < 64UL << 20 ? low_ram_end : 64UL << 20;
    for (u64 at = 0; at < some; at += 4096) write8(at, read8(at));
    for (u64 at = low_ram_end - 0x10000; at < low_ram_end; at += 4096) write8(at, read8(at));
}

void attack(u64 zero_page) {
    set_up(zero_page);
    for (u32 slot = 0; slot < MAX_SLOTS; slot++) count += (u32)find(&devices[count], slot);
    for (u32 at = 0; at < count; at++) {
        say(devices[at].kind->name);
        say(at + 1 < count ? " " : "\n");
    }
    all_work("nothing");
    if (option("attack", ~0UL) != ~0UL && asked_for("observe")) observe();
    touch();
    say("ready\n");
    /* A monitor that waits for its own agent has no use for the serial port's input. */
    int alone = option("alone", 0) != 0;
    if (!alone) hear();
    for (u32 at = 0; at < COUNT(attacks); at++) carry_out(&attacks[at]);
    if (asked_for("ports")) {
        attack_ports();
        all_work("ports");
        say("ports: held\n");
    }
    second_stops = 1;
    say("idle\n");
    if (alone) power_off(0);
    for (;;) asm volatile("cli; hlt");
}
