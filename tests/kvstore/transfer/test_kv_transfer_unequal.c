/* SPDX-License-Identifier: Apache-2.0 */
/* Workers of other sizes, layouts and types, a vLLM worker among them. */
#include <string.h>

#include "kvstore/transfer/kv_compat.h"
#include "kvstore/transfer/kv_side_channel.h"
#include "tests/support/transfer_pair.h"
#include "transport/xfer/xfer.h"

enum { MAX_RANKS = 4 };

/* ---- unequal workers ------------------------------------------------------------------------- */

typedef struct ensemble {
    uint32_t tp;
    transfer_worker_t ranks[MAX_RANKS];
} ensemble_t;

typedef struct form {
    uint32_t tp;
    uint32_t tokens;
    kv_order_t order;
    const char *dtype;
    float tolerance;
} form_t;

static void open_ensemble(ensemble_t *ensemble, const form_t *form)
{
    ensemble->tp = form->tp;
    for (uint32_t rank = 0; rank < form->tp; rank++) {
        const transfer_worker_config_t config = {
            .block_tokens = form->tokens,
            .order = form->order,
            .tp_size = form->tp,
            .dtype = form->dtype,
            .tolerance = form->tolerance,
            .tp_rank = rank,
            .engine_id = rank == 0 ? NULL : kv_transfer_engine_id(ensemble->ranks[0].transfer),
            .side_channel =
                rank == 0 ? NULL : kv_transfer_side_channel(ensemble->ranks[0].transfer)};
        transfer_worker_open(&ensemble->ranks[rank], &config);
    }
}

static void close_ensemble(ensemble_t *ensemble)
{
    for (uint32_t rank = ensemble->tp; rank > 0; rank--) {
        transfer_worker_close(&ensemble->ranks[rank - 1]);
    }
}

static void move_between(form_t peer, form_t local)
{
    enum { LENGTH = 100 };
    ensemble_t there;
    ensemble_t here;
    kv_transfer_params_t params = {0};
    kv_pull_t *pulls[MAX_RANKS];
    kv_block_id_t blocks[MAX_RANKS][TRANSFER_RIG_BLOCKS];
    open_ensemble(&there, &peer);
    open_ensemble(&here, &local);
    for (uint32_t rank = peer.tp; rank > 0; rank--) {
        kv_transfer_params_fini(&params); /* rank 0 answers */
        params = prefill_whole(&there.ranks[rank - 1], "r", LENGTH, 11);
    }
    for (uint32_t rank = 0; rank < local.tp; rank++) {
        transfer_worker_t *worker = &here.ranks[rank];
        pulls[rank] = expect(worker, &params, LENGTH);
        const uint32_t n = alloc(worker, LENGTH, blocks[rank]);
        const uint32_t first = 32 / kv_pool_layout(worker->pool)->block_tokens;
        assert_status(kv_pull_start(pulls[rank], first, blocks[rank] + first, n - first), WEFT_OK);
    }
    for (uint32_t rank = 0; rank < local.tp; rank++) {
        assert_pulled(pulls[rank]);
        assert_true(transfer_worker_has(&here.ranks[rank], blocks[rank], 32, LENGTH - 32, 11));
        kv_pull_end(pulls[rank]);
        kv_pool_release(here.ranks[rank].pool, blocks[rank], blocks_of(&here.ranks[rank], LENGTH));
    }
    for (uint32_t rank = 0; rank < peer.tp; rank++) {
        assert_all_free(&there.ranks[rank]);
    }
    kv_transfer_params_fini(&params);
    close_ensemble(&here);
    close_ensemble(&there);
}

#define FORM(tp, tokens, order, dtype) ((form_t){tp, tokens, KV_ORDER_##order, dtype, 0})

static void unequal_workers_move_the_same_blocks(void **state)
{
    (void)state;
    move_between(FORM(1, 16, BHLNC, "f32"), FORM(2, 16, BHLNC, "f32"));
    move_between(FORM(2, 16, BHLNC, "f32"), FORM(1, 16, BHLNC, "f32"));
    move_between(FORM(4, 16, BHLNC, "bf16"), FORM(2, 16, LBHNC, "bf16"));
    move_between(FORM(1, 4, BHLNC, "f16"), FORM(1, 16, BHLNC, "f16"));
    move_between(FORM(1, 32, BHLNC, "f32"), FORM(1, 8, BLHNC, "f32"));
    move_between(FORM(2, 8, BLHNC, "f32"), FORM(4, 32, LBHNC, "f32"));
}

static void elements_are_converted_on_arrival(void **state)
{
    (void)state;
    move_between(FORM(1, 16, BHLNC, "bf16"), FORM(1, 16, BHLNC, "f32"));
    move_between(FORM(1, 16, LBHNC, "f32"), FORM(2, 16, BHLNC, "bf16"));
    move_between(FORM(2, 32, BHLNC, "f16"), FORM(1, 8, BLHNC, "f32"));
    move_between(FORM(1, 4, BLHNC, "f32"), FORM(1, 32, BHLNC, "f16"));
    move_between(FORM(1, 16, BHLNC, "f8_e4m3"), FORM(2, 8, BLHNC, "f8_e4m3"));
    move_between(FORM(1, 16, BHLNC, "bf16"), FORM(1, 16, BHLNC, "f8_e4m3"));
    move_between(FORM(2, 32, BHLNC, "f8_e4m3"), FORM(1, 16, LBHNC, "f16"));
}

/* Whole numbers of up to 16 are off by half of 16/127, and once more where they are rounded again. */
static void move_roughly(form_t peer, form_t local)
{
    peer.tolerance = 0.1f;
    local.tolerance = 0.1f;
    move_between(peer, local);
}

static void heads_with_scales_move_and_are_converted(void **state)
{
    (void)state;
    move_roughly(FORM(1, 16, BHLNC, "int8"), FORM(1, 16, BHLNC, "int8"));
    move_roughly(FORM(2, 16, LBHNC, "int8"), FORM(4, 16, BHLNC, "int8"));
    move_roughly(FORM(4, 8, BLHNC, "int8"), FORM(1, 32, BHLNC, "int8"));
    move_roughly(FORM(1, 32, BHLNC, "int8"), FORM(2, 8, LBHNC, "int8"));
    move_roughly(FORM(1, 16, BHLNC, "bf16"), FORM(1, 16, BHLNC, "int8"));
    move_roughly(FORM(2, 8, BLHNC, "f16"), FORM(1, 16, BHLNC, "int8"));
    move_roughly(FORM(1, 16, BHLNC, "int8"), FORM(2, 32, LBHNC, "f8_e4m3"));
    move_roughly(FORM(1, 32, LBHNC, "int8"), FORM(1, 16, BHLNC, "bf16"));
}

/* ---- a vLLM worker --------------------------------------------------------------------------- */

/*
 * What vLLM's CPU worker is to us: a handshake without weft's key, one region a layer, K transposed,
 * notifications as its own. 3 heads of a worker, as its memory has them.
 */
enum { FOREIGN_TOKENS = 32, FOREIGN_BLOCKS = 8 };

typedef struct foreign {
    kv_side_channel_t *channel;
    kv_side_client_t *client;
    xfer_agent_t *agent;
    xfer_region_t *region;
    uint16_t *memory;
    size_t bytes;
    uint64_t layers[TRANSFER_RIG_LAYERS];
    uint32_t heartbeats;
    bool is_read;
} foreign_t;

static const kv_head_form_t foreign_form = {KV_ELEMENT_BF16, true, FOREIGN_TOKENS,
                                            TRANSFER_RIG_HEAD_DIM};

static size_t foreign_head_bytes(void)
{
    return (size_t)FOREIGN_TOKENS * 2 * TRANSFER_RIG_HEAD_DIM * sizeof(uint16_t);
}

static void write_foreign(foreign_t *foreign, const uint32_t *blocks, uint32_t tokens,
                          uint64_t prompt)
{
    const kv_head_form_t plain = {KV_ELEMENT_F32, false, 1, TRANSFER_RIG_HEAD_DIM};
    float elements[2 * TRANSFER_RIG_HEAD_DIM];
    for (uint32_t layer = 0; layer < TRANSFER_RIG_LAYERS; layer++) {
        for (uint32_t head = 0; head < TRANSFER_RIG_HEADS; head++) {
            for (uint32_t token = 0; token < tokens; token++) {
                const size_t at = (blocks[token / FOREIGN_TOKENS] * TRANSFER_RIG_HEADS + head) *
                                  foreign_head_bytes();
                transfer_rig_token(prompt, layer, head, token, elements);
                kv_convert_head(&plain, elements, 0, &foreign_form,
                                (void *)(uintptr_t)(foreign->layers[layer] + at),
                                token % FOREIGN_TOKENS, 1);
            }
        }
    }
}

static void serve_foreign(foreign_t *foreign, const char *backend)
{
    const kv_vllm_identity_t identity = {.attn_backend_name = backend,
                                         .cache_dtype = "auto",
                                         .dtype = "torch.bfloat16",
                                         .model = "org/model",
                                         .vllm_version = "0.32.0",
                                         .head_size = TRANSFER_RIG_HEAD_DIM,
                                         .nixl_connector_version = 14,
                                         .num_hidden_layers = TRANSFER_RIG_LAYERS,
                                         .num_kv_heads = TRANSFER_RIG_HEADS,
                                         .is_hma_enabled = true};
    uint64_t lens[TRANSFER_RIG_LAYERS];
    char hash[KV_COMPAT_HASH_BYTES];
    weft_buffer_t blob = {0};
    weft_buffer_t meta = {0};
    weft_buffer_t payload = {0};
    const kv_meta_request_t rank = {0, 0};
    for (int i = 0; i < TRANSFER_RIG_LAYERS; i++) {
        lens[i] = TRANSFER_RIG_HEADS * foreign_head_bytes();
    }
    assert_status(xfer_export(foreign->agent, NULL, 0, true, &blob), WEFT_OK);
    const kv_agent_meta_t agent = {.engine_id = kv_wire_text("vllm"),
                                   .agent_metadata = {blob.data, (uint32_t)blob.length},
                                   .kv_caches_base_addr = {foreign->layers, TRANSFER_RIG_LAYERS},
                                   .num_blocks = FOREIGN_BLOCKS,
                                   .block_lens = {lens, TRANSFER_RIG_LAYERS},
                                   .block_strides = {lens, TRANSFER_RIG_LAYERS},
                                   .kv_cache_layout = kv_wire_text("LBHNC"),
                                   .block_size = FOREIGN_TOKENS,
                                   .attn_backend_name = kv_wire_text(backend),
                                   .physical_blocks_per_logical_kv_block = 1};
    kv_agent_meta_encode(&agent, &meta);
    assert_status(kv_compat_vllm_hash(&identity, hash), WEFT_OK);
    kv_payload_encode(hash, meta.data, meta.length, &payload);
    assert_status(kv_side_client_serve(foreign->client, rank, payload.data, payload.length),
                  WEFT_OK);
    weft_buffer_free(&blob);
    weft_buffer_free(&meta);
    weft_buffer_free(&payload);
}

static void open_foreign(foreign_t *foreign, const char *backend)
{
    const xfer_agent_config_t agent = {
        .backends = getenv("WEFT_TEST_BACKEND"), .has_thread = true, .on_event = transfer_rig_wake};
    const kv_side_client_config_t client = {0};
    *foreign = (foreign_t){0};
    foreign->bytes =
        TRANSFER_RIG_LAYERS * FOREIGN_BLOCKS * TRANSFER_RIG_HEADS * foreign_head_bytes();
    foreign->memory = weft_zalloc(foreign->bytes, "test.foreign");
    assert_non_null(foreign->memory);
    for (uint32_t i = 0; i < TRANSFER_RIG_LAYERS; i++) {
        foreign->layers[i] =
            (uint64_t)(uintptr_t)foreign->memory + i * foreign->bytes / TRANSFER_RIG_LAYERS;
    }
    const xfer_memory_t memory = {.space = XFER_DRAM,
                                  .addr = (uint64_t)(uintptr_t)foreign->memory,
                                  .bytes = foreign->bytes,
                                  .fd = -1};
    assert_status(xfer_agent_create(&agent, &diag, &foreign->agent), WEFT_OK);
    assert_status(xfer_register(foreign->agent, &memory, &diag, &foreign->region), WEFT_OK);
    assert_status(kv_side_channel_create("127.0.0.1", 0, &diag, &foreign->channel), WEFT_OK);
    assert_status(kv_side_client_open(foreign->channel, &client, &foreign->client), WEFT_OK);
    serve_foreign(foreign, backend);
}

static void close_foreign(foreign_t *foreign)
{
    kv_side_client_close(foreign->client);
    kv_side_channel_destroy(foreign->channel);
    xfer_agent_destroy(foreign->agent);
    weft_free(foreign->memory);
}

static bool is_foreign_told(void *user)
{
    foreign_t *foreign = user;
    xfer_notification_t *notification;
    while ((notification = xfer_next_notification(foreign->agent)) != NULL) {
        foreign->heartbeats +=
            notification->bytes == 7 && memcmp(notification->data, "HB:cmpl", 7) == 0;
        foreign->is_read |=
            notification->bytes == 6 && memcmp(notification->data, "cmpl:1", 6) == 0;
        xfer_notification_free(notification);
    }
    return foreign->is_read;
}

static kv_transfer_params_t params_of(const foreign_t *foreign, const uint32_t *blocks, uint32_t n,
                                      uint32_t tokens)
{
    kv_transfer_params_t copy;
    const kv_transfer_params_t params = {.do_remote_prefill = true,
                                         .has_block_ids = true,
                                         .has_port = true,
                                         .remote_port = kv_side_channel_port(foreign->channel),
                                         .remote_engine_id = (char *)"vllm",
                                         .remote_request_id = (char *)"cmpl",
                                         .remote_host = (char *)"127.0.0.1",
                                         .blocks = (uint32_t *)blocks,
                                         .n_blocks = n,
                                         .n_groups = 1,
                                         .group_blocks = {n},
                                         .tp_size = 1,
                                         .pp_size = 1,
                                         .dcp_size = 1,
                                         .has_num_tokens = true,
                                         .remote_num_tokens = tokens};
    assert_status(kv_transfer_params_copy(&params, &copy), WEFT_OK);
    return copy;
}

static bool has_no_lease(void *user)
{
    return transfer_worker_stats(user).leases_open == 0;
}

static void blocks_of_a_vllm_worker_are_read_and_it_is_told_in_its_words(void **state)
{
    static const uint32_t theirs[] = {5, 1, 3};
    const transfer_worker_config_t config = {.extra = AS_VLLM, .dtype = "bf16", .block_tokens = 8};
    foreign_t foreign;
    transfer_worker_t worker;
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    (void)state;
    open_foreign(&foreign, "CPU_ATTN");
    transfer_worker_open(&worker, &config);
    write_foreign(&foreign, theirs, PROMPT, 21);
    kv_transfer_params_t params = params_of(&foreign, theirs, 3, PROMPT);
    kv_pull_t *pull = expect(&worker, &params, PROMPT);
    const uint32_t n = alloc(&worker, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 3, blocks + 3, n - 3), WEFT_OK);
    assert_pulled(pull);
    assert_int_equal(kv_pull_tokens(pull), PROMPT);
    assert_true(transfer_worker_has(&worker, blocks, 24, PROMPT - 24, 21));
    assert_true(transfer_rig_until(is_foreign_told, &foreign));
    assert_int_equal(foreign.heartbeats, 1);
    kv_pull_end(pull);
    kv_pool_release(worker.pool, blocks, n);
    kv_transfer_params_fini(&params);
    transfer_worker_close(&worker);
    close_foreign(&foreign);
}

/* As vLLM's CPU worker would: transposed, in its blocks. The request's own are free at once. */
static void what_is_held_for_vllm_is_a_copy_in_its_form(void **state)
{
    const transfer_worker_config_t giver = {.extra = AS_VLLM ", \"vllm_block_size\": 32"};
    const transfer_worker_config_t taker = {.extra = AS_VLLM, .dtype = "bf16", .block_tokens = 8};
    transfer_worker_t there;
    transfer_worker_t here;
    kv_block_id_t blocks[TRANSFER_RIG_BLOCKS];
    (void)state;
    transfer_worker_open(&there, &giver);
    transfer_worker_open(&here, &taker);
    kv_transfer_params_t params = prefill_whole(&there, "r", PROMPT, 31);
    assert_int_equal(kv_pool_held_blocks(there.pool), 0);
    assert_int_equal(params.n_blocks, (PROMPT + 31) / 32);
    assert_int_equal(params.n_leases, 0);
    assert_null(kv_transfer_open(there.transfer, "ahead"));
    kv_pull_t *pull = expect(&here, &params, PROMPT);
    const uint32_t n = alloc(&here, PROMPT, blocks);
    assert_status(kv_pull_start(pull, 0, blocks, n), WEFT_OK);
    assert_pulled(pull);
    assert_true(transfer_worker_has(&here, blocks, 0, PROMPT, 31));
    kv_pull_end(pull);
    kv_pool_release(here.pool, blocks, n);
    assert_true(transfer_rig_until(has_no_lease, &there));
    assert_int_equal(transfer_worker_stats(&there).leases_released, 1);
    kv_transfer_params_fini(&params);
    transfer_worker_close(&here);
    transfer_worker_close(&there);
}

static void copies_for_vllm_are_bounded(void **state)
{
    const transfer_worker_config_t giver = {.extra = AS_VLLM
                                            ", \"vllm_block_size\": 32, \"vllm_blocks\": 4"};
    transfer_worker_t there;
    kv_block_id_t blocks[PROMPT_BLOCKS];
    kv_transfer_params_t second;
    (void)state;
    transfer_worker_open(&there, &giver);
    kv_transfer_params_t first = prefill_whole(&there, "r1", PROMPT, 31);
    const uint32_t n = alloc(&there, PROMPT, blocks);
    assert_status(kv_transfer_hold(there.transfer, NULL, "r2", blocks, n, PROMPT, &second),
                  WEFT_ERR_NO_BLOCKS);
    kv_pool_release(there.pool, blocks, n);
    kv_transfer_params_fini(&first);
    transfer_worker_close(&there);
}

static void a_vllm_worker_of_another_kind_is_not_read(void **state)
{
    static const uint32_t theirs[] = {0};
    const transfer_worker_config_t as_vllm = {.extra = AS_VLLM, .dtype = "bf16"};
    const transfer_worker_config_t lenient = {
        .extra = AS_VLLM ", \"enforce_handshake_compat\": false", .dtype = "bf16"};
    const transfer_worker_config_t plain = {.dtype = "bf16"};
    const transfer_worker_config_t *configs[] = {&as_vllm, &lenient, &plain};
    const char *said[] = {"compatibility hash", "attention backend NEW_ATTN", "vllm_version"};
    foreign_t foreign;
    (void)state;
    open_foreign(&foreign, "NEW_ATTN");
    for (size_t i = 0; i < 3; i++) {
        transfer_worker_t worker;
        transfer_worker_open(&worker, configs[i]);
        kv_transfer_params_t params = params_of(&foreign, theirs, 1, 16);
        kv_pull_t *pull = expect(&worker, &params, 16);
        assert_true(transfer_rig_until(is_over, pull));
        assert_true(kv_pull_state(pull) < 0);
        if (strstr(kv_pull_reason(pull), said[i]) == NULL) {
            fail_msg("\"%s\" does not say %s", kv_pull_reason(pull), said[i]);
        }
        kv_pull_end(pull);
        kv_transfer_params_fini(&params);
        transfer_worker_close(&worker);
    }
    close_foreign(&foreign);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unequal_workers_move_the_same_blocks),
        cmocka_unit_test(elements_are_converted_on_arrival),
        cmocka_unit_test(heads_with_scales_move_and_are_converted),
        cmocka_unit_test(blocks_of_a_vllm_worker_are_read_and_it_is_told_in_its_words),
        cmocka_unit_test(what_is_held_for_vllm_is_a_copy_in_its_form),
        cmocka_unit_test(copies_for_vllm_are_bounded),
        cmocka_unit_test(a_vllm_worker_of_another_kind_is_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
