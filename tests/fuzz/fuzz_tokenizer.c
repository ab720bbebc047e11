/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_tokenizer: any bytes as tokenizer.json; one that loads encodes and decodes. */
#include <stdint.h>

#include "text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = " the tide 12\n<s>\xc3\xa9</s>";
    weft_diag_t diag;
    text_tokenizer_t *tokenizer = NULL;
    text_ids_t ids = {0};
    text_bytes_t decoded = {0};
    if (text_tokenizer_from_json((const char *)data, size, NULL, 0, 1 << 16, &diag, &tokenizer) <
        0) {
        return 0;
    }
    if (text_tokenizer_encode(tokenizer, text, sizeof(text) - 1, true, true, &diag, &ids) >= 0) {
        text_tokenizer_decode(tokenizer, ids.data, ids.length, true, &diag, &decoded);
    }
    text_bytes_free(decoded);
    text_ids_free(ids);
    text_tokenizer_destroy(tokenizer);
    return 0;
}
