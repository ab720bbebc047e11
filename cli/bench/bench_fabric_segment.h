/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fabric_segment: memory to register: DRAM (a memfd, or private), VRAM, or a file. Its bytes
 * are put and looked at here, whatever it is, to know what a transfer has to bring.
 */
#pragma once

#include "base/device.h"
#include "cli/bench/bench_fabric.h"
#include "transport/xfer/xfer.h"

/* Zeroed memory is no segment. */
typedef struct bench_fabric_segment {
    xfer_memory_t memory; /* to register; constant */
    weft_device_t *device;
    weft_queue_t *queue;
    weft_mem_t mem; /* the bytes; a file's are mapped */
    bool is_file;
} bench_fabric_segment_t;

/* kind: dram, vram or file; memory: memfd or private. */
weft_status_t bench_fabric_segment_open(const char *kind, const char *memory, const char *folder,
                                        uint64_t bytes, weft_diag_t *diag,
                                        bench_fabric_segment_t *segment_out);
void bench_fabric_segment_close(bench_fabric_segment_t *segment); /* zeroed is fine */

/* The word at a multiple of 8 is made of offset and salt. */
uint64_t bench_fabric_word(uint64_t offset, uint64_t salt);
weft_status_t bench_fabric_segment_fill(bench_fabric_segment_t *segment, uint64_t salt);
/* Zeros. */
weft_status_t bench_fabric_segment_clear(bench_fabric_segment_t *segment, uint64_t offset,
                                         uint64_t bytes);
weft_status_t bench_fabric_segment_read(bench_fabric_segment_t *segment, uint64_t offset,
                                        void *data_out, uint64_t bytes);
