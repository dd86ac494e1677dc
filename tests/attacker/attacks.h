/* The attacks. Each leaves the device in whatever state it got it into. */
#pragma once

#include "virtio.h"

/* Every register with every width in every status. */
void attack_registers(struct device *d);
/* Addresses and sizes of queues. */
void attack_queues(struct device *d);
/* Descriptors and available rings. */
void attack_chains(struct device *d);
/* More kicks than anybody can serve. */
void attack_kicks(struct device *d);
/* Resets while requests are in flight. */
void attack_resets(struct device *d);
/* Requests that another processor rewrites while they are served. */
void attack_headers(struct device *d);
/* Anything, in any order. */
void attack_random(struct device *d);
/* Packets, to a socket device alone. */
void attack_vsock(struct device *d);
/* All I/O ports but those that end the machine, and memory without RAM and devices. */
void attack_ports(void);
