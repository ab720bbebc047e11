/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The families' graphs against what Hugging Face transformers computes (tests/vectors/tiny-models),
 * and against themselves in pieces.
 */
#include "tests/support/model_rig.h"
#include "tests/support/random.h"

#define VOCAB     320
#define LONGEST   116 /* the longest sequence and 16 tokens more */
#define BLOCKS    64
#define GREEDY    16
#define MAX_PIECE 128

/*
 * The fast kernels round activations to 8 bits for quantized weights; so rounded, these small models
 * with random weights move by shares of the logits' range. (The plain kernels, made to round alike,
 * move by the same: up to 0.048.) Where the processor multiplies bf16, activations are rounded to
 * that for bf16 weights. Everything else is held to the reference's own tolerance.
 */
#define ROUNDED_LOGIT   0.06  /* any logit */
#define ROUNDED_LOGPROB 0.004 /* a token's log-probability, on average over a sequence */

#define BF16_LOGIT     0.02
#define BF16_LOGPROB   0.002
#define ROUTED_LOGPROB 0.01

typedef struct sequence {
    uint32_t blocks[BLOCKS]; /* its block table */
    k_kv_view_t kv[8];
} sequence_t;

/* Scattered blocks, so that nothing works by luck of neighbourhood. */
static void place_sequence(const model_rig_t *rig, k_dtype_t kv_dtype, test_random_t *random,
                           sequence_t *sequence)
{
    for (uint32_t i = 0; i < BLOCKS; i++) {
        const uint32_t j = test_random_below(random, i + 1);
        sequence->blocks[i] = sequence->blocks[j];
        sequence->blocks[j] = i;
    }
    model_rig_kv(rig, kv_dtype, sequence->kv, WEFT_ARRAY_LEN(sequence->kv));
}

/* Runs tokens [start, start + n) and writes the logits of each to logits [n, VOCAB]. */
static void run(const model_rig_t *rig, const sequence_t *sequence, const int32_t *tokens,
                uint32_t start, uint32_t n, float *logits)
{
    const k_seq_t seq = {.row = 0, .rows = n, .start = start, .block_table = sequence->blocks};
    const model_batch_t batch = {.ids = tokens + start,
                                 .rows = n,
                                 .seqs = &seq,
                                 .n_seqs = 1,
                                 .max_tokens = start + n,
                                 .kv = sequence->kv};
    uint32_t rows[MAX_PIECE];
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = i;
    }
    model_forward(rig->model, rig->stream, &batch);
    model_logits(rig->model, rig->stream, rows, n, logits);
    assert_status(k_stream_sync(rig->stream), WEFT_OK);
}

/* context: what the model is configured for, which chooses the factors of longrope. */
static void open_tiny_for(model_rig_t *rig, const char *name, const char *isa,
                          uint32_t block_tokens, k_dtype_t kv_dtype, uint32_t context)
{
    model_rig_open(
        rig,
        &(model_rig_config_t){
            .path = tiny_model_path(name),
            .isa = isa,
            .kv_dtype = kv_dtype,
            .block_tokens = block_tokens,
            .n_blocks = BLOCKS,
            .limits = {.max_rows = MAX_PIECE, .max_outputs = MAX_PIECE, .max_context = context},
        });
    assert_int_equal(model_config(rig->model)->vocab, VOCAB);
}

static void open_tiny(model_rig_t *rig, const char *name, const char *isa, uint32_t block_tokens,
                      k_dtype_t kv_dtype)
{
    open_tiny_for(rig, name, isa, block_tokens, kv_dtype, 128);
}

/* ---- against the reference ----------------------------------------------------------------- */

typedef struct tolerance {
    double logit;
    double logprob_per_token;
    double decision; /* a smaller gap between best and second may turn */
} tolerance_t;

/* Whether activations are rounded to bf16: all files but those that say otherwise hold bf16. */
static bool rounds_to_bf16(const char *name, const char *isa)
{
    return strstr(name, "f32") == NULL && strstr(name, "q8_0") == NULL &&
           (strcmp(isa, "avx512_bf16") == 0 || strcmp(isa, "amx") == 0);
}

static bool has_quantized(const char *name)
{
    return strstr(name, "q8_0") != NULL || strstr(name, "mxfp4") != NULL;
}

/* Rounding can send a token to another expert, where scores are close. */
static bool has_experts(const char *name)
{
    return strstr(name, "gpt-oss") != NULL || strstr(name, "deepseek") != NULL ||
           strstr(name, "mixtral") != NULL || strstr(name, "moe") != NULL;
}

static tolerance_t tolerance_of(const json_t *golden, const char *name, const char *isa)
{
    const double range = json_number_value(json_object_get(golden, "logit_range"));
    const double exact = json_number_value(json_object_get(golden, "tolerance_max_abs"));
    if (rounds_to_bf16(name, isa)) {
        const double logprob = has_experts(name) ? ROUTED_LOGPROB : BF16_LOGPROB;
        return (tolerance_t){BF16_LOGIT * range, logprob * range, 2 * BF16_LOGIT * range};
    }
    if (strcmp(isa, "ref") == 0 || !has_quantized(name)) {
        return (tolerance_t){exact, 1e-5 * range, 0.0};
    }
    return (tolerance_t){ROUNDED_LOGIT * range, ROUNDED_LOGPROB * range, 2 * ROUNDED_LOGIT * range};
}

static void check_logits(const json_t *sequence, const float *last, const tolerance_t *tolerance,
                         const char *name)
{
    const json_t *expected = json_object_get(sequence, "logits_last");
    assert_int_equal(json_array_size(expected), VOCAB);
    double worst = 0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        worst = fmax(worst, fabs(last[i] - json_number_value(json_array_get(expected, i))));
    }
    if (!(worst <= tolerance->logit)) {
        print_error("%s: a logit is off by %g, tolerance %g\n", name, worst, tolerance->logit);
        fail();
    }
}

/* The best token at every position, where the reference's choice is clear. */
static void check_argmax(const json_t *sequence, const float *logits, uint32_t n,
                         const tolerance_t *tolerance, const char *name)
{
    if (json_number_value(json_object_get(sequence, "argmax_min_gap")) <= tolerance->decision) {
        return;
    }
    int32_t expected[LONGEST];
    assert_int_equal(json_ids(json_object_get(sequence, "argmax"), expected, LONGEST), n);
    for (uint32_t i = 0; i < n; i++) {
        if ((int32_t)argmax(logits + i * VOCAB, VOCAB) != expected[i]) {
            print_error("%s: argmax at position %u of %u\n", name, i, n);
            fail();
        }
    }
}

static void check_logprob_sum(const json_t *sequence, const float *logits, const int32_t *tokens,
                              uint32_t n, const tolerance_t *tolerance, const char *name)
{
    double sum = 0;
    for (uint32_t i = 0; i + 1 < n; i++) {
        sum += log_probability(logits + i * VOCAB, VOCAB, tokens[i + 1]);
    }
    const double expected = json_number_value(json_object_get(sequence, "logprob_sum"));
    if (!(fabs(sum - expected) <= tolerance->logprob_per_token * n)) {
        print_error("%s: log-probability %f, expected %f\n", name, sum, expected);
        fail();
    }
}

static void check_greedy(const model_rig_t *rig, const sequence_t *placed, const json_t *sequence,
                         const float *last, int32_t *tokens, uint32_t n,
                         const tolerance_t *tolerance, const char *name)
{
    if (json_number_value(json_object_get(sequence, "greedy_min_gap")) <= tolerance->decision) {
        return;
    }
    int32_t expected[GREEDY];
    float logits[VOCAB];
    assert_int_equal(json_ids(json_object_get(sequence, "greedy"), expected, GREEDY), GREEDY);
    memcpy(logits, last, sizeof(logits));
    for (uint32_t i = 0; i < GREEDY; i++) {
        tokens[n + i] = (int32_t)argmax(logits, VOCAB);
        if (tokens[n + i] != expected[i]) {
            print_error("%s: greedy token %u after %u\n", name, i, n);
            fail();
        }
        run(rig, placed, tokens, n + i, 1, logits);
    }
}

static void check_model(const char *name, const char *isa)
{
    static float logits[MAX_PIECE * VOCAB];
    test_random_t random = {1};
    json_t *golden = load_golden(name);
    const tolerance_t tolerance = tolerance_of(golden, name, isa);
    size_t i;
    json_t *sequence;
    json_array_foreach(json_object_get(golden, "sequences"), i, sequence)
    {
        sequence_t placed;
        int32_t tokens[LONGEST];
        const uint32_t n = json_ids(json_object_get(sequence, "tokens"), tokens, LONGEST);
        model_rig_t rig;
        open_tiny_for(&rig, name, isa, 16, K_F32, n + GREEDY);
        place_sequence(&rig, K_F32, &random, &placed);
        run(&rig, &placed, tokens, 0, n, logits);
        check_logits(sequence, logits + (n - 1) * VOCAB, &tolerance, name);
        check_argmax(sequence, logits, n, &tolerance, name);
        check_logprob_sum(sequence, logits, tokens, n, &tolerance, name);
        check_greedy(&rig, &placed, sequence, logits + (n - 1) * VOCAB, tokens, n, &tolerance,
                     name);
        model_rig_close(&rig);
    }
    assert_int_equal(i, 4);
    json_decref(golden);
}

static void check_models(const char *isa)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tiny_models); i++) {
        check_model(tiny_models[i], isa);
    }
}

static void every_model_gives_the_reference_outputs_on_every_isa(void **state)
{
    (void)state;
    for_each_isa(check_models);
}

/* ---- against itself ------------------------------------------------------------------------ */

static uint32_t longest_sequence(const char *name, int32_t *tokens)
{
    json_t *golden = load_golden(name);
    const json_t *sequences = json_object_get(golden, "sequences");
    const json_t *last = json_array_get(sequences, json_array_size(sequences) - 1);
    const uint32_t n = json_ids(json_object_get(last, "tokens"), tokens, LONGEST);
    json_decref(golden);
    assert_int_equal(n, 100);
    return n;
}

/* piece 0: of random lengths */
static void run_in_pieces(const model_rig_t *rig, k_dtype_t kv_dtype, const int32_t *tokens,
                          uint32_t n, uint32_t piece, test_random_t *random, float *logits)
{
    sequence_t placed;
    place_sequence(rig, kv_dtype, random, &placed);
    for (uint32_t at = 0; at < n;) {
        const uint32_t wanted = piece > 0 ? piece : test_random_between(random, 1, 40);
        const uint32_t length = wanted < n - at ? wanted : n - at;
        run(rig, &placed, tokens, at, length, logits + at * VOCAB);
        at += length;
    }
}

/* n_sizes: how many of the block sizes are tried. */
static void check_pieces(const char *name, const char *isa, k_dtype_t kv_dtype, size_t n_sizes,
                         test_random_t *random)
{
    static float whole[LONGEST * VOCAB];
    static float pieces[LONGEST * VOCAB];
    static const uint32_t block_sizes[] = {16, 4, 64, 128};
    int32_t tokens[LONGEST];
    const uint32_t n = longest_sequence(name, tokens);

    assert_true(n_sizes <= WEFT_ARRAY_LEN(block_sizes));
    for (size_t b = 0; b < n_sizes; b++) {
        const uint32_t cuts[] = {n, 1, 17, 64, 0, 0};
        model_rig_t rig;
        open_tiny(&rig, name, isa, block_sizes[b], kv_dtype);
        for (size_t i = 0; i < WEFT_ARRAY_LEN(cuts); i++) {
            float *logits = b == 0 && i == 0 ? whole : pieces;
            run_in_pieces(&rig, kv_dtype, tokens, n, cuts[i], random, logits);
            if (memcmp(logits, whole, n * VOCAB * sizeof(float)) != 0) {
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
    static float alone[LONGEST * VOCAB];
    static float team[LONGEST * VOCAB];
    int32_t tokens[LONGEST];
    const uint32_t n = longest_sequence(name, tokens);
    for (uint32_t threads = 1; threads <= 4; threads++) {
        test_random_t random = {1};
        model_rig_t rig;
        model_rig_open(&rig, &(model_rig_config_t){.path = tiny_model_path(name),
                                                   .isa = isa,
                                                   .threads = threads,
                                                   .kv_dtype = K_F16,
                                                   .block_tokens = 16,
                                                   .n_blocks = BLOCKS,
                                                   .limits = {MAX_PIECE, MAX_PIECE, 128}});
        float *logits = threads == 1 ? alone : team;
        run_in_pieces(&rig, K_F16, tokens, n, 0, &random, logits);
        assert_memory_equal(logits, alone, n * VOCAB * sizeof(float));
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

static void a_failed_allocation_leaves_nothing_behind(void **state)
{
    (void)state;
    model_rig_t rig;
    model_rig_open_source(
        &rig, &(model_rig_config_t){.path = tiny_model_path("gpt-oss-mxfp4"), .isa = "ref"});
    const size_t before = weft_alloc_live_bytes();
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    uint64_t failures = 0;
    while (status < 0) {
        weft_diag_t diag = {0};
        model_t *model = NULL;
        weft_alloc_fail_nth(failures + 1);
        status = model_create(rig.source, NULL, &small, rig.stream, &diag, &model);
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
