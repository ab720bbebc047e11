/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tiny_rig: the tiny models run, whole or a rank's part of them, and held to what Hugging Face
 * transformers computes (tests/vectors/tiny-models).
 */
#pragma once

#include "tests/support/model_rig.h"
#include "tests/support/random.h"

#define TINY_VOCAB     320
#define TINY_LONGEST   116 /* the longest sequence and 16 tokens more */
#define TINY_BLOCKS    64
#define TINY_GREEDY    16
#define TINY_MAX_PIECE 128

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
    uint32_t blocks[TINY_BLOCKS]; /* its block table */
    k_kv_view_t kv[8];
} tiny_sequence_t;

/* Scattered blocks, so that nothing works by luck of neighbourhood. */
static inline void tiny_place(const model_rig_t *rig, k_dtype_t kv_dtype, test_random_t *random,
                              tiny_sequence_t *sequence)
{
    for (uint32_t i = 0; i < TINY_BLOCKS; i++) {
        const uint32_t j = test_random_below(random, i + 1);
        sequence->blocks[i] = sequence->blocks[j];
        sequence->blocks[j] = i;
    }
    model_rig_kv(rig, kv_dtype, sequence->kv, WEFT_ARRAY_LEN(sequence->kv));
}

/* Runs tokens [start, start + n) and writes the logits of each to logits [n, TINY_VOCAB]. */
static inline void tiny_run(const model_rig_t *rig, const tiny_sequence_t *sequence,
                            const int32_t *tokens, uint32_t start, uint32_t n, float *logits)
{
    const k_seq_t seq = {.row = 0, .rows = n, .start = start, .block_table = sequence->blocks};
    const model_batch_t batch = {.ids = tokens + start,
                                 .rows = n,
                                 .seqs = &seq,
                                 .n_seqs = 1,
                                 .max_tokens = start + n,
                                 .kv = sequence->kv};
    uint32_t rows[TINY_MAX_PIECE];
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = i;
    }
    model_forward(rig->model, rig->stream, &batch);
    model_rig_logits(rig, rows, n, logits);
    assert_status(k_stream_sync(rig->stream), WEFT_OK);
}

/* context: what the model is configured for, which chooses the factors of longrope. */
static inline void tiny_open_for(model_rig_t *rig, const char *name, const char *isa,
                                 uint32_t block_tokens, k_dtype_t kv_dtype, uint32_t context,
                                 const model_shard_t *shard)
{
    model_rig_open(rig, &(model_rig_config_t){
                            .path = tiny_model_path(name),
                            .isa = isa,
                            .kv_dtype = kv_dtype,
                            .block_tokens = block_tokens,
                            .n_blocks = TINY_BLOCKS,
                            .limits = {.max_rows = TINY_MAX_PIECE,
                                       .max_outputs = TINY_MAX_PIECE,
                                       .max_context = context},
                            .shard = shard,
                        });
    assert_int_equal(model_config(rig->model)->vocab, TINY_VOCAB);
}

static inline void tiny_open(model_rig_t *rig, const char *name, const char *isa,
                             uint32_t block_tokens, k_dtype_t kv_dtype)
{
    tiny_open_for(rig, name, isa, block_tokens, kv_dtype, 128, NULL);
}

/* ---- against the reference ----------------------------------------------------------------- */

typedef struct tolerance {
    double logit;
    double logprob_per_token;
    double decision; /* a smaller gap between best and second may turn */
} tiny_tolerance_t;

/* Whether activations are rounded to bf16: all files but those that say otherwise hold bf16. */
static inline bool tiny_rounds_to_bf16(const char *name, const char *isa)
{
    return strstr(name, "f32") == NULL && strstr(name, "q8_0") == NULL &&
           (strcmp(isa, "avx512_bf16") == 0 || strcmp(isa, "amx") == 0);
}

static inline bool tiny_has_quantized(const char *name)
{
    return strstr(name, "q8_0") != NULL || strstr(name, "mxfp4") != NULL;
}

/* Rounding can send a token to another expert, where scores are close. */
static inline bool tiny_has_experts(const char *name)
{
    return strstr(name, "gpt-oss") != NULL || strstr(name, "deepseek") != NULL ||
           strstr(name, "mixtral") != NULL || strstr(name, "moe") != NULL;
}

static inline tiny_tolerance_t tiny_tolerance_of(const json_t *golden, const char *name,
                                                 const char *isa)
{
    const double range = json_number_value(json_object_get(golden, "logit_range"));
    const double exact = json_number_value(json_object_get(golden, "tolerance_max_abs"));
    if (tiny_rounds_to_bf16(name, isa)) {
        const double logprob = tiny_has_experts(name) ? ROUTED_LOGPROB : BF16_LOGPROB;
        return (tiny_tolerance_t){BF16_LOGIT * range, logprob * range, 2 * BF16_LOGIT * range};
    }
    if (strcmp(isa, "ref") == 0 || !tiny_has_quantized(name)) {
        return (tiny_tolerance_t){exact, 1e-5 * range, 0.0};
    }
    return (tiny_tolerance_t){ROUNDED_LOGIT * range, ROUNDED_LOGPROB * range,
                              2 * ROUNDED_LOGIT * range};
}

static inline void tiny_check_logits(const json_t *sequence, const float *last,
                                     const tiny_tolerance_t *tolerance, const char *name)
{
    const json_t *expected = json_object_get(sequence, "logits_last");
    assert_int_equal(json_array_size(expected), TINY_VOCAB);
    double worst = 0;
    for (uint32_t i = 0; i < TINY_VOCAB; i++) {
        worst = fmax(worst, fabs(last[i] - json_number_value(json_array_get(expected, i))));
    }
    if (!(worst <= tolerance->logit)) {
        print_error("%s: a logit is off by %g, tolerance %g\n", name, worst, tolerance->logit);
        fail();
    }
}

/* The best token at every position, where the reference's choice is clear. */
static inline void tiny_check_argmax(const json_t *sequence, const float *logits, uint32_t n,
                                     const tiny_tolerance_t *tolerance, const char *name)
{
    if (json_number_value(json_object_get(sequence, "argmax_min_gap")) <= tolerance->decision) {
        return;
    }
    int32_t expected[TINY_LONGEST];
    assert_int_equal(json_ids(json_object_get(sequence, "argmax"), expected, TINY_LONGEST), n);
    for (uint32_t i = 0; i < n; i++) {
        if ((int32_t)argmax(logits + i * TINY_VOCAB, TINY_VOCAB) != expected[i]) {
            print_error("%s: argmax at position %u of %u\n", name, i, n);
            fail();
        }
    }
}

static inline void tiny_check_logprob_sum(const json_t *sequence, const float *logits,
                                          const int32_t *tokens, uint32_t n,
                                          const tiny_tolerance_t *tolerance, const char *name)
{
    double sum = 0;
    for (uint32_t i = 0; i + 1 < n; i++) {
        sum += log_probability(logits + i * TINY_VOCAB, TINY_VOCAB, tokens[i + 1]);
    }
    const double expected = json_number_value(json_object_get(sequence, "logprob_sum"));
    if (!(fabs(sum - expected) <= tolerance->logprob_per_token * n)) {
        print_error("%s: log-probability %f, expected %f\n", name, sum, expected);
        fail();
    }
}

static inline void tiny_check_greedy(const model_rig_t *rig, const tiny_sequence_t *placed,
                                     const json_t *sequence, const float *last, int32_t *tokens,
                                     uint32_t n, const tiny_tolerance_t *tolerance,
                                     const char *name)
{
    if (json_number_value(json_object_get(sequence, "greedy_min_gap")) <= tolerance->decision) {
        return;
    }
    int32_t expected[TINY_GREEDY];
    float logits[TINY_VOCAB];
    assert_int_equal(json_ids(json_object_get(sequence, "greedy"), expected, TINY_GREEDY),
                     TINY_GREEDY);
    memcpy(logits, last, sizeof(logits));
    for (uint32_t i = 0; i < TINY_GREEDY; i++) {
        tokens[n + i] = (int32_t)argmax(logits, TINY_VOCAB);
        if (tokens[n + i] != expected[i]) {
            print_error("%s: greedy token %u after %u\n", name, i, n);
            fail();
        }
        tiny_run(rig, placed, tokens, n + i, 1, logits);
    }
}

/* All sequences of a model, at one precision of its cache. shard NULL: the whole model. */
static inline void tiny_check_model(const char *name, const char *isa, const model_shard_t *shard)
{
    static float logits[TINY_MAX_PIECE * TINY_VOCAB];
    test_random_t random = {1};
    json_t *golden = load_golden(name);
    const tiny_tolerance_t tolerance = tiny_tolerance_of(golden, name, isa);
    size_t i;
    json_t *sequence;
    json_array_foreach(json_object_get(golden, "sequences"), i, sequence)
    {
        tiny_sequence_t placed;
        int32_t tokens[TINY_LONGEST];
        const uint32_t n = json_ids(json_object_get(sequence, "tokens"), tokens, TINY_LONGEST);
        model_rig_t rig;
        tiny_open_for(&rig, name, isa, 16, K_F32, n + TINY_GREEDY, shard);
        tiny_place(&rig, K_F32, &random, &placed);
        tiny_run(&rig, &placed, tokens, 0, n, logits);
        tiny_check_logits(sequence, logits + (n - 1) * TINY_VOCAB, &tolerance, name);
        tiny_check_argmax(sequence, logits, n, &tolerance, name);
        tiny_check_logprob_sum(sequence, logits, tokens, n, &tolerance, name);
        tiny_check_greedy(&rig, &placed, sequence, logits + (n - 1) * TINY_VOCAB, tokens, n,
                          &tolerance, name);
        model_rig_close(&rig);
    }
    assert_int_equal(i, 4);
    json_decref(golden);
}

static inline uint32_t tiny_longest_sequence(const char *name, int32_t *tokens)
{
    json_t *golden = load_golden(name);
    const json_t *sequences = json_object_get(golden, "sequences");
    const json_t *last = json_array_get(sequences, json_array_size(sequences) - 1);
    const uint32_t n = json_ids(json_object_get(last, "tokens"), tokens, TINY_LONGEST);
    json_decref(golden);
    assert_int_equal(n, 100);
    return n;
}

/* piece 0: of random lengths */
static inline void tiny_run_in_pieces(const model_rig_t *rig, k_dtype_t kv_dtype,
                                      const int32_t *tokens, uint32_t n, uint32_t piece,
                                      test_random_t *random, float *logits)
{
    tiny_sequence_t placed;
    tiny_place(rig, kv_dtype, random, &placed);
    for (uint32_t at = 0; at < n;) {
        const uint32_t wanted = piece > 0 ? piece : test_random_between(random, 1, 40);
        const uint32_t length = wanted < n - at ? wanted : n - at;
        tiny_run(rig, &placed, tokens, at, length, logits + at * TINY_VOCAB);
        at += length;
    }
}
