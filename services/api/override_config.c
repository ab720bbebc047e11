/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/override_config.h"

#include <float.h>
#include <string.h>

#include "services/api/json_fields.h"

static const json_field_t rows[] = {
    {"temperature", JSON_FIELD_F64, offsetof(api_model_t, temperature), 0, FLT_MAX,
     "must be non-negative"},
    {"top_p", JSON_FIELD_F64, offsetof(api_model_t, top_p), DBL_MIN, 1, "must be in (0, 1]"},
    {"top_k", JSON_FIELD_I64, offsetof(api_model_t, top_k), -1, INT32_MAX, "must be -1 or above"},
    {"min_p", JSON_FIELD_F64, offsetof(api_model_t, min_p), 0, 1, "must be in [0, 1]"},
    {"repetition_penalty", JSON_FIELD_F64, offsetof(api_model_t, repetition_penalty), FLT_MIN,
     FLT_MAX, "must be greater than zero"},
    {"max_new_tokens", JSON_FIELD_I64, offsetof(api_model_t, max_tokens), 1, INT32_MAX,
     "must be at least 1"},
};

static bool is_known(const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        if (strcmp(rows[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

weft_status_t override_config_apply(const char *text, api_model_t *model, weft_diag_t *diag)
{
    json_t *json = NULL;
    api_error_t error = {0};
    const char *name;
    json_t *value;

    if (text[0] == '\0') {
        return WEFT_OK;
    }
    weft_status_t status = json_fields_parse(text, strlen(text), &json, &error);
    if (status == WEFT_OK) {
        json_fields_read(json, rows, WEFT_ARRAY_LEN(rows), "", model, &error);
        status = api_error_status(&error);
    }
    if (status < 0) {
        weft_diag(diag, status, "--override-generation-config: %s", error.message.text);
    }
    json_object_foreach(json, name, value)
    {
        if (status == WEFT_OK && !is_known(name)) {
            status = weft_diag(diag, WEFT_ERR_INVALID,
                               "--override-generation-config: \"%s\" is not one of temperature, "
                               "top_p, top_k, min_p, repetition_penalty, max_new_tokens",
                               name);
        }
    }
    json_decref(json);
    return status;
}
