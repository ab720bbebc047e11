/* SPDX-License-Identifier: Apache-2.0 */
/* Latent attention against its formula in double, and against itself in other batches. */
#include "tests/kernels/kernels_support.h"

enum { MAX_TOKENS = 150, MAX_HEADS = 20, MAX_DIM = 640, BLOCK = 16 };

typedef struct scene {
    uint32_t heads;
    uint32_t plain;
    uint32_t latent;
    uint32_t rotary;
    uint32_t tokens;
    float *q;        /* [tokens, heads, plain + rotary] */
    float *q_latent; /* [tokens, heads, latent + rotary], the tails unset */
    float *c;        /* [tokens, latent + rotary] */
    float inv_freq[32];
} scene_t;

static scene_t random_scene(test_random_t *random)
{
    static const uint32_t latents[] = {32, 40, 64, 130, 512};
    scene_t s = {.heads = test_random_between(random, 1, MAX_HEADS),
                 .plain = test_random_between(random, 1, 40),
                 .latent = latents[test_random_below(random, WEFT_ARRAY_LEN(latents))],
                 .rotary = 2 * test_random_between(random, 1, 32),
                 .tokens = test_random_between(random, 1, MAX_TOKENS)};
    s.q = random_floats(random, (size_t)s.tokens * s.heads * (s.plain + s.rotary));
    s.q_latent = random_floats(random, (size_t)s.tokens * s.heads * (s.latent + s.rotary));
    s.c = random_floats(random, (size_t)s.tokens * (s.latent + s.rotary));
    for (uint32_t i = 0; i < s.rotary / 2; i++) {
        s.inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)s.rotary);
    }
    return s;
}

static void free_scene(scene_t *s)
{
    test_free(s->q);
    test_free(s->q_latent);
    test_free(s->c);
}

/* Feeds the scene in steps of at most max_step tokens; o [tokens, heads, latent]. */
static void run_scene(k_stream_t *stream, const scene_t *s, uint32_t max_step,
                      test_random_t *random, float *o)
{
    const uint32_t dim = s->latent + s->rotary;
    const uint32_t blocks = (s->tokens + BLOCK - 1) / BLOCK;
    float *cache = test_malloc((size_t)blocks * BLOCK * dim * sizeof(float));
    float *q = test_malloc((size_t)s->tokens * s->heads * dim * sizeof(float));
    float *c = test_malloc((size_t)s->tokens * dim * sizeof(float));
    uint32_t table[MAX_TOKENS / BLOCK + 1];
    memset(cache, 0xff, (size_t)blocks * BLOCK * dim * sizeof(float)); /* unused: NaN */
    memcpy(q, s->q_latent, (size_t)s->tokens * s->heads * dim * sizeof(float));
    memcpy(c, s->c, (size_t)s->tokens * dim * sizeof(float));
    for (uint32_t b = 0; b < blocks; b++) {
        table[b] = blocks - 1 - b;
    }
    const k_kv_view_t view = {.base = cache,
                              .dtype = K_F32,
                              .block_tokens = BLOCK,
                              .heads = 1,
                              .head_dim = dim / 2,
                              .block_stride = (size_t)BLOCK * dim * sizeof(float),
                              .token_stride = dim * sizeof(float),
                              .part_stride = dim / 2 * sizeof(float)};
    for (uint32_t at = 0; at < s->tokens;) {
        const uint32_t left = s->tokens - at;
        const uint32_t wanted = test_random_between(random, 1, max_step);
        const k_seq_t seq = {
            .rows = wanted < left ? wanted : left, .start = at, .block_table = table};
        const k_mla_write_args_t write = {.q =
                                              s->q + (size_t)at * s->heads * (s->plain + s->rotary),
                                          .q_out = q + (size_t)at * s->heads * dim,
                                          .c = c + (size_t)at * dim,
                                          .q_stride = (size_t)s->heads * (s->plain + s->rotary),
                                          .q_out_stride = (size_t)s->heads * dim,
                                          .c_stride = dim,
                                          .q_heads = s->heads,
                                          .q_dim = s->plain + s->rotary,
                                          .latent = s->latent,
                                          .rotary = s->rotary,
                                          .inv_freq = s->inv_freq,
                                          .mscale = 1,
                                          .interleaved = true,
                                          .kv = view,
                                          .seqs = &seq,
                                          .n_seqs = 1};
        const k_mla_attention_args_t attention = {.q = write.q_out,
                                                  .o = o + (size_t)at * s->heads * s->latent,
                                                  .q_stride = (size_t)s->heads * dim,
                                                  .o_stride = (size_t)s->heads * s->latent,
                                                  .q_heads = s->heads,
                                                  .latent = s->latent,
                                                  .scale = 0.2f,
                                                  .kv = view,
                                                  .seqs = &seq,
                                                  .n_seqs = 1};
        stream->ops->mla_write(stream, &write);
        stream->ops->mla_attention(stream, &attention);
        at += seq.rows;
    }
    assert_status(k_stream_sync(stream), WEFT_OK);
    test_free(cache);
    test_free(q);
    test_free(c);
}

static void rotate(const scene_t *s, uint32_t position, const float *x, double *y)
{
    for (uint32_t i = 0; i < s->rotary / 2; i++) {
        const double angle = (double)((float)position * s->inv_freq[i]);
        const double a = (double)x[2 * i];
        const double b = (double)x[2 * i + 1];
        y[2 * i] = a * cos(angle) - b * sin(angle);
        y[2 * i + 1] = b * cos(angle) + a * sin(angle);
    }
}

static void expect(const scene_t *s, uint32_t position, uint32_t head, double *o)
{
    const uint32_t dim = s->latent + s->rotary;
    const size_t at = (size_t)position * s->heads + head;
    const float *q = s->q_latent + at * dim;
    double q_turned[64];
    double c_turned[64];
    double weights[MAX_TOKENS];
    double sum = 0;
    rotate(s, position, s->q + at * (s->plain + s->rotary) + s->plain, q_turned);
    for (uint32_t t = 0; t <= position; t++) {
        const float *c = s->c + (size_t)t * dim;
        double dot = 0;
        rotate(s, t, c + s->latent, c_turned);
        for (uint32_t i = 0; i < s->latent; i++) {
            dot += (double)q[i] * (double)c[i];
        }
        for (uint32_t i = 0; i < s->rotary; i++) {
            dot += q_turned[i] * c_turned[i];
        }
        weights[t] = exp(dot * (double)0.2f);
        sum += weights[t];
    }
    for (uint32_t i = 0; i < s->latent; i++) {
        o[i] = 0;
        for (uint32_t t = 0; t <= position; t++) {
            o[i] += weights[t] / sum * (double)s->c[(size_t)t * dim + i];
        }
    }
}

static void check_scene(const char *isa, test_random_t *random)
{
    k_stream_t *streams[] = {open_stream(isa, 1, 1, 1), open_stream(isa, 3, 1, 1)};
    for (uint32_t round = 0; round < test_rounds(300); round++) {
        scene_t s = random_scene(random);
        const size_t n = (size_t)s.tokens * s.heads * s.latent;
        float *whole = test_malloc(n * sizeof(float));
        float *pieces = test_malloc(n * sizeof(float));
        run_scene(streams[0], &s, MAX_TOKENS, random, whole);
        run_scene(streams[1], &s, 7, random, pieces);
        assert_same_bits(pieces, whole, n, "mla_attention");
        for (uint32_t i = 0; i < 20; i++) {
            double expected[MAX_DIM];
            const uint32_t position = test_random_below(random, s.tokens);
            const uint32_t head = test_random_below(random, s.heads);
            expect(&s, position, head, expected);
            for (uint32_t e = 0; e < s.latent; e++) {
                const double got =
                    (double)whole[((size_t)position * s.heads + head) * s.latent + e];
                assert_true(fabs(got - expected[e]) < 1e-5);
            }
        }
        test_free(whole);
        test_free(pieces);
        free_scene(&s);
    }
    k_stream_destroy(streams[0]);
    k_stream_destroy(streams[1]);
}

static void latent_attention_is_its_formula_in_any_batch(void **state)
{
    (void)state;
    each_isa(check_scene, 51);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(latent_attention_is_its_formula_in_any_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
