/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/tcp/xfer_tcp_stage.h"

#include <assert.h>

#include "base/alloc.h"

weft_status_t xfer_tcp_stage_open(xfer_tcp_stage_t *stage, xfer_vram_t *vram)
{
    if (stage->memory.addr != NULL) {
        return WEFT_OK;
    }
    weft_device_t *device = xfer_vram_space(vram);
    if (stage->slots == NULL) {
        stage->slots = weft_calloc(XFER_TCP_STAGE_SLOTS, sizeof(*stage->slots), "xfer_tcp.stage");
    }
    if (stage->slots == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    stage->vram = vram;
    return device->ops->alloc(device, XFER_TCP_STAGE_SLOTS * (size_t)XFER_TCP_MAX_SLICE,
                              WEFT_MEM_HOST, &stage->memory);
}

void xfer_tcp_stage_fini(xfer_tcp_stage_t *stage)
{
    if (stage->memory.addr != NULL) {
        weft_device_t *device = xfer_vram_space(stage->vram);
        xfer_vram_wait_all(stage->vram);
        device->ops->free(device, &stage->memory);
    }
    weft_free(stage->slots);
    *stage = (xfer_tcp_stage_t){0};
}

static xfer_tcp_slot_t *slot_of(const xfer_tcp_stage_t *stage, unsigned slot)
{
    assert(slot > 0 && stage->slots[slot - 1].is_taken);
    return &stage->slots[slot - 1];
}

static uint64_t addr_of(const xfer_tcp_stage_t *stage, unsigned slot)
{
    return (uintptr_t)stage->memory.addr + (slot - 1) * (uint64_t)XFER_TCP_MAX_SLICE;
}

unsigned xfer_tcp_stage_free(const xfer_tcp_stage_t *stage)
{
    unsigned n = 0;
    for (unsigned i = 0; i < XFER_TCP_STAGE_SLOTS; i++) {
        n += !stage->slots[i].is_taken;
    }
    return n;
}

unsigned xfer_tcp_stage_take(xfer_tcp_stage_t *stage)
{
    unsigned oldest = 0;
    for (unsigned i = 1; i <= XFER_TCP_STAGE_SLOTS; i++) {
        const xfer_tcp_slot_t *slot = &stage->slots[i - 1];
        if (!slot->is_taken && (oldest == 0 || slot->batch < stage->slots[oldest - 1].batch)) {
            oldest = i;
        }
    }
    assert(oldest > 0);
    stage->slots[oldest - 1].is_taken = true;
    (void)xfer_vram_wait(stage->vram, stage->slots[oldest - 1].batch);
    return oldest;
}

void xfer_tcp_stage_release(xfer_tcp_stage_t *stage, unsigned slot)
{
    if (slot > 0) {
        slot_of(stage, slot)->is_taken = false;
    }
}

/* Between the slot and pieces of device memory. */
static uint64_t copy(xfer_tcp_stage_t *stage, unsigned slot, const xfer_tcp_pieces_t *pieces,
                     bool is_load)
{
    uint64_t host = addr_of(stage, slot);
    xfer_vram_make_room(stage->vram);
    for (uint32_t i = pieces->first; i < pieces->end; i++) {
        const uint64_t device = (uintptr_t)pieces->iov[i].iov_base;
        xfer_vram_add(stage->vram, is_load ? host : device, is_load ? device : host,
                      pieces->iov[i].iov_len, XFER_VRAM_PINNED);
        host += pieces->iov[i].iov_len;
    }
    return xfer_vram_commit(stage->vram);
}

void xfer_tcp_stage_load(xfer_tcp_stage_t *stage, unsigned slot, const xfer_tcp_pieces_t *from)
{
    xfer_tcp_slot_t *into = slot_of(stage, slot);
    into->bytes = from->left;
    into->batch = copy(stage, slot, from, true);
}

void xfer_tcp_stage_show(xfer_tcp_stage_t *stage, unsigned slot, xfer_tcp_pieces_t *pieces_out)
{
    const xfer_tcp_slot_t *loaded = slot_of(stage, slot);
    (void)xfer_vram_wait(stage->vram, loaded->batch);
    xfer_tcp_pieces_clear(pieces_out);
    xfer_tcp_pieces_add(pieces_out, (void *)(uintptr_t)addr_of(stage, slot), loaded->bytes);
}

void xfer_tcp_stage_divert(xfer_tcp_stage_t *stage, unsigned slot, xfer_tcp_pieces_t *pieces_io)
{
    xfer_tcp_slot_t *into = slot_of(stage, slot);
    into->bytes = pieces_io->left;
    into->pieces = *pieces_io;
    xfer_tcp_pieces_clear(pieces_io);
    xfer_tcp_pieces_add(pieces_io, (void *)(uintptr_t)addr_of(stage, slot), into->bytes);
}

uint64_t xfer_tcp_stage_land(xfer_tcp_stage_t *stage, unsigned slot)
{
    xfer_tcp_slot_t *from = slot_of(stage, slot);
    from->batch = copy(stage, slot, &from->pieces, false);
    from->is_taken = false;
    return from->batch;
}

bool xfer_tcp_stage_touches(const xfer_tcp_stage_t *stage, unsigned slot, uint64_t addr,
                            uint64_t bytes)
{
    return slot > 0 && xfer_tcp_pieces_touch(&slot_of(stage, slot)->pieces, addr, bytes);
}
