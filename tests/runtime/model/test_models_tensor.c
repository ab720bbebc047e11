/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Models cut over tensor-parallel ranks, each a process, against what Hugging Face transformers
 * computes of the whole, and against themselves in pieces.
 */
#include "tests/support/coll_rig.h"
#include "tests/support/tiny_rig.h"

typedef struct cut {
    const char *isa;
    bool splits_experts;
    const char *only; /* a model's name; NULL: all of them */
} cut_t;

static model_shard_t shard_of(const coll_rig_rank_t *self, coll_t *coll)
{
    const cut_t *cut = self->user;
    return (model_shard_t){.tensor_rank = self->rank,
                           .tensor_size = self->size,
                           .splits_experts = cut->splits_experts,
                           .tensor = coll};
}

/* ---- against the reference ----------------------------------------------------------------- */

/* Blocks of 32 columns: two heads of 16, the whole width of an expert. */
static const char *reason_against(const char *name, uint32_t size, bool splits_experts)
{
    if (strstr(name, "mxfp4") != NULL && !splits_experts) {
        return "32 columns of an expert can be dealt out among at most 1 ranks";
    }
    const bool has_heads_of_16 = strncmp(name, "llama", 5) == 0 || strncmp(name, "qwen2", 5) == 0;
    return strstr(name, "q8_0") != NULL && has_heads_of_16 && size > 2
               ? "4 heads can be dealt out among at most 2 ranks"
               : NULL;
}

static void assert_cannot_be_cut(const char *name, const model_shard_t *shard, const char *reason)
{
    weft_diag_t diag = {.text = ""};
    model_source_t *source = NULL;
    model_cut_t cut;
    model_rig_check(model_source_open(tiny_model_path(name), &diag, &source), &diag);
    assert_status(model_source_cut(source, shard, &diag, &cut), WEFT_ERR_UNSUPPORTED);
    if (strstr(diag.text, reason) == NULL) {
        print_error("%s: \"%s\" does not say \"%s\"\n", name, diag.text, reason);
        fail();
    }
    model_source_close(source);
}

static void check_models(coll_rig_rank_t *self)
{
    const cut_t *cut = self->user;
    coll_t *coll = coll_rig_create(self, "shm");
    const model_shard_t shard = shard_of(self, coll);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(tiny_models); i++) {
        const char *name = tiny_models[i];
        if (cut->splits_experts && !tiny_has_experts(name)) {
            continue;
        }
        const char *reason = reason_against(name, self->size, cut->splits_experts);
        if (reason != NULL) {
            assert_cannot_be_cut(name, &shard, reason);
        } else {
            tiny_check_model(name, cut->isa, &shard);
        }
    }
    assert_status(coll_status(coll, NULL), WEFT_OK);
    coll_destroy(coll);
}

static void check_models_cut(const char *isa, uint32_t size)
{
    cut_t by_tensor = {.isa = isa};
    cut_t by_expert = {.isa = isa, .splits_experts = true};
    coll_rig_run(size, check_models, &by_tensor);
    coll_rig_run(size, check_models, &by_expert);
}

static void check_two_ranks(const char *isa)
{
    check_models_cut(isa, 2);
}

static void every_cut_model_gives_the_reference_outputs_on_every_isa(void **state)
{
    (void)state;
    for_each_isa(check_two_ranks);
}

/* Of groups of heads and of experts: uneven parts, and more ranks than keys have heads. */
static void three_and_four_ranks_give_them_too(void **state)
{
    (void)state;
    check_models_cut("ref", 3);
    check_models_cut("ref", 4);
}

/* ---- decision 7 ---------------------------------------------------------------------------- */

/* Two sequences in one pass: the first must not feel the second. */
static void run_with_neighbour(const model_rig_t *rig, const int32_t *tokens, uint32_t n,
                               test_random_t *random, float *logits)
{
    enum { OTHER = 20 };
    tiny_sequence_t placed;
    int32_t ids[TINY_MAX_PIECE];
    uint32_t rows[TINY_MAX_PIECE];
    tiny_place(rig, K_F16, random, &placed);
    memcpy(ids, tokens, n * sizeof(*ids));
    for (uint32_t i = 0; i < OTHER; i++) {
        ids[n + i] = (int32_t)test_random_below(random, TINY_VOCAB);
    }
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = i;
    }
    const uint32_t half = TINY_BLOCKS / 2;
    const k_seq_t seqs[] = {
        {.row = 0, .rows = n, .block_table = placed.blocks},
        {.row = n, .rows = OTHER, .block_table = placed.blocks + half},
    };
    const model_batch_t batch = {
        .ids = ids, .rows = n + OTHER, .seqs = seqs, .n_seqs = 2, .max_tokens = n, .kv = placed.kv};
    model_forward(rig->model, rig->stream, &batch);
    model_rig_logits(rig, rows, n, logits);
    assert_status(k_stream_sync(rig->stream), WEFT_OK);
}

/* Every rank draws the same pieces. */
static void check_pieces(coll_rig_rank_t *self)
{
    static float whole[TINY_LONGEST * TINY_VOCAB];
    static float pieces[TINY_LONGEST * TINY_VOCAB];
    const cut_t *cut = self->user;
    const size_t bytes = (size_t)100 * TINY_VOCAB * sizeof(float);
    static const uint32_t sizes[] = {1, 17, 0};
    test_random_t random = {test_seed(93)};
    int32_t tokens[TINY_LONGEST];
    model_rig_t rig;
    coll_t *coll = coll_rig_create(self, "shm");
    const model_shard_t shard = shard_of(self, coll);
    const uint32_t n = tiny_longest_sequence(cut->only, tokens);
    tiny_open_for(&rig, cut->only, cut->isa, 16, K_F16, 128, &shard);
    tiny_run_in_pieces(&rig, K_F16, tokens, n, n, &random, whole);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(sizes); i++) {
        tiny_run_in_pieces(&rig, K_F16, tokens, n, sizes[i], &random, pieces);
        assert_memory_equal(pieces, whole, bytes);
    }
    run_with_neighbour(&rig, tokens, n, &random, pieces);
    assert_memory_equal(pieces, whole, bytes);
    model_rig_close(&rig);
    coll_destroy(coll);
}

static void check_pieces_on(const char *isa)
{
    static const char *const names[] = {"llama",   "qwen2-gguf-q8_0", "olmo2",      "granite",
                                        "mixtral", "gemma2",          "deepseek-v3"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        cut_t cut = {.isa = isa, .only = names[i], .splits_experts = i % 2 == 0};
        coll_rig_run(2, check_pieces, &cut);
    }
}

static void pieces_and_neighbours_do_not_change_a_bit_of_a_cut_model(void **state)
{
    (void)state;
    for_each_isa(check_pieces_on);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cut_model_gives_the_reference_outputs_on_every_isa),
        cmocka_unit_test(three_and_four_ranks_give_them_too),
        cmocka_unit_test(pieces_and_neighbours_do_not_change_a_bit_of_a_cut_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
