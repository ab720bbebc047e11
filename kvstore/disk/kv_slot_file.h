/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_slot_file: the folder of a disk tier, and in it blocks.kv, the file of fixed slots.
 *
 * One process has a folder at a time: a lock on blocks.kv (flock) that ends with the process. The
 * file's space is taken when it is opened, so that a full disk shows then.
 *
 * Threads  one at a time
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct kv_slot_file {
    int dir_fd; /* -1: not open; so fd */
    int fd;
    bool is_direct; /* O_DIRECT: buffers, offsets and sizes are multiples of KV_DISK_PAGE_BYTES */
} kv_slot_file_t;

/*
 * Makes the folder (0700, with its parents) and the file (0600) when missing, and locks it; the
 * file's bytes stay as they are. WEFT_ERR_IN_USE: another process has it, after a wait of three
 * seconds. WEFT_ERR_DENIED, WEFT_ERR_IO: diag names path and cause.
 */
weft_status_t kv_slot_file_open(const char *path, weft_diag_t *diag, kv_slot_file_t *file_out);
void kv_slot_file_close(kv_slot_file_t *file);

/* Whether the file could have this size, without trying, which would fill the disk before it fails.
 * WEFT_ERR_TOO_LARGE: diag says how many bytes are free. */
weft_status_t kv_slot_file_check_space(const kv_slot_file_t *file, const char *path, uint64_t bytes,
                                       weft_diag_t *diag);
/* Gives the file exactly these bytes, on disk, and finds out whether O_DIRECT works. Errors as above,
 * and what open's are. */
weft_status_t kv_slot_file_reserve(kv_slot_file_t *file, const char *path, uint64_t bytes,
                                   weft_diag_t *diag);
