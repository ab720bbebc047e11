/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_kv_notice: a notification's bytes; what is accepted has an id, and numbers that can be. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kvstore/transfer/kv_notice.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

static void check_notice(kv_notice_t *notice, const uint8_t *data, size_t size)
{
    weft_buffer_t out = {0};
    kv_msgpack_span_t id;
    switch (notice->kind) {
    case KV_NOTICE_READ:
        require(notice->readers > 0 && notice->ids.length > 0 && notice->ids.length < size);
        break;
    case KV_NOTICE_HEARTBEAT:
        while (kv_notice_next_id(&notice->ids, &id)) {
            require(id.length > 0 && (const uint8_t *)id.data >= data &&
                    (const uint8_t *)id.data + id.length <= data + size);
        }
        break;
    case KV_NOTICE_WATCH:
        require(notice->watch.transfer_id.length > 0 || notice->watch.request_id.length > 0);
        kv_notice_encode_watch(&notice->watch, &out);
        break;
    case KV_NOTICE_PROGRESS:
        require(notice->progress.state <= KV_PROGRESS_GONE);
        kv_notice_encode_progress(&notice->progress, &out);
        break;
    }
    require(!out.is_failed);
    weft_buffer_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const size_t before = weft_alloc_live_bytes();
    weft_arena_t arena = {0};
    kv_notice_t notice;
    const weft_status_t status = kv_notice_decode(data, size, &arena, &notice);
    require(status == WEFT_OK || status == WEFT_ERR_MALFORMED || status == WEFT_ERR_UNSUPPORTED);
    require(weft_alloc_live_bytes() - before <= 64 * size + 65536);
    if (status == WEFT_OK) {
        check_notice(&notice, data, size);
    }
    weft_arena_free(&arena);
    require(weft_alloc_live_bytes() == before);
    return 0;
}
