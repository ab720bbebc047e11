/* SPDX-License-Identifier: Apache-2.0 */
/* Who holds what of a model: ranges, refusals, and what is read of a file for it. */
#include "runtime/model/model_shard.h"

#include "tests/support/model_rig.h"
#include "tests/support/model_slices.h"

static const model_config_t smollm2 = {.layers = 30,
                                       .hidden = 576,
                                       .heads = 9,
                                       .kv_heads = 3,
                                       .head_dim = 64,
                                       .intermediate = 1536,
                                       .vocab = 49152};

static model_cut_t cut_of(const model_config_t *config, const model_blocks_t *blocks,
                          const model_shard_t *shard)
{
    static const model_blocks_t none;
    weft_diag_t diag = {.text = ""};
    model_cut_t cut = {.is_first = false};
    const weft_status_t status =
        model_shard_cut(config, blocks == NULL ? &none : blocks, shard, &diag, &cut);
    model_rig_check(status, &diag);
    return cut;
}

static void assert_range(model_range_t range, uint32_t first, uint32_t n)
{
    assert_int_equal(range.first, first);
    assert_int_equal(range.n, n);
}

static void no_shard_is_the_whole_model(void **state)
{
    (void)state;
    const model_cut_t cut = cut_of(&smollm2, NULL, NULL);
    assert_range(cut.layers, 0, 30);
    assert_range(cut.vocab, 0, 49152);
    assert_range(cut.heads, 0, 9);
    assert_range(cut.kv_heads, 0, 3);
    assert_range(cut.ffn, 0, 1536);
    assert_range(cut.experts, 0, 0);
    assert_true(cut.is_first && cut.has_first_heads);
    model_config_t local;
    model_shard_config(&smollm2, &cut, &local);
    assert_memory_equal(&local, &smollm2, sizeof(local));
}

static void groups_of_heads_stay_whole_while_there_are_enough(void **state)
{
    (void)state;
    const model_cut_t first = cut_of(&smollm2, NULL, &(model_shard_t){.tensor_size = 2});
    const model_cut_t second =
        cut_of(&smollm2, NULL, &(model_shard_t){.tensor_rank = 1, .tensor_size = 2});
    assert_range(first.kv_heads, 0, 1);
    assert_range(first.heads, 0, 3);
    assert_range(second.kv_heads, 1, 2);
    assert_range(second.heads, 3, 6);
    assert_range(second.ffn, 768, 768);
    assert_true(first.is_first && !second.is_first);
}

static void more_ranks_than_kv_heads_share_them(void **state)
{
    (void)state;
    static const model_range_t heads[] = {{0, 1}, {1, 2}, {3, 3}, {6, 3}};
    static const uint32_t kv_heads[] = {0, 0, 1, 2};
    for (uint32_t rank = 0; rank < 4; rank++) {
        const model_shard_t shard = {.tensor_rank = rank, .tensor_size = 4};
        const model_cut_t cut = cut_of(&smollm2, NULL, &shard);
        assert_range(cut.heads, heads[rank].first, heads[rank].n);
        assert_range(cut.kv_heads, kv_heads[rank], 1);
        assert_int_equal(cut.has_first_heads, rank != 1);
    }
}

/* Runs that follow one another, each of one thing at least, cover everything once. */
static uint32_t expect_next(model_range_t range, uint32_t next)
{
    assert_int_equal(range.first, next);
    assert_true(range.n > 0);
    return next + range.n;
}

static void check_partition(const model_config_t *config, const model_blocks_t *blocks,
                            uint32_t size, bool splits_experts)
{
    uint32_t vocab = 0;
    uint32_t heads = 0;
    uint32_t ffn = 0;
    uint32_t experts = 0;
    uint32_t first_heads = 0;
    for (uint32_t rank = 0; rank < size; rank++) {
        const model_shard_t shard = {
            .tensor_rank = rank, .tensor_size = size, .splits_experts = splits_experts};
        const model_cut_t cut = cut_of(config, blocks, &shard);
        vocab = expect_next(cut.vocab, vocab);
        heads = expect_next(cut.heads, heads);
        ffn = expect_next(cut.ffn, ffn);
        if (splits_experts) {
            experts = expect_next(cut.experts, experts);
            assert_range(cut.expert_ffn, 0, config->experts.intermediate);
        } else {
            experts = expect_next(cut.expert_ffn, experts);
            assert_range(cut.experts, 0, config->experts.count);
        }
        /* The heads read just these keys, evenly. */
        const uint32_t group = config->heads / config->kv_heads;
        assert_int_equal(cut.heads.first / group, cut.kv_heads.first);
        assert_int_equal((cut.heads.first + cut.heads.n - 1) / group,
                         cut.kv_heads.first + cut.kv_heads.n - 1);
        assert_int_equal(cut.heads.n % cut.kv_heads.n, 0);
        assert_int_equal(cut.heads.first * config->head_dim % blocks->values.columns, 0);
        assert_int_equal(cut.ffn.first % blocks->ffn.columns, 0);
        first_heads += cut.has_first_heads ? cut.kv_heads.n : 0;
    }
    assert_int_equal(vocab, config->vocab);
    assert_int_equal(heads, config->heads);
    assert_int_equal(ffn, config->intermediate);
    assert_int_equal(experts,
                     splits_experts ? config->experts.count : config->experts.intermediate);
    assert_int_equal(first_heads, config->kv_heads);
}

/* The most ranks that are not refused; every smaller number must do, too. */
static uint32_t most_ranks(const model_config_t *config, const model_blocks_t *blocks,
                           bool splits_experts)
{
    uint32_t most = 0;
    for (uint32_t size = 1; size <= config->heads + 1; size++) {
        weft_diag_t diag = {.text = ""};
        model_cut_t cut;
        const model_shard_t shard = {.tensor_size = size, .splits_experts = splits_experts};
        const weft_status_t status = model_shard_cut(config, blocks, &shard, &diag, &cut);
        if (status == WEFT_OK) {
            assert_int_equal(size, most + 1);
            check_partition(config, blocks, size, splits_experts);
            most = size;
        } else {
            char at_most[32];
            assert_status(status, WEFT_ERR_UNSUPPORTED);
            snprintf(at_most, sizeof(at_most), "at most %u ranks", most);
            if (size == most + 1 && strstr(diag.text, at_most) == NULL) {
                print_error("%s, should say %s\n", diag.text, at_most);
                fail();
            }
        }
    }
    return most;
}

static void random_shapes_are_dealt_out_once_and_whole(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 32, 64, 256};
    test_random_t random = {test_seed(91)};
    for (uint32_t round = 0; round < test_rounds(400); round++) {
        const uint32_t block = sizes[test_random_below(&random, WEFT_ARRAY_LEN(sizes))];
        const uint32_t narrow = sizes[test_random_below(&random, 2)];
        model_config_t config = {.layers = 2, .head_dim = 16U << test_random_below(&random, 4)};
        config.vocab = test_random_between(&random, 60, 1000);
        config.kv_heads = test_random_between(&random, 1, 8);
        config.heads = config.kv_heads * test_random_between(&random, 1, 6);
        while (config.heads * config.head_dim % block != 0) {
            config.head_dim *= 2;
        }
        config.intermediate = block * test_random_between(&random, 1, 40);
        config.experts = (model_experts_t){
            .count = test_random_between(&random, 2, 9),
            .used = 1,
            .intermediate = narrow * test_random_between(&random, 1, 9),
        };
        const model_blocks_t blocks = {
            .values = {block, "o"}, .ffn = {block, "down"}, .expert_ffn = {narrow, "expert"}};
        assert_true(most_ranks(&config, &blocks, false) >= 1);
        assert_true(most_ranks(&config, &blocks, true) >= 1);
    }
}

static void latent_heads_are_dealt_out_and_their_cache_is_everyones(void **state)
{
    (void)state;
    model_config_t config = smollm2;
    config.heads = 7;
    config.kv_heads = 1;
    config.mla = (model_mla_t){.kv_latent = 32, .plain = 16, .rotary = 16, .value = 16};
    const model_shard_t shard = {.tensor_rank = 2, .tensor_size = 3};
    const model_cut_t cut = cut_of(&config, NULL, &shard);
    assert_range(cut.heads, 4, 3);
    assert_range(cut.kv_heads, 0, 1);
}

static void a_stage_has_a_run_of_layers_counted_from_its_first(void **state)
{
    (void)state;
    model_config_t config = smollm2;
    config.layers = 5;
    model_layers_add(&config.sliding, 1);
    model_layers_add(&config.sliding, 4);
    model_layers_add(&config.dense_layers, 2);
    const model_shard_t shard = {.stage = 1, .stages = 2};
    const model_cut_t cut = cut_of(&config, NULL, &shard);
    model_config_t local;
    assert_range(cut.layers, 2, 3);
    model_shard_config(&config, &cut, &local);
    assert_int_equal(local.layers, 3);
    assert_int_equal(local.sliding.bits[0], 1 << 2);
    assert_int_equal(local.dense_layers.bits[0], 1 << 0);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void assert_refused(const model_config_t *config, const model_blocks_t *blocks,
                           const model_shard_t *shard, weft_status_t expected, const char *reason)
{
    static const model_blocks_t none;
    weft_diag_t diag = {.text = ""};
    model_cut_t cut;
    const weft_status_t status =
        model_shard_cut(config, blocks == NULL ? &none : blocks, shard, &diag, &cut);
    assert_status(status, expected);
    if (strstr(diag.text, reason) == NULL) {
        print_error("\"%s\" does not say \"%s\"\n", diag.text, reason);
        fail();
    }
}

static void what_cannot_be_cut_is_refused_with_what_would_do(void **state)
{
    (void)state;
    const model_blocks_t blocks = {.values = {256, "blk.0.attn_output.weight"},
                                   .ffn = {256, "blk.0.ffn_down.weight"}};
    model_config_t config = smollm2;
    const model_shard_t ten = {.tensor_size = 10};
    assert_refused(&config, NULL, &ten, WEFT_ERR_UNSUPPORTED,
                   "the model's 9 heads can be dealt out among at most 9 ranks");
    config.heads = 16;
    config.kv_heads = 4;
    const model_shard_t eight = {.tensor_size = 8};
    assert_refused(&config, &blocks, &eight, WEFT_ERR_UNSUPPORTED,
                   "tensor blk.0.attn_output.weight keeps 256 columns in a block, so that the "
                   "model's 16 heads can be dealt out among at most 4 ranks");
    config.kv_heads = 16;
    config.head_dim = 256;
    assert_refused(&config, &blocks, &eight, WEFT_ERR_UNSUPPORTED,
                   "tensor blk.0.ffn_down.weight keeps 256 columns in a block, so that the model's "
                   "1536 columns of the feed-forward can be dealt out among at most 6 ranks");
    config.intermediate = 4096;
    config.experts = (model_experts_t){.count = 6, .used = 2, .intermediate = 512};
    const model_shard_t experts = {.tensor_size = 8, .splits_experts = true};
    assert_refused(&config, &blocks, &experts, WEFT_ERR_UNSUPPORTED,
                   "the model's 6 experts can be dealt out among at most 6 ranks");
}

static void more_ranks_than_tokens_are_refused(void **state)
{
    (void)state;
    model_config_t config = smollm2;
    config.vocab = 3;
    assert_refused(&config, NULL, &(model_shard_t){.tensor_size = 4}, WEFT_ERR_UNSUPPORTED,
                   "the model's 3 tokens can be dealt out among at most 3 ranks");
}

static void ranks_and_stages_that_are_none_are_refused(void **state)
{
    (void)state;
    const model_shard_t rank = {.tensor_rank = 2, .tensor_size = 2};
    const model_shard_t stage = {.stage = 3, .stages = 3};
    const model_shard_t stages = {.stages = 31};
    assert_refused(&smollm2, NULL, &rank, WEFT_ERR_INVALID, "rank 2 of 2");
    assert_refused(&smollm2, NULL, &stage, WEFT_ERR_INVALID, "stage 3 of 3");
    assert_refused(&smollm2, NULL, &stages, WEFT_ERR_UNSUPPORTED, "the model has 30 layers");
}

/* ---- files --------------------------------------------------------------------------------- */

static void parts_of_tensors_read_as_those_of_the_whole(void **state)
{
    (void)state;
    test_random_t random = {test_seed(92)};
    slices_t slices = {.random = &random};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tiny_models); i++) {
        weft_diag_t diag = {.text = ""};
        model_source_t *source = NULL;
        model_rig_check(model_source_open(tiny_model_path(tiny_models[i]), &diag, &source), &diag);
        slices.source = source;
        assert_slices(&slices,
                      strstr(tiny_models[i], "gguf") != NULL ? MODEL_FILE_GGUF : MODEL_FILE_HF);
        model_source_close(source);
    }
    static const model_form_t forms[] = {MODEL_FORM_ROWS, MODEL_FORM_F8, MODEL_FORM_MXFP4,
                                         MODEL_FORM_STEPS, MODEL_FORM_COLUMNS};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(forms); i++) {
        assert_true(slices.n_of_form[forms[i]] > 0);
    }
}

/* The ranks of a model together hold little more than it: norms and what is rounded up. */
static void memory_is_counted_of_the_part(void **state)
{
    (void)state;
    static const model_limits_t limits = {.max_rows = 8, .max_outputs = 4, .max_context = 64};
    model_rig_t rig;
    model_rig_open_source(
        &rig, &(model_rig_config_t){.path = tiny_model_path("qwen3-moe"), .isa = "ref"});
    size_t whole;
    size_t parts[2];
    size_t activations[3];
    weft_diag_t diag = {.text = ""};
    assert_status(
        model_memory(rig.source, NULL, &limits, rig.stream->ops, &diag, &whole, &activations[2]),
        WEFT_OK);
    for (uint32_t rank = 0; rank < 2; rank++) {
        const model_shard_t shard = {.tensor_rank = rank, .tensor_size = 2};
        model_rig_check(model_memory(rig.source, &shard, &limits, rig.stream->ops, &diag,
                                     &parts[rank], &activations[rank]),
                        &diag);
        assert_true(parts[rank] < whole * 3 / 4 && activations[rank] < activations[2]);
    }
    assert_true(parts[0] + parts[1] > whole);
    model_rig_close(&rig);
}

static void a_file_that_cannot_be_cut_so_is_refused_by_name(void **state)
{
    (void)state;
    model_rig_t rig;
    weft_diag_t diag = {.text = ""};
    model_cut_t cut;
    const model_shard_t shard = {.tensor_size = 4};
    model_rig_open_source(
        &rig, &(model_rig_config_t){.path = tiny_model_path("llama-gguf-q8_0"), .isa = "ref"});
    assert_status(model_source_cut(rig.source, &shard, &diag, &cut), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "model.gguf: tensor parallel size 4: tensor "
                                      "blk.0.attn_output.weight keeps 32 columns in a block, so "
                                      "that the model's 4 heads can be dealt out among at most 2"));
    model_rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_shard_is_the_whole_model),
        cmocka_unit_test(groups_of_heads_stay_whole_while_there_are_enough),
        cmocka_unit_test(more_ranks_than_kv_heads_share_them),
        cmocka_unit_test(random_shapes_are_dealt_out_once_and_whole),
        cmocka_unit_test(latent_heads_are_dealt_out_and_their_cache_is_everyones),
        cmocka_unit_test(a_stage_has_a_run_of_layers_counted_from_its_first),
        cmocka_unit_test(what_cannot_be_cut_is_refused_with_what_would_do),
        cmocka_unit_test(more_ranks_than_tokens_are_refused),
        cmocka_unit_test(ranks_and_stages_that_are_none_are_refused),
        cmocka_unit_test(parts_of_tensors_read_as_those_of_the_whole),
        cmocka_unit_test(memory_is_counted_of_the_part),
        cmocka_unit_test(a_file_that_cannot_be_cut_so_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
