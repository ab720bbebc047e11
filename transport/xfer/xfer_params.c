/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_params.h"

#include <string.h>

#include "base/alloc.h"

typedef struct param {
    const char *backend; /* these point into text */
    const char *key;
    const char *value;
    bool is_known;
} param_t;

struct xfer_params {
    char *text; /* with NULs where words and their parts end */
    size_t n;
    param_t items[];
};

static size_t count_words(const char *text)
{
    size_t n = 1;
    for (; *text != '\0'; text++) {
        n += *text == ',';
    }
    return n;
}

static weft_status_t parse_word(char *word, weft_diag_t *diag, param_t *param_out)
{
    char *value = strchr(word, '=');
    char *key = memchr(word, '.', value == NULL ? strlen(word) : (size_t)(value - word));
    if (value == NULL || key == NULL || key == word || key + 1 == value) {
        return weft_diag(diag, WEFT_ERR_INVALID, "\"%s\" is not <backend>.<key>=<value>", word);
    }
    *key++ = '\0';
    *value++ = '\0';
    *param_out = (param_t){.backend = word, .key = key, .value = value};
    return WEFT_OK;
}

static weft_status_t parse_words(xfer_params_t *params, weft_diag_t *diag)
{
    char *word = params->text;
    while (word != NULL) {
        char *next = strchr(word, ',');
        if (next != NULL) {
            *next++ = '\0';
        }
        if (*word != '\0') {
            weft_status_t status = parse_word(word, diag, &params->items[params->n]);
            if (status < 0) {
                return status;
            }
            params->n++;
        }
        word = next;
    }
    return WEFT_OK;
}

weft_status_t xfer_params_parse(const char *text, weft_diag_t *diag, xfer_params_t **params_out)
{
    const char *given = text == NULL ? "" : text;
    xfer_params_t *params =
        weft_zalloc(sizeof(*params) + count_words(given) * sizeof(params->items[0]), "xfer.params");
    if (params == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    params->text = weft_strdup(given, "xfer.params");
    weft_status_t status = params->text == NULL ? WEFT_ERR_NO_MEMORY : parse_words(params, diag);
    if (status < 0) {
        xfer_params_destroy(params);
        return status;
    }
    *params_out = params;
    return WEFT_OK;
}

void xfer_params_destroy(xfer_params_t *params)
{
    if (params != NULL) {
        weft_free(params->text);
        weft_free(params);
    }
}

const char *xfer_params_get(xfer_params_t *params, const char *backend, const char *key)
{
    const char *value = NULL;
    for (size_t i = 0; i < params->n; i++) {
        param_t *param = &params->items[i];
        if (strcmp(param->backend, backend) == 0 && strcmp(param->key, key) == 0) {
            param->is_known = true;
            value = param->value;
        }
    }
    return value;
}

const char *xfer_params_backend(const xfer_params_t *params, size_t i)
{
    return i < params->n ? params->items[i].backend : NULL;
}

const char *xfer_params_unknown(const xfer_params_t *params, const char *backend)
{
    for (size_t i = 0; i < params->n; i++) {
        const param_t *param = &params->items[i];
        if (!param->is_known && strcmp(param->backend, backend) == 0) {
            return param->key;
        }
    }
    return NULL;
}

bool xfer_names_next(const char **names, const char **name_out, size_t *length_out)
{
    const char *name = *names + strspn(*names, ",");
    *length_out = strcspn(name, ",");
    *names = name + *length_out;
    *name_out = name;
    return *length_out > 0;
}

bool xfer_names_have(const char *names, const char *name)
{
    const char *one;
    size_t length;
    while (xfer_names_next(&names, &one, &length)) {
        if (length == strlen(name) && memcmp(one, name, length) == 0) {
            return true;
        }
    }
    return false;
}
