/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_copier: a thread that copies between host and device memory, so that a step need not.
 *
 * Threads  post and poll: one thread; wake is called from the copier's
 */
#pragma once

#include <stddef.h>

#include "base/device.h"
#include "base/status.h"

typedef struct kv_copier kv_copier_t;

typedef struct kv_copier_config {
    weft_device_t *device; /* borrowed */
    uint32_t max_copies;   /* posted and not yet polled */
    void (*wake)(void *user);
    void *user;
} kv_copier_config_t;

typedef struct kv_copier_done {
    void *tag;
    weft_status_t status;
    uint64_t copy_ns;
} kv_copier_done_t;

weft_status_t kv_copier_create(const kv_copier_config_t *config, kv_copier_t **copier_out);
void kv_copier_destroy(kv_copier_t *copier); /* what was posted is done first; NULL is fine */

/* dst and src [bytes] stay as they are until poll reports tag. WEFT_ERR_QUEUE_FULL. */
weft_status_t kv_copier_post(kv_copier_t *copier, void *dst, const void *src, size_t bytes,
                             void *tag);
/* False: none is done. In the order of the posts. */
bool kv_copier_poll(kv_copier_t *copier, kv_copier_done_t *done_out);
