/* A driver for virtio over MMIO (virtio 1.2, 4.2) that can keep the rules, and break them. */
#pragma once

#include "machine.h"

#define SLOTS 0xd0000000UL
#define STRIDE 0x1000UL
#define MAX_SLOTS 19
#define MAX_QUEUES 8
/* Descriptors that the driver takes of each queue; no device has less. */
#define SIZE 8

enum { DEVICE_FEATURES = 0x10, DEVICE_FEATURES_SEL = 0x14, DRIVER_FEATURES = 0x20, DRIVER_FEATURES_SEL = 0x24,
    QUEUE_SEL = 0x30, QUEUE_MAX = 0x34, QUEUE_NUM = 0x38, QUEUE_READY = 0x44, NOTIFY = 0x50,
    INTERRUPT_STATUS = 0x60, INTERRUPT_ACK = 0x64, STATUS = 0x70, DESC = 0x80, AVAIL = 0x90, USED = 0xa0,
    CONFIG = 0x100 };

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64, FAILED = 128 };

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

#define F_INDIRECT (1UL << 28)
#define F_EVENT_IDX (1UL << 29)
#define F_VERSION_1 (1UL << 32)

struct device;

/* The kind of device that takes page numbers. */
#define BALLOON 5

/* What the attacker knows of a kind of device. Whatever is not known is attacked all the same. */
struct kind {
    u32 id;
    const char *name;
    /* Features that its request needs, where they are offered. */
    u64 features;
    /* Queues whose chains are taken as soon as they are there, so that a bad one is noticed. */
    u32 eager;
    /* A program of the host's serves it, which may end when it is told nonsense. Then the device
     * says so, and needs a reset each time that it is started. */
    int helped;
    /* Puts a request that is right into the queues, which are empty, and kicks. */
    void (*post)(struct device *);
    /* Waits for its answer; what is wrong with it, or nothing. */
    const char *(*answer)(struct device *);
};

struct queue {
    u64 desc, avail, used;
    u16 next, seen;
};

struct device {
    u64 at;
    const struct kind *kind;
    u32 queues;
    u16 max[MAX_QUEUES];
    struct queue queue[MAX_QUEUES];
    /* RAM for its requests, 64 KiB. */
    u64 buffer;
    /* The program that served it is gone. */
    int lost;
};

const struct kind *kind_of(u32 id);
/* Reads which device is in a slot. False if there is none. */
int find(struct device *d, u32 slot);

void set_features(struct device *d, u64 wanted);
/* Resets it and brings it to FEATURES_OK. */
void negotiate(struct device *d, u64 more);
void set_address(struct device *d, u32 reg, u64 address);
/* Sets up a queue up to, but not including, QUEUE_READY. */
void lay_out(struct device *d, u32 queue);
/* All the way to DRIVER_OK. */
void start(struct device *d, u64 more);
/* To the given status: any of the steps of a start, FAILED, or NEEDS_RESET. */
void enter(struct device *d, u32 status);
/* Waits until the device has noticed that its queue is broken. */
void wait_broken(struct device *d);

void describe(u64 table, u32 index, u64 address, u32 len, u16 flags, u16 next);
/* Makes a chain available by its head, without a kick. */
void publish(struct device *d, u32 queue, u16 head);
static inline void kick(struct device *d, u32 queue) { write32(d->at + NOTIFY, queue); }
/* Waits for one more used chain; its length. */
u32 wait_used(struct device *d, u32 queue, const char *during);

/* Starts it as a good driver does and sends a request that has to succeed. */
void works(struct device *d, const char *after);
