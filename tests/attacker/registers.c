#include "attacks.h"

#define REGISTERS 0x200

static const u64 values[] = { ~0UL, 0, 1, 0x80000001, 0x0000100000000008 };

static void at_offset(struct device *d, u32 status, u32 offset, u32 width) {
    for (u32 value = 0; value < COUNT(values); value++) {
        /* Another status is another case of the loop around this. */
        if (read32(d->at + STATUS) != status) enter(d, status);
        write_any(d->at + offset, width, values[value]);
        read_any(d->at + offset, width);
    }
}

void attack_registers(struct device *d) {
    static const u32 statuses[] = { 0, 1, 3, 11, 15, 3 | FAILED, 11 | NEEDS_RESET };
    u32 step = (u32)option("step", 1), turn = 0;
    for (u32 at = 0; at < COUNT(statuses); at++)
        for (u32 width = 1; width <= 8; width *= 2)
            for (u32 offset = 0; offset + width <= REGISTERS; offset++)
                if (turn++ % step == 0) at_offset(d, statuses[at], offset, width);
    /* Whatever is written to the status, in any order. */
    for (u32 status = 0; status < 256; status += step) {
        write32(d->at + STATUS, status);
        write32(d->at + STATUS, status << 8 | 1);
    }
    for (u32 offset = REGISTERS; offset < STRIDE; offset += 8 * step) {
        write64(d->at + offset, ~0UL);
        read64(d->at + offset);
    }
}
