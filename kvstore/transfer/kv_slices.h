/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_slices: which bytes of a peer's blocks go where in ours, when the two need not have the same
 * block size, order of axes, tensor or pipeline parallelism.
 *
 * Inside a head of a layer the tokens of a block are contiguous on both sides (kv_layout.h), but where
 * elements have scales: then block sizes have to be equal (kv_head_form_is_same). So a
 * transfer is made of pieces of unit_tokens, the smaller of the two block sizes; neighbouring heads
 * and layers that follow each other on both sides are one piece: with equal shapes a whole block.
 *
 * Pieces are numbered for prepared lists: piece k of chunk c of block b is
 * (c × n_pieces + k) × blocks + b, so that a list has chunks × n_pieces runs, whatever the number of
 * blocks. vLLM's descriptor ids (region × blocks + block) are the case of one chunk.
 *
 * Threads  none of its own
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/status.h"
#include "transport/xfer/xfer.h"

#define KV_SLICES_MAX_PIECES (1u << 16) /* chunks × pieces of one side */

/* Blocks of one rank, as somebody who copies them sees them. */
typedef struct kv_shape {
    uint32_t block_tokens;
    uint32_t token_bytes; /* K and V of a head of a layer, and their scales */
    uint32_t first_layer; /* of the model's */
    uint32_t layers;
    uint32_t first_head; /* of the model's KV heads */
    uint32_t heads;
    uint64_t n_blocks;
    uint64_t block_stride;       /* bytes */
    uint64_t head_stride;        /* bytes, within a layer of a block */
    const uint64_t *layer_addrs; /* [layers] where each begins in block 0; borrowed */
} kv_shape_t;

typedef struct kv_slice {
    uint64_t local; /* address in block 0 */
    uint64_t peer;
    uint64_t bytes;
} kv_slice_t;

typedef struct kv_slices {
    uint32_t unit_tokens;
    uint32_t local_chunks; /* units in a block */
    uint32_t peer_chunks;
    uint64_t chunk_bytes; /* from one chunk to the next, where there are several */
    uint64_t local_blocks;
    uint64_t peer_blocks;
    uint64_t local_stride;
    uint64_t peer_stride;
    uint32_t n_pieces;
    uint64_t unit_bytes; /* of all pieces of a unit */
    kv_slice_t *pieces;  /* owned [n_pieces], ascending in both */
} kv_slices_t;

/*
 * What both have of layers and heads. WEFT_ERR_NOT_FOUND: nothing. WEFT_ERR_UNSUPPORTED: block
 * sizes of which neither is a multiple of the other, other bytes a token, too many pieces.
 */
weft_status_t kv_slices_init(const kv_shape_t *local, const kv_shape_t *peer, weft_diag_t *diag,
                             kv_slices_t *slices_out);
void kv_slices_fini(kv_slices_t *slices);

/* The runs of a list: of local_chunks × n_pieces, or of peer_chunks × n_pieces. */
void kv_slices_local_runs(const kv_slices_t *slices, uint64_t device, xfer_run_t *runs_out);
void kv_slices_peer_runs(const kv_slices_t *slices, uint64_t device, xfer_run_t *runs_out);

/*
 * The pairs that bring units first … first + n - 1 of a sequence, n_pieces × n of them. Blocks of each
 * side are those of the sequence, the first one that of unit local_base (peer_base).
 */
void kv_slices_pairs(const kv_slices_t *slices, uint32_t first, uint32_t n,
                     const uint32_t *local_blocks, uint32_t local_base, const uint32_t *peer_blocks,
                     uint32_t peer_base, uint32_t *local_ids_out, uint32_t *peer_ids_out);

/* ---- who has which heads --------------------------------------------------------------------- */

/*
 * The heads of a rank, as runtime/model/model_shard.h deals them out: runs as even as can be; with more ranks
 * than heads one head each, which ranks that follow one another share. False: no such rank.
 */
bool kv_heads_of(uint32_t total_heads, uint32_t tp_size, uint32_t tp_rank, uint32_t *first_out,
                 uint32_t *n_out);

typedef struct kv_target {
    uint32_t tp_rank;
    bool is_source;   /* blocks are read from it; else it is only told that we are done */
    uint32_t readers; /* ranks like ours that will tell it so */
} kv_target_t;

/*
 * The peer's ranks that a rank of ours deals with, in targets_out [peer_tp]; how many. As vLLM where
 * heads and ranks divide each other, and one size is a multiple of the other; else every rank with a
 * head in common, of those with the same ones the lowest is read. 0: there is no such rank.
 */
uint32_t kv_targets(uint32_t total_heads, uint32_t local_tp, uint32_t local_rank, uint32_t peer_tp,
                    kv_target_t *targets_out);
