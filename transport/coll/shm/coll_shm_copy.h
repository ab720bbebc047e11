/* SPDX-License-Identifier: Apache-2.0 */
/* coll_shm_copy: copies of more than the caches hold. */
#pragma once

#include <stddef.h>

/* memcpy past the caches: dst is not read first, nor does it push anything out. */
void coll_shm_stream(void *dst, const void *src, size_t bytes);

/* After the last: other threads see what was streamed when they see what is stored from now on. */
void coll_shm_stream_end(void);
