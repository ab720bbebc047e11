/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_rig: a disk tier in a folder of its own, and blocks whose names and content follow from a
 * number, so that whatever comes back can be checked.
 */
#pragma once

#include "base/device.h"
#include "kvstore/disk/kv_disk_format.h"
#include "kvstore/disk/kv_io.h"
#include "kvstore/disk/kv_journal.h"
#include "kvstore/tiers/kv_tier.h"
#include "tests/support/check.h"
#include "tests/support/tally.h"

enum {
    RIG_TOKENS = 4,
    RIG_BLOCK_BYTES = 9000, /* not whole pages */
    RIG_SLOT_BYTES = 4096 * 4,
    RIG_CHAIN = 8, /* blocks: 8 n is the first of its chain, the one before is the parent */
    RIG_NAMES = 512,
};

typedef struct disk_rig {
    char path[64];
    kv_tier_config_t config;
    kv_tier_t *tier;
    weft_diag_t diag;
    tally_t woken;
    uint8_t *memory;          /* [RIG_BLOCK_BYTES] what gets read into */
    bool is_there[RIG_NAMES]; /* by the events */
    bool is_orphan_told;      /* a block was announced before its parent, which came later */
    uint32_t n_stored;        /* events */
    uint32_t n_removed;
} disk_rig_t;

/* n_slots of room, nothing open yet. */
void disk_rig_init(disk_rig_t *rig, uint32_t n_slots);
void disk_rig_fini(disk_rig_t *rig); /* closes, and removes the folder */

/* For NULL: the best row. Events are counted from here. */
weft_status_t disk_rig_open(disk_rig_t *rig, const kv_io_ops_t *io);
void disk_rig_close(disk_rig_t *rig);

kv_hash_t disk_rig_hash(uint32_t block);
void disk_rig_content(uint32_t block, uint8_t out[RIG_BLOCK_BYTES]);

bool disk_rig_has(const disk_rig_t *rig, uint32_t block);
weft_status_t disk_rig_put(disk_rig_t *rig, uint32_t block); /* as put says */
void disk_rig_settle(disk_rig_t *rig);                       /* until nothing is in flight */
/* As put, waiting where the queue is full, and until it is there. */
void disk_rig_store(disk_rig_t *rig, uint32_t block);
/* The end of a get. OK: the content is that of the block, or the test fails. */
weft_status_t disk_rig_get(disk_rig_t *rig, uint32_t block);

uint32_t disk_rig_blocks(const disk_rig_t *rig);            /* by its own figures */
int disk_rig_file(const disk_rig_t *rig, const char *name); /* a descriptor to break it with */
