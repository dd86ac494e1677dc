#include "attacks.h"

/* Writing to these is what ends a machine. */
static int ends_it(u32 port) {
    return (port >= SLEEP - 3 && port <= RESET) || (port >= I8042 - 3 && port <= I8042);
}

static void storm(u32 port, u32 value) {
    in8((u16)port), in16((u16)port), in32((u16)port);
    if (ends_it(port)) return;
    out8((u16)port, (u8)value), out16((u16)port, (u16)value), out32((u16)port, value);
}

/* A terminal of 8 bits without interrupts again. */
static void mend_serial(void) {
    out8(SERIAL + 3, 3);
    out8(SERIAL + 1, 0);
    out8(SERIAL + 4, 0);
    out8(SERIAL + 2, 0x07);
}

/* Every register of the serial port, in loop mode, so that what is written stays in it. */
static void storm_serial(u32 count) {
    for (u32 turn = 0; turn < count; turn++) {
        u32 port = 1 + random() % 7;
        u32 value = random();
        in8(SERIAL + (u16)port);
        /* Never out of loop mode, but with each other bit. */
        out8(SERIAL + (u16)port, port == 4 ? (u8)(value | 0x10) : (u8)value);
        out8(SERIAL, (u8)value);
        in8(SERIAL);
    }
    mend_serial();
}

void attack_ports(void) {
    u32 step = (u32)option("step", 1), end = (u32)option("ports", 0x10000);
    storm_serial(4000 / step);
    for (u32 port = 0; port < end; port += step) {
        if (port >= SERIAL - 3 && port < SERIAL + 8) continue;
        storm(port, port & 1 ? ~0U : 0);
    }
    /* Between RAM and devices, and behind them. */
    for (u64 at = low_ram_end < 0xc0000000 ? 0xc0000000 : low_ram_end; at < 0xfec00000; at += 0x100000UL * step) {
        write64(at + 0x800000 < 0xfec00000 ? at + 0xfff : at, ~0UL);
        read64(at);
    }
    for (u32 slot = 0; slot < MAX_SLOTS + 2; slot++) {
        write64(SLOTS + slot * STRIDE + STRIDE - 4, ~0UL);
        read64(SLOTS + slot * STRIDE + STRIDE - 1);
    }
    mend_serial();
}
