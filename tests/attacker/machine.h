/* The machine as the attacker sees it: a PC of 64 bits without any software. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SERIAL 0x3f8
#define SLEEP 0x600
#define RESET 0x602
#define EXIT_STATUS 0x6c4
#define I8042 0x64

/* RAM that the attacker lays out: rings, tables that are no ring's, buffers that devices fill. */
#define RINGS 0x400000UL
#define TABLES 0x700000UL
#define BUFFERS 0x800000UL
#define BUFFERS_END 0xe00000UL

static inline void out8(u16 port, u8 value) { asm volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory"); }
static inline void out16(u16 port, u16 value) { asm volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory"); }
static inline void out32(u16 port, u32 value) { asm volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory"); }

static inline u8 in8(u16 port) {
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u16 in16(u16 port) {
    u16 value;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u32 in32(u16 port) {
    u32 value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

/* Memory and registers, one instruction each, so that the width is what it says. */
#define ACCESS(bits, suffix, constraint)                                                                   \
    static inline u##bits read##bits(u64 at) {                                                             \
        u##bits value;                                                                                     \
        asm volatile("mov" suffix " %1, %0" : "=" constraint(value) : "m"(*(volatile u##bits *)at) : "memory"); \
        return value;                                                                                      \
    }                                                                                                      \
    static inline void write##bits(u64 at, u##bits value) {                                                \
        asm volatile("mov" suffix " %1, %0" : "=m"(*(volatile u##bits *)at) : constraint(value) : "memory"); \
    }
ACCESS(8, "b", "q")
ACCESS(16, "w", "r")
ACCESS(32, "l", "r")
ACCESS(64, "q", "r")

/* A plain store of any width, and a load whose value nobody wants. */
void write_any(u64 at, u32 width, u64 value);
void read_any(u64 at, u32 width);
void fill(u64 at, u8 byte, u64 len);
static inline void relax(void) { asm volatile("pause" ::: "memory"); }
static inline void fence(void) { asm volatile("lock; addl $0, (%%rsp)" ::: "memory"); }

/* The end of RAM below 4 GiB, and that of all of it. */
extern u64 low_ram_end, ram_end;

void say(const char *text);
void say_number(u64 value);
/* Says what went wrong and ends the machine with status 1. */
void fail(const char *what, const char *device, const char *why) __attribute__((noreturn));
void power_off(u32 status) __attribute__((noreturn));
/* Waits until the host has sent a byte to the serial port. */
u8 hear(void);
/* The number behind `name=` on the command line. */
u64 option(const char *name, u64 otherwise);
/* Whether the command line asks for this attack; one without `attack=` asks for all. */
int asked_for(const char *attack);
/* The same numbers for the same `seed=`. */
u32 random(void);
/* Reads what the boot loader left, maps the devices. */
void set_up(u64 zero_page);
/* Lets the second processor run `work`, until it is asked to stop. False if there is none. */
extern volatile u32 second_stops;
int start_second(void (*work)(void));
