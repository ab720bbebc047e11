/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_gguf: a file's bytes; what is accepted lies within it, also when only its half is there yet. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "runtime/files/gguf.h"
#include "runtime/model/model_config_priv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

static void check_tensors(const gguf_t *gguf, size_t size)
{
    for (size_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const gguf_tensor_t *tensor = gguf_tensor_at(gguf, i);
        size_t row_bytes;
        require(tensor->bytes <= size && tensor->offset <= size - tensor->bytes);
        require(k_dtype_row_bytes(tensor->dtype, tensor->dims[0], &row_bytes) == WEFT_OK);
        require(row_bytes * tensor->dims[1] * tensor->dims[2] * tensor->dims[3] == tensor->bytes);
    }
}

/* Strings end where the arrays do. */
static void check_strings(const gguf_t *gguf, const uint8_t *data, size_t size)
{
    const gguf_value_t *tokens;
    weft_diag_t diag;
    if (gguf_get_array(gguf, "tokenizer.ggml.tokens", GGUF_STRING, &diag, &tokens) != WEFT_OK) {
        return;
    }
    const uint8_t *cursor = tokens->data;
    for (uint64_t i = 0; i < tokens->count; i++) {
        const gguf_string_t token = gguf_next_string(&cursor);
        require(token.length <= size && cursor <= data + size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weft_diag_t diag = {0};
    gguf_t *gguf = NULL;
    const size_t before = weft_alloc_live_bytes();
    const weft_status_t status = gguf_parse(data, size, size, "fuzz", &diag, &gguf);
    require(status == WEFT_OK || (status < 0 && diag.text[0] != '\0'));
    if (status == WEFT_OK) {
        model_config_t config;
        check_tensors(gguf, size);
        check_strings(gguf, data, size);
        if (model_config_from_gguf(gguf, "fuzz", &diag, &config) == WEFT_OK) {
            model_config_check(&config, &diag);
        }
        gguf_destroy(gguf);
        gguf = NULL;
    }
    const weft_status_t half = gguf_parse(data, size / 2, size, "fuzz", &diag, &gguf);
    require(half == WEFT_PENDING || half == status);
    gguf_destroy(gguf);
    require(weft_alloc_live_bytes() == before);
    return 0;
}
