/* SPDX-License-Identifier: Apache-2.0 */
#include "services/api/api_model.h"

#include <string.h>

weft_status_t api_model_check_name(const api_model_t *model, const char *name, api_error_t *error)
{
    if (name == NULL || name[0] == '\0') {
        return WEFT_OK;
    }
    for (uint32_t i = 0; i < model->n_names; i++) {
        if (strcmp(name, model->names[i]) == 0) {
            return WEFT_OK;
        }
    }
    return api_error_set(error, API_ERROR_NO_MODEL, "model", "The model `%s` does not exist.",
                         name);
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
