/* The kinds of devices, and for each a request that is right. A new device is a line in the table. */
#include "virtio.h"

#define F_VSOCK_STREAM 1
#define NOBODY 9

static void post_rng(struct device *d) {
    describe(d->queue[0].desc, 0, d->buffer, 64, WRITE, 0);
    publish(d, 0, 0);
    kick(d, 0);
}

static const char *rng_answer(struct device *d) {
    u32 len = wait_used(d, 0, "request");
    return len >= 1 && len <= 64 ? 0 : "not as many random bytes as there is room for";
}

/* virtio 1.2, 5.2.6: reads the first sector. */
static void post_block(struct device *d) {
    u64 table = d->queue[0].desc;
    fill(d->buffer, 0, 16);
    write8(d->buffer + 16, 0xee);
    describe(table, 0, d->buffer, 16, NEXT, 1);
    describe(table, 1, d->buffer + 0x1000, 512, NEXT | WRITE, 2);
    describe(table, 2, d->buffer + 16, 1, WRITE, 0);
    publish(d, 0, 0);
    kick(d, 0);
}

static const char *block_answer(struct device *d) {
    u32 len = wait_used(d, 0, "request");
    if (read8(d->buffer + 16) != 0) return "the status is not OK";
    return len == 513 ? 0 : "not 513 bytes were written";
}

/* virtio 1.2, 5.1.6: a frame of 60 zeroes. */
static void post_net(struct device *d) {
    fill(d->buffer, 0, 72);
    describe(d->queue[1].desc, 0, d->buffer, 72, 0, 0);
    publish(d, 1, 0);
    kick(d, 1);
}

static const char *net_answer(struct device *d) {
    wait_used(d, 1, "request");
    return 0;
}

/* virtio 1.2, 5.5.6: inflates by one page, which is in its buffer. */
static void post_balloon(struct device *d) {
    u64 page = d->buffer + 0x3000;
    write8(page, 0xee);
    fill(d->buffer, 0, 16);
    write32(d->buffer, (u32)(page >> 12));
    describe(d->queue[0].desc, 0, d->buffer, 4, 0, 0);
    publish(d, 0, 0);
    kick(d, 0);
}

static const char *balloon_answer(struct device *d) {
    wait_used(d, 0, "request");
    return read8(d->buffer + 0x3000) == 0 ? 0 : "the page is still there";
}

/* virtio 1.2, 5.10.6: asks for a connection to a port of the host at which nobody listens. */
static void post_vsock(struct device *d) {
    u64 table = d->queue[0].desc, header = d->buffer;
    for (u16 at = 0; at < 4; at++) {
        describe(table, at, d->buffer + 0x1000 + 0x1000UL * at, 0x1000, WRITE, 0);
        publish(d, 0, at);
    }
    kick(d, 0);
    fill(header, 0, 48);
    write64(header, read32(d->at + CONFIG));
    write64(header + 8, 2);
    write32(header + 16, 5);
    write32(header + 20, NOBODY);
    write16(header + 28, 1);
    write16(header + 30, 1);
    describe(d->queue[1].desc, 0, header, 44, 0, 0);
    publish(d, 1, 0);
    kick(d, 1);
}

static const char *vsock_answer(struct device *d) {
    wait_used(d, 1, "request");
    if (wait_used(d, 0, "answer") < 44) return "less than a header was received";
    u64 header = d->buffer + 0x1000;
    return read16(header + 30) == 3 && read32(header + 16) == NOBODY ? 0 : "no RST came";
}

/* FUSE 7.31: an INIT, to the first queue for requests. */
static void post_fs(struct device *d) {
    u64 request = d->buffer, table = d->queue[1].desc;
    fill(request, 0, 0x200);
    write32(request, 40 + 16);
    write32(request + 4, 26);
    write64(request + 8, 77);
    write32(request + 40, 7);
    write32(request + 44, 31);
    write32(request + 48, 0x10000);
    describe(table, 0, request, 56, NEXT, 1);
    describe(table, 1, request + 0x100, 0x100, WRITE, 0);
    publish(d, 1, 0);
    kick(d, 1);
}

static const char *fs_answer(struct device *d) {
    u32 len = wait_used(d, 1, "request");
    if (len < 16) return "less than a header was answered";
    return read64(d->buffer + 0x108) == 77 && read32(d->buffer + 0x104) == 0 ? 0 : "INIT was refused";
}

static const struct kind kinds[] = {
    /* id, name, features, queues whose chains are taken at once, helped, a request, its answer */
    { 1, "net", 0, 1 << 1, 0, post_net, net_answer },
    { 2, "block", 0, 1 << 0, 0, post_block, block_answer },
    { 4, "rng", 0, 1 << 0, 0, post_rng, rng_answer },
    { BALLOON, "balloon", 0, 1 << 0, 0, post_balloon, balloon_answer },
    { 19, "vsock", F_VSOCK_STREAM, 1 << 1, 0, post_vsock, vsock_answer },
    /* Its chains are taken by a program of the host's, which has its own way with bad ones. */
    { 26, "fs", 0, 0, 1, post_fs, fs_answer },
    { 0, "unknown device", 0, 0, 0, 0, 0 },
};

const struct kind *kind_of(u32 id) {
    u32 at = 0;
    while (kinds[at].id && kinds[at].id != id) at++;
    return &kinds[at];
}
