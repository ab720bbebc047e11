/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_kv_events: a batch's bytes. What is accepted takes memory in proportion, and says the same
 * after it was written in each form that knows its fields and read again.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kvstore/kv_event_codec.h"

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
    kv_event_batch_fini(&batch);
    require(weft_alloc_live_bytes() == before);
    return 0;
}
