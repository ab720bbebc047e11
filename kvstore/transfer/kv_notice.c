/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_notice.h"

#include <string.h>

#include "base/compiler.h"

#define MAX_READERS (1u << 16)

static const char heartbeat_mark[] = "HB:";
static const char watch_mark[] = "WEFT_WATCH:";
static const char progress_mark[] = "WEFT_KV:";

static const kv_wire_field_t watch_fields[] = {
#define FIELD(name, type, rule) KV_WIRE_FIELD(kv_watch_t, name, type, rule),
#include "kvstore/transfer/kv_watch.def"
#undef FIELD
};

static const kv_wire_field_t progress_fields[] = {
#define FIELD(name, type, rule) KV_WIRE_FIELD(kv_progress_t, name, type, rule),
#include "kvstore/transfer/kv_progress.def"
#undef FIELD
};

/* ---- writing --------------------------------------------------------------------------------- */

void kv_notice_encode_read(const char *request_id, uint32_t readers, weft_buffer_t *out)
{
    weft_buffer_printf(out, "%s:%u", request_id, readers);
}

void kv_notice_add_heartbeat(const char *request_id, weft_buffer_t *out)
{
    weft_buffer_printf(out, "%s%s", out->length == 0 ? heartbeat_mark : ",", request_id);
}

void kv_notice_encode_watch(const kv_watch_t *watch, weft_buffer_t *out)
{
    weft_buffer_puts(out, watch_mark);
    kv_wire_map_encode(watch_fields, WEFT_ARRAY_LEN(watch_fields), watch, out);
}

void kv_notice_encode_progress(const kv_progress_t *progress, weft_buffer_t *out)
{
    weft_buffer_puts(out, progress_mark);
    kv_wire_map_encode(progress_fields, WEFT_ARRAY_LEN(progress_fields), progress, out);
}

/* ---- reading --------------------------------------------------------------------------------- */

/* The bytes behind mark; data NULL: it does not begin so. */
static kv_msgpack_span_t behind(kv_msgpack_span_t text, const char *mark)
{
    const uint32_t length = (uint32_t)strlen(mark);
    if (text.length < length || memcmp(text.data, mark, length) != 0) {
        return (kv_msgpack_span_t){NULL, 0};
    }
    return (kv_msgpack_span_t){text.data + length, text.length - length};
}

/* Ids may hold colons: the last one counts. */
static weft_status_t decode_read(kv_msgpack_span_t text, kv_notice_t *notice)
{
    const char *colon = memrchr(text.data, ':', text.length);
    uint32_t readers = 0;
    if (colon == NULL || colon == text.data) {
        return WEFT_ERR_MALFORMED;
    }
    for (const char *at = colon + 1; at < text.data + text.length; at++) {
        if (*at < '0' || *at > '9' || readers > MAX_READERS) {
            return WEFT_ERR_MALFORMED;
        }
        readers = readers * 10 + (uint32_t)(*at - '0');
    }
    if (readers == 0 || readers > MAX_READERS) {
        return WEFT_ERR_MALFORMED;
    }
    notice->kind = KV_NOTICE_READ;
    notice->ids = (kv_msgpack_span_t){text.data, (uint32_t)(colon - text.data)};
    notice->readers = readers;
    return WEFT_OK;
}

static weft_status_t decode_watch(kv_msgpack_span_t map, weft_arena_t *arena, kv_notice_t *notice)
{
    const weft_status_t status =
        kv_wire_map_decode(watch_fields, WEFT_ARRAY_LEN(watch_fields), map.data, map.length,
                           "watch", arena, NULL, &notice->watch);
    notice->kind = KV_NOTICE_WATCH;
    if (status < 0) {
        return status;
    }
    const bool has_name =
        (notice->watch.transfer_id.length > 0) != (notice->watch.request_id.length > 0);
    return notice->watch.version != KV_NOTICE_VERSION      ? WEFT_ERR_UNSUPPORTED
           : has_name && notice->watch.done <= MAX_READERS ? WEFT_OK
                                                           : WEFT_ERR_MALFORMED;
}

static weft_status_t decode_progress(kv_msgpack_span_t map, weft_arena_t *arena,
                                     kv_notice_t *notice)
{
    const kv_progress_t *progress = &notice->progress;
    const weft_status_t status =
        kv_wire_map_decode(progress_fields, WEFT_ARRAY_LEN(progress_fields), map.data, map.length,
                           "progress", arena, NULL, &notice->progress);
    notice->kind = KV_NOTICE_PROGRESS;
    if (status < 0) {
        return status;
    }
    if (progress->version != KV_NOTICE_VERSION) {
        return WEFT_ERR_UNSUPPORTED;
    }
    const bool is_possible = progress->state <= KV_PROGRESS_GONE && progress->slot < UINT32_MAX &&
                             progress->tokens <= INT32_MAX && progress->first_block <= INT32_MAX &&
                             (progress->transfer_id.length > 0 || progress->request_id.length > 0);
    return is_possible ? WEFT_OK : WEFT_ERR_MALFORMED;
}

weft_status_t kv_notice_decode(const void *data, size_t bytes, weft_arena_t *arena,
                               kv_notice_t *notice_out)
{
    kv_notice_t notice = {0};
    if (bytes == 0 || bytes > UINT32_MAX) {
        return WEFT_ERR_MALFORMED;
    }
    const kv_msgpack_span_t text = {data, (uint32_t)bytes};
    const kv_msgpack_span_t watch = behind(text, watch_mark);
    const kv_msgpack_span_t progress = behind(text, progress_mark);
    const kv_msgpack_span_t heartbeat = behind(text, heartbeat_mark);
    weft_status_t status = WEFT_OK;
    if (watch.data != NULL) {
        status = decode_watch(watch, arena, &notice);
    } else if (progress.data != NULL) {
        status = decode_progress(progress, arena, &notice);
    } else if (heartbeat.data != NULL) {
        notice.kind = KV_NOTICE_HEARTBEAT;
        notice.ids = heartbeat;
    } else {
        status = decode_read(text, &notice);
    }
    if (status >= 0) {
        *notice_out = notice;
    }
    return status;
}

bool kv_notice_next_id(kv_msgpack_span_t *ids, kv_msgpack_span_t *id_out)
{
    while (ids->length > 0) {
        const char *comma = memchr(ids->data, ',', ids->length);
        const uint32_t length = comma == NULL ? ids->length : (uint32_t)(comma - ids->data);
        *id_out = (kv_msgpack_span_t){ids->data, length};
        const uint32_t used = length + (comma != NULL);
        ids->data += used;
        ids->length -= used;
        if (length > 0) {
            return true;
        }
    }
    return false;
}
