/* SPDX-License-Identifier: Apache-2.0 */
/* Writing KV, and moving it between blocks and other memory, on CUDA devices. */
#include "base/float8.h"
#include "base/int8.h"
#include "kernels/cuda/kv_blocks.h"
#include "kernels/cuda/rope_kv_write.h"
#include "tests/cuda_emu/cuda_check.h"
#include "tests/kernels/kernels_support.h"

enum { BLOCKS = 7, N_SEQS = 3 };

/* ---- RoPE with KV write ---------------------------------------------------------------------- */

typedef struct rope_case {
    uint32_t dim;
    uint32_t rotary;
    uint32_t q_heads;
    uint32_t kv_heads;
    uint32_t block_tokens;
    uint32_t padding; /* of a row, in elements */
    k_dtype_t dtype;
    bool interleaved;
} rope_case_t;

/* One side's arrays: f32 activations for the reference, bf16 for the device. */
typedef struct rope_side {
    void *qkv;
    void *cache;
} rope_side_t;

static const k_seq_t rope_seqs[N_SEQS] = {{.row = 0, .rows = 3, .start = 5},
                                          {.row = 3, .rows = 1, .start = 12},
                                          {.row = 4, .rows = 2, .start = 0}};
enum { ROPE_ROWS = 6 };
/* Blocks of the three, four each. */
static const uint32_t rope_tables[N_SEQS * 4] = {3, 0, 1, 2, 6, 5, 4, 2, 2, 1, 0, 3};

static size_t rope_stride(const rope_case_t *c)
{
    return (size_t)(c->q_heads + 2 * c->kv_heads) * c->dim + c->padding;
}

static size_t element_bytes(k_dtype_t dtype)
{
    return k_dtype_info(dtype)->block_bytes;
}

/* Of a head of a block: its elements, its scales. */
static size_t head_bytes(k_dtype_t dtype, uint32_t block_tokens, uint32_t dim)
{
    return 2ul * block_tokens * (dim * element_bytes(dtype) + k_kv_scale_bytes(dtype));
}

static k_kv_view_t rope_view(const rope_case_t *c)
{
    k_kv_view_t view = {.dtype = c->dtype,
                        .block_tokens = c->block_tokens,
                        .heads = c->kv_heads,
                        .head_dim = c->dim};
    view.part_stride = c->dim * element_bytes(c->dtype);
    view.token_stride = 2 * view.part_stride;
    view.scale_offset = k_kv_scale_bytes(c->dtype) > 0 ? view.token_stride * c->block_tokens : 0;
    view.head_stride = head_bytes(c->dtype, c->block_tokens, c->dim);
    view.block_stride = view.head_stride * c->kv_heads;
    return view;
}

static k_rope_kv_write_args_t rope_args(const rope_case_t *c, rope_side_t side, size_t element,
                                        const float *inv_freq, const k_seq_t *seqs)
{
    k_rope_kv_write_args_t args = {.q_heads = c->q_heads,
                                   .rotary = c->rotary,
                                   .inv_freq = inv_freq,
                                   .mscale = 1.25f,
                                   .interleaved = c->interleaved,
                                   .kv = rope_view(c),
                                   .seqs = seqs,
                                   .n_seqs = N_SEQS};
    args.q = side.qkv;
    args.k = (char *)side.qkv + (size_t)c->q_heads * c->dim * element;
    args.v = (char *)side.qkv + (size_t)(c->q_heads + c->kv_heads) * c->dim * element;
    args.q_stride = args.k_stride = args.v_stride = rope_stride(c);
    args.rows = ROPE_ROWS;
    args.kv.base = side.cache;
    return args;
}

static void point_seqs(k_seq_t *seqs, const uint32_t *tables)
{
    memcpy(seqs, rope_seqs, sizeof(rope_seqs));
    for (uint32_t i = 0; i < N_SEQS; i++) {
        seqs[i].block_table = tables + 4 * i;
    }
}

static float element_at(k_dtype_t dtype, const void *from, size_t i)
{
    float v;
    k_dequantize(dtype, (const char *)from + i * element_bytes(dtype), &v, 1);
    return v;
}

/* Both caches hold the same, within the rounding of their type. */
static void assert_same_cache(k_dtype_t dtype, const void *a, const void *b, size_t n)
{
    const float step = dtype == K_F8     ? 0x1p-3f
                       : dtype == K_BF16 ? 0x1p-7f
                       : dtype == K_F16  ? 0x1p-10f
                                         : 0x1p-18f;
    for (size_t i = 0; i < n; i++) {
        const float x = dtype == K_F32 ? ((const float *)a)[i] : element_at(dtype, a, i);
        const float y = dtype == K_F32 ? ((const float *)b)[i] : element_at(dtype, b, i);
        if (!(fabsf(x - y) <= step * (1 + fabsf(y)))) {
            fail_msg("cache element %zu: %g, reference %g", i, (double)x, (double)y);
        }
    }
}

/* Codes may differ by one where a key lies between two, scales by a rounding. */
static void assert_same_codes(const rope_case_t *c, const char *a, const char *b)
{
    const k_kv_view_t view = rope_view(c);
    for (uint32_t h = 0; h < BLOCKS * c->kv_heads; h++) {
        const char *x = a + h * view.head_stride;
        const char *y = b + h * view.head_stride;
        const float *scale_x = (const float *)(const void *)(x + view.scale_offset);
        const float *scale_y = (const float *)(const void *)(y + view.scale_offset);
        for (uint32_t i = 0; i < 2 * c->block_tokens; i++) {
            assert_true(fabsf(scale_x[i] - scale_y[i]) <= 1e-6f * scale_y[i]);
        }
        for (size_t i = 0; i < view.scale_offset; i++) {
            const bool is_value = i / view.part_stride % 2 == 1;
            assert_true(abs((int8_t)x[i] - (int8_t)y[i]) <= (is_value ? 0 : 1));
        }
    }
}

static void check_rope(const rope_case_t *c, test_random_t *random)
{
    const size_t n = ROPE_ROWS * rope_stride(c);
    const size_t cache_elements = (size_t)BLOCKS * c->kv_heads * c->block_tokens * 2 * c->dim;
    const size_t cache_bytes = BLOCKS * c->kv_heads * head_bytes(c->dtype, c->block_tokens, c->dim);
    float *x = random_floats(random, n);
    uint16_t *bits = test_malloc(n * sizeof(*bits));
    for (size_t i = 0; i < n; i++) {
        bits[i] = k_f32_to_bf16(x[i]);
        x[i] = k_bf16_to_f32(bits[i]);
    }
    float inv_freq[K_MAX_HEAD_DIM / 2];
    for (uint32_t i = 0; i < c->rotary / 2; i++) {
        inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)c->rotary);
    }
    char *cache = test_malloc(cache_bytes);
    memset(cache, 0, cache_bytes);

    k_seq_t seqs[N_SEQS];
    uint32_t *tables = cuda_upload(rope_tables, sizeof(rope_tables));
    point_seqs(seqs, tables);
    k_seq_t *device_seqs = cuda_upload(seqs, sizeof(seqs));
    float *device_freq = cuda_upload(inv_freq, sizeof(inv_freq));
    const rope_side_t device = {cuda_upload(bits, n * sizeof(*bits)),
                                cuda_upload(cache, cache_bytes)};
    const k_rope_kv_write_args_t args = rope_args(c, device, 2, device_freq, device_seqs);
    assert_cuda((cudaError_t)k_cuda_rope_kv_write(&args, ROPE_ROWS + 2, NULL));

    point_seqs(seqs, rope_tables);
    const rope_side_t host = {x, cache};
    const k_rope_kv_write_args_t expected = rope_args(c, host, 4, inv_freq, seqs);
    k_stream_t *stream = open_stream("ref", 1, ROPE_ROWS, (uint32_t)rope_stride(c));
    stream->ops->rope_kv_write(stream, &expected);
    assert_status(k_stream_sync(stream), WEFT_OK);
    k_stream_destroy(stream);

    uint16_t *rows = cuda_download(device.qkv, n * sizeof(*rows));
    for (size_t i = 0; i < n; i++) {
        assert_true(fabsf(k_bf16_to_f32(rows[i]) - x[i]) <= 0x1p-7f * (1 + fabsf(x[i])));
    }
    char *got = cuda_download(device.cache, cache_bytes);
    if (c->dtype == K_I8) {
        assert_same_codes(c, got, cache);
    } else {
        assert_same_cache(c->dtype, got, cache, cache_elements);
    }
    assert_cuda(cudaFree(device.qkv));
    assert_cuda(cudaFree(device.cache));
    assert_cuda(cudaFree(device_seqs));
    assert_cuda(cudaFree(device_freq));
    assert_cuda(cudaFree(tables));
    test_free(rows);
    test_free(got);
    test_free(cache);
    test_free(bits);
    test_free(x);
}

static void rope_and_kv_write_agree_with_the_reference(void **state)
{
    (void)state;
    static const rope_case_t cases[] = {
        {64, 64, 4, 2, 16, 8, K_BF16, false}, {64, 64, 3, 1, 8, 0, K_F16, true},
        {80, 32, 2, 2, 16, 0, K_F32, false},  {128, 128, 2, 1, 8, 0, K_F32, true},
        {36, 18, 2, 1, 16, 3, K_BF16, false}, {16, 12, 2, 2, 8, 1, K_F16, true},
        {256, 0, 1, 1, 16, 0, K_BF16, false}, {128, 128, 2, 1, 16, 0, K_F8, false},
        {20, 18, 2, 3, 8, 1, K_F8, true},     {64, 64, 2, 9, 16, 0, K_I8, false},
        {256, 256, 1, 1, 8, 8, K_I8, true},   {80, 32, 2, 2, 8, 0, K_I8, false},
    };
    test_random_t random = {test_seed(3)};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        print_message("dim %u rotary %u %s%s\n", cases[i].dim, cases[i].rotary,
                      k_dtype_info(cases[i].dtype)->name,
                      cases[i].interleaved ? " interleaved" : "");
        check_rope(&cases[i], &random);
    }
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static void extents_are_copied_and_nothing_else(void **state)
{
    (void)state;
    enum { BYTES = 96 << 10 };
    test_random_t random = {test_seed(4)};
    uint8_t *from = test_malloc(BYTES);
    uint8_t *expected = test_malloc(BYTES);
    for (uint32_t i = 0; i < BYTES; i++) {
        from[i] = (uint8_t)test_random_u64(&random);
        expected[i] = 0x55;
    }
    uint8_t *source = cuda_upload(from, BYTES);
    uint8_t *target = cuda_upload(expected, BYTES);
    /* to and from, in units of 16 bytes: one piece, two pieces, one unit */
    static const uint32_t extents[][3] = {{0, 3000, 2048}, {2050, 10, 2300}, {5000, 1, 1}};
    k_cuda_extent_t list[3];
    for (uint32_t i = 0; i < 3; i++) {
        const uint32_t *e = extents[i];
        list[i] = (k_cuda_extent_t){(uintptr_t)target + e[0] * 16, (uintptr_t)source + e[1] * 16,
                                    e[2] * 16};
        memcpy(expected + e[0] * 16, from + e[1] * 16, e[2] * 16);
    }
    k_cuda_extent_t *device_list = cuda_upload(list, sizeof(list));
    assert_cuda((cudaError_t)k_cuda_copy_extents(device_list, 3, 2300 * 16, NULL));
    uint8_t *got = cuda_download(target, BYTES);
    assert_memory_equal(got, expected, BYTES);
    test_free(got);
    test_free(from);
    test_free(expected);
    assert_cuda(cudaFree(source));
    assert_cuda(cudaFree(target));
    assert_cuda(cudaFree(device_list));
}

/* Index of an element in a head, in the words of kv_blocks.h. */
static size_t head_index(const k_cuda_head_form_t *form, uint32_t token, uint32_t part, uint32_t i)
{
    if (!form->is_transposed) {
        return ((size_t)token * 2 + part) * form->head_dim + i;
    }
    return part == 0 ? (size_t)i * form->block_tokens + token
                     : ((size_t)form->block_tokens + token) * form->head_dim + i;
}

static void write_head(k_dtype_t dtype, void *head, size_t at, float v)
{
    if (dtype == K_F8) {
        ((uint8_t *)head)[at] = weft_f32_to_f8(v);
        return;
    }
    const uint16_t half = dtype == K_F16 ? k_f32_to_f16(v) : k_f32_to_bf16(v);
    memcpy((char *)head + at * element_bytes(dtype), dtype == K_F32 ? (void *)&v : (void *)&half,
           element_bytes(dtype));
}

static void check_convert(const k_cuda_head_form_t *to, const k_cuda_head_form_t *from,
                          test_random_t *random)
{
    enum { TO_TOKEN = 1, FROM_TOKEN = 3, TOKENS = 4 };
    const size_t from_bytes =
        2ul * from->block_tokens * from->head_dim * element_bytes(from->element);
    const size_t to_bytes = 2ul * to->block_tokens * to->head_dim * element_bytes(to->element);
    char *source = test_malloc(from_bytes);
    char *expected = test_malloc(to_bytes);
    memset(expected, 0x11, to_bytes);
    for (uint32_t t = 0; t < from->block_tokens; t++) {
        for (uint32_t i = 0; i < 2 * from->head_dim; i++) {
            const uint32_t part = i / from->head_dim;
            float v = k_bf16_to_f32(k_f32_to_bf16(random_float(random)));
            if (from->element == K_F8) {
                v = weft_f8_to_f32(weft_f32_to_f8(v));
            }
            write_head(from->element, source, head_index(from, t, part, i % from->head_dim), v);
            if (t >= FROM_TOKEN && t < FROM_TOKEN + TOKENS) {
                write_head(to->element, expected,
                           head_index(to, t - FROM_TOKEN + TO_TOKEN, part, i % from->head_dim), v);
            }
        }
    }
    char *device_source = cuda_upload(source, from_bytes);
    memset(source, 0x11, from_bytes);
    char *fill = test_malloc(to_bytes);
    memset(fill, 0x11, to_bytes);
    char *target = cuda_upload(fill, to_bytes);
    const k_cuda_head_move_t move = {(uintptr_t)target, (uintptr_t)device_source, TO_TOKEN,
                                     FROM_TOKEN, TOKENS};
    k_cuda_head_move_t *moves = cuda_upload(&move, sizeof(move));
    assert_cuda((cudaError_t)k_cuda_convert_heads(*to, *from, moves, 1, NULL));
    char *got = cuda_download(target, to_bytes);
    assert_memory_equal(got, expected, to_bytes);
    test_free(got);
    test_free(fill);
    test_free(source);
    test_free(expected);
    assert_cuda(cudaFree(device_source));
    assert_cuda(cudaFree(target));
    assert_cuda(cudaFree(moves));
}

static void heads_are_converted_between_forms_and_types(void **state)
{
    (void)state;
    static const k_dtype_t types[] = {K_F32, K_F16, K_BF16, K_F8};
    test_random_t random = {test_seed(5)};
    for (uint32_t i = 0; i < 64; i++) {
        const k_cuda_head_form_t to = {types[i % 4], (i / 16) % 2 == 1, 8, 32};
        const k_cuda_head_form_t from = {types[i / 4 % 4], i / 32 == 1, 16, 32};
        check_convert(&to, &from, &random);
    }
}

/* Tokens 3… of a head of 16 to 1… of one of 8, whole arrays given and returned. */
static char *convert(const k_cuda_head_form_t *to, const k_cuda_head_form_t *from,
                     const char *source)
{
    const size_t from_bytes = head_bytes(from->element, from->block_tokens, from->head_dim);
    const size_t to_bytes = head_bytes(to->element, to->block_tokens, to->head_dim);
    char *fill = test_malloc(to_bytes);
    memset(fill, 0, to_bytes);
    char *device_source = cuda_upload(source, from_bytes);
    char *target = cuda_upload(fill, to_bytes);
    const k_cuda_head_move_t move = {(uintptr_t)target, (uintptr_t)device_source, 1, 3, 5};
    k_cuda_head_move_t *moves = cuda_upload(&move, sizeof(move));
    assert_cuda((cudaError_t)k_cuda_convert_heads(*to, *from, moves, 1, NULL));
    char *got = cuda_download(target, to_bytes);
    test_free(fill);
    assert_cuda(cudaFree(device_source));
    assert_cuda(cudaFree(target));
    assert_cuda(cudaFree(moves));
    return got;
}

static void heads_of_codes_are_converted_and_copied(void **state)
{
    (void)state;
    enum { DIM = 36, FROM = 16, TO = 8, ROWS = 10 };
    test_random_t random = {test_seed(6)};
    float *x = random_floats(&random, 2 * FROM * DIM); /* [token][K, V][DIM] */
    const k_cuda_head_form_t f32 = {K_F32, false, FROM, DIM};
    const k_cuda_head_form_t codes = {K_I8, false, TO, DIM};
    const k_cuda_head_form_t same = {K_I8, false, FROM, DIM};
    const k_cuda_head_form_t back = {K_F32, false, TO, DIM};
    x[2 * 5 * DIM + 3] = INFINITY; /* in the third token moved */
    memset(&x[2 * 6 * DIM], 0, DIM * sizeof(float));
    char *got = convert(&codes, &f32, (char *)x);
    const float *scales = (const float *)(const void *)(got + 2 * TO * DIM);
    for (uint32_t row = 0; row < ROWS; row++) {
        const float *from = &x[(6 + row) * DIM];
        const int8_t *to = (const int8_t *)got + (2 + row) * DIM;
        const weft_i8_scale_t scale = weft_i8_scale_of(weft_i8_largest(from, DIM));
        const float stored = scales[row % 2 * TO + 1 + row / 2];
        assert_true(stored == scale.scale || (row == 4 && isnan(stored)));
        for (uint32_t i = 0; i < DIM && row != 4; i++) {
            assert_int_equal(to[i], weft_f32_to_i8(from[i] * scale.inverse));
        }
    }
    /* To codes in other blocks, and to f32: of the head as one of 16 tokens. */
    char *wide = test_malloc(head_bytes(K_I8, FROM, DIM));
    memset(wide, 0, head_bytes(K_I8, FROM, DIM));
    memcpy(wide + 2 * 3 * DIM, got + 2 * DIM, ROWS * DIM);
    float *wide_scales = (float *)(void *)(wide + 2 * FROM * DIM);
    for (uint32_t row = 0; row < ROWS; row++) {
        wide_scales[row % 2 * FROM + 3 + row / 2] = scales[row % 2 * TO + 1 + row / 2];
    }
    char *copied = convert(&codes, &same, wide);
    assert_memory_equal(copied, got, head_bytes(K_I8, TO, DIM));
    char *floats = convert(&back, &same, wide);
    for (uint32_t row = 0; row < ROWS; row++) {
        for (uint32_t i = 0; i < DIM && row != 4; i++) {
            const float expected = (float)((int8_t *)wide)[(6 + row) * DIM + i] *
                                   wide_scales[row % 2 * FROM + 3 + row / 2];
            assert_true(((float *)(void *)floats)[(2 + row) * DIM + i] == expected);
        }
    }
    const k_cuda_head_form_t transposed = {K_I8, true, TO, DIM};
    assert_int_equal(k_cuda_convert_heads(transposed, f32, NULL, 1, NULL), cudaErrorNotSupported);
    test_free(x);
    test_free(got);
    test_free(wide);
    test_free(copied);
    test_free(floats);
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rope_and_kv_write_agree_with_the_reference),
        cmocka_unit_test(extents_are_copied_and_nothing_else),
        cmocka_unit_test(heads_are_converted_between_forms_and_types),
        cmocka_unit_test(heads_of_codes_are_converted_and_copied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
