#include "machine.h"

/* Linux's boot protocol: where the zero page has the command line and the map of memory. */
#define CMDLINE_POINTER 0x228
#define E820_COUNT 0x1e8
#define E820_TABLE 0x2d0
#define E820_ENTRY 20
#define E820_RAM 1

#define PAGE_TABLES 0x9000UL
#define TRAMPOLINE 0x8000UL
#define LAPIC 0xfee00000UL

u64 low_ram_end, ram_end;
static const char *command_line;
static u32 state;
static void (*second_work)(void);
static volatile u32 second_runs;
volatile u32 second_stops;
/* The devices' GiB, the fourth. */
static u64 directory[512] __attribute__((aligned(4096)));

void *memset(void *at, int byte, u64 len) {
    u8 *bytes = at;
    while (len--) *bytes++ = (u8)byte;
    return at;
}

void *memcpy(void *to, const void *from, u64 len) {
    u8 *bytes = to;
    const u8 *source = from;
    while (len--) *bytes++ = *source++;
    return to;
}

void write_any(u64 at, u32 width, u64 value) {
    switch (width) {
    case 1: write8(at, (u8)value); break;
    case 2: write16(at, (u16)value); break;
    case 4: write32(at, (u32)value); break;
    default: write64(at, value);
    }
}

void read_any(u64 at, u32 width) {
    switch (width) {
    case 1: read8(at); break;
    case 2: read16(at); break;
    case 4: read32(at); break;
    default: read64(at);
    }
}

void fill(u64 at, u8 byte, u64 len) {
    u64 word = byte * 0x0101010101010101UL;
    for (u64 end = at + (len & ~7UL); at < end; at += 8) write64(at, word);
}

void say(const char *text) {
    while (*text) out8(SERIAL, (u8)*text++);
}

void say_number(u64 value) {
    char digits[21];
    u32 at = sizeof digits - 1;
    digits[at] = 0;
    do digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    say(digits + at);
}

void power_off(u32 status) {
    out32(EXIT_STATUS, status);
    out8(SLEEP, 5 << 2 | 1 << 5);
    for (;;) asm volatile("cli; hlt");
}

void fail(const char *what, const char *device, const char *why) {
    say("FAILED: ");
    say(what);
    say(" ");
    say(device);
    say(": ");
    say(why);
    say("\n");
    power_off(1);
}

u8 hear(void) {
    /* The monitor reads on only for a guest that asks to be interrupted. */
    out8(SERIAL + 1, 1);
    while (!(in8(SERIAL + 5) & 1)) relax();
    return in8(SERIAL);
}

/* What follows `name=` on the command line, or nothing. */
static const char *value_of(const char *name) {
    for (const char *at = command_line; *at; at++) {
        const char *word = at, *letter = name;
        if (at != command_line && at[-1] != ' ') continue;
        while (*letter && *word == *letter) word++, letter++;
        if (!*letter && *word == '=') return word + 1;
    }
    return 0;
}

u64 option(const char *name, u64 otherwise) {
    const char *text = value_of(name);
    if (!text) return otherwise;
    u64 value = 0;
    while (*text >= '0' && *text <= '9') value = value * 10 + (u64)(*text++ - '0');
    return value;
}

int asked_for(const char *attack) {
    const char *list = value_of("attack");
    if (!list) return 1;
    while (*list && *list != ' ') {
        const char *letter = attack;
        while (*letter && *list == *letter) list++, letter++;
        if (!*letter && (!*list || *list == ' ' || *list == ',')) return 1;
        while (*list && *list != ' ' && *list != ',') list++;
        if (*list == ',') list++;
    }
    return 0;
}

/* Marsaglia's xorshift. */
u32 random(void) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static void find_memory(u64 zero_page) {
    for (u32 entry = 0; entry < read8(zero_page + E820_COUNT); entry++) {
        u64 at = zero_page + E820_TABLE + entry * E820_ENTRY;
        u64 end = read64(at) + read64(at + 8);
        if (read32(at + 16) != E820_RAM) continue;
        if (end <= 1UL << 32 && end > low_ram_end) low_ram_end = end;
        if (end > ram_end) ram_end = end;
    }
}

/* Identity, with pages of 2 MiB that are present, writable and not cached. */
static void map_devices(void) {
    for (u64 page = 0; page < 512; page++) directory[page] = 3UL << 30 | page << 21 | 0x9b;
    write64(read64(PAGE_TABLES) / 4096 * 4096 + 3 * 8, (u64)directory | 3);
    asm volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" ::: "rax", "memory");
}

void set_up(u64 zero_page) {
    command_line = (const char *)(u64)read32(zero_page + CMDLINE_POINTER);
    state = (u32)option("seed", 1) * 2654435769U | 1;
    find_memory(zero_page);
    map_devices();
}

void second_processor(void) {
    second_runs = 1;
    second_work();
}

int start_second(void (*work)(void)) {
    extern const u8 second_start[], second_end[];
    if (option("cpus", 1) < 2) return 0;
    second_work = work;
    memcpy((void *)TRAMPOLINE, second_start, (u64)(second_end - second_start));
    write32(LAPIC + 0x310, 1 << 24);
    write32(LAPIC + 0x300, 0x4500); /* INIT */
    for (u32 turn = 0; turn < 100000; turn++) relax();
    write32(LAPIC + 0x310, 1 << 24);
    write32(LAPIC + 0x300, 0x4600 | TRAMPOLINE >> 12); /* start-up */
    while (!second_runs) relax();
    return 1;
}
