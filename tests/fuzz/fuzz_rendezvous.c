/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of ranks: what decodes encodes again, and decodes to the same. */
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
    if (launch_message_decode(bytes, n, &again) < 0) {
        abort();
    }
    uint8_t *bytes_again = encode(again, &n_again);
    if (n != n_again || memcmp(bytes, bytes_again, n) != 0) {
        abort();
    }
    free(bytes);
    free(bytes_again);
    launch_message_free(message);
    launch_message_free(again);
    return 0;
}
