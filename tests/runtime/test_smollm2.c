/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real model, SmolLM2-135M-Instruct in Q4_1, through the executor, against two independent engines
 * (tests/vectors/smollm2). The plain kernels compute in float32 on the dequantized weights and are
 * held to the float32 reference; the others may round activations to 8 bits and are held to the
 * bounds its README gives for that.
 */
#include <glob.h>

#include "kvstore/transfer/kv_convert.h"
#include "tests/support/coll_rig.h"
#include "tests/support/executor_rig.h"

#define VECTORS     WEFT_TEST_VECTORS "/smollm2/"
#define MAX_PROMPT  1360
#define ANSWER      48
#define TOP         10
#define TEXT_TOKENS 1527
#define CONTEXT     2048

/* As tests/vectors/smollm2/README.md asks. */
typedef struct bounds {
    double margin; /* the reference's choice is binding where it leads by more */
    double top10;  /* log-probabilities of the likeliest ten */
    double nll;    /* of the text, relative to the perplexity */
} bounds_t;

static const bounds_t float32_bounds = {.margin = 0.02, .top10 = 0.01, .nll = 0.0005};
static const bounds_t rounded_bounds = {.margin = 0.6, .top10 = 0.6, .nll = 0.005};
static const bounds_t f8_bounds = {.margin = 2, .top10 = 1, .nll = 0.01}; /* a cache of fp8 */

static const step_limits_t limits = {.max_slots = 2,
                                     .max_tokens = 256,
                                     .max_context = CONTEXT,
                                     .max_blocks = CONTEXT / 16,
                                     .max_bind_tokens = CONTEXT,
                                     .max_biases = 1,
                                     .max_outputs = 32};

static bool is_long(void)
{
    const char *text = getenv("WEFT_TEST_LONG");
    return text != NULL && text[0] == '1';
}

static const char *smollm2_path(void)
{
    const char *path = getenv("WEFT_TEST_MODEL");
    if (path == NULL || path[0] == '\0') {
        print_message("WEFT_TEST_MODEL is not set: no SmolLM2 to test with\n");
        skip();
    }
    return path;
}

/* shard NULL: the whole model, on two threads. */
static void open_file(executor_rig_t *rig, const char *path, const char *isa, k_dtype_t kv_dtype,
                      const model_shard_t *shard)
{
    executor_rig_open(rig,
                      (model_rig_config_t){.path = path,
                                           .isa = isa,
                                           .threads = shard == NULL ? 2 : 1,
                                           .kv_dtype = kv_dtype,
                                           .block_tokens = 16,
                                           .n_blocks = CONTEXT / 16,
                                           .shard = shard},
                      &limits);
    assert_int_equal(model_config(rig->rig.model)->layers, 30);
}

static void open_smollm2(executor_rig_t *rig, const char *isa, k_dtype_t kv_dtype,
                         const model_shard_t *shard)
{
    open_file(rig, smollm2_path(), isa, kv_dtype, shard);
}

static bounds_t bounds_of(const executor_rig_t *rig)
{
    return strcmp(rig->rig.stream->ops->name, "ref") == 0 ? float32_bounds : rounded_bounds;
}

static void bind_sequence(executor_rig_t *rig, const int32_t *tokens, uint32_t n, uint32_t n_top,
                          uint32_t n_prompt_top)
{
    step_sampling_t sampling = greedy_sampling;
    sampling.n_top = n_top;
    sampling.n_prompt_top = n_prompt_top;
    plan_bind(rig->plan, 0, tokens, n, &sampling);
    for (uint32_t i = 0; i < CONTEXT / 16; i++) {
        plan_block(rig->plan, 0, i, i);
    }
}

/* Runs the bound sequence; sampled_out: after its end. prompt_out [n - 1], NULL: not wanted. */
static void run_prompt(executor_rig_t *rig, uint32_t n, k_sampled_t *prompt_out,
                       k_sampled_t *sampled_out)
{
    uint32_t n_prompt = 0;
    for (uint32_t at = 0; at < n;) {
        const uint32_t left = n - at;
        const uint32_t chunk = left < limits.max_tokens ? left : limits.max_tokens;
        const uint32_t flags = (chunk == left ? STEP_ROW_SAMPLE : 0) |
                               (prompt_out != NULL ? STEP_ROW_PROMPT_LOGPROBS : 0);
        plan_row(rig->plan, 0, at, chunk, flags, 0);
        const step_result_t result = executor_rig_step(rig);
        if (prompt_out != NULL) {
            memcpy(prompt_out + n_prompt, result.prompt, result.n_prompt * sizeof(*prompt_out));
            n_prompt += result.n_prompt;
        }
        *sampled_out = result.rows[0];
        at += chunk;
    }
    assert_int_equal(n_prompt, prompt_out != NULL ? n - 1 : 0);
}

/* ---- greedy continuations -------------------------------------------------------------------- */

typedef struct greedy_case {
    const char *id;
    int32_t tokens[MAX_PROMPT + ANSWER]; /* the prompt, then the reference's continuation */
    uint32_t n_prompt;
    double margin[ANSWER];
    const json_t *top10;
} greedy_case_t;

static void load_case(const json_t *json, greedy_case_t *out)
{
    const json_t *f32 = json_object_get(json, "f32");
    const json_t *margin = json_object_get(f32, "margin");
    out->id = json_string_value(json_object_get(json, "id"));
    out->n_prompt = json_ids(json_object_get(json, "prompt_ids"), out->tokens, MAX_PROMPT);
    assert_int_equal(json_ids(json_object_get(f32, "greedy"), out->tokens + out->n_prompt, ANSWER),
                     ANSWER);
    for (uint32_t i = 0; i < ANSWER; i++) {
        out->margin[i] = json_number_value(json_array_get(margin, i));
    }
    out->top10 = json_object_get(f32, "top10");
}

static void check_top10(const greedy_case_t *c, const k_sampled_t *sampled, double bound)
{
    for (uint32_t i = 0; i < TOP; i++) {
        const json_t *entry = json_array_get(c->top10, i);
        const int32_t id = (int32_t)json_integer_value(json_object_get(entry, "id"));
        const double expected = json_number_value(json_object_get(entry, "logprob"));
        uint32_t at = 0;
        while (at < sampled->n_top && sampled->top[at].token != id) {
            at++;
        }
        /* One that is not among our twenty is no likelier than the last of them. */
        const k_logprob_t *found = &sampled->top[at < sampled->n_top ? at : sampled->n_top - 1];
        const double off = found->logprob - expected;
        if (!(at < sampled->n_top ? fabs(off) <= bound : off >= -bound)) {
            print_error("%s: token %d has log-probability %f, expected %f\n", c->id, id,
                        found->logprob, expected);
            fail();
        }
    }
}

/* Whether a choice differs where the reference's is binding. */
static bool is_wrong(const greedy_case_t *c, uint32_t step, int32_t ours, const bounds_t *bounds)
{
    const int32_t expected = c->tokens[c->n_prompt + step];
    const double margin = c->margin[step];
    if (ours == expected || margin <= bounds->margin) {
        return false;
    }
    print_message("%s: step %u gives %d, expected %d (margin %f)\n", c->id, step, ours, expected,
                  margin);
    return true;
}

/* Our choice after every token of the reference's own continuation. */
static void check_choices(executor_rig_t *rig, const greedy_case_t *c, const bounds_t *bounds)
{
    static k_sampled_t prompt[MAX_PROMPT + ANSWER];
    k_sampled_t last = {0};
    bind_sequence(rig, c->tokens, c->n_prompt + ANSWER, 0, K_MAX_LOGPROBS);
    run_prompt(rig, c->n_prompt + ANSWER, prompt, &last);
    check_top10(c, &prompt[c->n_prompt - 1], bounds->top10);
    for (uint32_t i = 0; i < ANSWER; i++) {
        assert_false(is_wrong(c, i, prompt[c->n_prompt - 1 + i].top[0].token, bounds));
    }
}

/*
 * Token by token, as far as the continuation is the reference's: these choices are those of
 * check_choices, made in steps of one token.
 */
static void check_continuation(executor_rig_t *rig, const greedy_case_t *c, const bounds_t *bounds)
{
    k_sampled_t sampled = {0};
    bind_sequence(rig, c->tokens, c->n_prompt, 0, 0);
    run_prompt(rig, c->n_prompt, NULL, &sampled);
    for (uint32_t i = 0; i < ANSWER; i++) {
        assert_false(is_wrong(c, i, sampled.chosen.token, bounds));
        if (sampled.chosen.token != c->tokens[c->n_prompt + i]) {
            return;
        }
        plan_row(rig->plan, 0, c->n_prompt + i, 1, STEP_ROW_SAMPLE | STEP_ROW_FROM_SLOT, i + 1);
        sampled = executor_rig_step(rig).rows[0];
    }
}

/* max_prompt: longer cases are left out; the plain kernels take a while for them. */
static void check_greedy(const char *isa, k_dtype_t kv_dtype, uint32_t max_prompt,
                         const model_shard_t *shard)
{
    static greedy_case_t c;
    executor_rig_t rig;
    open_smollm2(&rig, isa, kv_dtype, shard);
    const bounds_t bounds = bounds_of(&rig);
    json_t *json = load_json(VECTORS "greedy.json");
    uint32_t n = 0;
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(json, "cases"), i, entry)
    {
        load_case(entry, &c);
        if (c.n_prompt <= max_prompt) {
            check_choices(&rig, &c, &bounds);
            check_continuation(&rig, &c, &bounds);
            n++;
        }
    }
    print_message("%s: %u cases\n", rig.rig.stream->ops->name, n);
    assert_true(n > 0);
    json_decref(json);
    executor_rig_close(&rig);
}

static void plain_kernels_continue_as_the_float32_reference(void **state)
{
    (void)state;
    check_greedy("ref", K_F32, is_long() ? MAX_PROMPT : 5, NULL);
}

static void check_greedy_on(const char *isa)
{
    if (strcmp(isa, "ref") != 0) {
        check_greedy(isa, K_F16, MAX_PROMPT, NULL);
    }
}

static void fast_kernels_continue_within_the_bounds_of_rounding(void **state)
{
    (void)state;
    for_each_isa(check_greedy_on);
}

/* 9 heads, 3 of keys: uneven parts on 2 ranks, shared keys on 4. */
static void check_greedy_rank(coll_rig_rank_t *self)
{
    const uint32_t max_prompt = is_long() ? MAX_PROMPT : self->size == 2 ? 400 : 64;
    coll_t *coll = coll_rig_create(self, "shm");
    const model_shard_t shard = {
        .tensor_rank = self->rank, .tensor_size = self->size, .tensor = coll};
    check_greedy("auto", K_F16, max_prompt, &shard);
    coll_destroy(coll);
}

static void tensor_ranks_continue_within_the_bounds_of_rounding(void **state)
{
    (void)state;
    (void)smollm2_path(); /* skips here, not in a rank */
    coll_rig_run(2, check_greedy_rank, NULL);
    coll_rig_run(4, check_greedy_rank, NULL);
}

/* ---- perplexity ------------------------------------------------------------------------------ */

/* Mean negative log-likelihood of the text's first n tokens; the first one's is not counted. */
static double mean_nll(executor_rig_t *rig, const int32_t *ids, uint32_t n, double *first16_out)
{
    static k_sampled_t prompt[TEXT_TOKENS];
    k_sampled_t last = {0};
    double sum = 0;
    bind_sequence(rig, ids, n, 0, 0);
    run_prompt(rig, n, prompt, &last);
    for (uint32_t i = 0; i + 1 < n; i++) {
        assert_int_equal(prompt[i].chosen.token, ids[i + 1]);
        sum -= prompt[i].chosen.logprob;
        if (i < 16) {
            first16_out[i] = -prompt[i].chosen.logprob;
        }
    }
    return sum / (n - 1);
}

static void check_text(const char *isa, k_dtype_t kv_dtype, uint32_t n)
{
    static int32_t ids[TEXT_TOKENS];
    double first16[16];
    executor_rig_t rig;
    open_smollm2(&rig, isa, kv_dtype, NULL);
    const bounds_t bounds = kv_dtype == K_F8 ? f8_bounds : bounds_of(&rig);
    json_t *json = load_json(VECTORS "ppl.json");
    assert_int_equal(json_ids(json_object_get(json, "text_ids"), ids, TEXT_TOKENS), TEXT_TOKENS);
    const json_t *hf = json_object_get(json_object_get(json, "hf_fp32"), "full_sequence");
    const json_t *expected = json_object_get(hf, "nll_first16");

    const double perplexity = exp(mean_nll(&rig, ids, n, first16));
    for (uint32_t i = 0; i < 16; i++) {
        const double nll = json_number_value(json_array_get(expected, i));
        assert_true(fabs(first16[i] - nll) <= 2 * bounds.top10);
    }
    print_message("%s, %s cache: perplexity of %u tokens is %.4f\n", rig.rig.stream->ops->name,
                  k_dtype_info(kv_dtype)->name, n, perplexity);
    if (n == TEXT_TOKENS) {
        const double whole = json_number_value(json_object_get(hf, "ppl"));
        assert_true(fabs(perplexity / whole - 1.0) <= bounds.nll);
    }
    json_decref(json);
    executor_rig_close(&rig);
}

static void plain_kernels_give_the_text_its_likelihood(void **state)
{
    (void)state;
    check_text("ref", K_F32, is_long() ? TEXT_TOKENS : 48);
}

static void check_text_on(const char *isa)
{
    if (strcmp(isa, "ref") != 0) {
        check_text(isa, K_F16, TEXT_TOKENS);
    }
}

static void fast_kernels_give_the_text_its_perplexity(void **state)
{
    (void)state;
    for_each_isa(check_text_on);
}

static void a_cache_of_fp8_costs_a_hundredth_at_most(void **state)
{
    (void)state;
    check_text("auto", K_F8, TEXT_TOKENS);
}

static void a_cache_of_int8_costs_half_a_hundredth_at_most(void **state)
{
    (void)state;
    check_text("auto", K_I8, TEXT_TOKENS);
}

/* Of the text's first n tokens. */
static double perplexity_of(const char *path, const char *isa, const int32_t *ids, uint32_t n)
{
    double first16[16];
    executor_rig_t rig;
    open_file(&rig, path, isa, K_F16, NULL);
    const double perplexity = exp(mean_nll(&rig, ids, n, first16));
    executor_rig_close(&rig);
    return perplexity;
}

/*
 * All there is in the folder WEFT_TEST_QUANTS: this model in other types, by llama-quantize or
 * scripts/requantize_smollm2.py.
 */
static void each_type_keeps_the_perplexity_of_the_plain_kernels(void **state)
{
    (void)state;
    static int32_t ids[TEXT_TOKENS];
    const uint32_t n = is_long() ? TEXT_TOKENS : 512;
    const char *folder = getenv("WEFT_TEST_QUANTS");
    glob_t files;
    char pattern[512];
    if (folder == NULL || folder[0] == '\0') {
        print_message("WEFT_TEST_QUANTS is not set: no files of other types to test with\n");
        skip();
    }
    snprintf(pattern, sizeof(pattern), "%s/*", folder);
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    json_t *json = load_json(VECTORS "ppl.json");
    assert_int_equal(json_ids(json_object_get(json, "text_ids"), ids, TEXT_TOKENS), TEXT_TOKENS);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        const char *path = files.gl_pathv[i];
        const double plain = perplexity_of(path, "ref", ids, n);
        for (const k_ops_t *const *ops = k_ops_all(); *ops != NULL; ops++) {
            if (!(*ops)->is_supported() || strcmp((*ops)->name, "ref") == 0) {
                continue;
            }
            const double fast = perplexity_of(path, (*ops)->name, ids, n);
            print_message("%s, %s: %.4f, plain %.4f, %+.3f%%\n", path, (*ops)->name, fast, plain,
                          100 * (fast / plain - 1));
            assert_true(fabs(fast / plain - 1) <= rounded_bounds.nll);
        }
    }
    globfree(&files);
    json_decref(json);
}

/* ---- converted on arrival -------------------------------------------------------------------- */

enum { HALF_TOKENS = 768 }; /* whole blocks, which another worker computed */

/* Log-likelihood of the tokens [from, until) of ids, negative, given those in the cache before. */
static double part_nll(executor_rig_t *rig, const int32_t *ids, uint32_t from, uint32_t until)
{
    double sum = 0;
    bind_sequence(rig, ids, until, 0, 0);
    for (uint32_t at = from; at < until;) {
        const uint32_t left = until - at;
        const uint32_t chunk = left < limits.max_tokens ? left : limits.max_tokens;
        plan_row(rig->plan, 0, at, chunk,
                 (chunk == left ? STEP_ROW_SAMPLE : 0) | STEP_ROW_PROMPT_LOGPROBS, 0);
        const step_result_t result = executor_rig_step(rig);
        for (uint32_t i = 0; i < result.n_prompt; i++) {
            sum -= result.prompt[i].chosen.logprob;
        }
        at += chunk;
    }
    return sum;
}

static kv_head_form_t form_of(const executor_rig_t *rig, kv_element_t element)
{
    const kv_layout_t *layout = &rig->rig.layout;
    return (kv_head_form_t){element, false, layout->block_tokens, layout->groups[0].head_dim};
}

/* The blocks of the first half, from one worker's cache to the other's. */
static void convert_cache(const executor_rig_t *from, kv_element_t from_element,
                          const executor_rig_t *to, kv_element_t to_element)
{
    const kv_head_form_t from_form = form_of(from, from_element);
    const kv_head_form_t to_form = form_of(to, to_element);
    const kv_strides_t *a = &from->rig.layout.strides[0];
    const kv_strides_t *b = &to->rig.layout.strides[0];
    const kv_group_t *group = &to->rig.layout.groups[0];
    for (uint32_t block = 0; block < HALF_TOKENS / 16; block++) {
        for (uint32_t i = 0; i < group->layers * group->heads; i++) {
            const uint32_t layer = i / group->heads;
            const uint32_t head = i % group->heads;
            const char *source = (const char *)from->rig.kv.addr + block * a->block +
                                 layer * a->layer + head * a->head;
            char *target =
                (char *)to->rig.kv.addr + block * b->block + layer * b->layer + head * b->head;
            kv_convert_head(&from_form, source, 0, &to_form, target, 0, 16);
        }
    }
}

static double converted_nll(const executor_rig_t *from, const int32_t *ids, k_dtype_t kv_dtype,
                            kv_element_t element)
{
    executor_rig_t to;
    open_smollm2(&to, "auto", kv_dtype, NULL);
    convert_cache(from, KV_ELEMENT_BF16, &to, element);
    const double nll = part_nll(&to, ids, HALF_TOKENS, TEXT_TOKENS);
    executor_rig_close(&to);
    return nll;
}

/* A worker with bf16 computed the first half of the text, others take it over and go on. */
static void a_cache_that_is_converted_costs_a_hundredth_at_most(void **state)
{
    static const struct {
        k_dtype_t dtype;
        kv_element_t element;
    } caches[] = {{K_F16, KV_ELEMENT_F16}, {K_F8, KV_ELEMENT_F8}, {K_I8, KV_ELEMENT_I8}};
    static int32_t ids[TEXT_TOKENS];
    double of_f16 = 0;
    executor_rig_t from;
    (void)state;
    json_t *json = load_json(VECTORS "ppl.json");
    assert_int_equal(json_ids(json_object_get(json, "text_ids"), ids, TEXT_TOKENS), TEXT_TOKENS);
    open_smollm2(&from, "auto", K_BF16, NULL);
    (void)part_nll(&from, ids, 0, HALF_TOKENS);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(caches); i++) {
        const double nll = converted_nll(&from, ids, caches[i].dtype, caches[i].element);
        const double perplexity = exp(nll / (TEXT_TOKENS - HALF_TOKENS - 1));
        of_f16 = i == 0 ? perplexity : of_f16;
        print_message("bf16 to %s: perplexity of %d tokens is %.4f\n",
                      k_dtype_info(caches[i].dtype)->name, TEXT_TOKENS - HALF_TOKENS, perplexity);
        assert_true(fabs(perplexity / of_f16 - 1) <= 0.01);
    }
    executor_rig_close(&from);
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_kernels_continue_as_the_float32_reference),
        cmocka_unit_test(fast_kernels_continue_within_the_bounds_of_rounding),
        cmocka_unit_test(tensor_ranks_continue_within_the_bounds_of_rounding),
        cmocka_unit_test(plain_kernels_give_the_text_its_likelihood),
        cmocka_unit_test(fast_kernels_give_the_text_its_perplexity),
        cmocka_unit_test(each_type_keeps_the_perplexity_of_the_plain_kernels),
        cmocka_unit_test(a_cache_of_fp8_costs_a_hundredth_at_most),
        cmocka_unit_test(a_cache_of_int8_costs_half_a_hundredth_at_most),
        cmocka_unit_test(a_cache_that_is_converted_costs_a_hundredth_at_most),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
