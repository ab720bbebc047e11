/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xfer_blob: what an agent tells its peers of itself, as bytes: the metadata of NIXL 1.5.1, which
 * carries no version, no length and no checksum.
 *
 *     "nixlSerDes|", then fields: a tag, u64 length, that many bytes, '|'. In this order:
 *     "Agent"        the agent's name
 *     "Conns"        u64: how many connections follow
 *       "t" "c"      a backend's name; how to reach it, which that backend understands
 *     ""             "MemSection"
 *     "nixlSecElms"  u64: how many sections follow, one per backend and kind of memory
 *       "bknd"       the backend's name
 *       "nixlDList"  "nixlSDList"
 *       "t" "n"      i32 kind of memory; u64: how many regions follow, not 0
 *         ""         u64 address, u64 bytes, u64 device, then the region's key, for that backend
 *
 * Numbers are little-endian. A field is never empty. A reader skips backends that it has not.
 *
 * Decoding distrusts every byte and finds what encoding would write, to the byte. What the parts
 * mean to each other (regions that overlap, a region that is another's) is not seen here.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/diag.h"

typedef struct xfer_bytes {
    const void *data;
    size_t n;
} xfer_bytes_t;

typedef struct xfer_blob_conn {
    xfer_bytes_t backend;
    xfer_bytes_t address;
} xfer_blob_conn_t;

typedef struct xfer_blob_region {
    uint64_t addr;
    uint64_t bytes;
    uint64_t device;
    xfer_bytes_t key; /* may be empty */
} xfer_blob_region_t;

typedef struct xfer_blob_section {
    xfer_bytes_t backend;
    int32_t space;
    xfer_blob_region_t *regions; /* [n] */
    size_t n;
} xfer_blob_section_t;

typedef struct xfer_blob {
    xfer_bytes_t agent;
    xfer_blob_conn_t *conns; /* [n_conns], no backend twice */
    size_t n_conns;
    xfer_blob_section_t *sections; /* [n_sections], no backend and kind of memory twice */
    size_t n_sections;
} xfer_blob_t;

/* Appends; a failed allocation shows in out. The caller keeps to the rules above. */
void xfer_blob_encode(const xfer_blob_t *blob, weft_buffer_t *out);

/* WEFT_ERR_MALFORMED: diag says what and where. blob_out points into data [n]; fini it. */
weft_status_t xfer_blob_decode(const void *data, size_t n, weft_diag_t *diag,
                               xfer_blob_t *blob_out);
void xfer_blob_fini(xfer_blob_t *blob); /* of decode; a zeroed one is fine */
