/* SPDX-License-Identifier: Apache-2.0 */
/* What a process of this host may send: frames, addresses, keys. The first byte says which. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "transport/xfer/shm/xfer_shm_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void try_frame(const uint8_t *data, size_t size)
{
    xfer_shm_frame_t frame;
    const char *payload;
    if (xfer_shm_decode_frame(data, size, &frame, &payload) != WEFT_OK) {
        return;
    }
    must(sizeof(frame) + frame.bytes == size && size <= XFER_SHM_MAX_FRAME);
    must((const uint8_t *)payload == data + sizeof(frame));
    if (frame.kind == XFER_SHM_HELLO) { /* becomes a string of XFER_MAX_NAME + 1 */
        must(frame.bytes > 0 && frame.bytes <= XFER_MAX_NAME);
        must(memchr(payload, '\0', frame.bytes) == NULL);
    }
}

static void try_address(const uint8_t *data, size_t size)
{
    xfer_shm_address_t address;
    if (xfer_shm_decode_address(data, size, &address) == WEFT_OK) {
        must(size == sizeof(address) && memcmp(data, &address, size) == 0);
    }
}

static void try_key(const uint8_t *data, size_t size)
{
    xfer_shm_key_t key;
    if (xfer_shm_decode_key(data, size, &key) == WEFT_OK) {
        must(size == sizeof(key) && key.is_mappable <= 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const tries[])(const uint8_t *, size_t) = {try_frame, try_address, try_key};
    if (size > 0) {
        /* A copy of its own, so that a read behind the end is seen. */
        uint8_t *copy = malloc(size > 1 ? size - 1 : 1);
        must(copy != NULL);
        memcpy(copy, data + 1, size - 1);
        tries[data[0] % 3](copy, size - 1);
        free(copy);
    }
    return 0;
}
