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
    bool has_sums; /* a kernel in between adds the parts up */
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

/* Some linears of one shape, and what of the arrays is theirs. */
typedef struct heads {
    const k_lora_t *table;
    uint32_t n;
    uint32_t table_step;
    uint32_t x_step;
    uint32_t y_step;
    uint32_t in;
    uint32_t out;
} heads_t;

/* That kernel runs where there is scratch for its sums, and more to add than multiprocessors can beside. */
static k_cuda_launch_t launch_of(const lora_case_t *c, size_t sums)
{
    k_cuda_launch_t at = device_launch(c->has_sums ? sums * sizeof(float) : 0);
    at.multiprocessors = c->has_sums ? 0 : 1;
    return at;
}

/* n rows of x and y, of these sequences; y is changed. All on the device. */
static void run_rows(const lora_case_t *c, const heads_t *heads, const k_seq_t *seqs,
                     uint32_t n_seqs, uint32_t n, const void *x, void *y)
{
    const k_cuda_launch_t at = launch_of(c, (size_t)heads->n * n * MAX_RANK);
    float *low = device_array(NULL, k_lora_low_floats(heads->in, (size_t)heads->n * n, MAX_RANK) *
                                        sizeof(float));
    const k_lora_rows_t rows = {.table = heads->table,
                                .n_heads = heads->n,
                                .table_step = heads->table_step,
                                .seqs = seqs,
                                .n_seqs = n_seqs,
                                .rows = n};
    const k_lora_shrink_args_t shrink = {.of = rows,
                                         .x_step = heads->x_step,
                                         .x = x,
                                         .x_stride = c->x_stride,
                                         .in = heads->in,
                                         .low = low,
                                         .max_rank = MAX_RANK};
    const k_lora_expand_args_t expand = {.of = rows,
                                         .y_step = heads->y_step,
                                         .low = low,
                                         .in = heads->in,
                                         .max_rank = MAX_RANK,
                                         .y = y,
                                         .y_dtype = c->y_dtype,
                                         .y_stride = c->y_stride,
                                         .out = heads->out};
    assert_cuda(k_cuda_lora_shrink(&at, &shrink));
    assert_cuda(k_cuda_lora_expand(&at, &expand));
}

static size_t y_bytes(const lora_case_t *c, size_t elements)
{
    return elements * k_dtype_info(c->y_dtype)->block_bytes;
}

static void *device_y(const lora_case_t *c, uint32_t first, uint32_t n)
{
    const char *y = c->y_bf16 != NULL ? (const char *)c->y_bf16 : (const char *)c->y;
    return device_array(y + y_bytes(c, first * c->y_stride), y_bytes(c, n * c->y_stride));
}

/* n rows from `first` on, of these sequences; y afterwards. Free with test_free. */
static void *run(const lora_case_t *c, const k_seq_t *seqs, uint32_t n_seqs, uint32_t first,
                 uint32_t n)
{
    const heads_t one = {.table = c->device_table, .n = 1, .in = c->in, .out = c->out};
    void *y = device_y(c, first, n);
    run_rows(c, &one, device_array(seqs, n_seqs * sizeof(*seqs)), n_seqs, n,
             device_array(c->x_bf16 + first * c->x_stride, n * c->x_stride * sizeof(uint16_t)), y);
    return cuda_download(y, y_bytes(c, n * c->y_stride));
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
        c.has_sums = round % 2 == 0;
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

/* Also where more rows take another kernel, and wherever parts are added up. */
static void a_row_alone_has_the_same_bits(void **state)
{
    (void)state;
    test_random_t random = {test_seed(72)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        lora_case_t c;
        make_case(&random, &c);
        const size_t bytes = c.y_stride * k_dtype_info(c.y_dtype)->block_bytes;
        c.has_sums = round % 2 == 0;
        char *all = run(&c, c.seqs, c.n_seqs, 0, c.rows);
        for (uint32_t i = 0; i < 4; i++) {
            c.has_sums = i % 2 == 0;
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

/* ---- heads ----------------------------------------------------------------------------------- */

enum { HEADS = 3 };

/* Each head has another order of the adapters, and another scale. */
static const k_lora_t *make_tables(const lora_case_t *c, uint32_t n)
{
    k_lora_t tables[8][ADAPTERS];
    k_lora_t *first = cuda_download(c->device_table, ADAPTERS * sizeof(k_lora_t));
    assert_true(n <= WEFT_ARRAY_LEN(tables));
    for (uint32_t i = 0; i < n * ADAPTERS; i++) {
        tables[i / ADAPTERS][i % ADAPTERS] = first[(i + i / ADAPTERS) % ADAPTERS];
        tables[i / ADAPTERS][i % ADAPTERS].scale = 0.25f * (float)(i + 1);
    }
    test_free(first);
    return device_array(tables, n * sizeof(tables[0]));
}

static void heads_at_once_have_the_bits_of_each_alone(void **state)
{
    (void)state;
    test_random_t random = {test_seed(73)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS / 4); round++) {
        lora_case_t c;
        make_case(&random, &c);
        const bool is_wide = c.in % 8 == 0;
        const heads_t all = {.table = make_tables(&c, HEADS),
                             .n = HEADS,
                             .table_step = ADAPTERS,
                             .x_step = is_wide ? c.in / HEADS / 8 * 8 : c.in / HEADS,
                             .y_step = is_wide ? c.out / HEADS / 4 * 4 : c.out / HEADS,
                             .in = is_wide ? c.in / HEADS / 8 * 8 : c.in / HEADS,
                             .out = is_wide ? c.out / HEADS / 4 * 4 : c.out / HEADS};
        const k_seq_t *seqs = device_array(c.seqs, c.n_seqs * sizeof(c.seqs[0]));
        const uint16_t *x = device_array(c.x_bf16, c.rows * c.x_stride * sizeof(uint16_t));
        void *y = device_y(&c, 0, c.rows);
        char *y_alone = device_y(&c, 0, c.rows);
        c.has_sums = true;
        run_rows(&c, &all, seqs, c.n_seqs, c.rows, x, y);
        c.has_sums = false;
        for (uint32_t h = 0; h < HEADS; h++) {
            heads_t one = all;
            one.n = 1;
            one.table += h * ADAPTERS;
            run_rows(&c, &one, seqs, c.n_seqs, c.rows, x + (size_t)h * all.x_step,
                     y_alone + y_bytes(&c, (size_t)h * all.y_step));
        }
        const size_t bytes = y_bytes(&c, c.rows * c.y_stride);
        void *got = cuda_download(y, bytes);
        void *expected = cuda_download(y_alone, bytes);
        assert_memory_equal(got, expected, bytes);
        test_free(got);
        test_free(expected);
        free_case(&c);
    }
}

/* ---- experts --------------------------------------------------------------------------------- */

enum { EXPERTS = 5, USED = 2, MAX_SLOTS = (MAX_ROWS + 1) * USED };

/* Every row has USED experts; slots lie expert by expert, and the first and last are elsewhere. */
typedef struct slots {
    uint32_t offsets[EXPERTS + 1];
    uint32_t row_of[MAX_SLOTS];
    uint32_t expert_of[MAX_SLOTS];
    const k_lora_t *table; /* on the device, of the experts that are here */
    bool has_rows;
    float *x; /* [rows or slots][x_stride] */
    uint16_t *x_bf16;
    uint16_t *y; /* [slots][y_stride] */
} slots_t;

static void make_slots(test_random_t *random, const lora_case_t *c, slots_t *slots)
{
    uint32_t n = 0;
    for (uint32_t e = 0; e < EXPERTS; e++) {
        slots->offsets[e] = n;
        for (uint32_t row = 0; row < c->rows; row++) {
            if ((row + e) % EXPERTS < USED) {
                slots->expert_of[n] = e;
                slots->row_of[n++] = row;
            }
        }
    }
    slots->offsets[EXPERTS] = n;
    slots->has_rows = test_random_below(random, 2) == 0;
    slots->table = make_tables(c, EXPERTS - 2);
    const size_t rows = slots->has_rows ? c->rows : n;
    float *y = random_floats(random, n * c->y_stride);
    slots->x = random_floats(random, rows * c->x_stride);
    slots->x_bf16 = bf16_of(slots->x, rows * c->x_stride);
    slots->y = bf16_of(y, n * c->y_stride);
    test_free(y);
}

static void free_slots(const slots_t *slots)
{
    test_free(slots->x);
    test_free(slots->x_bf16);
    test_free(slots->y);
}

/* y afterwards. Free with test_free. */
static uint16_t *run_slots(const lora_case_t *c, const slots_t *slots)
{
    const uint32_t n = slots->offsets[EXPERTS];
    const k_cuda_launch_t at = launch_of(c, (size_t)n * MAX_RANK);
    const uint32_t *offsets = device_array(slots->offsets, sizeof(slots->offsets));
    const size_t x_rows = slots->has_rows ? c->rows : n;
    const k_lora_experts_args_t args = {
        .table = slots->table,
        .places = ADAPTERS,
        .seqs = device_array(c->seqs, c->n_seqs * sizeof(c->seqs[0])),
        .n_seqs = c->n_seqs,
        .offsets = offsets + 1,
        .row_of_slot = device_array(slots->row_of, n * sizeof(uint32_t)),
        .n_experts = EXPERTS - 2,
        .slots = n,
        .x = device_array(slots->x_bf16, x_rows * c->x_stride * sizeof(uint16_t)),
        .x_stride = c->x_stride,
        .has_rows = slots->has_rows,
        .in = c->in,
        .low = device_array(NULL, k_lora_low_floats(c->in, n, MAX_RANK) * sizeof(float)),
        .max_rank = MAX_RANK,
        .y = device_array(slots->y, n * c->y_stride * sizeof(uint16_t)),
        .y_stride = c->y_stride,
        .out = c->out};
    assert_cuda(k_cuda_lora_experts(&at, &args));
    return cuda_download(args.y, n * c->y_stride * sizeof(uint16_t));
}

/* What its expert's linear alone, with the adapter of its row, makes of the slot. */
static void check_slot(const lora_case_t *c, const slots_t *slots, uint32_t slot,
                       const uint16_t *got)
{
    const uint32_t expert = slots->expert_of[slot];
    const uint32_t row = slots->row_of[slot];
    const k_seq_t seq = {.rows = 1, .adapter = c->adapter_of[row]};
    const heads_t one = {.table = slots->table + (size_t)(expert - 1) * ADAPTERS,
                         .n = 1,
                         .in = c->in,
                         .out = c->out};
    const size_t bytes = c->y_stride * sizeof(uint16_t);
    const size_t x_row = slots->has_rows ? row : slot;
    void *y = device_array(slots->y + slot * c->y_stride, bytes);
    run_rows(c, &one, device_array(&seq, sizeof(seq)), 1, 1,
             device_array(slots->x_bf16 + x_row * c->x_stride, c->x_stride * sizeof(uint16_t)), y);
    void *expected = cuda_download(y, bytes);
    assert_memory_equal(got + slot * c->y_stride, expected, bytes);
    test_free(expected);
}

static void slots_get_what_adapters_add_to_their_experts(void **state)
{
    (void)state;
    test_random_t random = {test_seed(74)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS / 2); round++) {
        lora_case_t c;
        slots_t slots;
        make_case(&random, &c);
        make_slots(&random, &c, &slots);
        c.y_dtype = K_BF16;
        c.has_sums = round % 2 == 0;
        uint16_t *y = run_slots(&c, &slots);
        c.has_sums = false;
        for (uint32_t i = 0; i < 12; i++) {
            const uint32_t slot = test_random_below(&random, slots.offsets[EXPERTS]);
            const bool is_here = slots.expert_of[slot] > 0 && slots.expert_of[slot] < EXPERTS - 1;
            if (is_here) {
                check_slot(&c, &slots, slot, y);
            } else {
                assert_memory_equal(y + slot * c.y_stride, slots.y + slot * c.y_stride,
                                    c.y_stride * sizeof(uint16_t));
            }
        }
        test_free(y);
        free_slots(&slots);
        free_case(&c);
    }
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_an_adapter_adds_is_the_product),
        cmocka_unit_test(a_row_alone_has_the_same_bits),
        cmocka_unit_test(heads_at_once_have_the_bits_of_each_alone),
        cmocka_unit_test(slots_get_what_adapters_add_to_their_experts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
