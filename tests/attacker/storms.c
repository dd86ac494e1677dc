#include "attacks.h"

static void storm(struct device *d, u32 count) {
    static const u32 nobody[] = { 64, 0xffff, 0x10000, 0xffffffff };
    for (u32 turn = 0; turn < count; turn++) {
        for (u32 queue = 0; queue < d->queues; queue++) kick(d, queue);
        kick(d, nobody[turn % COUNT(nobody)]);
        write8(d->at + NOTIFY, 0);
        write16(d->at + NOTIFY, 0);
        write64(d->at + NOTIFY, 0);
        write32(d->at + INTERRUPT_ACK, ~0U);
        /* Chains that nobody fills in, ever more of them. */
        for (u32 queue = 0; queue < d->queues && turn % 8 == 0; queue++)
            write16(d->queue[queue].avail + 2, (u16)(SIZE * (turn / 8 & 1)));
    }
}

void attack_kicks(struct device *d) {
    static const u32 statuses[] = { 0, 3, 11, 15, 11 | NEEDS_RESET };
    u32 count = (u32)(2000 / option("step", 1));
    for (u32 at = 0; at < COUNT(statuses); at++) {
        enter(d, statuses[at]);
        storm(d, count);
    }
    /* Rings full of chains, kicked again and again. */
    start(d, 0);
    for (u32 queue = 0; queue < d->queues; queue++)
        for (u16 at = 0; at < SIZE; at++) describe(d->queue[queue].desc, at, d->buffer, 64, at & 1 ? WRITE : 0, 0);
    for (u32 turn = 0; turn < count; turn++)
        for (u32 queue = 0; queue < d->queues; queue++) {
            publish(d, queue, (u16)(turn % SIZE));
            kick(d, queue);
        }
}

#define UNTOUCHED 0xa5
#define AREA 0x10000

/* After a reset the memory is the driver's again: nothing is written to it any more. */
static void untouched(struct device *d) {
    fill(d->buffer, UNTOUCHED, AREA);
    for (u32 queue = 0; queue < d->queues; queue++) fill(d->queue[queue].used, UNTOUCHED, 0x1000);
    for (u32 turn = 0; turn < 300; turn++) relax();
    for (u64 at = d->buffer; at < d->buffer + AREA; at += 64)
        if (read8(at) != UNTOUCHED) fail("resets", d->kind->name, "a buffer was written to after the reset");
    for (u32 queue = 0; queue < d->queues; queue++)
        for (u64 at = 0; at < 0x1000; at += 4)
            if (read8(d->queue[queue].used + at) != UNTOUCHED)
                fail("resets", d->kind->name, "a used ring was written to after the reset");
}

/* Reads and writes of 4 KiB each to a block device; random bytes of any other. */
static void flood(struct device *d) {
    u32 queue = d->kind->eager & 2 ? 1 : 0;
    u64 table = d->queue[queue].desc;
    for (u16 at = 0; at + 2 < SIZE; at += 3) {
        fill(d->buffer + 64UL * at, 0, 64);
        describe(table, at, d->buffer + 64UL * at, 16, NEXT, at + 1);
        describe(table, at + 1, d->buffer + 0x1000 + 0xa00UL * at, 0x1000, NEXT | WRITE, at + 2);
        describe(table, at + 2, d->buffer + 64UL * at + 32, 1, WRITE, 0);
        publish(d, queue, at);
    }
    kick(d, queue);
}

void attack_resets(struct device *d) {
    u32 count = (u32)(100 / option("step", 1)) + 3;
    for (u32 turn = 0; turn < count; turn++) {
        start(d, turn & 1 ? F_EVENT_IDX : 0);
        if (turn % 3 || !d->kind->post) flood(d);
        else d->kind->post(d);
        for (u32 wait = random() % 64; wait; wait--) relax();
        write32(d->at + STATUS, 0);
        if (turn % 10 == 0) untouched(d);
    }
}

/* What the second processor rewrites: a header and a descriptor's length. */
static volatile u64 racing_buffer, racing_table;
/* Of numbers of pages: a balloon takes those, and may have what is in the buffers alone. */
static volatile u32 racing_base;

static void rewrite(void) {
    for (u32 turn = 0; !second_stops; turn++) {
        u64 buffer = racing_buffer, table = racing_table;
        if (!buffer) continue;
        write32(buffer, racing_base + turn % 14);
        write64(buffer + 8, turn & 64 ? ~0UL : racing_base + turn % 4);
        write32(table + 16 + 8, turn & 1 ? 512 : 0xffffffff);
        write16(table + 12, turn & 2 ? NEXT : NEXT | INDIRECT);
    }
}

void attack_headers(struct device *d) {
    static int running;
    if (!running && !start_second(rewrite)) return;
    running = 1;
    u32 queue = d->kind->eager & 2 ? 1 : 0;
    racing_base = d->kind->id == BALLOON ? BUFFERS >> 12 : 0;
    start(d, 0);
    for (u32 turn = 0; turn < 500; turn++) {
        u64 table = d->queue[queue].desc;
        if (read32(d->at + STATUS) & NEEDS_RESET) racing_buffer = 0, start(d, 0);
        fill(d->buffer, 0, 16);
        describe(table, 0, d->buffer, 16, NEXT, 1);
        describe(table, 1, d->buffer + 0x1000, 512, NEXT | WRITE, 2);
        describe(table, 2, d->buffer + 32, 1, WRITE, 0);
        racing_table = table;
        racing_buffer = d->buffer;
        publish(d, queue, 0);
        kick(d, queue);
    }
    racing_buffer = 0;
    /* The other processor may be at its last stores. */
    for (u32 turn = 0; turn < 10000; turn++) relax();
}

/* An address that is mostly in RAM that is for it. */
static u64 any_address(void) {
    static const u64 edges[] = { 0, ~0UL, SLOTS, 0xfffffff0, 1UL << 32, ~0xfUL };
    switch (random() % 16) {
    case 0: return edges[random() % COUNT(edges)];
    case 1: return low_ram_end - random() % 64;
    case 2: return TABLES + random() % 8 * 0x4000;
    default: return BUFFERS + random() % (BUFFERS_END - BUFFERS - 0x10000);
    }
}

static void any_descriptor(struct device *d, u64 table, u32 index) {
    u32 kind = random();
    u64 address = any_address();
    u32 len = kind & 0x100 ? random() : random() % 0x1000;
    u16 flags = kind & 0x200 ? (u16)(random() & 7) : (u16)(random() & 3);
    /* The first page is nobody's; the next ones are the attacker's own. */
    if (!address) len %= 0x1000;
    /* Numbers of pages are in the buffers, nowhere else, and are words there. */
    if (d->kind->id == BALLOON && !(flags & INDIRECT)) {
        address &= ~3UL;
        if (address >= TABLES && address < BUFFERS) address += BUFFERS - TABLES;
    }
    describe(table, index, address, len, flags, (u16)(random() % (SIZE + 1)));
}

/* A word in the buffers: for a balloon, which may have these alone, one of their pages. */
static void any_word(struct device *d) {
    u64 at = BUFFERS + random() % (BUFFERS_END - BUFFERS - 64);
    u32 word = random() % 32;
    if (d->kind->id == BALLOON) at &= ~3UL, word += BUFFERS >> 12;
    write32(at, word);
}

void attack_random(struct device *d) {
    u32 count = (u32)option("turns", 2000);
    /* What other devices have left there may be numbers of any pages. */
    if (d->kind->id == BALLOON) fill(BUFFERS, 0, BUFFERS_END - BUFFERS);
    for (u32 turn = 0; turn < count; turn++) {
        if (turn % 40 == 0) start(d, random() & 1 ? ~0UL : 0);
        u32 queue = random() % (d->queues ? d->queues : 1);
        u64 rings = d->queue[queue].desc;
        switch (random() % 8) {
        case 0: write32(d->at + 4 * (random() % 128), random()); break;
        case 1: write_any(d->at + random() % 512, 1U << random() % 4, random()); break;
        case 2: read_any(d->at + random() % 512, 1U << random() % 4); break;
        case 3: any_descriptor(d, TABLES + random() % 8 * 0x4000, random() % 32); break;
        case 4: any_word(d); break;
        case 5: write16(d->queue[queue].avail + 2, (u16)(random() & 8 ? random() : random() % 32)); break;
        default:
            for (u32 at = random() % 4; at < SIZE; at += 1 + random() % 4) any_descriptor(d, rings, at);
            publish(d, queue, (u16)(random() % (SIZE + (random() % 8 == 0))));
            kick(d, queue);
        }
    }
}
