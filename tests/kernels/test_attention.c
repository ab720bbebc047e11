/* SPDX-License-Identifier: Apache-2.0 */
#include "base/float8.h"
#include "base/int8.h"
#include "tests/kernels/kernels_support.h"

enum { LAYERS = 2, LAYER = 1 };

/* Sequences with random q, k, v for every position, whatever way they are fed to the ops. */
typedef struct scene {
    uint32_t n_seqs;
    uint32_t tokens[4];
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t dim;
    uint32_t rotary;
    uint32_t window;
    float softcap;
    bool has_sinks;
    float sinks[36]; /* [q_heads] */
    bool interleaved;
    k_dtype_t dtype;
    float *q[4]; /* [tokens, q_heads, dim] */
    float *k[4];
    float *v[4];
    float *inv_freq;
} scene_t;

/* How a scene is fed: the layout of the cache, and how many tokens of a sequence a step takes. */
typedef struct feed {
    const char *order; /* axes of the cache, outermost first; C is K then V */
    uint32_t block_tokens;
    uint32_t max_step; /* 0: each sequence in one step */
    k_stream_t *stream;
} feed_t;

static scene_t random_scene(test_random_t *random)
{
    static const k_dtype_t dtypes[] = {K_F32, K_F16, K_BF16, K_F8, K_I8};
    static const uint32_t dims[] = {64, 64, 128, 80, 16, 36, 256};
    scene_t s = {.n_seqs = test_random_between(random, 1, 4)};
    s.dtype = dtypes[test_random_below(random, 5)];
    s.dim = dims[test_random_below(random, 7)];
    s.rotary = test_random_below(random, 4) == 0 ? s.dim / 4 * 2 : s.dim;
    s.kv_heads = test_random_between(random, 1, 3);
    s.q_heads = s.kv_heads * test_random_between(random, 1, 12);
    s.window = test_random_below(random, 3) == 0 ? test_random_between(random, 1, 150) : 0;
    s.softcap = test_random_below(random, 3) == 0 ? 2 * fabsf(random_float(random)) + 1 : 0;
    s.has_sinks = test_random_below(random, 3) == 0;
    for (uint32_t i = 0; i < WEFT_ARRAY_LEN(s.sinks); i++) {
        s.sinks[i] = 3 * random_float(random);
    }
    s.interleaved = test_random_below(random, 2) == 0;
    s.inv_freq = test_malloc((s.rotary / 2 + 1) * sizeof(float));
    for (uint32_t i = 0; i < s.rotary / 2; i++) {
        s.inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)s.rotary);
    }
    for (uint32_t i = 0; i < s.n_seqs; i++) {
        s.tokens[i] = test_random_between(random, 1, 200);
        s.q[i] = random_floats(random, (size_t)s.tokens[i] * s.q_heads * s.dim);
        s.k[i] = random_floats(random, (size_t)s.tokens[i] * s.kv_heads * s.dim);
        s.v[i] = random_floats(random, (size_t)s.tokens[i] * s.kv_heads * s.dim);
    }
    return s;
}

static void free_scene(scene_t *s)
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        test_free(s->q[i]);
        test_free(s->k[i]);
        test_free(s->v[i]);
    }
    test_free(s->inv_freq);
}

static k_kv_view_t view_of(const scene_t *s, const feed_t *feed, uint32_t blocks, size_t *bytes_out)
{
    k_kv_view_t view = {.dtype = s->dtype,
                        .block_tokens = feed->block_tokens,
                        .heads = s->kv_heads,
                        .head_dim = s->dim};
    size_t stride = s->dim * k_dtype_info(s->dtype)->block_bytes;
    size_t layer_stride = 0;
    for (int axis = (int)strlen(feed->order) - 1; axis >= 0; axis--) {
        switch (feed->order[axis]) {
        case 'C':
            view.part_stride = stride;
            stride *= 2;
            break;
        case 'N':
            view.token_stride = stride;
            stride *= feed->block_tokens;
            view.scale_offset = stride;
            stride += 2 * (size_t)feed->block_tokens * k_kv_scale_bytes(s->dtype);
            break;
        case 'H':
            view.head_stride = stride;
            stride *= s->kv_heads;
            break;
        case 'L':
            layer_stride = stride;
            stride *= LAYERS;
            break;
        default:
            view.block_stride = stride;
            stride *= blocks;
        }
    }
    *bytes_out = stride;
    view.base = (void *)(LAYER * layer_stride);
    return view;
}

/* One step: rows [done[i], done[i] + take[i]) of every sequence. Copies q to the step's buffers. */
static void run_step(const scene_t *s, const feed_t *feed, const k_kv_view_t *view,
                     uint32_t *const tables[4], const uint32_t *done, const uint32_t *take,
                     float *out[4])
{
    k_seq_t seqs[4];
    uint32_t rows = 0;
    uint32_t n = 0;
    const size_t q_dim = (size_t)s->q_heads * s->dim;
    const size_t kv_dim = (size_t)s->kv_heads * s->dim;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        if (take[i] > 0) {
            seqs[n++] =
                (k_seq_t){.row = rows, .rows = take[i], .start = done[i], .block_table = tables[i]};
            rows += take[i];
        }
    }
    const size_t stride = q_dim + 2 * kv_dim + 3;
    float *qkv = test_malloc(rows * stride * sizeof(float));
    float *o = test_malloc(rows * (q_dim + 5) * sizeof(float));
    uint32_t row = 0;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        for (uint32_t t = 0; t < take[i]; t++, row++) {
            const size_t at = done[i] + t;
            memcpy(qkv + row * stride, s->q[i] + at * q_dim, q_dim * 4);
            memcpy(qkv + row * stride + q_dim, s->k[i] + at * kv_dim, kv_dim * 4);
            memcpy(qkv + row * stride + q_dim + kv_dim, s->v[i] + at * kv_dim, kv_dim * 4);
        }
    }
    const k_rope_kv_write_args_t rope = {.q = qkv,
                                         .k = qkv + q_dim,
                                         .v = qkv + q_dim + kv_dim,
                                         .q_stride = stride,
                                         .k_stride = stride,
                                         .v_stride = stride,
                                         .q_heads = s->q_heads,
                                         .rotary = s->rotary,
                                         .inv_freq = s->inv_freq,
                                         .mscale = 1,
                                         .interleaved = s->interleaved,
                                         .kv = *view,
                                         .seqs = seqs,
                                         .n_seqs = n};
    const k_attention_args_t attention = {.q = qkv,
                                          .o = o,
                                          .q_stride = stride,
                                          .o_stride = q_dim + 5,
                                          .q_heads = s->q_heads,
                                          .scale = 1.0f / sqrtf((float)s->dim),
                                          .window = s->window,
                                          .softcap = s->softcap,
                                          .sinks = s->has_sinks ? s->sinks : NULL,
                                          .kv = *view,
                                          .seqs = seqs,
                                          .n_seqs = n};
    feed->stream->ops->rope_kv_write(feed->stream, &rope);
    feed->stream->ops->attention(feed->stream, &attention);
    assert_status(k_stream_sync(feed->stream), WEFT_OK);
    row = 0;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        for (uint32_t t = 0; t < take[i]; t++, row++) {
            memcpy(out[i] + (done[i] + t) * q_dim, o + row * (q_dim + 5), q_dim * 4);
        }
    }
    test_free(qkv);
    test_free(o);
}

/* Feeds the whole scene; out[i] [tokens, q_heads, dim]. The unused cache holds NaN. */
static void run_scene(const scene_t *s, const feed_t *feed, test_random_t *random, float *out[4])
{
    uint32_t *tables[4];
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const uint32_t n = (s->tokens[i] + feed->block_tokens - 1) / feed->block_tokens;
        tables[i] = test_malloc(n * sizeof(uint32_t));
        for (uint32_t b = 0; b < n; b++) {
            tables[i][b] = blocks++;
        }
    }
    for (uint32_t i = 0; i < s->n_seqs; i++) { /* blocks in any order */
        for (uint32_t b = 0; b * feed->block_tokens < s->tokens[i]; b++) {
            tables[i][b] = blocks - 1 - tables[i][b];
        }
    }
    size_t bytes;
    k_kv_view_t view = view_of(s, feed, blocks, &bytes);
    char *memory = test_malloc(bytes);
    memset(memory, 0xff, bytes);
    view.base = memory + (size_t)view.base;

    uint32_t done[4] = {0};
    for (;;) {
        uint32_t take[4] = {0};
        uint32_t all = 0;
        for (uint32_t i = 0; i < s->n_seqs; i++) {
            const uint32_t left = s->tokens[i] - done[i];
            take[i] = feed->max_step == 0 ? left : test_random_between(random, 0, feed->max_step);
            take[i] = take[i] < left ? take[i] : left;
            all += left;
        }
        if (all == 0) {
            break;
        }
        run_step(s, feed, &view, tables, done, take, out);
        for (uint32_t i = 0; i < s->n_seqs; i++) {
            done[i] += take[i];
        }
    }
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        test_free(tables[i]);
    }
    test_free(memory);
}

static void alloc_out(const scene_t *s, float *out[4])
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        out[i] = test_malloc((size_t)s->tokens[i] * s->q_heads * s->dim * sizeof(float));
    }
}

static void free_out(const scene_t *s, float *out[4])
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        test_free(out[i]);
    }
}

/* ---- the plain formula in double ----------------------------------------------------------- */

static void rotate(const scene_t *s, uint32_t position, const float *x, double *y)
{
    const uint32_t half = s->rotary / 2;
    for (uint32_t i = 0; i < s->dim; i++) {
        y[i] = (double)x[i];
    }
    for (uint32_t i = 0; i < half; i++) {
        const uint32_t a = s->interleaved ? 2 * i : i;
        const uint32_t b = s->interleaved ? 2 * i + 1 : i + half;
        const double angle = (double)((float)position * s->inv_freq[i]);
        y[a] = (double)x[a] * cos(angle) - (double)x[b] * sin(angle);
        y[b] = (double)x[b] * cos(angle) + (double)x[a] * sin(angle);
    }
}

/* x [dim] to what the cache keeps of it. */
static void store(const scene_t *s, double *x)
{
    float narrow[256];
    for (uint32_t i = 0; i < s->dim; i++) {
        narrow[i] = (float)x[i];
    }
    const weft_i8_scale_t scale = weft_i8_scale_of(weft_i8_largest(narrow, s->dim));
    for (uint32_t i = 0; i < s->dim; i++) {
        switch (s->dtype) {
        case K_F16:
            x[i] = (double)k_f16_to_f32(k_f32_to_f16(narrow[i]));
            break;
        case K_BF16:
            x[i] = (double)k_bf16_to_f32(k_f32_to_bf16(narrow[i]));
            break;
        case K_F8:
            x[i] = (double)weft_f8_to_f32(weft_f32_to_f8(narrow[i]));
            break;
        case K_I8:
            x[i] = (double)weft_f32_to_i8(narrow[i] * scale.inverse) * (double)scale.scale;
            break;
        default:
            break;
        }
    }
}

static void expect_row(const scene_t *s, uint32_t seq, uint32_t position, uint32_t head,
                       double *expected)
{
    const uint32_t kv_head = head / (s->q_heads / s->kv_heads);
    double q[256];
    double k[256];
    double weights[256];
    const double cap = (double)s->softcap;
    double sum = s->has_sinks ? exp((double)s->sinks[head]) : 0;
    rotate(s, position, s->q[seq] + ((size_t)position * s->q_heads + head) * s->dim, q);
    const uint32_t first = s->window > 0 && position >= s->window ? position - s->window + 1 : 0;
    for (uint32_t t = first; t <= position; t++) {
        rotate(s, t, s->k[seq] + ((size_t)t * s->kv_heads + kv_head) * s->dim, k);
        store(s, k);
        double dot = 0;
        for (uint32_t i = 0; i < s->dim; i++) {
            dot += q[i] * k[i];
        }
        const double score = dot / sqrt((double)s->dim);
        weights[t] = exp(cap > 0 ? cap * tanh(score / cap) : score);
        sum += weights[t];
    }
    memset(expected, 0, s->dim * sizeof(double));
    for (uint32_t t = first; t <= position; t++) {
        const float *v = s->v[seq] + ((size_t)t * s->kv_heads + kv_head) * s->dim;
        for (uint32_t i = 0; i < s->dim; i++) {
            k[i] = (double)v[i];
        }
        store(s, k);
        for (uint32_t i = 0; i < s->dim; i++) {
            expected[i] += weights[t] / sum * k[i];
        }
    }
}

/* A rounding of a stored key may fall to the other side: one step of the dtype. */
static double bound_of(const scene_t *s)
{
    switch (s->dtype) {
    case K_F32:
        return 3e-6;
    case K_F16:
        return 1e-4;
    case K_BF16:
        return 1e-3;
    case K_I8:
        return 5e-3;
    default:
        return 2e-2;
    }
}

static void check_values(const char *isa, test_random_t *random)
{
    const feed_t feed = {"BHLNC", 16, 0, open_stream(isa, 2, 1, 1)};
    for (uint32_t round = 0; round < test_rounds(120); round++) {
        scene_t s = random_scene(random);
        float *out[4];
        alloc_out(&s, out);
        run_scene(&s, &feed, random, out);
        for (uint32_t i = 0; i < s.n_seqs; i++) {
            for (uint32_t j = 0; j < s.tokens[i] * s.q_heads; j++) {
                double expected[256];
                expect_row(&s, i, j / s.q_heads, j % s.q_heads, expected);
                for (uint32_t e = 0; e < s.dim; e++) {
                    const double got = (double)out[i][(size_t)j * s.dim + e];
                    if (!(fabs(got - expected[e]) <= bound_of(&s))) {
                        fail_msg("%s dim %u token %u head %u: o[%u] is %g, not %g",
                                 k_dtype_info(s.dtype)->name, s.dim, j / s.q_heads, j % s.q_heads,
                                 e, got, expected[e]);
                    }
                }
            }
        }
        free_out(&s, out);
        free_scene(&s);
    }
    k_stream_destroy(feed.stream);
}

static void attention_is_softmax_of_the_rotated_products(void **state)
{
    (void)state;
    each_isa(check_values, 21);
}

/* ---- decision 7 ---------------------------------------------------------------------------- */

static void check_feeds(const char *isa, test_random_t *random)
{
    /* The last two keep the tokens of a head apart: there is no place for their scales. */
    static const char *const orders[] = {"BHLNC", "BLHNC", "LBHNC", "LCBNH", "BLNHC"};
    k_stream_t *streams[4];
    for (uint32_t i = 0; i < 4; i++) {
        streams[i] = open_stream(isa, i + 1, 1, 1);
    }
    for (uint32_t round = 0; round < test_rounds(120); round++) {
        scene_t s = random_scene(random);
        float *whole[4];
        float *out[4];
        alloc_out(&s, whole);
        alloc_out(&s, out);
        const feed_t plain = {"BHLNC", 16, 0, streams[0]};
        run_scene(&s, &plain, random, whole);
        for (uint32_t i = 0; i < (s.dtype == K_I8 ? 3u : 5u); i++) {
            const feed_t feed = {
                orders[i], UINT32_C(1) << test_random_below(random, 8),
                test_random_below(random, 3) == 0 ? 1 : test_random_between(random, 1, 100),
                streams[test_random_below(random, 4)]};
            run_scene(&s, &feed, random, out);
            for (uint32_t j = 0; j < s.n_seqs; j++) {
                assert_same_bits(out[j], whole[j], (size_t)s.tokens[j] * s.q_heads * s.dim,
                                 orders[i]);
            }
        }
        free_out(&s, out);
        free_out(&s, whole);
        free_scene(&s);
    }
    for (uint32_t i = 0; i < 4; i++) {
        k_stream_destroy(streams[i]);
    }
}

static void attention_gives_the_same_bits_however_a_sequence_is_fed(void **state)
{
    (void)state;
    each_isa(check_feeds, 22);
}

/* Sequences whose tables begin with blocks of the one before, in random memory of f16. */
enum { COMMON_SEQS = 12, COMMON_BLOCKS = 24, POOL_BLOCKS = 64 };

typedef struct common_scene {
    k_attention_args_t args;
    k_seq_t seqs[COMMON_SEQS];
    uint32_t tables[COMMON_SEQS][COMMON_BLOCKS];
    uint32_t rows;
} common_scene_t;

static void random_common_scene(test_random_t *random, common_scene_t *s)
{
    static const uint32_t dims[] = {64, 128, 36};
    const uint32_t dim = dims[test_random_below(random, 3)];
    const size_t head = (size_t)16 * 2 * dim * sizeof(uint16_t);
    const uint32_t kv_heads = test_random_between(random, 1, 3);
    *s = (common_scene_t){0};
    s->args = (k_attention_args_t){
        .q_heads = kv_heads * test_random_between(random, 1, 9),
        .scale = 0.2f,
        .window = test_random_below(random, 4) == 0 ? test_random_between(random, 1, 400) : 0,
        .kv = {.dtype = K_F16,
               .block_tokens = 16,
               .heads = kv_heads,
               .head_dim = dim,
               .block_stride = head * kv_heads,
               .head_stride = head,
               .token_stride = 2 * dim * sizeof(uint16_t),
               .part_stride = dim * sizeof(uint16_t)},
        .seqs = s->seqs,
        .n_seqs = test_random_between(random, 2, COMMON_SEQS)};
    for (uint32_t i = 0; i < s->args.n_seqs; i++) {
        const uint32_t common = i > 0 ? test_random_below(random, COMMON_BLOCKS + 1) : 0;
        for (uint32_t b = 0; b < COMMON_BLOCKS; b++) {
            s->tables[i][b] =
                b < common ? s->tables[i - 1][b] : test_random_below(random, POOL_BLOCKS);
        }
        const uint32_t rows = test_random_below(random, 6) == 0 ? 3 : 1;
        s->seqs[i] = (k_seq_t){.row = s->rows,
                               .rows = rows,
                               .start = test_random_below(random, COMMON_BLOCKS * 16 - rows + 1),
                               .block_table = s->tables[i]};
        s->rows += rows;
    }
    s->args.q_stride = s->args.o_stride = (size_t)s->args.q_heads * dim;
    uint16_t *memory = test_malloc(POOL_BLOCKS * s->args.kv.block_stride);
    for (size_t i = 0; i < POOL_BLOCKS * s->args.kv.block_stride / sizeof(*memory); i++) {
        memory[i] = k_f32_to_f16(random_float(random));
    }
    s->args.kv.base = memory;
    s->args.q = random_floats(random, s->rows * s->args.q_stride);
}

static void check_common_beginnings(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(60); round++) {
        common_scene_t s;
        random_common_scene(random, &s);
        float *together = test_malloc(s.rows * s.args.o_stride * sizeof(float));
        float *alone = test_malloc(s.rows * s.args.o_stride * sizeof(float));
        s.args.o = together;
        stream->ops->attention(stream, &s.args);
        assert_status(k_stream_sync(stream), WEFT_OK);
        for (uint32_t i = 0; i < s.args.n_seqs; i++) {
            k_seq_t seq = s.seqs[i];
            k_attention_args_t args = s.args;
            args.q = (const float *)s.args.q + seq.row * s.args.q_stride;
            args.o = alone + seq.row * s.args.o_stride;
            args.seqs = &seq;
            args.n_seqs = 1;
            seq.row = 0;
            stream->ops->attention(stream, &args);
            assert_status(k_stream_sync(stream), WEFT_OK);
        }
        assert_same_bits(together, alone, s.rows * s.args.o_stride, isa);
        test_free(together);
        test_free(alone);
        test_free((void *)s.args.q);
        test_free(s.args.kv.base);
    }
    k_stream_destroy(stream);
}

static void rows_with_a_beginning_in_common_have_the_bits_they_have_alone(void **state)
{
    (void)state;
    each_isa(check_common_beginnings, 26);
}

/* A later token's infinite value must not reach an earlier row through 0 · inf. */
static void check_later_tokens(const char *isa, test_random_t *random)
{
    const feed_t feed = {"BHLNC", 16, 0, open_stream(isa, 1, 1, 1)};
    scene_t s = random_scene(random);
    float *clean[4];
    float *dirty[4];
    alloc_out(&s, clean);
    alloc_out(&s, dirty);
    run_scene(&s, &feed, random, clean);
    const size_t kv_dim = (size_t)s.kv_heads * s.dim;
    for (uint32_t i = 0; i < s.n_seqs; i++) {
        s.v[i][(s.tokens[i] - 1) * kv_dim] = INFINITY;
    }
    run_scene(&s, &feed, random, dirty);
    for (uint32_t i = 0; i < s.n_seqs; i++) {
        assert_same_bits(dirty[i], clean[i], (size_t)(s.tokens[i] - 1) * s.q_heads * s.dim, isa);
    }
    free_out(&s, clean);
    free_out(&s, dirty);
    free_scene(&s);
    k_stream_destroy(feed.stream);
}

static void attention_never_lets_a_later_token_through(void **state)
{
    (void)state;
    each_isa(check_later_tokens, 23);
}

/* One token attends to itself: what comes out is its value as the cache has it. */
static void check_f8_numbers(const char *isa, test_random_t *random)
{
    enum { DIM = 256 };
    static const uint32_t table[] = {0};
    const k_seq_t seq = {.rows = 1, .block_table = table};
    k_stream_t *stream = open_stream(isa, 1, 1, 1);
    uint8_t cache[2 * DIM];
    float q[DIM] = {0};
    float k[DIM] = {0};
    float v[DIM];
    float o[DIM];
    const k_kv_view_t view = {.base = cache,
                              .dtype = K_F8,
                              .block_tokens = 1,
                              .heads = 1,
                              .head_dim = DIM,
                              .block_stride = sizeof(cache),
                              .head_stride = sizeof(cache),
                              .token_stride = sizeof(cache),
                              .part_stride = DIM};
    for (uint32_t i = 0; i < DIM; i++) { /* each number, or what is rounded to it */
        const float value = weft_f8_to_f32((uint8_t)i);
        v[i] = test_random_below(random, 2) == 0 || i % 128 >= 126 ? value : value * 1.03f;
    }
    const k_rope_kv_write_args_t write = {.q = q,
                                          .k = k,
                                          .v = v,
                                          .q_heads = 1,
                                          .mscale = 1,
                                          .kv = view,
                                          .seqs = &seq,
                                          .n_seqs = 1,
                                          .rows = 1};
    const k_attention_args_t attention = {
        .q = q, .o = o, .q_heads = 1, .scale = 1, .kv = view, .seqs = &seq, .n_seqs = 1};
    stream->ops->rope_kv_write(stream, &write);
    stream->ops->attention(stream, &attention);
    assert_status(k_stream_sync(stream), WEFT_OK);
    for (uint32_t i = 0; i < DIM; i++) {
        const float expected = weft_f8_to_f32(weft_f32_to_f8(v[i]));
        assert_int_equal(cache[DIM + i], weft_f32_to_f8(v[i]));
        assert_true(o[i] == expected || (isnan(o[i]) && isnan(expected)));
    }
    k_stream_destroy(stream);
}

static void f8_numbers_are_stored_and_read_as_they_are(void **state)
{
    (void)state;
    each_isa(check_f8_numbers, 24);
}

/* The codes and scales that base/int8.h says; a row that is not finite is read as NaN. */
static void check_i8_rows(const char *isa, test_random_t *random)
{
    enum { DIM = 44, ROWS = 5 };
    static const uint32_t table[] = {0};
    const k_seq_t seq = {.rows = ROWS, .block_table = table};
    k_stream_t *stream = open_stream(isa, 1, 1, 1);
    struct {
        int8_t codes[ROWS][2][DIM];
        float scales[2][ROWS];
    } cache;
    float *kv = random_floats(random, 2 * ROWS * DIM);
    float *k = kv;
    float *v = kv + ROWS * DIM;
    float q[ROWS * DIM] = {0};
    float o[ROWS * DIM];
    for (uint32_t i = 0; i < DIM; i++) {
        k[2 * DIM + i] = 0;
        v[DIM + i] *= 0x1p-110f;
    }
    v[4 * DIM + DIM - 1] = INFINITY;
    const k_kv_view_t view = {.base = &cache,
                              .dtype = K_I8,
                              .block_tokens = ROWS,
                              .heads = 1,
                              .head_dim = DIM,
                              .block_stride = sizeof(cache),
                              .head_stride = sizeof(cache),
                              .token_stride = sizeof(cache.codes[0]),
                              .part_stride = DIM,
                              .scale_offset = sizeof(cache.codes)};
    const k_rope_kv_write_args_t write = {.q = q,
                                          .k = k,
                                          .v = v,
                                          .q_stride = DIM,
                                          .k_stride = DIM,
                                          .v_stride = DIM,
                                          .q_heads = 1,
                                          .mscale = 1,
                                          .kv = view,
                                          .seqs = &seq,
                                          .n_seqs = 1,
                                          .rows = ROWS};
    k_attention_args_t attention = {.q = q,
                                    .o = o,
                                    .q_stride = DIM,
                                    .o_stride = DIM,
                                    .q_heads = 1,
                                    .scale = 1,
                                    .window = 1,
                                    .kv = view,
                                    .seqs = &seq,
                                    .n_seqs = 1};
    stream->ops->rope_kv_write(stream, &write);
    stream->ops->attention(stream, &attention);
    assert_status(k_stream_sync(stream), WEFT_OK);
    for (uint32_t t = 0; t < ROWS; t++) {
        for (uint32_t part = 0; part < 2; part++) {
            const float *x = (part == 0 ? k : v) + t * DIM;
            const weft_i8_scale_t scale = weft_i8_scale_of(weft_i8_largest(x, DIM));
            assert_true(cache.scales[part][t] == scale.scale || (part == 1 && t == 4));
            for (uint32_t i = 0; i < DIM && isfinite(scale.scale); i++) {
                const int8_t code = cache.codes[t][part][i];
                assert_int_equal(code, weft_f32_to_i8(x[i] * scale.inverse));
                assert_true(fabsf((float)code * scale.scale - x[i]) <= 0.501f * scale.scale ||
                            scale.scale == 0);
                assert_true(part == 0 || o[t * DIM + i] == (float)code * scale.scale);
            }
        }
    }
    assert_true(cache.scales[1][1] == 0 && cache.scales[0][2] == 0);
    assert_true(isnan(cache.scales[1][4]) && isnan(o[4 * DIM]));
    test_free(kv);
    k_stream_destroy(stream);
}

static void i8_rows_have_the_codes_and_the_scale_of_their_largest(void **state)
{
    (void)state;
    each_isa(check_i8_rows, 25);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_softmax_of_the_rotated_products),
        cmocka_unit_test(attention_gives_the_same_bits_however_a_sequence_is_fed),
        cmocka_unit_test(rows_with_a_beginning_in_common_have_the_bits_they_have_alone),
        cmocka_unit_test(attention_never_lets_a_later_token_through),
        cmocka_unit_test(f8_numbers_are_stored_and_read_as_they_are),
        cmocka_unit_test(i8_rows_have_the_codes_and_the_scale_of_their_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
