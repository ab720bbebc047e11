/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_kv_events: a batch's bytes. What is accepted takes memory in proportion, says the same after
 * it was written in each form and read again, and leaves a mirror that writes no block that is not
 * present.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kvstore/events/kv_event_mirror.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

static void encode(const kv_event_batch_t *batch, const kv_event_encoding_t *encoding,
                   weft_buffer_t *out)
{
    kv_event_batch_begin(out, batch->ts, batch->n_events);
    for (uint32_t i = 0; i < batch->n_events; i++) {
        kv_event_encode(out, encoding, KV_EVENT_WIDE, &batch->events[i]);
    }
    kv_event_batch_end(out, batch->rank);
    require(!out->is_failed);
}

/* Written, read and written again: the same bytes. */
static void check_round_trip(const kv_event_batch_t *batch, const kv_event_encoding_t *encoding)
{
    weft_buffer_t once = {0};
    weft_buffer_t twice = {0};
    kv_event_batch_t again;
    encode(batch, encoding, &once);
    require(kv_event_batch_decode(once.data, once.length, NULL, &again) == WEFT_OK);
    require(again.n_events == batch->n_events);
    encode(&again, encoding, &twice);
    require(once.length == twice.length && memcmp(once.data, twice.data, once.length) == 0);
    kv_event_batch_fini(&again);
    weft_buffer_free(&once);
    weft_buffer_free(&twice);
}

static weft_status_t check_present(void *user, const kv_event_t *event)
{
    for (uint32_t i = 0; i < event->block_hashes.count; i++) {
        const int64_t group = event->group_idx.is_set ? event->group_idx.value : 0;
        require(kv_event_mirror_has(user, event->medium, group, &event->block_hashes.items[i]));
    }
    return WEFT_OK;
}

static void check_mirror(const kv_event_batch_t *batch)
{
    const kv_event_mirror_config_t config = {.block_tokens = 16};
    kv_event_mirror_t *mirror = NULL;
    require(kv_event_mirror_create(&config, &mirror) == WEFT_OK);
    for (int round = 0; round < 2; round++) {
        const weft_status_t status = kv_event_mirror_apply_batch(mirror, 0, batch);
        require(status == WEFT_OK || status == WEFT_ERR_UNSUPPORTED);
        require(kv_event_mirror_write(mirror, check_present, mirror) == WEFT_OK);
    }
    kv_event_mirror_destroy(mirror);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const size_t before = weft_alloc_live_bytes();
    weft_diag_t diag = {0};
    kv_event_batch_t batch;
    const weft_status_t status = kv_event_batch_decode(data, size, &diag, &batch);
    require(status == WEFT_OK || (status < 0 && diag.text[0] != '\0'));
    require(weft_alloc_live_bytes() - before <= 64 * size + 8192);
    for (uint32_t i = 0; status == WEFT_OK && kv_event_encoding_at(i) != NULL; i++) {
        check_round_trip(&batch, kv_event_encoding_at(i));
    }
    if (status == WEFT_OK) {
        check_mirror(&batch);
    }
    kv_event_batch_fini(&batch);
    require(weft_alloc_live_bytes() == before);
    return 0;
}
