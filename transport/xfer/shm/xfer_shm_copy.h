/* SPDX-License-Identifier: Apache-2.0 */
/* xfer_shm_copy: memcpy between mapped pools, of many pieces one after the other. */
#pragma once

#include <stddef.h>

/* What will be copied next, so that its pages and first lines are on their way by then. */
typedef struct xfer_shm_next {
    void *dst;
    const void *src;
} xfer_shm_next_t;

void xfer_shm_copy(void *dst, const void *src, size_t bytes, xfer_shm_next_t next);

/*
 * Writes past the caches, which saves reading what is overwritten: for transfers that the caches
 * would not hold anyway. Ordered before later writes only by a full fence.
 */
void xfer_shm_copy_streamed(void *dst, const void *src, size_t bytes, xfer_shm_next_t next);
