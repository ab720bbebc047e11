/* SPDX-License-Identifier: Apache-2.0 */
#include "base/float8.h"
#include "tests/kernels/kernels_support.h"

/* A random case: W [n, k] of a dtype in up to three parts, x [m, k]. */
typedef struct linear_case {
    k_dtype_t dtype;
    uint32_t m;
    uint32_t n;
    uint32_t k;
    size_t x_stride;
    size_t y_stride;
    uint8_t *source;
    float *x;
    const k_rms_norm_args_t *norm; /* NULL: x is there */
    float *bias;
    float *y_before;
    bool has_bias;
    bool accumulate;
} linear_case_t;

/* Channels of outliers, as models have them. */
static void make_outliers(test_random_t *random, linear_case_t *c)
{
    const uint32_t first = test_random_below(random, c->k);
    for (uint32_t r = 0; r < c->m; r++) {
        for (uint32_t i = first; i < c->k && i < first + 32; i++) {
            c->x[r * c->x_stride + i] *= 8;
        }
    }
}

static linear_case_t random_case(test_random_t *random, k_dtype_t dtype)
{
    const uint32_t block = k_dtype_info(dtype)->block_elements;
    linear_case_t c = {.dtype = dtype};
    c.m = test_random_below(random, 4) == 0 ? test_random_between(random, 250, 300)
                                            : test_random_between(random, 1, 21);
    c.n = test_random_between(random, 1, 150);
    c.k = block == 1 ? test_random_between(random, 1, 300)
                     : block * test_random_between(random, 1, block == 32 ? 12 : 3);
    c.x_stride = c.k + test_random_below(random, 5);
    c.y_stride = c.n + test_random_below(random, 5);
    c.source = random_weights(random, dtype, (size_t)c.n * c.k);
    c.x = random_floats(random, c.m * c.x_stride);
    c.bias = random_floats(random, c.n);
    c.y_before = random_floats(random, c.m * c.y_stride);
    c.has_bias = test_random_below(random, 2) == 0;
    c.accumulate = test_random_below(random, 2) == 0;
    if (test_random_below(random, 2) == 0) {
        make_outliers(random, &c);
    }
    return c;
}

static void free_case(linear_case_t *c)
{
    test_free(c->source);
    test_free(c->x);
    test_free(c->bias);
    test_free(c->y_before);
}

static k_weight_t pack(k_stream_t *stream, const linear_case_t *c, weft_mem_t *mem_out)
{
    size_t row_bytes = 0;
    k_dtype_row_bytes(c->dtype, c->k, &row_bytes);
    const uint32_t cut1 = c->n / 3;
    const uint32_t cut2 = c->n / 2;
    const k_weight_part_t parts[] = {{c->source, cut1, 0},
                                     {c->source + cut1 * row_bytes, cut2 - cut1, 0},
                                     {c->source + cut2 * row_bytes, c->n - cut2, 0}};
    const size_t bytes = stream->ops->weight_bytes(c->dtype, K_WEIGHT_ROWS, c->n, c->k);
    assert_status(open_cpu()->ops->alloc(open_cpu(), bytes, 0, mem_out), WEFT_OK);
    stream->ops->weight_pack(stream, c->dtype, K_WEIGHT_ROWS, c->k, parts, 3, mem_out->addr);
    return (k_weight_t){.dtype = c->dtype, .rows = c->n, .columns = c->k, .data = mem_out->addr};
}

/* Rows [row, row + rows) of the case into y [rows, y_stride]. */
static void run(k_stream_t *stream, const linear_case_t *c, const k_weight_t *w, uint32_t row,
                uint32_t rows, float *y)
{
    memcpy(y, c->y_before + row * c->y_stride, rows * c->y_stride * sizeof(*y));
    const k_linear_args_t args = {.w = w,
                                  .bias = c->has_bias ? c->bias : NULL,
                                  .x = c->x + row * c->x_stride,
                                  .norm = c->norm,
                                  .y = y,
                                  .rows = rows,
                                  .x_stride = c->x_stride,
                                  .y_stride = c->y_stride,
                                  .out = c->accumulate ? K_OUT_ADD : K_OUT_STORE};
    stream->ops->linear(stream, &args);
    assert_status(k_stream_sync(stream), WEFT_OK);
}

/* How a set rounds x before it multiplies weights of a dtype. */
typedef enum rounding { AS_IT_IS, TO_I8, TO_BF16 } rounding_t;

static rounding_t rounding_of(const char *isa, k_dtype_t dtype)
{
    if (strcmp(isa, "ref") == 0) {
        return AS_IT_IS;
    }
    const bool has_bf16 = strcmp(isa, "avx512_bf16") == 0 || strcmp(isa, "amx") == 0;
    if (has_bf16 && (dtype == K_BF16 || dtype == K_F8_32)) {
        return TO_BF16;
    }
    return k_dtype_info(dtype)->block_elements > 1 && dtype != K_F8_32 ? TO_I8 : AS_IT_IS;
}

/*
 * How far an element may be off: the rounding of a sum of k f32 products, and where x is rounded to
 * i8 half a step of each unit of 32, to bf16 half a unit in the last place of 8 bits.
 */
static double bound_of(const linear_case_t *c, const float *w, const float *x, rounding_t rounding)
{
    double bound = 1e-6;
    for (uint32_t first = 0; first < c->k; first += 32) {
        const uint32_t end = first + 32 < c->k ? first + 32 : c->k;
        double max = 0;
        double weight = 0;
        for (uint32_t i = first; i < end; i++) {
            max = fmax(max, fabs((double)x[i]));
            weight += fabs((double)w[i]);
        }
        const double step = rounding == TO_I8 ? max / 254 : rounding == TO_BF16 ? max / 256 : 0;
        bound += weight * (step * 1.0001 + max * (c->k + 4) * 0x1p-24);
    }
    return bound;
}

static void check_values(const linear_case_t *c, const float *y, rounding_t rounding)
{
    float *w = test_malloc(c->k * sizeof(*w));
    size_t row_bytes = 0;
    k_dtype_row_bytes(c->dtype, c->k, &row_bytes);
    for (uint32_t j = 0; j < c->n; j++) {
        k_dequantize(c->dtype, c->source + j * row_bytes, w, c->k);
        for (uint32_t r = 0; r < c->m; r++) {
            const float *x = c->x + r * c->x_stride;
            double expected = c->has_bias ? (double)c->bias[j] : 0;
            expected += c->accumulate ? (double)c->y_before[r * c->y_stride + j] : 0;
            for (uint32_t i = 0; i < c->k; i++) {
                expected += (double)w[i] * (double)x[i];
            }
            const double got = (double)y[r * c->y_stride + j];
            const double bound = bound_of(c, w, x, rounding);
            if (!(fabs(got - expected) <= bound)) {
                fail_msg("%s m %u n %u k %u: y[%u][%u] is %g, not %g ± %g",
                         k_dtype_info(c->dtype)->name, c->m, c->n, c->k, r, j, got, expected,
                         bound);
            }
        }
    }
    test_free(w);
}

static void check_untouched(const linear_case_t *c, const float *y)
{
    for (uint32_t r = 0; r < c->m; r++) {
        assert_same_bits(y + r * c->y_stride + c->n, c->y_before + r * c->y_stride + c->n,
                         c->y_stride - c->n, "padding");
    }
}

/* Types without kernels of their own are run by the plain ops everywhere: a few rounds will do. */
static bool is_turn(k_dtype_t dtype, uint32_t round)
{
    const bool is_rare = dtype >= K_IQ2_XXS && dtype != K_IQ4_NL && dtype != K_MXFP4 &&
                         dtype != K_F8_32 && dtype != K_I4_32;
    return dtype < K_U8 && (!is_rare || round % 16 == 0);
}

static void check_products(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 300, 768);
    for (uint32_t round = 0; round < test_rounds(160); round++) {
        for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
            if (!is_turn(dtype, round)) {
                continue;
            }
            linear_case_t c = random_case(random, dtype);
            weft_mem_t mem;
            const k_weight_t w = pack(stream, &c, &mem);
            float *y = test_malloc(c.m * c.y_stride * sizeof(*y));
            run(stream, &c, &w, 0, c.m, y);
            check_values(&c, y, rounding_of(isa, dtype));
            check_untouched(&c, y);
            test_free(y);
            open_cpu()->ops->free(open_cpu(), &mem);
            free_case(&c);
        }
    }
    k_stream_destroy(stream);
}

static void linear_multiplies_every_dtype_within_its_bound(void **state)
{
    (void)state;
    each_isa(check_products, 11);
}

/* Row j of W has code j in a column of its own, and x is 1 there and 0 elsewhere. */
static void check_f8_codes(const char *isa, test_random_t *random)
{
    enum { CODES = 256, COLUMNS = 32, BLOCK = 36 };
    const float scale = random_float(random);
    k_stream_t *stream = open_stream(isa, 2, 300, 768);
    linear_case_t c = {.dtype = K_F8_32, .m = COLUMNS, .n = CODES, .k = COLUMNS};
    c.x_stride = COLUMNS;
    c.y_stride = CODES;
    c.source = test_calloc(CODES, BLOCK);
    c.x = test_calloc(COLUMNS * COLUMNS, sizeof(*c.x));
    c.y_before = test_calloc(COLUMNS * CODES, sizeof(*c.y_before));
    for (uint32_t j = 0; j < CODES; j++) {
        memcpy(c.source + (size_t)j * BLOCK, &scale, sizeof(scale));
        c.source[(size_t)j * BLOCK + sizeof(scale) + j % COLUMNS] = (uint8_t)j;
        c.x[j % COLUMNS * COLUMNS + j % COLUMNS] = 1;
    }
    weft_mem_t mem;
    const k_weight_t w = pack(stream, &c, &mem);
    float *y = test_malloc((size_t)c.m * c.y_stride * sizeof(*y));
    run(stream, &c, &w, 0, c.m, y);
    for (uint32_t j = 0; j < CODES; j++) {
        const float got = y[j % COLUMNS * CODES + j];
        const float expected = weft_f8_to_f32((uint8_t)j) * scale;
        if (!(got == expected || (isnan(got) && isnan(expected)))) {
            fail_msg("%s: code %u is %a, not %a", isa, j, (double)got, (double)expected);
        }
    }
    test_free(y);
    open_cpu()->ops->free(open_cpu(), &mem);
    free_case(&c);
    k_stream_destroy(stream);
}

static void linear_knows_every_number_of_f8(void **state)
{
    (void)state;
    each_isa(check_f8_codes, 16);
}

/* Decision 7: a row's bits do not depend on its neighbours, nor on the number of threads. */
static void check_rows_alone(const char *isa, test_random_t *random)
{
    k_stream_t *streams[4];
    for (uint32_t i = 0; i < 4; i++) {
        streams[i] = open_stream(isa, i + 1, 300, 768);
    }
    for (uint32_t round = 0; round < test_rounds(100); round++) {
        for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
            if (!is_turn(dtype, round)) {
                continue;
            }
            linear_case_t c = random_case(random, dtype);
            weft_mem_t mem;
            const k_weight_t w = pack(streams[round % 4], &c, &mem);
            float *y = test_malloc(c.m * c.y_stride * sizeof(*y));
            float *part = test_malloc(c.m * c.y_stride * sizeof(*y));
            run(streams[0], &c, &w, 0, c.m, y);
            for (uint32_t i = 1; i < 4; i++) {
                run(streams[i], &c, &w, 0, c.m, part);
                assert_same_bits(part, y, c.m * c.y_stride, "threads");
            }
            for (uint32_t row = 0; row < c.m;) {
                const uint32_t left = c.m - row;
                const uint32_t rows = test_random_between(random, 1, left < 9 ? left : 9);
                run(streams[row % 4], &c, &w, row, rows, part);
                assert_same_bits(part, y + row * c.y_stride, rows * c.y_stride, "rows");
                row += rows;
            }
            test_free(y);
            test_free(part);
            open_cpu()->ops->free(open_cpu(), &mem);
            free_case(&c);
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        k_stream_destroy(streams[i]);
    }
}

static void linear_gives_a_row_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    each_isa(check_rows_alone, 12);
}

#if defined(__x86_64__)
extern const k_ops_t k_ops_emulated; /* tests/support/ops_emulated_amx.c */

/* Tiles add bytes up exactly, so nothing but the time they take may tell them from vectors. */
static void tiles_give_the_bits_of_vectors(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    k_stream_t *stream = NULL;
    if (k_stream_create(open_cpu(), "avx512", 2, &diag, &stream) < 0) {
        skip(); /* without AVX-512 */
    }
    assert_status(k_stream_reserve(stream, 300, 768), WEFT_OK);
    test_random_t random = {test_seed(15)};
    const k_ops_t *vectors = stream->ops;
    for (uint32_t round = 0; round < test_rounds(20); round++) {
        for (k_dtype_t dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
            if (rounding_of("avx512", dtype) != TO_I8 || !is_turn(dtype, round)) {
                continue;
            }
            linear_case_t c = random_case(&random, dtype);
            weft_mem_t mem;
            const k_weight_t w = pack(stream, &c, &mem);
            float *y = test_malloc(c.m * c.y_stride * sizeof(*y));
            float *tiled = test_malloc(c.m * c.y_stride * sizeof(*y));
            run(stream, &c, &w, 0, c.m, y);
            stream->ops = &k_ops_emulated;
            run(stream, &c, &w, 0, c.m, tiled);
            stream->ops = vectors;
            assert_same_bits(tiled, y, c.m * c.y_stride, k_dtype_info(dtype)->name);
            test_free(y);
            test_free(tiled);
            if (mem.addr != NULL) {
                open_cpu()->ops->free(open_cpu(), &mem);
            }
            free_case(&c);
        }
    }
    k_stream_destroy(stream);
}
#endif

/* Rows of a SwiGLU of gate and up are those of the product and then of silu_mul. */
static void check_swiglu(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 300, 768);
    for (uint32_t round = 0; round < test_rounds(60); round++) {
        const k_dtype_t dtype = (k_dtype_t)test_random_below(random, K_DTYPE_COUNT);
        linear_case_t c = random_case(random, dtype);
        c.n += c.n % 2;
        const uint32_t dim = c.n / 2;
        test_free(c.source);
        test_free(c.bias);
        c.source = random_weights(random, dtype, (size_t)c.n * c.k);
        c.bias = random_floats(random, c.n);
        size_t row_bytes = 0;
        k_dtype_row_bytes(dtype, c.k, &row_bytes);
        const k_weight_part_t parts[] = {{c.source, dim, 0}, {c.source + dim * row_bytes, dim, 0}};
        float *fused = random_floats(random, c.m * c.y_stride);
        float *both = test_malloc((size_t)c.m * c.n * sizeof(*both));
        for (k_weight_form_t form = K_WEIGHT_ROWS; form <= K_WEIGHT_GATE_UP; form++) {
            const bool is_fused = form == K_WEIGHT_GATE_UP;
            const size_t bytes = stream->ops->weight_bytes(dtype, form, c.n, c.k);
            if (bytes == SIZE_MAX) {
                continue;
            }
            weft_mem_t mem = {0};
            const void *data = c.source;
            if (bytes > 0) {
                assert_status(open_cpu()->ops->alloc(open_cpu(), bytes, 0, &mem), WEFT_OK);
                stream->ops->weight_pack(stream, dtype, form, c.k, parts, 2, mem.addr);
                data = mem.addr;
            }
            const k_weight_t w = {dtype, form, c.n, c.k, data};
            const k_linear_args_t args = {.w = &w,
                                          .bias = c.has_bias ? c.bias : NULL,
                                          .x = c.x,
                                          .y = is_fused ? fused : both,
                                          .out = is_fused ? K_OUT_SWIGLU : K_OUT_STORE,
                                          .rows = c.m,
                                          .x_stride = c.x_stride,
                                          .y_stride = is_fused ? c.y_stride : c.n};
            stream->ops->linear(stream, &args);
            if (bytes > 0) {
                open_cpu()->ops->free(open_cpu(), &mem);
            }
        }
        if (stream->ops->weight_bytes(dtype, K_WEIGHT_GATE_UP, c.n, c.k) != SIZE_MAX) {
            const k_silu_mul_args_t silu = {both, both + dim, both, c.m, dim, c.n, c.n, c.n};
            stream->ops->silu_mul(stream, &silu);
            for (uint32_t r = 0; r < c.m; r++) {
                assert_same_bits(fused + r * c.y_stride, both + (size_t)r * c.n, dim, "swiglu");
            }
        }
        test_free(fused);
        test_free(both);
        free_case(&c);
    }
    k_stream_destroy(stream);
}

static void linear_gives_swiglu_the_bits_of_its_two_ops(void **state)
{
    (void)state;
    each_isa(check_swiglu, 14);
}

/* A linear whose rows a norm makes is the norm, and then the linear; so is what the norm leaves. */
static void check_norm(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 300, 768);
    for (uint32_t round = 0; stream->ops->norms_in_linear && round < test_rounds(60); round++) {
        linear_case_t c = random_case(random, (k_dtype_t)test_random_below(random, K_U8));
        weft_mem_t mem = {0};
        const k_weight_t w = pack(stream, &c, &mem);
        float *norm_w = random_floats(random, c.k);
        float *hidden = c.x;
        float *apart = test_malloc(c.m * c.x_stride * sizeof(*apart));
        float *within = test_malloc(c.m * c.x_stride * sizeof(*within));
        float *expected = test_malloc(c.m * c.y_stride * sizeof(*expected));
        float *y = test_malloc(c.m * c.y_stride * sizeof(*y));
        k_rms_norm_args_t norm = {.x = hidden,
                                  .x_dtype = K_F32,
                                  .w = norm_w,
                                  .y = apart,
                                  .rows = c.m,
                                  .groups = 1,
                                  .dim = c.k,
                                  .x_stride = c.x_stride,
                                  .y_stride = c.x_stride,
                                  .eps = 1e-5f};
        stream->ops->rms_norm(stream, &norm);
        c.x = apart;
        run(stream, &c, &w, 0, c.m, expected);
        norm.y = c.x = within;
        c.norm = &norm;
        run(stream, &c, &w, 0, c.m, y);
        assert_same_bits(y, expected, c.m * c.y_stride, "linear");
        for (uint32_t r = 0; r < c.m; r++) {
            assert_same_bits(within + r * c.x_stride, apart + r * c.x_stride, c.k, "normed");
        }
        c.x = hidden;
        test_free(norm_w);
        test_free(apart);
        test_free(within);
        test_free(expected);
        test_free(y);
        open_cpu()->ops->free(open_cpu(), &mem);
        free_case(&c);
    }
    k_stream_destroy(stream);
}

static void linear_norms_its_rows_with_the_bits_of_rms_norm(void **state)
{
    (void)state;
    each_isa(check_norm, 16);
}

/* Rows of ids before and behind a slice of the vocabulary. */
static void check_no_rows(k_stream_t *stream, const k_weight_t *w, uint32_t first)
{
    const int32_t ids[] = {0, (int32_t)first - 1, (int32_t)(first + w->rows), INT32_MAX};
    float *out = test_malloc(4 * w->columns * sizeof(*out));
    memset(out, 0x5a, 4 * w->columns * sizeof(*out));
    const k_embed_args_t args = {.table = w,
                                 .ids = ids,
                                 .first_id = first,
                                 .y = out,
                                 .rows = 4,
                                 .y_stride = w->columns,
                                 .scale = 2};
    stream->ops->embed(stream, &args);
    for (size_t i = 0; i < 4 * (size_t)w->columns; i++) {
        assert_true(out[i] == 0);
    }
    test_free(out);
}

static void check_embed(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 300, 768);
    for (k_dtype_t dtype = 0; dtype < K_U8; dtype++) {
        linear_case_t c = random_case(random, dtype);
        weft_mem_t mem;
        const k_weight_t w = pack(stream, &c, &mem);
        const uint32_t first = test_random_between(random, 1, 1000);
        int32_t *ids = test_malloc(c.n * sizeof(*ids));
        float *y = random_floats(random, c.n * c.y_stride + c.k);
        float *row = test_malloc(c.k * sizeof(*row));
        for (uint32_t i = 0; i < c.n; i++) {
            ids[i] = (int32_t)(c.n - 1 - i + first);
        }
        const size_t stride = c.k;
        float *out = random_floats(random, c.n * stride);
        const k_embed_args_t args = {.table = &w,
                                     .ids = ids,
                                     .first_id = first,
                                     .y = out,
                                     .rows = c.n,
                                     .y_stride = stride,
                                     .scale = 1};
        check_no_rows(stream, &w, first);
        stream->ops->embed(stream, &args);
        size_t row_bytes = 0;
        k_dtype_row_bytes(c.dtype, c.k, &row_bytes);
        for (uint32_t i = 0; i < c.n; i++) {
            k_dequantize(c.dtype, c.source + (c.n - 1 - i) * row_bytes, row, c.k);
            assert_same_bits(out + i * stride, row, c.k, k_dtype_info(dtype)->name);
        }
        test_free(out);
        test_free(row);
        test_free(y);
        test_free(ids);
        open_cpu()->ops->free(open_cpu(), &mem);
        free_case(&c);
    }
    k_stream_destroy(stream);
}

static void embed_reads_packed_rows_to_the_last_bit(void **state)
{
    (void)state;
    each_isa(check_embed, 13);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_multiplies_every_dtype_within_its_bound),
        cmocka_unit_test(linear_knows_every_number_of_f8),
        cmocka_unit_test(linear_gives_a_row_the_same_bits_in_any_batch),
#if defined(__x86_64__)
        cmocka_unit_test(tiles_give_the_bits_of_vectors),
#endif
        cmocka_unit_test(linear_gives_swiglu_the_bits_of_its_two_ops),
        cmocka_unit_test(linear_norms_its_rows_with_the_bits_of_rms_norm),
        cmocka_unit_test(embed_reads_packed_rows_to_the_last_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
