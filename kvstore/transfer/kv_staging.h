/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_staging: where blocks of a peer wait that cannot be read in place, because their elements or the
 * order inside their heads are not ours. A slot holds what we need of one block of the peer.
 *
 * Threads  the engine's
 */
#pragma once

#include "base/device.h"
#include "kvstore/transfer/kv_landing.h"
#include "kvstore/transfer/kv_slices.h"

typedef struct kv_staging {
    xfer_agent_t *agent;
    weft_device_t *device; /* whose memory the slots are: that of our blocks */
    weft_mem_t memory;
    xfer_region_t *region;
    kv_shape_t shape; /* of the slots, as blocks */
    uint64_t *layer_addrs;
    uint32_t n_slots;
    uint32_t n_free;
    uint32_t *free; /* [n_slots], the first n_free of them */
} kv_staging_t;

/*
 * For what local and peer have in common of layers and heads; nothing: WEFT_ERR_NOT_FOUND. device is
 * borrowed, so is agent.
 */
weft_status_t kv_staging_open(xfer_agent_t *agent, weft_device_t *device, const kv_shape_t *local,
                              const kv_shape_t *peer, weft_diag_t *diag, kv_staging_t *staging_out);
void kv_staging_close(kv_staging_t *staging); /* no list refers to it; zeroed ones are fine */

/* As many of n as there are. */
uint32_t kv_staging_take(kv_staging_t *staging, uint32_t n, uint32_t *slots_out);
void kv_staging_give(kv_staging_t *staging, const uint32_t *slots, uint32_t n);

xfer_space_t kv_staging_space(const weft_device_t *device); /* that its memory is for the fabric */

/*
 * Tokens first … first + n - 1 of a slot, to those from to_token on of a local block. Added to
 * landing's batch where there is one: a device's memory is nothing that we could touch.
 */
void kv_staging_unpack(const kv_staging_t *staging, uint32_t slot, uint32_t first,
                       const kv_head_form_t *form, const kv_shape_t *local, uint32_t block,
                       uint32_t to_token, const kv_head_form_t *local_form, uint32_t n,
                       kv_landing_t *landing);
