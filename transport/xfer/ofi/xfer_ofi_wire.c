/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/ofi/xfer_ofi_wire.h"

#include <string.h>

weft_status_t xfer_ofi_decode_address(const void *data, size_t bytes,
                                      xfer_ofi_address_t *address_out,
                                      const void **provider_address_out)
{
    xfer_ofi_address_t address;
    if (bytes < sizeof(address)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&address, data, sizeof(address));
    if (address.magic != XFER_OFI_MAGIC || address.version != XFER_OFI_VERSION) {
        return WEFT_ERR_UNSUPPORTED;
    }
    if (address.bytes != bytes - sizeof(address) || address.bytes == 0 ||
        address.bytes > XFER_OFI_MAX_ADDRESS ||
        memchr(address.provider, '\0', sizeof(address.provider)) == NULL) {
        return WEFT_ERR_MALFORMED;
    }
    *address_out = address;
    *provider_address_out = (const char *)data + sizeof(address);
    return WEFT_OK;
}

weft_status_t xfer_ofi_decode_key(const void *data, size_t bytes, xfer_ofi_key_t *key_out)
{
    xfer_ofi_key_t key;
    if (bytes != sizeof(key)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&key, data, sizeof(key));
    if (key.version != XFER_OFI_VERSION) {
        return WEFT_ERR_UNSUPPORTED;
    }
    *key_out = key;
    return WEFT_OK;
}

static bool is_name(const char *name, size_t bytes)
{
    return bytes > 0 && bytes <= XFER_MAX_NAME && memchr(name, '\0', bytes) == NULL;
}

static bool parts_fit(const xfer_ofi_message_t *message, const char *first)
{
    switch (message->kind) {
    case XFER_OFI_NOTE:
        return is_name(first, message->first_bytes) && message->rest_bytes <= XFER_MAX_NOTIFICATION;
    case XFER_OFI_ASK:
        return message->first_bytes > 0 && message->first_bytes <= XFER_OFI_MAX_ADDRESS &&
               message->rest_bytes > 0 && message->rest_bytes % sizeof(xfer_ofi_piece_t) == 0 &&
               message->rest_bytes / sizeof(xfer_ofi_piece_t) <= XFER_OFI_MAX_PIECES;
    case XFER_OFI_SUMS:
        return message->first_bytes == 0 && message->rest_bytes % sizeof(uint32_t) == 0 &&
               message->rest_bytes / sizeof(uint32_t) <= XFER_OFI_MAX_PIECES;
    default:
        return false;
    }
}

weft_status_t xfer_ofi_decode_message(const void *data, size_t bytes,
                                      xfer_ofi_message_t *message_out, const char **first_out,
                                      const char **rest_out)
{
    xfer_ofi_message_t message;
    const char *first = (const char *)data + sizeof(message);
    if (bytes < sizeof(message)) {
        return WEFT_ERR_MALFORMED;
    }
    memcpy(&message, data, sizeof(message));
    if (message.magic != XFER_OFI_MAGIC || message.version != XFER_OFI_VERSION ||
        (uint64_t)message.first_bytes + message.rest_bytes != bytes - sizeof(message) ||
        !parts_fit(&message, first)) {
        return WEFT_ERR_MALFORMED;
    }
    *message_out = message;
    *first_out = first;
    *rest_out = first + message.first_bytes;
    return WEFT_OK;
}
