/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coll_shm_pass: rank 0 gives its file to the other ranks: over a Unix socket whose name is in no folder
 * and cannot be guessed.
 */
#pragma once

#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"

typedef struct coll_shm_name {
    uint8_t random[16];
} coll_shm_name_t;

typedef struct coll_shm_door {
    int fd; /* -1: closed */
} coll_shm_door_t;

weft_status_t coll_shm_door_open(coll_shm_door_t *door, coll_shm_name_t *name_out,
                                 weft_diag_t *diag);
void coll_shm_door_close(coll_shm_door_t *door);

/* Gives fd to n callers of our user. */
weft_status_t coll_shm_door_serve(coll_shm_door_t *door, int fd, uint32_t n, uint64_t timeout_ns,
                                  weft_diag_t *diag);

weft_status_t coll_shm_door_enter(const coll_shm_name_t *name, uint64_t timeout_ns,
                                  weft_diag_t *diag, int *fd_out);
