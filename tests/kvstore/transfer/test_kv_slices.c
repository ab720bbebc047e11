/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_slices.h"

#include "kvstore/kv_layout.h"
#include "tests/support/nixl_vectors.h"
#include "tests/support/random.h"

/* ---- vLLM's tables --------------------------------------------------------------------------- */

static uint64_t row(const json_t *rows, size_t i, size_t column)
{
    return (uint64_t)json_integer_value(json_array_get(json_array_get(rows, i), column));
}

static void check_ids(const json_t *test)
{
    const uint32_t n_regions = (uint32_t)nixl_number(test, "num_regions");
    const json_t *blocks = json_array_get(json_object_get(test, "block_ids"), 0);
    const json_t *golden = json_object_get(test, "ids");
    const uint32_t n = (uint32_t)json_array_size(blocks);
    uint32_t ids[64];
    uint32_t local[64];
    uint32_t peer[64];
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = (uint32_t)json_integer_value(json_array_get(blocks, i));
    }
    const kv_slices_t slices = {.unit_tokens = 16,
                                .local_chunks = 1,
                                .peer_chunks = 1,
                                .local_blocks = nixl_number(test, "num_blocks"),
                                .peer_blocks = nixl_number(test, "num_blocks"),
                                .n_pieces = n_regions};
    kv_slices_pairs(&slices, 0, n, ids, 0, ids, 0, local, peer);
    assert_int_equal(json_array_size(golden), n * n_regions);
    for (uint32_t i = 0; i < n * n_regions; i++) {
        assert_int_equal(peer[i], json_integer_value(json_array_get(golden, i)));
        assert_int_equal(local[i], peer[i]);
    }
}

static void ids_are_vllms(void **state)
{
    (void)state;
    nixl_for_each("desc_ids", check_ids);
}

static void check_table(const json_t *test)
{
    uint64_t bases[3];
    kv_slices_t slices;
    xfer_run_t runs[3];
    const uint32_t bytes = (uint32_t)nixl_number(test, "block_len");
    for (size_t i = 0; i < 3; i++) {
        bases[i] = (uint64_t)json_integer_value(json_array_get(json_object_get(test, "bases"), i));
    }
    const kv_shape_t shape = {.block_tokens = 16,
                              .token_bytes = bytes / 16,
                              .layers = 3,
                              .heads = 1,
                              .n_blocks = nixl_number(test, "num_blocks"),
                              .block_stride = nixl_number(test, "block_stride"),
                              .head_stride = bytes,
                              .layer_addrs = bases};
    assert_status(kv_slices_init(&shape, &shape, NULL, &slices), WEFT_OK);
    assert_int_equal(slices.n_pieces, 3);
    kv_slices_local_runs(&slices, nixl_number(test, "device_id"), runs);
    const json_t *rows = json_object_get(test, "addr_len_dev_first_12");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const xfer_run_t *run = &runs[i / shape.n_blocks];
        assert_true(run->addr + i % shape.n_blocks * run->stride == row(rows, i, 0));
        assert_true(run->bytes == row(rows, i, 1));
        assert_true(run->device == row(rows, i, 2));
    }
    kv_slices_fini(&slices);
}

static void tables_are_vllms(void **state)
{
    (void)state;
    nixl_for_each("local_desc_table", check_table);
}

static bool holds(const json_t *list, uint32_t rank)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (json_integer_value(json_array_get(list, i)) == (json_int_t)rank) {
            return true;
        }
    }
    return false;
}

/* One layer of whole heads: what is read of the first source's blocks. */
static void check_rows(const json_t *test, const kv_target_t *source)
{
    enum { TOKENS = 16 };
    const uint32_t total = (uint32_t)nixl_number(test, "total_kv_heads");
    const uint32_t local_tp = (uint32_t)nixl_number(test, "local_tp");
    const uint32_t peer_tp = (uint32_t)nixl_number(test, "remote_tp");
    const uint64_t peer_len = nixl_number(test, "remote_block_len");
    const uint64_t base = nixl_number(test, "remote_base");
    const uint64_t local_base = 1 << 30;
    kv_shape_t local = {.block_tokens = TOKENS, .layers = 1, .n_blocks = 3};
    kv_shape_t peer = local;
    assert_true(kv_heads_of(total, local_tp, (uint32_t)nixl_number(test, "local_tp_rank"),
                            &local.first_head, &local.heads));
    assert_true(kv_heads_of(total, peer_tp, source->tp_rank, &peer.first_head, &peer.heads));
    peer.token_bytes = (uint32_t)(peer_len / TOKENS / peer.heads);
    peer.head_stride = peer_len / peer.heads;
    peer.block_stride = peer_len;
    peer.layer_addrs = &base;
    local.token_bytes = peer.token_bytes;
    local.head_stride = peer.head_stride;
    local.block_stride = local.head_stride * local.heads;
    local.layer_addrs = &local_base;
    assert_true(local.block_stride == nixl_number(test, "local_block_len"));
    kv_slices_t slices;
    xfer_run_t run;
    assert_status(kv_slices_init(&local, &peer, NULL, &slices), WEFT_OK);
    assert_int_equal(slices.n_pieces, 1);
    kv_slices_peer_runs(&slices, 1, &run);
    const json_t *rows = json_object_get(test, "remote_desc_rows");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        assert_true(run.addr + i * run.stride == row(rows, i, 0));
        assert_true(run.bytes == row(rows, i, 1));
    }
    kv_slices_fini(&slices);
}

static void check_mapping(const json_t *test)
{
    kv_target_t targets[64];
    const json_t *ranks = json_object_get(test, "handshake_target_ranks");
    const uint32_t n = kv_targets((uint32_t)nixl_number(test, "total_kv_heads"),
                                  (uint32_t)nixl_number(test, "local_tp"),
                                  (uint32_t)nixl_number(test, "local_tp_rank"),
                                  (uint32_t)nixl_number(test, "remote_tp"), targets);
    assert_int_equal(n, json_array_size(ranks));
    for (uint32_t i = 0; i < n; i++) {
        assert_true(holds(ranks, targets[i].tp_rank));
        assert_int_equal(targets[i].is_source,
                         holds(json_object_get(test, "source_ranks"), targets[i].tp_rank));
        assert_int_equal(targets[i].readers, nixl_number(test, "notif_consumers"));
    }
    check_rows(test, &targets[0]);
}

static void ranks_are_mapped_as_in_vllm(void **state)
{
    (void)state;
    nixl_for_each("tp_mapping", check_mapping);
}

/* ---- every head once, every rank told -------------------------------------------------------- */

static void check_targets(uint32_t total, uint32_t local_tp, uint32_t peer_tp)
{
    uint32_t told[16] = {0};
    uint32_t expected[16] = {0};
    for (uint32_t rank = 0; rank < local_tp; rank++) {
        kv_target_t targets[64];
        uint32_t first;
        uint32_t n_heads;
        assert_true(kv_heads_of(total, local_tp, rank, &first, &n_heads));
        const uint32_t n = kv_targets(total, local_tp, rank, peer_tp, targets);
        assert_true(n > 0);
        for (uint32_t head = first; head < first + n_heads; head++) {
            uint32_t sources = 0;
            for (uint32_t i = 0; i < n; i++) {
                uint32_t peer_first;
                uint32_t peer_heads;
                assert_true(
                    kv_heads_of(total, peer_tp, targets[i].tp_rank, &peer_first, &peer_heads));
                sources +=
                    targets[i].is_source && head >= peer_first && head < peer_first + peer_heads;
            }
            assert_int_equal(sources, 1);
        }
        for (uint32_t i = 0; i < n; i++) {
            told[targets[i].tp_rank]++;
            expected[targets[i].tp_rank] = targets[i].readers;
        }
    }
    for (uint32_t rank = 0; rank < peer_tp; rank++) {
        assert_true(told[rank] > 0);
        assert_int_equal(told[rank], expected[rank]);
    }
}

static void any_sizes_read_each_head_once_and_tell_each_rank(void **state)
{
    uint32_t first;
    uint32_t n;
    (void)state;
    for (uint32_t total = 1; total <= 12; total++) {
        for (uint32_t local_tp = 1; local_tp <= 12; local_tp++) {
            for (uint32_t peer_tp = 1; peer_tp <= 12; peer_tp++) {
                kv_target_t targets[64];
                if (kv_heads_of(total, local_tp, 0, &first, &n) &&
                    kv_heads_of(total, peer_tp, 0, &first, &n)) {
                    check_targets(total, local_tp, peer_tp);
                } else {
                    assert_int_equal(kv_targets(total, local_tp, 0, peer_tp, targets), 0);
                }
            }
        }
    }
}

/* ---- bytes ----------------------------------------------------------------------------------- */

enum { LAYERS = 3, HEADS = 6, HEAD_DIM = 2, ELEMENT = 2, SEQUENCE = 128, MAX_BLOCKS = 40 };

typedef struct side {
    kv_layout_t layout;
    kv_shape_t shape;
    uint64_t layer_addrs[LAYERS];
    uint8_t *memory;
    size_t bytes;
    uint32_t blocks[MAX_BLOCKS]; /* of the sequence, in any order */
    uint32_t n;
} side_t;

/* What is at a byte of a token of a head of a layer of the model. */
static uint8_t content(uint32_t layer, uint32_t head, uint32_t token, uint32_t byte)
{
    uint32_t mixed = layer * 2654435761u ^ head * 40503u ^ token * 2246822519u ^ byte * 3266489917u;
    return (uint8_t)(mixed >> 13);
}

static uint8_t *place_of(const side_t *side, uint32_t layer, uint32_t head, uint32_t token)
{
    const uint32_t tokens = side->layout.block_tokens;
    return side->memory + side->blocks[token / tokens] * side->layout.strides[0].block +
           (layer - side->shape.first_layer) * side->layout.strides[0].layer +
           (head - side->shape.first_head) * side->layout.strides[0].head +
           token % tokens * side->layout.strides[0].token;
}

static void open_side(side_t *side, test_random_t *random, uint32_t tokens, kv_order_t order,
                      uint32_t tp, uint32_t rank, uint32_t first_layer, uint32_t layers)
{
    uint32_t first_head;
    uint32_t heads;
    assert_true(kv_heads_of(HEADS, tp, rank, &first_head, &heads));
    side->n = SEQUENCE / tokens;
    side->layout =
        (kv_layout_t){.order = order,
                      .block_tokens = tokens,
                      .element_bytes = ELEMENT,
                      .n_groups = 1,
                      .groups = {{.layers = layers, .heads = heads, .head_dim = HEAD_DIM}}};
    assert_status(kv_layout_init(&side->layout, MAX_BLOCKS, NULL), WEFT_OK);
    side->bytes = (size_t)MAX_BLOCKS * layers * heads * tokens * 2 * HEAD_DIM * ELEMENT;
    side->memory = weft_zalloc(side->bytes, "test.memory");
    assert_non_null(side->memory);
    for (uint32_t i = 0; i < layers; i++) {
        side->layer_addrs[i] =
            (uint64_t)(uintptr_t)side->memory + i * side->layout.strides[0].layer;
    }
    uint32_t ids[MAX_BLOCKS];
    for (uint32_t i = 0; i < MAX_BLOCKS; i++) {
        const uint32_t j = test_random_below(random, i + 1);
        ids[i] = ids[j];
        ids[j] = i;
    }
    memcpy(side->blocks, ids, sizeof(ids));
    side->shape = (kv_shape_t){.block_tokens = tokens,
                               .token_bytes = 2 * HEAD_DIM * ELEMENT,
                               .first_layer = first_layer,
                               .layers = layers,
                               .first_head = first_head,
                               .heads = heads,
                               .n_blocks = MAX_BLOCKS,
                               .block_stride = side->layout.strides[0].block,
                               .head_stride = side->layout.strides[0].head,
                               .layer_addrs = side->layer_addrs};
}

static void write_side(side_t *side)
{
    for (uint32_t layer = 0; layer < side->shape.layers; layer++) {
        for (uint32_t head = 0; head < side->shape.heads; head++) {
            for (uint32_t token = 0; token < SEQUENCE; token++) {
                uint8_t *place = place_of(side, layer + side->shape.first_layer,
                                          head + side->shape.first_head, token);
                for (uint32_t byte = 0; byte < side->shape.token_bytes; byte++) {
                    place[byte] = content(layer + side->shape.first_layer,
                                          head + side->shape.first_head, token, byte);
                }
            }
        }
    }
}

static const uint8_t *piece_at(const xfer_run_t *runs, uint64_t blocks, uint32_t id,
                               uint64_t *bytes_out)
{
    const xfer_run_t *run = &runs[id / blocks];
    *bytes_out = run->bytes;
    return (const uint8_t *)(uintptr_t)(run->addr + id % blocks * run->stride);
}

static bool is_within(const side_t *side, const uint8_t *at, uint64_t bytes)
{
    return at >= side->memory && at + bytes <= side->memory + side->bytes;
}

/* The fabric in short: copies pieces by their ids. */
static uint64_t copy(const kv_slices_t *slices, const side_t *local, const side_t *peer,
                     uint32_t first_token)
{
    xfer_run_t *local_runs = weft_calloc(4096, sizeof(*local_runs), "test.runs");
    xfer_run_t *peer_runs = weft_calloc(4096, sizeof(*peer_runs), "test.runs");
    uint32_t *local_ids = weft_calloc(1 << 16, sizeof(*local_ids), "test.ids");
    uint32_t *peer_ids = weft_calloc(1 << 16, sizeof(*peer_ids), "test.ids");
    const uint32_t first = first_token / slices->unit_tokens;
    const uint32_t n = SEQUENCE / slices->unit_tokens - first;
    const uint32_t skipped = first_token / local->layout.block_tokens;
    kv_slices_local_runs(slices, 0, local_runs);
    kv_slices_peer_runs(slices, 0, peer_runs);
    kv_slices_pairs(slices, first, n, local->blocks + skipped, first, peer->blocks, 0, local_ids,
                    peer_ids);
    for (uint32_t i = 0; i < n * slices->n_pieces; i++) {
        uint64_t bytes;
        uint64_t peer_bytes;
        const uint8_t *to = piece_at(local_runs, slices->local_blocks, local_ids[i], &bytes);
        const uint8_t *from = piece_at(peer_runs, slices->peer_blocks, peer_ids[i], &peer_bytes);
        assert_true(bytes == peer_bytes);
        assert_true(is_within(local, to, bytes) && is_within(peer, from, bytes));
        memcpy(local->memory + (to - local->memory), from, bytes);
    }
    weft_free(local_runs);
    weft_free(peer_runs);
    weft_free(local_ids);
    weft_free(peer_ids);
    return n * slices->unit_bytes;
}

static void check_side(const side_t *side, uint32_t first_token)
{
    for (uint32_t layer = 0; layer < side->shape.layers; layer++) {
        for (uint32_t head = 0; head < side->shape.heads; head++) {
            for (uint32_t token = first_token; token < SEQUENCE; token++) {
                const uint8_t *place = place_of(side, layer + side->shape.first_layer,
                                                head + side->shape.first_head, token);
                for (uint32_t byte = 0; byte < side->shape.token_bytes; byte++) {
                    assert_int_equal(place[byte],
                                     content(layer + side->shape.first_layer,
                                             head + side->shape.first_head, token, byte));
                }
            }
        }
    }
}

static uint32_t pick(test_random_t *random, const uint32_t *from, uint32_t n)
{
    return from[test_random_below(random, n)];
}

/* A reader of any shape, from as many ranks of any other shape as it takes. */
static void read_once(test_random_t *random)
{
    static const uint32_t sizes[] = {4, 8, 16, 32};
    static const uint32_t tps[] = {1, 2, 3, 6, 12};
    const uint32_t local_tp = pick(random, tps, 5);
    const uint32_t peer_tp = pick(random, tps, 5);
    const uint32_t rank = test_random_below(random, local_tp);
    const uint32_t stages = test_random_between(random, 1, 2);
    const uint32_t peer_tokens = pick(random, sizes, 4);
    const kv_order_t peer_order = (kv_order_t)test_random_below(random, 3);
    side_t local = {0};
    kv_target_t targets[64];
    uint64_t bytes = 0;
    open_side(&local, random, pick(random, sizes, 4), (kv_order_t)test_random_below(random, 3),
              local_tp, rank, 0, LAYERS);
    const uint32_t first_token = local.layout.block_tokens * test_random_below(random, local.n);
    const uint32_t n = kv_targets(HEADS, local_tp, rank, peer_tp, targets);
    for (uint32_t i = 0; i < n * stages; i++) {
        const kv_target_t *target = &targets[i % n];
        const uint32_t first_layer = stages == 1 ? 0 : i / n;
        const uint32_t layers = stages == 1 ? LAYERS : i / n == 0 ? 1 : LAYERS - 1;
        side_t peer = {0};
        kv_slices_t slices;
        if (!target->is_source) {
            continue;
        }
        open_side(&peer, random, peer_tokens, peer_order, peer_tp, target->tp_rank, first_layer,
                  layers);
        write_side(&peer);
        assert_status(kv_slices_init(&local.shape, &peer.shape, NULL, &slices), WEFT_OK);
        bytes += copy(&slices, &local, &peer, first_token);
        kv_slices_fini(&slices);
        weft_free(peer.memory);
    }
    check_side(&local, first_token);
    assert_true(bytes == (uint64_t)(SEQUENCE - first_token) * LAYERS * local.shape.heads *
                             local.shape.token_bytes);
    weft_free(local.memory);
}

static void any_two_shapes_copy_the_same_bytes(void **state)
{
    test_random_t random = {test_seed(1)};
    const uint32_t rounds = test_rounds(2000);
    (void)state;
    for (uint32_t i = 0; i < rounds; i++) {
        read_once(&random);
    }
}

static void equal_shapes_copy_whole_blocks(void **state)
{
    test_random_t random = {7};
    side_t side = {0};
    kv_slices_t slices;
    (void)state;
    open_side(&side, &random, 16, KV_ORDER_BHLNC, 1, 0, 0, LAYERS);
    assert_status(kv_slices_init(&side.shape, &side.shape, NULL, &slices), WEFT_OK);
    assert_int_equal(slices.n_pieces, 1);
    assert_true(slices.pieces[0].bytes == side.layout.strides[0].block);
    kv_slices_fini(&slices);
    weft_free(side.memory);
}

static void heads_of_one_rank_are_one_piece_of_anothers_block(void **state)
{
    test_random_t random = {7};
    side_t half = {0};
    side_t whole = {0};
    kv_slices_t slices;
    (void)state;
    open_side(&half, &random, 16, KV_ORDER_BHLNC, 2, 1, 0, LAYERS);
    open_side(&whole, &random, 16, KV_ORDER_BHLNC, 1, 0, 0, LAYERS);
    assert_status(kv_slices_init(&half.shape, &whole.shape, NULL, &slices), WEFT_OK);
    assert_int_equal(slices.n_pieces, 1);
    assert_true(slices.pieces[0].bytes == half.layout.strides[0].block);
    kv_slices_fini(&slices);
    weft_free(half.memory);
    weft_free(whole.memory);
}

static void what_does_not_fit_is_refused_and_named(void **state)
{
    test_random_t random = {7};
    side_t side = {0};
    kv_slices_t slices;
    weft_diag_t diag = {0};
    (void)state;
    open_side(&side, &random, 16, KV_ORDER_BHLNC, 1, 0, 0, LAYERS);
    kv_shape_t other = side.shape;
    other.block_tokens = 24;
    assert_status(kv_slices_init(&side.shape, &other, &diag, &slices), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "24"));
    other = side.shape;
    other.token_bytes *= 2;
    assert_status(kv_slices_init(&side.shape, &other, &diag, &slices), WEFT_ERR_UNSUPPORTED);
    other = side.shape;
    other.first_layer = LAYERS;
    assert_status(kv_slices_init(&side.shape, &other, &diag, &slices), WEFT_ERR_NOT_FOUND);
    other = side.shape;
    other.n_blocks = UINT64_C(1) << 32;
    assert_status(kv_slices_init(&side.shape, &other, &diag, &slices), WEFT_ERR_UNSUPPORTED);
    weft_free(side.memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_vllms),
        cmocka_unit_test(tables_are_vllms),
        cmocka_unit_test(ranks_are_mapped_as_in_vllm),
        cmocka_unit_test(any_sizes_read_each_head_once_and_tell_each_rank),
        cmocka_unit_test(any_two_shapes_copy_the_same_bytes),
        cmocka_unit_test(equal_shapes_copy_whole_blocks),
        cmocka_unit_test(heads_of_one_rank_are_one_piece_of_anothers_block),
        cmocka_unit_test(what_does_not_fit_is_refused_and_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
