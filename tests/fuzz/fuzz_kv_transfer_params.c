/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_kv_transfer_params: JSON of a request's field, or of --kv-transfer-config. What is accepted says
 * the same after it was written and read again.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kvstore/transfer/kv_transfer_config.h"
#include "kvstore/transfer/kv_transfer_params.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

static void check_round_trip(const kv_transfer_params_t *params)
{
    kv_transfer_params_t again;
    json_t *once = kv_transfer_params_json(params);
    require(once != NULL);
    require(kv_transfer_params_decode(once, NULL, &again) == WEFT_OK);
    json_t *twice = kv_transfer_params_json(&again);
    require(json_equal(once, twice));
    kv_transfer_params_fini(&again);
    json_decref(once);
    json_decref(twice);
}

static void check_params(const json_t *value)
{
    weft_diag_t diag = {0};
    kv_transfer_params_t params;
    const weft_status_t status = kv_transfer_params_decode(value, &diag, &params);
    require(status == WEFT_OK || (status < 0 && diag.text[0] != '\0'));
    if (status == WEFT_OK) {
        kv_transfer_params_check(&params, &diag);
        check_round_trip(&params);
        kv_transfer_params_fini(&params);
    }
}

static void check_config(const uint8_t *data, size_t size)
{
    weft_diag_t diag = {0};
    kv_transfer_config_t config;
    char *text = malloc(size + 1);
    require(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    const weft_status_t status = kv_transfer_config_parse(text, 0, &diag, &config);
    require(status == WEFT_OK || (status < 0 && diag.text[0] != '\0'));
    if (status == WEFT_OK) {
        kv_transfer_config_fini(&config);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const size_t before = weft_alloc_live_bytes();
    weft_log_set_level(WEFT_LOG_ERROR);
    json_t *value = json_loadb((const char *)data, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (value != NULL) {
        check_params(value);
        json_decref(value);
    }
    check_config(data, size);
    require(weft_alloc_live_bytes() == before);
    return 0;
}
