/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_extra: what besides tokens makes a block's content: the tenant's salt, the adapter.
 *
 * One object a request, shared by the blocks it names; immutable, counted.
 *
 * Threads  any; the count is atomic
 */
#pragma once

#include "base/status.h"

#define KV_EXTRA_MAX_BYTES 12288 /* of all texts: a path, a name, a salt of 1024 characters */

typedef struct kv_extra kv_extra_t;

/*
 * salt: UTF-8, in the hash of a chain's first block; lora_name, lora_path: in that of every block.
 * Each may be NULL (a name comes with its path). Copied. All NULL: *extra_out is NULL, which every
 * function here and kv_hasher_block take as "nothing besides tokens".
 * WEFT_ERR_TOO_LARGE: longer than KV_EXTRA_MAX_BYTES, ends included.
 */
weft_status_t kv_extra_create(const char *salt, const char *lora_name, const char *lora_path,
                              kv_extra_t **extra_out);

kv_extra_t *kv_extra_acquire(kv_extra_t *extra); /* NULL is fine, so below; returns extra */
void kv_extra_release(kv_extra_t *extra);

const char *kv_extra_salt(const kv_extra_t *extra); /* NULL: none; so for each */
const char *kv_extra_lora_name(const kv_extra_t *extra);
const char *kv_extra_lora_path(const kv_extra_t *extra);
