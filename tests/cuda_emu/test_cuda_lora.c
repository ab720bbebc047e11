/* SPDX-License-Identifier: Apache-2.0 */
/* What adapters add to linears on a GPU, against the formula in double. */
#include "tests/cuda_emu/device_arrays.h"

enum { ROUNDS = 160, ADAPTERS = 4, MAX_SEQS = 12, MAX_ROWS = 100, MAX_RANK = 70 };

#define BF16_BOUND (1.02 / 256)

typedef struct lora_case {
    k_lora_t table[ADAPTERS]; /* on the host; the device's lie in device_table */
    k_seq_t seqs[MAX_SEQS];
    uint32_t n_seqs;
    uint32_t rows;
    uint32_t in;
    uint32_t out;
    size_t x_stride;
    size_t y_stride;
    k_dtype_t y_dtype;
    uint32_t adapter_of[MAX_ROWS]; /* by row */
    float *x;                      /* as rounded */
    float *y;
    uint16_t *x_bf16;
    uint16_t *y_bf16; /* NULL: f32 */
    const k_lora_t *device_table;
} lora_case_t;

static void make_table(test_random_t *random, lora_case_t *c)
{
    k_lora_t table[ADAPTERS];
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        const uint32_t rank = i == 0 ? 0 : test_random_between(random, 1, i == 1 ? 8 : MAX_RANK);
        const size_t a = (size_t)(rank + 1) * c->in;
        const size_t b = (size_t)(rank + 1) * c->out;
        c->table[i] = (k_lora_t){.a = random_floats(random, a),
                                 .b = random_floats(random, b),
                                 .rank = rank,
                                 .scale = 0.5f};
        table[i] = c->table[i];
        table[i].a = device_array(table[i].a, a * sizeof(float));
        table[i].b = device_array(table[i].b, b * sizeof(float));
    }
    c->device_table = device_array(table, sizeof(table));
}

static void make_seqs(test_random_t *random, lora_case_t *c)
{
    const bool is_decode = test_random_below(random, 2) == 0;
    for (uint32_t i = 0; i < c->n_seqs; i++) {
        const uint32_t most = is_decode ? 1 : (MAX_ROWS - c->rows) / (c->n_seqs - i);
        c->seqs[i] = (k_seq_t){.row = c->rows,
                               .rows = test_random_between(random, 1, most),
                               .adapter = test_random_below(random, ADAPTERS + 1)};
        for (uint32_t j = 0; j < c->seqs[i].rows; j++) {
            c->adapter_of[c->rows++] = c->seqs[i].adapter;
        }
    }
    /* As a graph's batch is filled up: rows of nobody, sequences without rows. */
    if (is_decode && c->n_seqs < MAX_SEQS) {
        c->seqs[c->n_seqs++] = (k_seq_t){.row = c->rows};
        c->adapter_of[c->rows++] = 0;
    }
}

static void make_case(test_random_t *random, lora_case_t *c)
{
    const bool is_wide = test_random_below(random, 3) > 0;
    *c = (lora_case_t){
        .n_seqs = test_random_between(random, 1, MAX_SEQS),
        .in = test_random_between(random, 1, is_wide ? 400 : 300) * (is_wide ? 8 : 1),
        .out = test_random_between(random, 1, is_wide ? 150 : 600) * (is_wide ? 4 : 1),
        .y_dtype = test_random_below(random, 2) == 0 ? K_F32 : K_BF16};
    make_table(random, c);
    make_seqs(random, c);
    c->x_stride = c->in + (is_wide ? 8 : 1);
    c->y_stride = c->out + (is_wide ? 4 : 1);
    c->x = random_floats(random, c->rows * c->x_stride);
    c->y = random_floats(random, c->rows * c->y_stride);
    c->x_bf16 = bf16_of(c->x, c->rows * c->x_stride);
    c->y_bf16 = c->y_dtype == K_BF16 ? bf16_of(c->y, c->rows * c->y_stride) : NULL;
}

static void free_case(const lora_case_t *c)
{
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        test_free((void *)c->table[i].a);
        test_free((void *)c->table[i].b);
    }
    test_free(c->x);
    test_free(c->y);
    test_free(c->x_bf16);
    if (c->y_bf16 != NULL) {
        test_free(c->y_bf16);
    }
    device_free_all();
}

/* n rows from `first` on, of these sequences; y afterwards. Free with test_free. */
static void *run(const lora_case_t *c, const k_seq_t *seqs, uint32_t n_seqs, uint32_t first,
                 uint32_t n)
{
    const k_cuda_launch_t at = device_launch(0);
    const size_t element = k_dtype_info(c->y_dtype)->block_bytes;
    const size_t bytes = n * c->y_stride * element;
    const char *y = c->y_bf16 != NULL ? (const char *)c->y_bf16 : (const char *)c->y;
    const k_seq_t *device_seqs = device_array(seqs, n_seqs * sizeof(*seqs));
    float *low = device_array(NULL, (size_t)n * MAX_RANK * sizeof(float));
    const k_lora_shrink_args_t shrink = {
        .table = c->device_table,
        .seqs = device_seqs,
        .n_seqs = n_seqs,
        .rows = n,
        .x = device_array(c->x_bf16 + first * c->x_stride, n * c->x_stride * sizeof(uint16_t)),
        .x_stride = c->x_stride,
        .in = c->in,
        .low = low,
        .max_rank = MAX_RANK};
    const k_lora_expand_args_t expand = {.table = c->device_table,
                                         .seqs = device_seqs,
                                         .n_seqs = n_seqs,
                                         .rows = n,
                                         .low = low,
                                         .max_rank = MAX_RANK,
                                         .y =
                                             device_array(y + first * c->y_stride * element, bytes),
                                         .y_dtype = c->y_dtype,
                                         .y_stride = c->y_stride,
                                         .out = c->out};
    assert_cuda(k_cuda_lora_shrink(&at, &shrink));
    assert_cuda(k_cuda_lora_expand(&at, &expand));
    return cuda_download(expand.y, bytes);
}

static double added_to(const lora_case_t *c, uint32_t row, uint32_t column, double *size_out)
{
    const k_lora_t *lora = &c->table[c->adapter_of[row] - 1];
    double sum = 0;
    *size_out = 0;
    for (uint32_t r = 0; r < lora->rank; r++) {
        double low = 0;
        for (uint32_t i = 0; i < c->in; i++) {
            low += (double)lora->a[(size_t)r * c->in + i] * (double)c->x[row * c->x_stride + i];
        }
        const double term = low * (double)lora->b[(size_t)r * c->out + column];
        sum += term;
        *size_out += fabs(term);
    }
    return (double)lora->scale * sum;
}

static bool has_adapter(const lora_case_t *c, uint32_t row, uint32_t column)
{
    const uint32_t adapter = c->adapter_of[row];
    return column < c->out && adapter > 0 && c->table[adapter - 1].rank > 0;
}

static void check_element(const lora_case_t *c, uint32_t row, uint32_t column, const void *y)
{
    const size_t at = row * c->y_stride + column;
    const bool is_bf16 = c->y_bf16 != NULL;
    const float got = is_bf16 ? k_bf16_to_f32(((const uint16_t *)y)[at]) : ((const float *)y)[at];
    double size;
    if (!has_adapter(c, row, column)) {
        assert_memory_equal(&got, &c->y[at], sizeof(got));
        return;
    }
    const double expected = (double)c->y[at] + added_to(c, row, column, &size);
    const double bound = 1e-4 * (size + fabs(expected)) + 1e-6;
    if (!(fabs((double)got - expected) <= bound + (is_bf16 ? BF16_BOUND * fabs(expected) : 0))) {
        fail_msg("row %u column %u: %g, not %g", row, column, (double)got, expected);
    }
}

static void what_an_adapter_adds_is_the_product(void **state)
{
    (void)state;
    test_random_t random = {test_seed(71)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        lora_case_t c;
        make_case(&random, &c);
        void *y = run(&c, c.seqs, c.n_seqs, 0, c.rows);
        for (uint32_t row = 0; row < c.rows; row++) {
            const uint32_t step = test_random_between(&random, 1, 9);
            for (uint32_t column = 0; column < c.y_stride; column += step) {
                check_element(&c, row, column, y);
            }
        }
        test_free(y);
        free_case(&c);
    }
}

/* Also where more rows take another kernel. */
static void a_row_alone_has_the_same_bits(void **state)
{
    (void)state;
    test_random_t random = {test_seed(72)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        lora_case_t c;
        make_case(&random, &c);
        const size_t bytes = c.y_stride * k_dtype_info(c.y_dtype)->block_bytes;
        char *all = run(&c, c.seqs, c.n_seqs, 0, c.rows);
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = test_random_below(&random, c.rows);
            const k_seq_t seq = {.rows = 1, .adapter = c.adapter_of[row]};
            void *one = run(&c, &seq, 1, row, 1);
            assert_memory_equal(one, all + row * bytes, bytes);
            test_free(one);
        }
        test_free(all);
        free_case(&c);
    }
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_an_adapter_adds_is_the_product),
        cmocka_unit_test(a_row_alone_has_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
