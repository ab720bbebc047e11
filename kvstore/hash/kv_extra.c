/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/hash/kv_extra.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "base/alloc.h"

struct kv_extra {
    atomic_uint refs;
    const char *salt; /* NULL or in text, so for each */
    const char *lora_name;
    const char *lora_path;
    char text[];
};

static size_t size_of(const char *text)
{
    return text == NULL ? 0 : strlen(text) + 1;
}

/* Copies text to *cursor and moves that behind it. */
static const char *put(char **cursor, const char *text)
{
    if (text == NULL) {
        return NULL;
    }
    const size_t size = size_of(text);
    const char *copy = memcpy(*cursor, text, size);
    *cursor += size;
    return copy;
}

weft_status_t kv_extra_create(const char *salt, const char *lora_name, const char *lora_path,
                              kv_extra_t **extra_out)
{
    const size_t bytes = size_of(salt) + size_of(lora_name) + size_of(lora_path);
    if (bytes == 0) {
        *extra_out = NULL;
        return WEFT_OK;
    }
    if (bytes > KV_EXTRA_MAX_BYTES) {
        return WEFT_ERR_TOO_LARGE;
    }
    kv_extra_t *extra = weft_zalloc(sizeof(*extra) + bytes, "kv_extra.extra");
    if (extra == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    char *cursor = extra->text;
    atomic_init(&extra->refs, 1);
    extra->salt = put(&cursor, salt);
    extra->lora_name = put(&cursor, lora_name);
    extra->lora_path = put(&cursor, lora_path);
    *extra_out = extra;
    return WEFT_OK;
}

kv_extra_t *kv_extra_acquire(kv_extra_t *extra)
{
    if (extra != NULL) {
        atomic_fetch_add_explicit(&extra->refs, 1, memory_order_relaxed);
    }
    return extra;
}

void kv_extra_release(kv_extra_t *extra)
{
    if (extra != NULL && atomic_fetch_sub(&extra->refs, 1) == 1) {
        weft_free(extra);
    }
}

const char *kv_extra_salt(const kv_extra_t *extra)
{
    return extra == NULL ? NULL : extra->salt;
}

const char *kv_extra_lora_name(const kv_extra_t *extra)
{
    return extra == NULL ? NULL : extra->lora_name;
}

const char *kv_extra_lora_path(const kv_extra_t *extra)
{
    return extra == NULL ? NULL : extra->lora_path;
}
