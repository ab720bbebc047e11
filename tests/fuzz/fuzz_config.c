/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_config: config.json and, after a zero byte, generation_config.json. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "runtime/model/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weft_diag_t diag = {0};
    model_config_t config;
    const char *json = (const char *)data;
    const char *zero = size == 0 ? NULL : memchr(json, '\0', size);
    const size_t length = zero == NULL ? size : (size_t)(zero - json);
    const char *generation = zero == NULL ? NULL : zero + 1;
    const size_t generation_length = zero == NULL ? 0 : size - length - 1;
    const size_t before = weft_alloc_live_bytes();

    const weft_status_t status =
        model_config_from_json(json, length, generation, generation_length, &diag, &config);
    const bool is_clean = weft_alloc_live_bytes() == before;
    const bool is_told = status == WEFT_OK || (status < 0 && diag.text[0] != '\0');
    /* What was accepted passes the check again: nothing is computed after it. */
    if (!is_clean || !is_told ||
        (status == WEFT_OK && model_config_check(&config, &diag) != WEFT_OK)) {
        abort();
    }
    return 0;
}
