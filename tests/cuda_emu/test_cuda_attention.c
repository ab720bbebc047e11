/* SPDX-License-Identifier: Apache-2.0 */
/* Attention on CUDA devices: against the reference, and against itself bit for bit. */
#include "base/float8.h"
#include "base/int8.h"
#include "kernels/cuda/attention/attention.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/kernels/kernels_support.h"

enum { LAYERS = 2, LAYER = 1, MAX_SEQS = 4 };

/* Sequences with q, k and v for every position; values are bf16's, so that both sides read the same. */
typedef struct scene {
    uint32_t n_seqs;
    uint32_t tokens[MAX_SEQS];
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t dim;
    uint32_t window;
    float softcap;
    float *sinks; /* [q_heads], or NULL */
    k_dtype_t dtype;
    float *q[MAX_SEQS]; /* [tokens, q_heads, dim] */
    float *k[MAX_SEQS];
    float *v[MAX_SEQS];
} scene_t;

/* Rows [start, start + rows) of a sequence of a scene, as one step takes them; rows 0 is padding. */
typedef struct piece {
    uint32_t seq;
    uint32_t start;
    uint32_t rows;
} piece_t;

/* Of one item's scores: attention_common.cuh. */
#define SPREAD_BYTES ((size_t)16 * K_CUDA_ATTENTION_SEGMENT * sizeof(float))

/* How pieces are computed. */
typedef struct way {
    const char *order; /* axes of the cache, outermost first; C is K then V */
    uint32_t block_tokens;
    k_cuda_attention_path_t path;
    bool has_scratch;
    bool knows_rows;
    bool can_spread; /* scratch for scores too */
} way_t;

static const way_t plain_way = {"BHLNC", 16, K_CUDA_ATTENTION_AUTO, true, true, false};

static float *random_bf16(test_random_t *random, size_t n)
{
    float *x = random_floats(random, n);
    for (size_t i = 0; i < n; i++) {
        x[i] = k_bf16_to_f32(k_f32_to_bf16(x[i] * 2));
    }
    return x;
}

static void scene_fill(scene_t *s, test_random_t *random)
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        s->q[i] = random_bf16(random, (size_t)s->tokens[i] * s->q_heads * s->dim);
        s->k[i] = random_bf16(random, (size_t)s->tokens[i] * s->kv_heads * s->dim);
        s->v[i] = random_bf16(random, (size_t)s->tokens[i] * s->kv_heads * s->dim);
    }
}

static void scene_free(scene_t *s)
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        test_free(s->q[i]);
        test_free(s->k[i]);
        test_free(s->v[i]);
    }
    test_free(s->sinks);
}

static k_kv_view_t view_of(const scene_t *s, const way_t *way, uint32_t blocks, size_t *bytes_out)
{
    k_kv_view_t view = {.dtype = s->dtype,
                        .block_tokens = way->block_tokens,
                        .heads = s->kv_heads,
                        .head_dim = s->dim};
    size_t stride = s->dim * k_dtype_info(s->dtype)->block_bytes;
    size_t layer_stride = 0;
    for (int axis = (int)strlen(way->order) - 1; axis >= 0; axis--) {
        switch (way->order[axis]) {
        case 'C':
            view.part_stride = stride;
            stride *= 2;
            break;
        case 'N':
            view.token_stride = stride;
            stride *= way->block_tokens;
            view.scale_offset = k_kv_scale_bytes(s->dtype) > 0 ? stride : 0;
            stride += 2 * (size_t)way->block_tokens * k_kv_scale_bytes(s->dtype);
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

static void store(k_dtype_t dtype, char *to, const float *from, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint16_t half = dtype == K_F16 ? k_f32_to_f16(from[i]) : k_f32_to_bf16(from[i]);
        if (dtype == K_F32) {
            memcpy(to + 4 * i, &from[i], 4);
        } else if (dtype == K_F8) {
            to[i] = (char)weft_f32_to_f8(from[i]);
        } else {
            memcpy(to + 2 * i, &half, 2);
        }
    }
}

static void store_codes(char *to, float *scale, const float *from, uint32_t n)
{
    const weft_i8_scale_t of = weft_i8_scale_of(weft_i8_largest(from, n));
    *scale = of.scale;
    for (uint32_t i = 0; i < n; i++) {
        to[i] = (char)weft_f32_to_i8(from[i] * of.inverse);
    }
}

/* K and V of a token of a head; head: where the head's tokens begin in their block. */
static void store_token(const k_kv_view_t *view, char *head, uint32_t token, const float *k,
                        const float *v)
{
    char *at = head + token * view->token_stride;
    if (view->dtype == K_I8) {
        float *scales = (float *)(void *)(head + view->scale_offset);
        store_codes(at, &scales[token], k, view->head_dim);
        store_codes(at + view->part_stride, &scales[view->block_tokens + token], v, view->head_dim);
    } else {
        store(view->dtype, at, k, view->head_dim);
        store(view->dtype, at + view->part_stride, v, view->head_dim);
    }
}

/* A cache in host memory that holds all sequences; NaN where nothing belongs. */
typedef struct cache {
    k_kv_view_t view; /* base: an offset into memory */
    char *memory;
    size_t bytes;
    uint32_t *tables; /* [n_seqs][each], shuffled block ids */
    uint32_t each;
} cache_t;

static cache_t cache_make(const scene_t *s, const way_t *way, test_random_t *random)
{
    cache_t c = {0};
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const uint32_t needed = (s->tokens[i] + way->block_tokens - 1) / way->block_tokens;
        c.each = needed > c.each ? needed : c.each;
    }
    const uint32_t blocks = c.each * s->n_seqs + 2;
    c.view = view_of(s, way, blocks, &c.bytes);
    c.memory = test_malloc(c.bytes);
    memset(c.memory, 0xff, c.bytes);
    c.tables = test_malloc(blocks * sizeof(*c.tables));
    for (uint32_t i = 0; i < blocks; i++) {
        const uint32_t j = test_random_below(random, i + 1);
        c.tables[i] = c.tables[j];
        c.tables[j] = i;
    }
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        for (uint32_t t = 0; t < s->tokens[i]; t++) {
            for (uint32_t h = 0; h < s->kv_heads; h++) {
                const uint32_t block = c.tables[i * c.each + t / way->block_tokens];
                char *head = c.memory + (size_t)c.view.base + block * c.view.block_stride +
                             h * c.view.head_stride;
                const size_t from = ((size_t)t * s->kv_heads + h) * s->dim;
                store_token(&c.view, head, t % way->block_tokens, &s->k[i][from], &s->v[i][from]);
            }
        }
    }
    return c;
}

static void cache_free(cache_t *c)
{
    test_free(c->memory);
    test_free(c->tables);
}

static uint32_t rows_of(const piece_t *pieces, uint32_t n)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        rows += pieces[i].rows;
    }
    return rows;
}

/* q of all pieces, [rows][stride]. */
static float *gather_q(const scene_t *s, const piece_t *pieces, uint32_t n, size_t stride)
{
    const size_t width = (size_t)s->q_heads * s->dim;
    float *q = test_malloc(rows_of(pieces, n) * stride * sizeof(*q));
    memset(q, 0, rows_of(pieces, n) * stride * sizeof(*q));
    float *to = q;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t r = 0; r < pieces[i].rows; r++, to += stride) {
            memcpy(to, &s->q[pieces[i].seq][(pieces[i].start + r) * width], width * sizeof(*q));
        }
    }
    return q;
}

static void fill_seqs(const piece_t *pieces, uint32_t n, const uint32_t *tables, uint32_t each,
                      k_seq_t *seqs)
{
    uint32_t row = 0;
    memset(seqs, 0, n * sizeof(*seqs));
    for (uint32_t i = 0; i < n; i++) {
        if (pieces[i].rows > 0) {
            seqs[i].row = row;
            seqs[i].rows = pieces[i].rows;
            seqs[i].start = pieces[i].start;
            seqs[i].block_table = tables + (size_t)pieces[i].seq * each;
            row += pieces[i].rows;
        }
    }
}

static k_attention_args_t args_of(const scene_t *s, const cache_t *c, uint32_t n)
{
    return (k_attention_args_t){.q_heads = s->q_heads,
                                .q_stride = (size_t)s->q_heads * s->dim + 8,
                                .o_stride = (size_t)s->q_heads * s->dim + 16,
                                .scale = 1.0f / sqrtf((float)s->dim),
                                .window = s->window,
                                .softcap = s->softcap,
                                .sinks = s->sinks,
                                .kv = c->view,
                                .n_seqs = n};
}

/* What the reference makes of the pieces: [rows][q_heads · dim]. */
static float *expected_of(const scene_t *s, const piece_t *pieces, uint32_t n,
                          test_random_t *random)
{
    cache_t c = cache_make(s, &plain_way, random);
    k_seq_t seqs[64];
    k_attention_args_t args = args_of(s, &c, n);
    float *q = gather_q(s, pieces, n, args.q_stride);
    args.o_stride = (size_t)s->q_heads * s->dim;
    float *o = test_malloc(rows_of(pieces, n) * args.o_stride * sizeof(*o));
    uint32_t n_seqs = 0;
    piece_t filled[64];
    for (uint32_t i = 0; i < n; i++) {
        if (pieces[i].rows > 0) {
            filled[n_seqs++] = pieces[i];
        }
    }
    fill_seqs(filled, n_seqs, c.tables, c.each, seqs);
    args.q = q;
    args.o = o;
    args.kv.base = c.memory + (size_t)c.view.base;
    args.seqs = seqs;
    args.n_seqs = n_seqs;
    k_stream_t *stream = open_stream("ref", 1, rows_of(pieces, n), (uint32_t)args.o_stride);
    stream->ops->attention(stream, &args);
    assert_status(k_stream_sync(stream), WEFT_OK);
    k_stream_destroy(stream);
    test_free(q);
    cache_free(&c);
    return o;
}

/* The same by the device, one launch: bf16 bits. */
static uint16_t *result_of(const scene_t *s, const piece_t *pieces, uint32_t n, const way_t *way,
                           test_random_t *random)
{
    cache_t c = cache_make(s, way, random);
    k_seq_t seqs[64];
    k_attention_args_t args = args_of(s, &c, n);
    const uint32_t rows = rows_of(pieces, n);
    const size_t width = (size_t)s->q_heads * s->dim;
    float *q = gather_q(s, pieces, n, args.q_stride);
    uint16_t *bits = test_malloc(rows * args.q_stride * sizeof(*bits));
    for (size_t i = 0; i < rows * args.q_stride; i++) {
        bits[i] = k_f32_to_bf16(q[i]);
    }
    uint32_t *tables = cuda_upload(c.tables, (size_t)c.each * s->n_seqs * sizeof(*tables));
    char *memory = cuda_upload(c.memory, c.bytes);
    fill_seqs(pieces, n, tables, c.each, seqs);
    k_cuda_attention_plan_t plan = {.path = way->path};
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t tokens = pieces[i].start + pieces[i].rows;
        args.max_tokens = tokens > args.max_tokens ? tokens : args.max_tokens;
        if (way->knows_rows && pieces[i].rows > plan.max_rows) {
            plan.max_rows = pieces[i].rows;
        }
    }
    plan.scratch_bytes =
        way->has_scratch ? k_cuda_attention_scratch_bytes(s->q_heads, s->dim, 2 * rows + 2) : 0;
    plan.scratch_bytes += way->can_spread ? SPREAD_BYTES * n * s->kv_heads * 2 : 0;
    plan.scratch = cuda_upload(NULL, plan.scratch_bytes + 1);
    args.q = cuda_upload(bits, rows * args.q_stride * sizeof(*bits));
    args.o = cuda_upload(NULL, rows * args.o_stride * sizeof(*bits));
    args.kv.base = memory + (size_t)c.view.base;
    args.seqs = cuda_upload(seqs, n * sizeof(*seqs));
    args.sinks = s->sinks == NULL ? NULL : cuda_upload(s->sinks, s->q_heads * sizeof(float));
    assert_cuda((cudaError_t)k_cuda_attention(&args, &plan, NULL));
    uint16_t *o = cuda_download(args.o, rows * args.o_stride * sizeof(*o));
    for (uint32_t r = 0; r < rows; r++) {
        memmove(o + r * width, o + r * args.o_stride, width * sizeof(*o));
    }
    assert_cuda(cudaFree((void *)args.q));
    assert_cuda(cudaFree(args.o));
    assert_cuda(cudaFree((void *)args.seqs));
    assert_cuda(cudaFree((void *)args.sinks));
    assert_cuda(cudaFree(plan.scratch));
    assert_cuda(cudaFree(memory));
    assert_cuda(cudaFree(tables));
    test_free(q);
    test_free(bits);
    cache_free(&c);
    return o;
}

/* |o − expected| over |expected|: weights and o are rounded to bf16, 2^-9 each. */
static void assert_close(const scene_t *s, const uint16_t *o, const float *expected, uint32_t rows)
{
    double error = 0;
    double norm = 0;
    for (size_t i = 0; i < (size_t)rows * s->q_heads * s->dim; i++) {
        const double diff = (double)k_bf16_to_f32(o[i]) - expected[i];
        if (!(fabs(diff) < 0.05)) {
            fail_msg("row %zu, element %zu of its heads of %u: %g instead of %g",
                     i / (s->q_heads * s->dim), i % (s->q_heads * s->dim), s->dim,
                     (double)k_bf16_to_f32(o[i]), (double)expected[i]);
        }
        error += diff * diff;
        norm += (double)expected[i] * expected[i];
    }
    assert_true(sqrt(error / norm) < 1e-2);
}

static void assert_agrees(const scene_t *s, const piece_t *pieces, uint32_t n, const way_t *way,
                          test_random_t *random)
{
    uint16_t *o = result_of(s, pieces, n, way, random);
    float *expected = expected_of(s, pieces, n, random);
    assert_close(s, o, expected, rows_of(pieces, n));
    test_free(o);
    test_free(expected);
}

static const char *const orders[] = {"BHLNC", "BLHNC", "LBHNC"};

static way_t random_way(test_random_t *random)
{
    return (way_t){orders[test_random_below(random, 3)],
                   8u << test_random_below(random, 5),
                   test_random_below(random, 3) == 0 ? K_CUDA_ATTENTION_MMA : K_CUDA_ATTENTION_AUTO,
                   test_random_below(random, 2) == 0,
                   test_random_below(random, 2) == 0,
                   test_random_below(random, 2) == 0};
}

static void attention_agrees_with_the_reference(void **state)
{
    (void)state;
    static const uint32_t dims[] = {64, 80, 96, 128, 192, 256, 16, 32};
    static const k_dtype_t dtypes[] = {K_BF16, K_F16, K_F32};
    static const k_dtype_t bytes[] = {K_F8, K_I8};
    test_random_t random = {test_seed(8)};
    for (uint32_t round = 0; round < 16; round++) {
        scene_t s = {.n_seqs = 3,
                     .dim = dims[round % 8],
                     .dtype = round < 8 ? dtypes[test_random_below(&random, 3)]
                                        : bytes[test_random_below(&random, 2)]};
        s.kv_heads = test_random_between(&random, 1, 2);
        s.q_heads = s.kv_heads * test_random_between(&random, 1, 5);
        s.window = test_random_below(&random, 3) == 0 ? test_random_between(&random, 1, 150) : 0;
        piece_t pieces[4] = {{0}};
        for (uint32_t i = 0; i < 3; i++) { /* a decode, a verification, a prefill; then padding */
            static const uint32_t most[] = {1, 5, 40};
            s.tokens[i] = test_random_between(&random, 40, 200);
            const uint32_t rows = test_random_between(&random, 1, most[i]);
            pieces[i + (i > 1)] = (piece_t){i, s.tokens[i] - rows, rows};
        }
        const way_t way = random_way(&random);
        print_message("dim %u %s heads %u/%u window %u %s blocks of %u path %d\n", s.dim,
                      k_dtype_info(s.dtype)->name, s.q_heads, s.kv_heads, s.window, way.order,
                      way.block_tokens, (int)way.path);
        s.softcap = test_random_below(&random, 3) == 0 ? 2.0f : 0;
        s.sinks = test_random_below(&random, 3) == 0 ? random_floats(&random, s.q_heads) : NULL;
        scene_fill(&s, &random);
        assert_agrees(&s, pieces, 4, &way, &random);
        scene_free(&s);
    }
}

/* Also where a block has 99 KiB of shared memory. Tiles of 16 packed rows and of more. */
static void every_head_dim_and_type_has_kernels(void **state)
{
    (void)state;
    static const uint32_t dims[] = {16, 32, 64, 80, 96, 128, 192, 256};
    static const k_dtype_t dtypes[] = {K_BF16, K_F16, K_F32, K_F8, K_I8};
    static const piece_t pieces[] = {{0, 39, 1}, {1, 30, 17}};
    test_random_t random = {test_seed(10)};
    way_t way = plain_way;
    way.path = K_CUDA_ATTENTION_MMA;
    for (uint32_t i = 0; i < 8 * 5; i++) {
        scene_t s = {.n_seqs = 2,
                     .tokens = {40, 47},
                     .q_heads = 4,
                     .kv_heads = 1,
                     .dim = dims[i / 5],
                     .dtype = dtypes[i % 5]};
        assert_true(k_cuda_attention_is_supported(s.dtype, s.dim));
        scene_fill(&s, &random);
        assert_agrees(&s, pieces, 2, &way, &random);
        scene_free(&s);
    }
}

/* The first rows of a and b have the same bits. */
static void assert_same_rows(const scene_t *s, const uint16_t *a, const uint16_t *b, uint32_t rows,
                             const char *what)
{
    for (size_t i = 0; i < (size_t)rows * s->q_heads * s->dim; i++) {
        if (a[i] != b[i]) {
            fail_msg("%s: row %zu, element %zu: %a, alone %a", what, i / (s->q_heads * s->dim),
                     i % (s->q_heads * s->dim), (double)k_bf16_to_f32(a[i]),
                     (double)k_bf16_to_f32(b[i]));
        }
    }
}

/* Spread over blocks where there is a kernel for it, else as ever. */
static k_cuda_attention_path_t spread_path(const scene_t *s)
{
    const bool can = s->dim >= 64 && s->dim <= 128 && s->dim % 32 == 0 &&
                     (s->dtype == K_BF16 || s->dtype == K_F16);
    return can ? K_CUDA_ATTENTION_SPREAD : K_CUDA_ATTENTION_AUTO;
}

/*
 * Rows of a sequence across a segment's end: as one decode after the other, as a prefill of more
 * than 64 packed rows by both paths, as a verification beside other sequences.
 */
static void check_ways(scene_t *s, test_random_t *random)
{
    const uint32_t start = s->tokens[0] - 20;
    const size_t row = (size_t)s->q_heads * s->dim;
    const way_t unsplit = {"LBHNC", 64, K_CUDA_ATTENTION_MMA, false, false, false};
    const way_t hopper = {"BLHNC", 8, K_CUDA_ATTENTION_AUTO, false, true, false};
    scene_fill(s, random);
    uint16_t *all = result_of(s, &(piece_t){0, start, 20}, 1, &unsplit, random);
    uint16_t *same = result_of(s, &(piece_t){0, start, 20}, 1, &hopper, random);
    assert_same_rows(s, same, all, 20, "prefill in other blocks");
    test_free(same);
    const piece_t decodes[] = {{0, start, 1}, {1, 3, 1}, {0, 0, 0}, {0, start + 19, 1}};
    const uint32_t at[] = {0, 19};
    for (uint32_t i = 0; i < 3; i++) { /* in parts, whole, spread over blocks */
        const way_t way = {"BHLNC", 16,     i < 2 ? K_CUDA_ATTENTION_AUTO : spread_path(s),
                           i != 1,  i != 1, i == 2};
        uint16_t *few = result_of(s, decodes, 4, &way, random);
        assert_same_rows(s, few, all + at[0] * row, 1, "decode of the first row");
        assert_same_rows(s, few + 2 * row, all + at[1] * row, 1, "decode of the last row");
        test_free(few);
    }
    const piece_t verify[] = {{1, 0, 2}, {0, start + 7, 5}};
    for (int i = 0; i < 2; i++) {
        way_t way = plain_way;
        way.can_spread = i == 1 && s->q_heads / s->kv_heads * 5 <= 16;
        way.path = way.can_spread ? spread_path(s) : way.path;
        uint16_t *few = result_of(s, verify, 2, &way, random);
        assert_same_rows(s, few + 2 * row, all + 7 * row, 5, "verification");
        test_free(few);
    }
    float *expected = expected_of(s, &(piece_t){0, start, 20}, 1, random);
    assert_close(s, all, expected, 20);
    test_free(expected);
    test_free(all);
}

static void a_rows_bits_do_not_depend_on_how_it_is_computed(void **state)
{
    (void)state;
    test_random_t random = {test_seed(9)};
    scene_t s = {.n_seqs = 2,
                 .tokens = {K_CUDA_ATTENTION_SEGMENT + 9, 5},
                 .q_heads = 4,
                 .kv_heads = 1,
                 .dim = 64,
                 .dtype = K_BF16};
    check_ways(&s, &random);
    scene_free(&s);
    s.window = 300;
    s.dim = 128;
    s.dtype = K_F16;
    s.softcap = 3;
    s.sinks = random_floats(&random, s.q_heads);
    check_ways(&s, &random);
    scene_free(&s);
    s.dtype = K_F8;
    s.sinks = NULL;
    check_ways(&s, &random);
    scene_free(&s);
    s.dim = 64;
    s.window = 0;
    check_ways(&s, &random);
    scene_free(&s);
    s.dtype = K_I8;
    check_ways(&s, &random);
    scene_free(&s);
}

static void what_has_no_kernel_is_refused(void **state)
{
    (void)state;
    assert_true(k_cuda_attention_is_supported(K_BF16, 96));
    assert_false(k_cuda_attention_is_supported(K_BF16, 72));
    assert_false(k_cuda_attention_is_supported(K_Q8_0, 128));
    const k_cuda_attention_plan_t plan = {0};
    k_attention_args_t args = {.q_heads = 4, .scale = 1, .n_seqs = 1};
    args.kv = (k_kv_view_t){.dtype = K_BF16, .block_tokens = 12, .heads = 2, .head_dim = 64};
    assert_int_equal(k_cuda_attention(&args, &plan, NULL), cudaErrorNotSupported);
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_agrees_with_the_reference),
        cmocka_unit_test(every_head_dim_and_type_has_kernels),
        cmocka_unit_test(a_rows_bits_do_not_depend_on_how_it_is_computed),
        cmocka_unit_test(what_has_no_kernel_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
