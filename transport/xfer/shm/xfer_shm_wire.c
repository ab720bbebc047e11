/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/shm/xfer_shm_wire.h"

#include <string.h>

weft_status_t xfer_shm_decode_address(const void *data, size_t bytes,
                                      xfer_shm_address_t *address_out)
{
    xfer_shm_address_t address;
    if (bytes < 2 * sizeof(uint32_t)) {
        return WEFT_ERR_MALFORMED;
    }
    uint32_t begin[2];
    memcpy(begin, data, sizeof(begin));
    if (begin[0] != XFER_SHM_MAGIC || begin[1] != XFER_SHM_VERSION) {
        return WEFT_ERR_UNSUPPORTED;
    }
    if (bytes != sizeof(address)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&address, data, sizeof(address));
    *address_out = address;
    return WEFT_OK;
}

weft_status_t xfer_shm_decode_key(const void *data, size_t bytes, xfer_shm_key_t *key_out)
{
    xfer_shm_key_t key;
    if (bytes < sizeof(key)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&key, data, sizeof(key));
    if (key.version != XFER_SHM_VERSION) {
        return WEFT_ERR_UNSUPPORTED;
    }
    if (bytes != sizeof(key) || key.is_mappable > 1) {
        return WEFT_ERR_MALFORMED;
    }
    *key_out = key;
    return WEFT_OK;
}

xfer_shm_frame_t xfer_shm_frame(xfer_shm_kind_t kind, uint64_t region, size_t payload_bytes)
{
    return (xfer_shm_frame_t){.version = XFER_SHM_VERSION,
                              .kind = (uint16_t)kind,
                              .bytes = (uint32_t)payload_bytes,
                              .region = region};
}

static bool is_name(const char *name, size_t bytes)
{
    return bytes > 0 && bytes <= XFER_MAX_NAME && memchr(name, '\0', bytes) == NULL;
}

static bool payload_fits(const xfer_shm_frame_t *frame, const char *payload)
{
    switch (frame->kind) {
    case XFER_SHM_HELLO:
        return is_name(payload, frame->bytes);
    case XFER_SHM_NOTE:
        return frame->bytes <= XFER_MAX_NOTIFICATION;
    case XFER_SHM_ASK:
    case XFER_SHM_REGION:
    case XFER_SHM_GONE:
    case XFER_SHM_WELCOME:
        return frame->bytes == 0;
    default:
        return false;
    }
}

weft_status_t xfer_shm_decode_frame(const void *data, size_t bytes, xfer_shm_frame_t *frame_out,
                                    const char **payload_out)
{
    xfer_shm_frame_t frame;
    const char *payload = (const char *)data + sizeof(frame);
    if (bytes < sizeof(frame)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&frame, data, sizeof(frame));
    if (frame.version != XFER_SHM_VERSION || frame.bytes != bytes - sizeof(frame) ||
        !payload_fits(&frame, payload)) {
        return WEFT_ERR_MALFORMED;
    }
    *frame_out = frame;
    *payload_out = payload;
    return WEFT_OK;
}
