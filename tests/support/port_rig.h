/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_rig: a backend's port without an agent above it: what it tells is kept, ops are made from
 * two addresses, and progress is made until something holds or a deadline passes.
 */
#pragma once

#include <stdbool.h>

#include "base/device.h"
#include "transport/xfer/xfer_backend.h"

#define PORT_RIG_TEXT 256

typedef struct port_rig {
    const xfer_backend_t *backend;
    xfer_port_t *port;
    const char *const *params; /* key, value, …, NULL; or NULL */
    size_t notifications;
    char last_peer[PORT_RIG_TEXT];
    char last_text[PORT_RIG_TEXT]; /* the first bytes of the last notification */
    size_t last_bytes;
    size_t links_up;
    size_t links_lost;
    size_t sums_wrong;
} port_rig_t;

/* Memory that one port has mapped and one link, perhaps, imported. */
typedef struct port_rig_memory {
    weft_device_t *device;
    weft_mem_t mem;
    xfer_memory_t memory;
    weft_buffer_t key;
    void *handle; /* of the owner's map */
    void *import; /* of the reader's */
} port_rig_memory_t;

/* One op and its end. */
typedef struct port_rig_op {
    xfer_op_t op;
    xfer_extent_t extent; /* where one is enough */
    void *local;
    void *peer;
    size_t ends;
    weft_status_t status;
} port_rig_op_t;

/* WEFT_ERR_UNSUPPORTED: not to be had here. */
weft_status_t port_rig_open(port_rig_t *rig, const xfer_backend_t *backend, const char *name);
void port_rig_close(port_rig_t *rig);

/* Of rig's port to another one; aborts unless it is made. */
xfer_link_t *port_rig_connect(port_rig_t *rig, port_rig_t *to);

/* is_shared: with a memfd. Filled by a pattern of seed. Aborts when it cannot be had. */
void port_rig_map(port_rig_t *owner, port_rig_memory_t *memory, size_t bytes, bool is_shared,
                  uint32_t seed);
void port_rig_unmap(port_rig_t *owner, port_rig_memory_t *memory);
weft_status_t port_rig_import(xfer_link_t *link, port_rig_memory_t *memory);
/* Byte i of the pattern. */
uint8_t port_rig_byte(uint32_t seed, size_t i);

/* Of bytes at the same offset of both. */
void port_rig_prepare(port_rig_op_t *op, xfer_direction_t direction, port_rig_memory_t *local,
                      port_rig_memory_t *peer, uint64_t offset, uint64_t bytes);

/* A round of progress of both (either may be NULL); sleeps on neither. */
void port_rig_turn(port_rig_t *a, port_rig_t *b);
/* Turns until *count is at least that; false: 20 s have passed. */
bool port_rig_wait(port_rig_t *a, port_rig_t *b, const size_t *count, size_t least);
