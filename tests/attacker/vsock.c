/* virtio 1.2, 5.10: every operation in every state, lies about credit, ports used again, floods. */
#include "attacks.h"

enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };
/* At the first the test listens, at the second nobody does. */
#define LISTENER 1
#define NOBODY 9
#define RX_BUFFERS 0x8000
#define TX_BUFFER 0x4000

struct packet {
    u64 source, target;
    u32 from, to, len;
    u16 type, op;
    u32 flags, room, taken;
};

static u64 guest;

/* Receives what there is and gives the buffers back. */
static void drain(struct device *d) {
    struct queue *q = &d->queue[0];
    while (read16(q->used + 2) != q->seen) {
        u16 head = read16(q->used + 4 + 8 * (q->seen % SIZE));
        q->seen++;
        publish(d, 0, head);
    }
    kick(d, 0);
}

static void open(struct device *d) {
    start(d, 0);
    guest = read32(d->at + CONFIG);
    for (u16 at = 0; at < 8; at++) {
        describe(d->queue[0].desc, at, d->buffer + RX_BUFFERS + 0x1000UL * at, 0x1000, WRITE, 0);
        publish(d, 0, at);
    }
    kick(d, 0);
}

/* Sends a packet with `data` bytes behind its header. A device that does not take it, because the
 * guest does not take its answers, is not waited for. False then. */
static int send(struct device *d, const struct packet *p, u32 data) {
    struct queue *q = &d->queue[1];
    u64 header = d->buffer + TX_BUFFER;
    write64(header, p->source);
    write64(header + 8, p->target);
    write32(header + 16, p->from);
    write32(header + 20, p->to);
    write32(header + 24, p->len);
    write16(header + 28, p->type);
    write16(header + 30, p->op);
    write32(header + 32, p->flags);
    write32(header + 36, p->room);
    write32(header + 40, p->taken);
    describe(q->desc, 0, header, 44 + data, 0, 0);
    publish(d, 1, 0);
    kick(d, 1);
    for (u32 turn = 0; read16(q->used + 2) == q->seen; turn++) {
        relax();
        if (turn == 20000) return 0;
    }
    q->seen++;
    return 1;
}

static int simple(struct device *d, u32 from, u32 to, u16 op, u32 data) {
    struct packet p = { guest, 2, from, to, data, 1, op, op == SHUTDOWN ? 3 : 0, 0x10000, 0 };
    return send(d, &p, data);
}

/* A connection of `from` in one of these states. */
enum { NONE, REFUSED, OPEN, HALF_CLOSED, CLOSED, STATES };

static void bring_to(struct device *d, u32 state, u32 from) {
    struct packet half = { guest, 2, from, LISTENER, 0, 1, SHUTDOWN, 2, 0x10000, 0 };
    if (state == NONE) return;
    simple(d, from, state == REFUSED ? NOBODY : LISTENER, REQUEST, 0);
    drain(d);
    if (state == HALF_CLOSED) send(d, &half, 0);
    if (state == CLOSED) simple(d, from, LISTENER, SHUTDOWN, 0);
    drain(d);
}

static void every_op(struct device *d) {
    u32 from = 1000, step = (u32)option("step", 1), turn = 0;
    for (u32 state = 0; state < STATES; state++)
        for (u16 op = 0; op < 10; op++)
            for (u32 lie = 0; lie < 8; lie++) {
                if (turn++ % step) continue;
                bring_to(d, state, ++from);
                struct packet p = { guest, 2, from, LISTENER, 100, 1, op, lie * 3, 0x10000, 0 };
                if (lie == 1) p.len = 0xffffffff;
                if (lie == 2) p.len = 0;
                if (lie == 3) p.type = 2;
                if (lie == 4) p.source = guest + 1;
                if (lie == 5) p.target = 99;
                if (lie == 6) p.room = 0, p.taken = 0xffffffff;
                if (lie == 7) p.room = 0xffffffff, p.taken = 0x80000000;
                send(d, &p, 100);
                drain(d);
            }
}

/* More data than was granted, and the same ports again and again. */
static void credit_and_ports(struct device *d, u32 count) {
    open(d);
    bring_to(d, OPEN, 50);
    for (u32 turn = 0; turn < count; turn++) {
        struct packet p = { guest, 2, 50, LISTENER, 0x3000, 1, RW, 0, turn & 1 ? 0 : 0xffffffff, turn * 0x1234567 };
        if (!send(d, &p, 0x3000)) break;
        drain(d);
    }
    open(d);
    for (u32 turn = 0; turn < count; turn++) {
        simple(d, 60, LISTENER, REQUEST, 0);
        if (turn & 1) simple(d, 60, LISTENER, turn & 2 ? RST : SHUTDOWN, 0);
        drain(d);
    }
}

/* Answers that nobody takes: neither they nor connections may grow without end. */
static void floods(struct device *d, u32 count) {
    for (u32 drains = 0; drains < 2; drains++)
        for (u32 to = LISTENER; to <= NOBODY; to += NOBODY - LISTENER) {
            open(d);
            for (u32 turn = 0; turn < count; turn++) {
                if (!simple(d, 10000 + turn, to, REQUEST, 0)) break;
                if (drains) drain(d);
            }
        }
    open(d);
    for (u32 turn = 0; turn < count && simple(d, 70, NOBODY, CREDIT_REQUEST, 0); turn++) {}
}

void attack_vsock(struct device *d) {
    if (d->kind->id != 19) return;
    u32 count = (u32)(3000 / option("step", 1));
    open(d);
    every_op(d);
    credit_and_ports(d, count / 4);
    floods(d, count);
}
