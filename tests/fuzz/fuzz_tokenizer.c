/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_tokenizer: any bytes as tokenizer.json; one that is accepted is used. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "text/text.h"

#define MAX_ID 1000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char sample[] = "Hello, w\xc3\xb6rld! 12 \xf0\x9f\xa7\xb5\n<s>";
    weft_diag_t diag = {0};
    text_tokenizer_t *tokenizer = NULL;
    if (text_tokenizer_from_json((const char *)data, size, NULL, 0, MAX_ID, &diag, &tokenizer) ==
        WEFT_OK) {
        text_ids_t ids = {0};
        if (text_tokenizer_encode(tokenizer, sample, strlen(sample), true, true, &diag, &ids) ==
            WEFT_OK) {
            text_bytes_t text = {0};
            for (size_t i = 0; i < ids.length; i++) {
                if (ids.data[i] < 0 || ids.data[i] >= MAX_ID) {
                    abort();
                }
            }
            if (text_tokenizer_decode(tokenizer, ids.data, ids.length, false, &diag, &text) >= 0) {
                text_bytes_free(text);
            }
            text_ids_free(ids);
        }
    }
    text_tokenizer_destroy(tokenizer);
    return 0;
}
