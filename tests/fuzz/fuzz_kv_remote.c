/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of workers that share KV blocks: what decodes encodes again, to bytes that encode to
 * themselves, and a hello can be held against what we are. Fields that we do not know are kept as they
 * came, and need not be read again.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore/remote/kv_remote_message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *encode(const kv_remote_message_t *message, size_t *n_out)
{
    *n_out = weft__remote__message__get_packed_size(message);
    uint8_t *bytes = malloc(*n_out + 1);
    if (bytes == NULL || weft__remote__message__pack(message, bytes) != *n_out) {
        abort();
    }
    return bytes;
}

static void check_hello(const kv_remote_message_t *message)
{
    kv_remote_facts_t facts = {0};
    weft_diag_t diag = {0};
    if (message->body_case == WEFT__REMOTE__MESSAGE__BODY_HELLO) {
        kv_remote_facts_add(&facts, "layers", "%d", 30);
        const weft_status_t status = kv_remote_facts_check(&facts, message->hello, &diag);
        if ((status < 0) != (diag.text[0] != '\0')) {
            abort(); /* a difference without a name */
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kv_remote_message_t *message;
    kv_remote_message_t *again;
    size_t n;
    size_t n_again;
    if (kv_remote_message_decode(data, size, &message) < 0) {
        return 0;
    }
    check_hello(message);
    uint8_t *bytes = encode(message, &n);
    if (kv_remote_message_decode(bytes, n, &again) == WEFT_OK) {
        uint8_t *bytes_again = encode(again, &n_again);
        if (again->body_case != message->body_case || n != n_again ||
            memcmp(bytes, bytes_again, n) != 0) {
            abort();
        }
        free(bytes_again);
        kv_remote_message_free(again);
    }
    free(bytes);
    kv_remote_message_free(message);
    return 0;
}
