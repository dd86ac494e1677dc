#include "attacks.h"

struct descriptor {
    u64 address;
    u32 len;
    u16 flags, next;
};

/* Where RAM is not, and what is in TABLES: filled in when it runs. */
enum { B = BUFFERS_END - 0x20000 };
#define BEYOND 1
#define ACROSS 2
#define ABOVE 3
#define TABLE(number) (TABLES + 0x4000UL * (number))

/* Tables for indirect descriptors. */
static void make_tables(void) {
    describe(TABLE(0), 0, TABLE(0), 32, INDIRECT, 0); /* in itself */
    describe(TABLE(0), 1, B, 16, 0, 0);
    describe(TABLE(1), 0, B, 16, NEXT, 1); /* a circle */
    describe(TABLE(1), 1, B, 16, NEXT, 0);
    describe(TABLE(2), 0, B, 16, NEXT, 2); /* out of it */
    describe(TABLE(3), 0, B, 16, WRITE | NEXT, 1); /* the wrong way round */
    describe(TABLE(3), 1, B, 16, 0, 0);
    for (u16 at = 0; at < 1024; at++) { /* 8 GiB in sum, and longer than any queue */
        u16 last = at == 1023;
        describe(TABLE(4), at, BUFFERS, 0x600000, last ? 0 : NEXT, last ? 0 : at + 1);
        describe(TABLE(5), at, B, 1, (last ? 0 : NEXT) | (at ? WRITE : 0), last ? 0 : at + 1);
    }
}

static const struct chain {
    const char *name;
    struct descriptor descriptors[3];
    /* The head, and how far the available index goes. */
    u16 head, steps;
    /* The device has to notice. */
    int bad;
} chains[] = {
    { "circle of one", { { B, 16, NEXT, 0 } }, 0, 1, 1 },
    { "circle of two", { { B, 16, NEXT, 1 }, { B, 16, NEXT, 0 } }, 0, 1, 1 },
    { "circle of empty buffers", { { B, 0, NEXT, 1 }, { B, 0, NEXT, 0 } }, 0, 1, 1 },
    { "next outside of the table", { { B, 16, NEXT, SIZE } }, 0, 1, 1 },
    { "next far outside", { { B, 16, NEXT, 0xffff } }, 0, 1, 1 },
    { "readable after writable", { { B, 16, NEXT | WRITE, 1 }, { B, 16, 0, 0 } }, 0, 1, 1 },
    { "4 GiB to write", { { B, 0xffffffff, WRITE, 0 } }, 0, 1, 1 },
    { "4 GiB to read", { { B, 0xffffffff, 0, 0 } }, 0, 1, 1 },
    { "beyond RAM", { { BEYOND, 16, WRITE, 0 } }, 0, 1, 1 },
    { "across its end", { { ACROSS, 16, WRITE, 0 } }, 0, 1, 1 },
    { "above all RAM", { { ABOVE, 16, 0, 0 } }, 0, 1, 1 },
    { "in the MMIO hole", { { SLOTS, 16, WRITE, 0 } }, 0, 1, 1 },
    { "at the APIC", { { 0xfee00000, 16, WRITE, 0 } }, 0, 1, 1 },
    { "across the last address", { { ~7UL, 16, WRITE, 0 } }, 0, 1, 1 },
    { "indirect in itself", { { TABLE(0), 32, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect circle", { { TABLE(1), 32, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect that leads out", { { TABLE(2), 32, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect the wrong way round", { { TABLE(3), 32, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect of 6 GiB", { { TABLE(4), 1024 * 16, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect and next", { { TABLE(5), 32, INDIRECT | NEXT, 1 }, { B, 16, 0, 0 } }, 0, 1, 1 },
    { "indirect of nothing", { { TABLE(5), 0, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect of half a descriptor", { { TABLE(5), 24, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect of 4 GiB", { { TABLE(5), 0xfffffff0, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect beyond RAM", { { BEYOND, 32, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect across the end of RAM", { { ACROSS, 32, INDIRECT, 0 } }, 0, 1, 1 },
    { "indirect in the MMIO hole", { { SLOTS, 32, INDIRECT, 0 } }, 0, 1, 1 },
    { "head outside of the table", { { B, 16, 0, 0 } }, SIZE, 1, 1 },
    { "head far outside", { { B, 16, 0, 0 } }, 0xffff, 1, 1 },
    { "index one too far", { { B, 16, WRITE, 0 } }, 0, SIZE + 1, 1 },
    { "index half way round", { { B, 16, WRITE, 0 } }, 0, 0x8000, 1 },
    { "index backwards", { { B, 16, WRITE, 0 } }, 0, 0xffff, 1 },
    { "empty to read", { { B, 0, 0, 0 } }, 0, 1, 0 },
    { "empty to write", { { B, 0, WRITE, 0 } }, 0, 1, 0 },
    { "writable where readable is due", { { B, 16, WRITE, 0 } }, 0, 1, 0 },
    { "readable where writable is due", { { B, 16, 0, 0 } }, 0, 1, 0 },
    { "one byte to read", { { B, 1, 0, 0 } }, 0, 1, 0 },
    { "all of RAM to write", { { BUFFERS, BUFFERS_END - BUFFERS, WRITE, 0 } }, 0, 1, 0 },
    { "all of RAM to read", { { BUFFERS, BUFFERS_END - BUFFERS, 0, 0 } }, 0, 1, 0 },
    { "a header and all of RAM", { { B, 16, NEXT, 1 }, { BUFFERS, 0x400000, WRITE, 0 } }, 0, 1, 0 },
    { "longer than the queue", { { TABLE(5), 1024 * 16, INDIRECT, 0 } }, 0, 1, 0 },
    { "one chain in all places", { { B, 16, WRITE, 0 } }, 0, SIZE, 0 },
};

static u64 place(u64 address) {
    switch (address) {
    case BEYOND: return low_ram_end;
    case ACROSS: return low_ram_end - 8;
    case ABOVE: return ram_end < 1UL << 32 ? 1UL << 32 : ram_end;
    default: return address;
    }
}

static void send(struct device *d, u32 queue, const struct chain *chain) {
    struct queue *q = &d->queue[queue];
    for (u32 at = 0; at < COUNT(chain->descriptors); at++) {
        const struct descriptor *one = &chain->descriptors[at];
        describe(q->desc, at, place(one->address), one->len, one->flags, one->next);
    }
    for (u32 at = 0; at < SIZE; at++) write16(q->avail + 4 + 2 * at, chain->head);
    fence();
    write16(q->avail + 2, chain->steps);
    fence();
    kick(d, queue);
}

void attack_chains(struct device *d) {
    make_tables();
    for (u32 queue = 0; queue < d->queues; queue++) {
        for (u32 at = 0; at < COUNT(chains); at++) {
            start(d, 0);
            send(d, queue, &chains[at]);
            if (!chains[at].bad || !(d->kind->eager & 1 << queue)) {
                for (u32 turn = 0; turn < 200; turn++) relax();
                kick(d, queue);
                continue;
            }
            if (option("verbose", 0)) say(chains[at].name), say("\n");
            wait_broken(d);
            /* It has stopped for good, whatever is kicked, until it is reset. */
            u16 used = read16(d->queue[queue].used + 2);
            send(d, queue, &chains[COUNT(chains) - 1]);
            for (u32 turn = 0; turn < 200; turn++) relax();
            if (read16(d->queue[queue].used + 2) != used) fail("chains", d->kind->name, "a broken queue went on");
        }
        works(d, "chains");
    }
}
