/* SPDX-License-Identifier: Apache-2.0 */
/* What the ofi backend reads from others: messages, addresses, keys. The first byte says which. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "transport/xfer/ofi/xfer_ofi_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void try_message(const uint8_t *data, size_t size)
{
    xfer_ofi_message_t message;
    const char *first;
    const char *rest;
    if (xfer_ofi_decode_message(data, size, &message, &first, &rest) != WEFT_OK) {
        return;
    }
    must(size <= XFER_OFI_MAX_MESSAGE + sizeof(message));
    must((const uint8_t *)first == data + sizeof(message) && rest == first + message.first_bytes);
    must((const uint8_t *)rest + message.rest_bytes == data + size);
    if (message.kind == XFER_OFI_NOTE) { /* becomes a string of XFER_MAX_NAME + 1 */
        must(message.first_bytes > 0 && message.first_bytes <= XFER_MAX_NAME);
        must(memchr(first, '\0', message.first_bytes) == NULL);
    } else if (message.kind == XFER_OFI_ASK) {
        must(message.rest_bytes <= XFER_OFI_MAX_PIECES * sizeof(xfer_ofi_piece_t));
    } else {
        must(message.rest_bytes <= XFER_OFI_MAX_PIECES * sizeof(uint32_t));
    }
}

static void try_address(const uint8_t *data, size_t size)
{
    xfer_ofi_address_t address;
    const void *provider_address;
    if (xfer_ofi_decode_address(data, size, &address, &provider_address) == WEFT_OK) {
        must((const uint8_t *)provider_address + address.bytes == data + size);
        must(strlen(address.provider) < XFER_OFI_MAX_PROVIDER);
    }
}

static void try_key(const uint8_t *data, size_t size)
{
    xfer_ofi_key_t key;
    if (xfer_ofi_decode_key(data, size, &key) == WEFT_OK) {
        must(size == sizeof(key) && memcmp(data, &key, size) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const tries[])(const uint8_t *, size_t) = {try_message, try_address, try_key};
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
