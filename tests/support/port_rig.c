/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/port_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define DEADLINE_NS (20 * WEFT_NS_PER_SECOND)

static const char *get_param(void *user, const char *key)
{
    const port_rig_t *rig = user;
    for (const char *const *at = rig->params; at != NULL && *at != NULL; at += 2) {
        if (strcmp(key, at[0]) == 0) {
            return at[1];
        }
    }
    return NULL;
}

static void keep_notification(void *user, const char *peer, const void *data, size_t bytes)
{
    port_rig_t *rig = user;
    const size_t kept = bytes < PORT_RIG_TEXT - 1 ? bytes : PORT_RIG_TEXT - 1;
    rig->notifications++;
    rig->last_bytes = bytes;
    memcpy(rig->last_text, data, kept);
    rig->last_text[kept] = '\0';
    snprintf(rig->last_peer, sizeof(rig->last_peer), "%s", peer);
}

static void count_up(void *user, xfer_link_t *link)
{
    (void)link;
    ((port_rig_t *)user)->links_up++;
}

static void count_lost(void *user, xfer_link_t *link)
{
    (void)link;
    ((port_rig_t *)user)->links_lost++;
}

static void count_sum(void *user)
{
    ((port_rig_t *)user)->sums_wrong++;
}

weft_status_t port_rig_open(port_rig_t *rig, const xfer_backend_t *backend, const char *name)
{
    const xfer_port_config_t config = {.agent = name,
                                       .param = get_param,
                                       .on_notification = keep_notification,
                                       .on_link_up = count_up,
                                       .on_link_lost = count_lost,
                                       .on_checksum_error = count_sum,
                                       .user = rig};
    rig->backend = backend;
    return backend->open(&config, NULL, &rig->port);
}

void port_rig_close(port_rig_t *rig)
{
    rig->backend->close(rig->port);
}

xfer_link_t *port_rig_connect(port_rig_t *rig, port_rig_t *to)
{
    weft_buffer_t address = {0};
    xfer_link_t *link;
    if (to->backend->address(to->port, &address) < 0 ||
        rig->backend->connect(rig->port, "owner", address.data, address.length, &link) < 0) {
        abort();
    }
    weft_buffer_free(&address);
    return link;
}

uint8_t port_rig_byte(uint32_t seed, size_t i)
{
    const uint64_t mixed = (seed + (uint64_t)i / 8 * 2654435761u) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint8_t)(mixed >> 32 >> i % 8);
}

void port_rig_map(port_rig_t *owner, port_rig_memory_t *memory, size_t bytes, bool is_shared,
                  uint32_t seed)
{
    *memory = (port_rig_memory_t){0};
    if (weft_device_open("cpu", 0, NULL, &memory->device) < 0 ||
        memory->device->ops->alloc(memory->device, bytes, is_shared ? WEFT_MEM_EXPORTABLE : 0,
                                   &memory->mem) < 0) {
        abort();
    }
    for (size_t i = 0; i < bytes; i++) {
        ((uint8_t *)memory->mem.addr)[i] = port_rig_byte(seed, i);
    }
    memory->memory = (xfer_memory_t){.space = XFER_DRAM,
                                     .addr = (uintptr_t)memory->mem.addr,
                                     .bytes = bytes,
                                     .fd = memory->mem.fd};
    if (owner->backend->map(owner->port, &memory->memory, &memory->key, &memory->handle) < 0) {
        abort();
    }
}

void port_rig_unmap(port_rig_t *owner, port_rig_memory_t *memory)
{
    if (memory->handle != NULL) {
        owner->backend->unmap(owner->port, memory->handle);
    }
    memory->device->ops->free(memory->device, &memory->mem);
    weft_device_close(memory->device);
    weft_buffer_free(&memory->key);
}

weft_status_t port_rig_import(xfer_link_t *link, port_rig_memory_t *memory)
{
    xfer_memory_t seen = memory->memory;
    seen.fd = -1;
    return link->port->backend->import(link, &seen, memory->key.data, memory->key.length,
                                       &memory->import);
}

static void keep_end(xfer_op_t *op, weft_status_t status)
{
    port_rig_op_t *rig_op = (port_rig_op_t *)op;
    rig_op->ends++;
    rig_op->status = status;
}

void port_rig_prepare(port_rig_op_t *op, xfer_direction_t direction, port_rig_memory_t *local,
                      port_rig_memory_t *peer, uint64_t offset, uint64_t bytes)
{
    *op = (port_rig_op_t){.local = local->handle, .peer = peer->import, .status = WEFT_PENDING};
    op->extent = (xfer_extent_t){
        .local = local->memory.addr + offset, .peer = peer->memory.addr + offset, .bytes = bytes};
    op->op = (xfer_op_t){.direction = direction,
                         .extents = &op->extent,
                         .n_extents = bytes > 0 ? 1 : 0,
                         .bytes = bytes,
                         .local_handles = &op->local,
                         .peer_handles = &op->peer,
                         .end = keep_end};
}

void port_rig_turn(port_rig_t *a, port_rig_t *b)
{
    if (a != NULL) {
        (void)a->backend->progress(a->port);
    }
    if (b != NULL) {
        (void)b->backend->progress(b->port);
    }
}

bool port_rig_wait(port_rig_t *a, port_rig_t *b, const size_t *count, size_t least)
{
    const uint64_t deadline = weft_clock_ns() + DEADLINE_NS;
    while (*count < least) {
        if (weft_clock_ns() > deadline) {
            return false;
        }
        port_rig_turn(a, b);
    }
    return true;
}
