/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_slices.h"

#include <stdlib.h>

#include "base/alloc.h"

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- pieces ---------------------------------------------------------------------------------- */

typedef struct range {
    uint32_t first;
    uint32_t end;
} range_t;

static range_t overlap(uint32_t first_a, uint32_t n_a, uint32_t first_b, uint32_t n_b)
{
    const range_t range = {larger(first_a, first_b), smaller(first_a + n_a, first_b + n_b)};
    return range.first < range.end ? range : (range_t){0, 0};
}

static uint64_t head_addr(const kv_shape_t *shape, uint32_t layer, uint32_t head)
{
    return shape->layer_addrs[layer - shape->first_layer] +
           (head - shape->first_head) * shape->head_stride;
}

static int compare_slices(const void *a, const void *b)
{
    const kv_slice_t *one = a;
    const kv_slice_t *two = b;
    return one->local < two->local ? -1 : one->local > two->local;
}

/* Only whole heads continue each other: of several chunks in a block, none does. */
static uint32_t merge(kv_slice_t *pieces, uint32_t n)
{
    uint32_t last = 0;
    for (uint32_t i = 1; i < n; i++) {
        kv_slice_t *piece = &pieces[last];
        if (piece->local + piece->bytes == pieces[i].local &&
            piece->peer + piece->bytes == pieces[i].peer) {
            piece->bytes += pieces[i].bytes;
        } else {
            pieces[++last] = pieces[i];
        }
    }
    return last + 1;
}

static weft_status_t make_pieces(const kv_shape_t *local, const kv_shape_t *peer,
                                 kv_slices_t *slices)
{
    const range_t layers =
        overlap(local->first_layer, local->layers, peer->first_layer, peer->layers);
    const range_t heads = overlap(local->first_head, local->heads, peer->first_head, peer->heads);
    const uint64_t n = (uint64_t)(layers.end - layers.first) * (heads.end - heads.first);
    if (n == 0) {
        return WEFT_ERR_NOT_FOUND;
    }
    slices->pieces = weft_calloc(n, sizeof(*slices->pieces), "kv_slices.pieces");
    if (slices->pieces == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    uint32_t at = 0;
    for (uint32_t layer = layers.first; layer < layers.end; layer++) {
        for (uint32_t head = heads.first; head < heads.end; head++) {
            slices->pieces[at++] = (kv_slice_t){head_addr(local, layer, head),
                                                head_addr(peer, layer, head), slices->chunk_bytes};
        }
    }
    slices->unit_bytes = n * slices->chunk_bytes;
    qsort(slices->pieces, at, sizeof(*slices->pieces), compare_slices);
    slices->n_pieces = merge(slices->pieces, at);
    return WEFT_OK;
}

static weft_status_t check_ids(const kv_slices_t *slices, weft_diag_t *diag)
{
    const uint64_t local = (uint64_t)slices->local_chunks * slices->n_pieces;
    const uint64_t peer = (uint64_t)slices->peer_chunks * slices->n_pieces;
    if (local > KV_SLICES_MAX_PIECES || peer > KV_SLICES_MAX_PIECES ||
        local > UINT32_MAX / slices->local_blocks || peer > UINT32_MAX / slices->peer_blocks) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "blocks: too many pieces to be numbered");
    }
    return WEFT_OK;
}

weft_status_t kv_slices_init(const kv_shape_t *local, const kv_shape_t *peer, weft_diag_t *diag,
                             kv_slices_t *slices_out)
{
    const uint32_t unit = smaller(local->block_tokens, peer->block_tokens);
    if (local->block_tokens % unit != 0 || peer->block_tokens % unit != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "block size: %u there, %u here: neither is a multiple of the other",
                         peer->block_tokens, local->block_tokens);
    }
    if (local->token_bytes != peer->token_bytes) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "bytes of a token: %u there, %u here",
                         peer->token_bytes, local->token_bytes);
    }
    kv_slices_t slices = {.unit_tokens = unit,
                          .local_chunks = local->block_tokens / unit,
                          .peer_chunks = peer->block_tokens / unit,
                          .chunk_bytes = (uint64_t)unit * local->token_bytes,
                          .local_blocks = local->n_blocks,
                          .peer_blocks = peer->n_blocks,
                          .local_stride = local->block_stride,
                          .peer_stride = peer->block_stride};
    weft_status_t status = make_pieces(local, peer, &slices);
    if (status >= 0) {
        status = check_ids(&slices, diag);
    }
    if (status < 0) {
        kv_slices_fini(&slices);
        return status;
    }
    *slices_out = slices;
    return WEFT_OK;
}

void kv_slices_fini(kv_slices_t *slices)
{
    weft_free(slices->pieces);
    *slices = (kv_slices_t){0};
}

void kv_slices_local_runs(const kv_slices_t *slices, uint64_t device, xfer_run_t *runs_out)
{
    for (uint32_t c = 0; c < slices->local_chunks; c++) {
        for (uint32_t k = 0; k < slices->n_pieces; k++) {
            *runs_out++ = (xfer_run_t){slices->pieces[k].local + c * slices->chunk_bytes,
                                       slices->pieces[k].bytes, device, slices->local_stride,
                                       slices->local_blocks};
        }
    }
}

void kv_slices_peer_runs(const kv_slices_t *slices, uint64_t device, xfer_run_t *runs_out)
{
    for (uint32_t c = 0; c < slices->peer_chunks; c++) {
        for (uint32_t k = 0; k < slices->n_pieces; k++) {
            *runs_out++ = (xfer_run_t){slices->pieces[k].peer + c * slices->chunk_bytes,
                                       slices->pieces[k].bytes, device, slices->peer_stride,
                                       slices->peer_blocks};
        }
    }
}

static uint32_t piece_id(uint32_t chunk, uint32_t piece, uint32_t n_pieces, uint64_t blocks,
                         uint32_t block)
{
    return (uint32_t)(((uint64_t)chunk * n_pieces + piece) * blocks + block);
}

/* Pieces outer, so that blocks that follow each other can become one where each is one piece. */
void kv_slices_pairs(const kv_slices_t *slices, uint32_t first, uint32_t n,
                     const uint32_t *local_blocks, uint32_t local_base, const uint32_t *peer_blocks,
                     uint32_t peer_base, uint32_t *local_ids_out, uint32_t *peer_ids_out)
{
    for (uint32_t k = 0; k < slices->n_pieces; k++) {
        for (uint32_t unit = first; unit < first + n; unit++) {
            const uint32_t local = unit - local_base;
            const uint32_t peer = unit - peer_base;
            *local_ids_out++ =
                piece_id(local % slices->local_chunks, k, slices->n_pieces, slices->local_blocks,
                         local_blocks[local / slices->local_chunks]);
            *peer_ids_out++ =
                piece_id(peer % slices->peer_chunks, k, slices->n_pieces, slices->peer_blocks,
                         peer_blocks[peer / slices->peer_chunks]);
        }
    }
}

/* ---- who has which heads --------------------------------------------------------------------- */

bool kv_heads_of(uint32_t total_heads, uint32_t tp_size, uint32_t tp_rank, uint32_t *first_out,
                 uint32_t *n_out)
{
    if (total_heads == 0 || tp_size == 0 || tp_rank >= tp_size) {
        return false;
    }
    *first_out = (uint32_t)((uint64_t)total_heads * tp_rank / tp_size);
    *n_out = tp_size >= total_heads
                 ? 1
                 : (uint32_t)((uint64_t)total_heads * (tp_rank + 1) / tp_size) - *first_out;
    return true;
}

/* Every rank has as many heads, or every head as many ranks: what vLLM knows. */
static bool is_even(uint32_t total_heads, uint32_t tp_size)
{
    return total_heads % tp_size == 0 || tp_size % total_heads == 0;
}

static bool share_heads(uint32_t total, uint32_t tp_a, uint32_t rank_a, uint32_t tp_b,
                        uint32_t rank_b)
{
    uint32_t first_a = 0;
    uint32_t first_b = 0;
    uint32_t n_a = 0;
    uint32_t n_b = 0;
    kv_heads_of(total, tp_a, rank_a, &first_a, &n_a);
    kv_heads_of(total, tp_b, rank_b, &first_b, &n_b);
    return first_a < first_b + n_b && first_b < first_a + n_a;
}

static uint32_t count_readers(uint32_t total, uint32_t local_tp, uint32_t peer_tp,
                              uint32_t peer_rank)
{
    uint32_t n = 0;
    for (uint32_t rank = 0; rank < local_tp; rank++) {
        n += share_heads(total, local_tp, rank, peer_tp, peer_rank);
    }
    return n;
}

/* Whether no rank before this one among the targets has the same heads. */
static bool is_first_of_its_heads(uint32_t total, uint32_t peer_tp, const kv_target_t *targets,
                                  uint32_t n, uint32_t peer_rank)
{
    for (uint32_t i = 0; i < n; i++) {
        if (share_heads(total, peer_tp, targets[i].tp_rank, peer_tp, peer_rank)) {
            return false;
        }
    }
    return true;
}

uint32_t kv_targets(uint32_t total_heads, uint32_t local_tp, uint32_t local_rank, uint32_t peer_tp,
                    kv_target_t *targets_out)
{
    uint32_t first;
    uint32_t n_heads;
    uint32_t n = 0;
    if (!kv_heads_of(total_heads, local_tp, local_rank, &first, &n_heads) ||
        !kv_heads_of(total_heads, peer_tp, 0, &first, &n_heads)) {
        return 0;
    }
    const bool are_even = is_even(total_heads, local_tp) && is_even(total_heads, peer_tp);
    if (are_even && local_tp % peer_tp == 0) {
        const uint32_t ratio = local_tp / peer_tp;
        targets_out[0] = (kv_target_t){local_rank / ratio, true, ratio};
        return 1;
    }
    const bool is_multiple = are_even && peer_tp % local_tp == 0;
    for (uint32_t rank = 0; rank < peer_tp; rank++) {
        const bool is_target = is_multiple
                                   ? rank / (peer_tp / local_tp) == local_rank
                                   : share_heads(total_heads, local_tp, local_rank, peer_tp, rank);
        if (is_target) {
            const bool is_source =
                is_first_of_its_heads(total_heads, peer_tp, targets_out, n, rank);
            const uint32_t readers =
                is_multiple ? 1 : count_readers(total_heads, local_tp, peer_tp, rank);
            targets_out[n++] = (kv_target_t){rank, is_source, readers};
        }
    }
    return n;
}
