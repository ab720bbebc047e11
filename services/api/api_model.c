/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_model.h"

#include <string.h>

static bool is_own_name(const api_model_t *model, const char *name)
{
    for (uint32_t i = 0; i < model->n_names; i++) {
        if (strcmp(name, model->names[i]) == 0) {
            return true;
        }
    }
    return name[0] == '\0';
}

weft_status_t api_model_find(const api_model_t *model, const char *name, api_error_t *error,
                             engine_adapter_t **adapter_out)
{
    *adapter_out = NULL;
    if (name == NULL || is_own_name(model, name)) {
        return WEFT_OK;
    }
    *adapter_out = model->engine == NULL ? NULL : engine_find_adapter(model->engine, name);
    return *adapter_out != NULL ? WEFT_OK
                                : api_error_set(error, API_ERROR_NO_MODEL, "model",
                                                "The model `%s` does not exist.", name);
}

weft_status_t api_model_check_name(const api_model_t *model, const char *name, api_error_t *error)
{
    engine_adapter_t *adapter = NULL;
    const weft_status_t status = api_model_find(model, name, error, &adapter);

    engine_release_adapter(adapter);
    return status;
}

void api_model_append_token(const api_model_t *model, int32_t id, bool as_id, weft_buffer_t *out)
{
    text_bytes_t bytes = {0};

    if (as_id) {
        weft_buffer_printf(out, "token_id:%d", (int)id);
    } else if (text_tokenizer_token_bytes(model->tokenizer, id, &bytes) == WEFT_OK) {
        weft_buffer_append(out, bytes.data, bytes.length);
        text_bytes_free(bytes);
    }
}
