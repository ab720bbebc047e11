/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_safetensors: a file's bytes; what is accepted covers its data exactly. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "runtime/files/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

static void check_cover(const safetensors_t *file, size_t size)
{
    uint64_t end = 0;
    for (size_t i = 0; i < safetensors_tensor_count(file); i++) {
        const safetensors_tensor_t *tensor = safetensors_tensor_at(file, i);
        require(i == 0 || tensor->offset == end);
        end = tensor->offset + tensor->bytes;
    }
    require(safetensors_tensor_count(file) == 0 || end == size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weft_diag_t diag = {0};
    safetensors_t *file = NULL;
    const size_t before = weft_alloc_live_bytes();
    const weft_status_t status = safetensors_parse(data, size, size, "fuzz", &diag, &file);
    require(status == WEFT_OK || (status < 0 && diag.text[0] != '\0'));
    if (status == WEFT_OK) {
        check_cover(file, size);
        safetensors_destroy(file);
        file = NULL;
    }
    const weft_status_t half = safetensors_parse(data, size / 2, size, "fuzz", &diag, &file);
    require(half == WEFT_PENDING || half == status);
    safetensors_destroy(file);
    require(weft_alloc_live_bytes() == before);
    return 0;
}
