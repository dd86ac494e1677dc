#include "attacks.h"

/* What each part of a queue of SIZE takes, and its alignment (virtio 1.2, 2.7). */
static const struct part {
    u32 reg, len, align;
} parts[] = { { DESC, 16 * SIZE, 16 }, { AVAIL, 6 + 2 * SIZE, 2 }, { USED, 6 + 8 * SIZE, 4 } };

/* Chooses an address; whether the device has to refuse it, it has to tell. */
static void address(struct device *d, u32 queue, const struct part *part, u64 where, int refused) {
    enter(d, 11);
    lay_out(d, queue);
    set_address(d, part->reg, where);
    write32(d->at + QUEUE_READY, 1);
    u32 ready = read32(d->at + QUEUE_READY), status = read32(d->at + STATUS);
    if (refused && (ready || !(status & NEEDS_RESET)))
        fail("queues", d->kind->name, "an address outside of RAM was taken");
    if (!refused && (!ready || status & NEEDS_RESET))
        fail("queues", d->kind->name, "an address in RAM was refused");
    write32(d->at + STATUS, 15);
    kick(d, queue);
}

static void addresses(struct device *d, u32 queue, const struct part *part) {
    u64 outside[] = { part->align / 2, low_ram_end - part->align, low_ram_end, 0xbffffff0, SLOTS, d->at,
        0xfec00000, 0xfee00000, 0xfffffff0, ram_end < 1UL << 32 ? 1UL << 32 : ram_end, 1UL << 40, 1UL << 47,
        1UL << 63, ~0xfUL, ~0UL };
    for (u32 at = 0; at < COUNT(outside); at++) address(d, queue, part, outside[at], 1);
    address(d, queue, part, (low_ram_end - part->len) & ~15UL, 0);
    if (ram_end > 1UL << 32) address(d, queue, part, (ram_end - part->len) & ~15UL, 0);
}

static void sizes(struct device *d, u32 queue) {
    u32 bad[] = { 0, 3, SIZE + 1, d->max[queue] + 1U, 2U * d->max[queue], 0xffff, 0x10000, 0x10008, ~0U };
    for (u32 at = 0; at < COUNT(bad); at++) {
        enter(d, 11);
        lay_out(d, queue);
        write32(d->at + QUEUE_NUM, bad[at]);
        write32(d->at + QUEUE_READY, 1);
        if (read32(d->at + QUEUE_READY)) fail("queues", d->kind->name, "an impossible size was taken");
        if (!(read32(d->at + STATUS) & NEEDS_RESET)) fail("queues", d->kind->name, "a bad size is not told");
        write32(d->at + STATUS, 15);
        kick(d, queue);
    }
}

/* All parts in one place, which the device then reads and writes at once. */
static void overlap(struct device *d, u32 queue) {
    enter(d, 11);
    lay_out(d, queue);
    for (u32 part = 0; part < COUNT(parts); part++) set_address(d, parts[part].reg, d->queue[queue].desc);
    for (u32 word = 0; word < 64; word++) write32(d->queue[queue].desc + 4 * word, 0x00020001);
    write32(d->at + QUEUE_READY, 1);
    write32(d->at + STATUS, 15);
    for (u32 turn = 0; turn < 50; turn++) kick(d, queue);
}

/* Settings are frozen at DRIVER_OK: a request goes through the old ones. */
static void changed_later(struct device *d) {
    start(d, 0);
    for (u32 queue = 0; queue < d->queues + 1; queue++) {
        write32(d->at + QUEUE_SEL, queue);
        write32(d->at + QUEUE_NUM, 2);
        write32(d->at + QUEUE_NUM, 0x8000);
        for (u32 part = 0; part < COUNT(parts); part++) set_address(d, parts[part].reg, ~0xfUL);
        write32(d->at + QUEUE_READY, 0);
        if (queue < d->queues && read32(d->at + QUEUE_READY) != 1)
            fail("queues", d->kind->name, "a running queue was taken back");
    }
    if (!d->kind->post || d->lost) return;
    d->kind->post(d);
    const char *wrong = d->kind->answer(d);
    if (wrong && !d->lost) fail("queues", d->kind->name, wrong);
}

void attack_queues(struct device *d) {
    for (u32 queue = 0; queue < d->queues; queue++) {
        for (u32 part = 0; part < COUNT(parts); part++) addresses(d, queue, &parts[part]);
        sizes(d, queue);
        overlap(d, queue);
    }
    changed_later(d);
    /* None of its queues. */
    enter(d, 11);
    write32(d->at + STATUS, 15);
    for (u32 queue = 0; queue < 4; queue++) kick(d, queue);
}
