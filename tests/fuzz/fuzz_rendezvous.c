/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of ranks: what decodes encodes again, to bytes that encode to themselves. Fields that we do not
 * know are kept as they came, and need not be read again.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/launch_message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *encode(const launch_message_t *message, size_t *n_out)
{
    *n_out = weft__rendezvous__message__get_packed_size(message);
    uint8_t *bytes = malloc(*n_out + 1);
    if (bytes == NULL || weft__rendezvous__message__pack(message, bytes) != *n_out) {
        abort();
    }
    return bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    launch_message_t *message;
    launch_message_t *again;
    size_t n;
    size_t n_again;
    if (launch_message_decode(data, size, &message) < 0) {
        return 0;
    }
    uint8_t *bytes = encode(message, &n);
    if (launch_message_decode(bytes, n, &again) == WEFT_OK) {
        uint8_t *bytes_again = encode(again, &n_again);
        if (again->body_case != message->body_case || n != n_again ||
            memcmp(bytes, bytes_again, n) != 0) {
            abort();
        }
        free(bytes_again);
        launch_message_free(again);
    }
    free(bytes);
    launch_message_free(message);
    return 0;
}
