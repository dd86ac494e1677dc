#include "virtio.h"

int find(struct device *d, u32 slot) {
    u64 at = SLOTS + slot * STRIDE;
    if (read32(at) != 0x74726976) return 0;
    d->at = at;
    d->kind = kind_of(read32(at + 8));
    d->buffer = BUFFERS + slot * 0x10000UL;
    negotiate(d, 0);
    for (d->queues = 0; d->queues < MAX_QUEUES; d->queues++) {
        write32(at + QUEUE_SEL, d->queues);
        u32 max = read32(at + QUEUE_MAX);
        if (!max) break;
        u64 rings = RINGS + slot * 0x20000UL + d->queues * 0x4000UL;
        d->max[d->queues] = (u16)max;
        d->queue[d->queues] = (struct queue){ rings, rings + 0x1000, rings + 0x2000, 0, 0 };
    }
    write32(at + STATUS, 0);
    return 1;
}

void set_features(struct device *d, u64 wanted) {
    for (u32 half = 0; half < 2; half++) {
        write32(d->at + DEVICE_FEATURES_SEL, half);
        u32 offered = read32(d->at + DEVICE_FEATURES);
        write32(d->at + DRIVER_FEATURES_SEL, half);
        write32(d->at + DRIVER_FEATURES, offered & (u32)(wanted >> 32 * half));
    }
}

void negotiate(struct device *d, u64 more) {
    write32(d->at + STATUS, 0);
    if (read32(d->at + STATUS)) fail("reset", d->kind->name, "the status is not 0");
    write32(d->at + STATUS, ACKNOWLEDGE);
    write32(d->at + STATUS, ACKNOWLEDGE | DRIVER);
    set_features(d, F_VERSION_1 | F_INDIRECT | d->kind->features | more);
    write32(d->at + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if (read32(d->at + STATUS) != (ACKNOWLEDGE | DRIVER | FEATURES_OK))
        fail("negotiation", d->kind->name, "the features are refused");
}

void set_address(struct device *d, u32 reg, u64 address) {
    write32(d->at + reg, (u32)address);
    write32(d->at + reg + 4, (u32)(address >> 32));
}

void lay_out(struct device *d, u32 queue) {
    struct queue *q = &d->queue[queue];
    fill(q->avail, 0, 4 + 2 * SIZE + 4);
    fill(q->used, 0, 8 + 8 * SIZE);
    q->next = q->seen = 0;
    write32(d->at + QUEUE_SEL, queue);
    write32(d->at + QUEUE_NUM, SIZE);
    set_address(d, DESC, q->desc);
    set_address(d, AVAIL, q->avail);
    set_address(d, USED, q->used);
}

void start(struct device *d, u64 more) {
    negotiate(d, more);
    for (u32 queue = 0; queue < d->queues; queue++) {
        lay_out(d, queue);
        write32(d->at + QUEUE_READY, 1);
    }
    write32(d->at + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    u32 status = read32(d->at + STATUS);
    d->lost = d->kind->helped && status & NEEDS_RESET;
    if (!d->lost && status != (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK))
        fail("start", d->kind->name, "it does not start");
}

void enter(struct device *d, u32 status) {
    if (status & DRIVER_OK) {
        start(d, 0);
    } else if (status & (FEATURES_OK | NEEDS_RESET)) {
        negotiate(d, 0);
        for (u32 queue = 0; queue < d->queues; queue++) lay_out(d, queue);
    } else {
        write32(d->at + STATUS, 0);
        if (status & ACKNOWLEDGE) write32(d->at + STATUS, ACKNOWLEDGE);
        if (status & DRIVER) write32(d->at + STATUS, ACKNOWLEDGE | DRIVER);
    }
    if (status & NEEDS_RESET) {
        /* Rings where there is nothing break any device before it runs. */
        set_address(d, DESC, ~0xfUL);
        write32(d->at + QUEUE_READY, 1);
    }
    if (status & FAILED) write32(d->at + STATUS, status);
}

void wait_broken(struct device *d) {
    while (!(read32(d->at + STATUS) & NEEDS_RESET)) relax();
}

void describe(u64 table, u32 index, u64 address, u32 len, u16 flags, u16 next) {
    u64 at = table + 16 * index;
    write64(at, address);
    write32(at + 8, len);
    write16(at + 12, flags);
    write16(at + 14, next);
}

void publish(struct device *d, u32 queue, u16 head) {
    struct queue *q = &d->queue[queue];
    write16(q->avail + 4 + 2 * (q->next % SIZE), head);
    q->next++;
    fence();
    write16(q->avail + 2, q->next);
    fence();
}

u32 wait_used(struct device *d, u32 queue, const char *during) {
    struct queue *q = &d->queue[queue];
    for (u32 turn = 1; read16(q->used + 2) == q->seen; turn++) {
        relax();
        if (turn % 4096 || !(read32(d->at + STATUS) & NEEDS_RESET)) continue;
        d->lost = d->kind->helped;
        if (d->lost) return 0;
        fail(during, d->kind->name, "it needs a reset instead of an answer");
    }
    u32 len = read32(q->used + 4 + 8 * (q->seen % SIZE) + 4);
    q->seen++;
    return len;
}

void works(struct device *d, const char *after) {
    start(d, 0);
    if (!d->kind->post || d->lost) return;
    d->kind->post(d);
    const char *wrong = d->kind->answer(d);
    if (wrong && !d->lost) fail(after, d->kind->name, wrong);
}
