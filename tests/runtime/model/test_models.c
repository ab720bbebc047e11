/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The families' graphs against what Hugging Face transformers computes (tests/vectors/tiny-models),
 * and against themselves in pieces.
 */
#include "tests/support/tiny_rig.h"

static void check_models(const char *isa)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tiny_models); i++) {
        tiny_check_model(tiny_models[i], isa, NULL);
    }
}

static void every_model_gives_the_reference_outputs_on_every_isa(void **state)
{
    (void)state;
    for_each_isa(check_models);
}

/* ---- against itself ------------------------------------------------------------------------ */

/* n_sizes: how many of the block sizes are tried. */
static void check_pieces(const char *name, const char *isa, k_dtype_t kv_dtype, size_t n_sizes,
                         test_random_t *random)
{
    static float whole[TINY_LONGEST * TINY_VOCAB];
    static float pieces[TINY_LONGEST * TINY_VOCAB];
    static const uint32_t block_sizes[] = {16, 4, 64, 128};
    int32_t tokens[TINY_LONGEST];
    const uint32_t n = tiny_longest_sequence(name, tokens);

    assert_true(n_sizes <= WEFT_ARRAY_LEN(block_sizes));
    for (size_t b = 0; b < n_sizes; b++) {
        const uint32_t cuts[] = {n, 1, 17, 64, 0, 0};
        model_rig_t rig;
        tiny_open(&rig, name, isa, block_sizes[b], kv_dtype);
        for (size_t i = 0; i < WEFT_ARRAY_LEN(cuts); i++) {
            float *logits = b == 0 && i == 0 ? whole : pieces;
            tiny_run_in_pieces(&rig, kv_dtype, tokens, n, cuts[i], random, logits);
            if (memcmp(logits, whole, n * TINY_VOCAB * sizeof(float)) != 0) {
                print_error("%s on %s: pieces of %u, blocks of %u change bits\n", name, isa,
                            cuts[i], block_sizes[b]);
                fail();
            }
        }
        model_rig_close(&rig);
    }
}

static void check_pieces_on(const char *isa)
{
    test_random_t random = {test_seed(7)};
    static const char *const names[] = {"llama", "mistral", "qwen2-gguf-q8_0", "qwen3"};
    static const char *const more[] = {"gemma2",        "gemma3",      "qwen3-moe",
                                       "mixtral",       "granite",     "olmo2",
                                       "gpt-oss-mxfp4", "deepseek-v2", "deepseek-v3"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        check_pieces(names[i], isa, K_F32, 4, &random);
        check_pieces(names[i], isa, i % 2 == 0 ? K_F16 : K_BF16, 4, &random);
        check_pieces(names[i], isa, i % 2 == 0 ? K_I8 : K_F8, 2, &random);
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(more); i++) {
        check_pieces(more[i], isa, K_F16, 1, &random);
    }
}

static void chunks_and_block_sizes_do_not_change_a_bit(void **state)
{
    (void)state;
    for_each_isa(check_pieces_on);
}

static void check_threads_of(const char *name, const char *isa)
{
    static float alone[TINY_LONGEST * TINY_VOCAB];
    static float team[TINY_LONGEST * TINY_VOCAB];
    int32_t tokens[TINY_LONGEST];
    const uint32_t n = tiny_longest_sequence(name, tokens);
    for (uint32_t threads = 1; threads <= 4; threads++) {
        test_random_t random = {1};
        model_rig_t rig;
        model_rig_open(&rig,
                       &(model_rig_config_t){.path = tiny_model_path(name),
                                             .isa = isa,
                                             .threads = threads,
                                             .kv_dtype = K_F16,
                                             .block_tokens = 16,
                                             .n_blocks = TINY_BLOCKS,
                                             .limits = {TINY_MAX_PIECE, TINY_MAX_PIECE, 128}});
        float *logits = threads == 1 ? alone : team;
        tiny_run_in_pieces(&rig, K_F16, tokens, n, 0, &random, logits);
        assert_memory_equal(logits, alone, n * TINY_VOCAB * sizeof(float));
        model_rig_close(&rig);
    }
}

static void check_threads(const char *isa)
{
    check_threads_of("qwen3", isa);
    check_threads_of("qwen3-moe", isa);
    check_threads_of("gemma2", isa);
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    for_each_isa(check_threads);
}

/* ---- loading ------------------------------------------------------------------------------- */

static const model_limits_t small = {.max_rows = 8, .max_outputs = 4, .max_context = 64};

static void model_memory_tells_what_model_create_takes(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tiny_models); i++) {
        size_t weights;
        size_t activations;
        size_t more_activations;
        const model_limits_t larger = {.max_rows = 64, .max_outputs = 4, .max_context = 64};
        model_rig_t rig;
        model_rig_open_source(
            &rig, &(model_rig_config_t){.path = tiny_model_path(tiny_models[i]), .isa = "ref"});
        assert_status(
            model_memory(rig.source, NULL, &small, rig.stream->ops, NULL, &weights, &activations),
            WEFT_OK);
        assert_status(model_memory(rig.source, NULL, &larger, rig.stream->ops, NULL, &weights,
                                   &more_activations),
                      WEFT_OK);
        assert_true(weights > 10000 && weights < 2000000);
        assert_true(activations > 0 && more_activations > 4 * activations);
        model_rig_close(&rig);
    }
}

/* A backend without some op, as they are while they grow. */
static void assert_model_refused(const char *name, void (*remove)(k_ops_t *ops), const char *reason)
{
    weft_diag_t diag = {0};
    model_t *model = NULL;
    model_rig_t rig;
    model_rig_open_source(&rig, &(model_rig_config_t){.path = tiny_model_path(name), .isa = "ref"});
    k_ops_t ops = *rig.stream->ops;
    remove(&ops);
    rig.stream->ops = &ops;
    assert_status(model_create(rig.source, NULL, &small, rig.stream, &diag, &model),
                  WEFT_ERR_UNSUPPORTED);
    assert_null(model);
    assert_non_null(strstr(diag.text, reason));
    model_rig_close(&rig);
}

static void remove_gelu(k_ops_t *ops)
{
    ops->gelu_mul = NULL;
}

static void remove_experts(k_ops_t *ops)
{
    ops->expert_linear = NULL;
}

static void remove_features(k_ops_t *ops)
{
    ops->attention_features = 0;
}

static void what_a_backend_lacks_is_refused_at_load_by_name(void **state)
{
    (void)state;
    assert_model_refused("gemma3", remove_gelu, "op gelu_mul");
    assert_model_refused("mixtral", remove_experts, "op expert_linear");
    assert_model_refused("gemma2", remove_features, "attention with soft caps");
    assert_model_refused("gpt-oss", remove_features, "attention with sinks");
}

static void fail_each_allocation(const char *name, const model_shard_t *shard)
{
    model_rig_t rig;
    model_rig_open_source(&rig, &(model_rig_config_t){.path = tiny_model_path(name), .isa = "ref"});
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    uint64_t failures = 0;
    while (status < 0) {
        weft_diag_t diag = {0};
        model_t *model = NULL;
        weft_alloc_fail_nth(failures + 1);
        status = model_create(rig.source, shard, &small, rig.stream, &diag, &model);
        weft_alloc_fail_nth(0);
        if (status < 0) {
            assert_status(status, WEFT_ERR_NO_MEMORY);
            assert_null(model);
            failures++;
        }
        model_destroy(model);
        assert_true(weft_alloc_live_bytes() == before);
    }
    assert_true(failures >= 3);
    model_rig_close(&rig);
}

static void a_failed_allocation_leaves_nothing_behind(void **state)
{
    (void)state;
    const model_shard_t half = {.tensor_rank = 1, .tensor_size = 2};
    fail_each_allocation("gpt-oss-mxfp4", NULL);
    fail_each_allocation("llama-fp8-block", &half);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_model_gives_the_reference_outputs_on_every_isa),
        cmocka_unit_test(chunks_and_block_sizes_do_not_change_a_bit),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(model_memory_tells_what_model_create_takes),
        cmocka_unit_test(what_a_backend_lacks_is_refused_at_load_by_name),
        cmocka_unit_test(a_failed_allocation_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
