/* SPDX-License-Identifier: Apache-2.0 */
/* What adapters add to linears, against the formula in double. */
#include "tests/kernels/kernels_support.h"

enum { ROUNDS = 60, MAX_SEQS = 5, ADAPTERS = 3, MAX_RANK = 20 };

typedef struct lora_case {
    k_lora_t table[ADAPTERS];
    k_seq_t seqs[MAX_SEQS];
    uint32_t n_seqs;
    uint32_t rows;
    uint32_t in;
    uint32_t out;
    float *x;
    float *y;
    float *low;
    uint32_t adapter_of[64]; /* by row */
} lora_case_t;

static void make_case(test_random_t *random, lora_case_t *c)
{
    *c = (lora_case_t){.n_seqs = test_random_between(random, 1, MAX_SEQS),
                       .in = test_random_between(random, 1, 300),
                       .out = test_random_between(random, 1, 1200)};
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        const uint32_t rank = test_random_below(random, MAX_RANK + 1);
        c->table[i] = (k_lora_t){.a = random_floats(random, (size_t)(rank + 1) * c->in),
                                 .b = random_floats(random, (size_t)(rank + 1) * c->out),
                                 .rank = rank,
                                 .scale = 0.5f};
    }
    for (uint32_t i = 0; i < c->n_seqs; i++) {
        c->seqs[i] = (k_seq_t){.row = c->rows,
                               .rows = test_random_between(random, 1, 6),
                               .adapter = test_random_below(random, ADAPTERS + 1)};
        for (uint32_t j = 0; j < c->seqs[i].rows; j++) {
            c->adapter_of[c->rows++] = c->seqs[i].adapter;
        }
    }
    c->x = random_floats(random, (size_t)c->rows * c->in);
    c->y = random_floats(random, (size_t)c->rows * c->out);
    c->low = random_floats(random, (size_t)c->rows * MAX_RANK);
}

static void free_case(const lora_case_t *c)
{
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        test_free((void *)c->table[i].a);
        test_free((void *)c->table[i].b);
    }
    test_free(c->x);
    test_free(c->y);
    test_free(c->low);
}

static void run_case(k_stream_t *stream, lora_case_t *c)
{
    const k_lora_rows_t rows = {
        .table = c->table, .n_heads = 1, .seqs = c->seqs, .n_seqs = c->n_seqs, .rows = c->rows};
    const k_lora_shrink_args_t shrink = {
        .of = rows, .x = c->x, .x_stride = c->in, .in = c->in, .low = c->low, .max_rank = MAX_RANK};
    const k_lora_expand_args_t expand = {.of = rows,
                                         .low = c->low,
                                         .in = c->in,
                                         .max_rank = MAX_RANK,
                                         .y = c->y,
                                         .y_dtype = K_F32,
                                         .y_stride = c->out,
                                         .out = c->out};
    stream->ops->lora_shrink(stream, &shrink);
    stream->ops->lora_expand(stream, &expand);
}

/* What lora adds to a column of the row that is x. */
static double added_to(const lora_case_t *c, const k_lora_t *lora, const float *x, uint32_t column,
                       double *size_out)
{
    double sum = 0;
    *size_out = 0;
    for (uint32_t r = 0; r < lora->rank; r++) {
        double low = 0;
        for (uint32_t i = 0; i < c->in; i++) {
            low += (double)lora->a[(size_t)r * c->in + i] * (double)x[i];
        }
        const double term = low * (double)lora->b[(size_t)r * c->out + column];
        sum += term;
        *size_out += fabs(term);
    }
    return (double)lora->scale * sum;
}

static void check_sums(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        lora_case_t c;
        make_case(random, &c);
        const size_t bytes = (size_t)c.rows * c.out * sizeof(float);
        float *before = test_malloc(bytes);
        memcpy(before, c.y, bytes);
        run_case(stream, &c);
        for (uint32_t at = 0; at < c.rows * c.out; at++) {
            const uint32_t row = at / c.out;
            if (c.adapter_of[row] == 0 || c.table[c.adapter_of[row] - 1].rank == 0) {
                assert_memory_equal(&c.y[at], &before[at], sizeof(float));
                continue;
            }
            double size;
            const double expected =
                (double)before[at] + added_to(&c, &c.table[c.adapter_of[row] - 1],
                                              c.x + (size_t)row * c.in, at % c.out, &size);
            if (!(fabs((double)c.y[at] - expected) <= 1e-4 * (size + fabs(expected)) + 1e-6)) {
                fail_msg("row %u column %u: %g, not %g", row, at % c.out, (double)c.y[at],
                         expected);
            }
        }
        test_free(before);
        free_case(&c);
    }
    k_stream_destroy(stream);
}

static void what_an_adapter_adds_is_the_product(void **state)
{
    (void)state;
    each_isa(check_sums, 41);
}

/* A row's bits do not depend on the rows beside it. */
static void check_rows_alone(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        lora_case_t c;
        make_case(random, &c);
        const uint32_t row = test_random_below(random, c.rows);
        lora_case_t one = c;
        one.seqs[0] = (k_seq_t){.rows = 1, .adapter = c.adapter_of[row]};
        one.n_seqs = one.rows = 1;
        one.x = c.x + (size_t)row * c.in;
        one.y = test_malloc(c.out * sizeof(float));
        memcpy(one.y, c.y + (size_t)row * c.out, c.out * sizeof(float));
        run_case(stream, &c);
        run_case(stream, &one);
        assert_memory_equal(one.y, c.y + (size_t)row * c.out, c.out * sizeof(float));
        test_free(one.y);
        free_case(&c);
    }
    k_stream_destroy(stream);
}

static void a_row_alone_has_the_same_bits(void **state)
{
    (void)state;
    each_isa(check_rows_alone, 42);
}

/* ---- heads ----------------------------------------------------------------------------------- */

enum { HEADS = 3 };

/* A part of each row's x and y to each head; low of all [HEADS · rows, MAX_RANK]. */
static void run_heads(k_stream_t *stream, const lora_case_t *c, const k_lora_t *tables,
                      uint32_t n_heads, uint32_t first, float *low, float *y)
{
    const uint32_t in = c->in / HEADS;
    const uint32_t out = c->out / HEADS;
    const k_lora_rows_t rows = {.table = tables + (size_t)first * ADAPTERS,
                                .n_heads = n_heads,
                                .table_step = ADAPTERS,
                                .seqs = c->seqs,
                                .n_seqs = c->n_seqs,
                                .rows = c->rows};
    const k_lora_shrink_args_t shrink = {.of = rows,
                                         .x_step = in,
                                         .x = c->x + (size_t)first * in,
                                         .x_stride = c->in,
                                         .in = in,
                                         .low = low,
                                         .max_rank = MAX_RANK};
    const k_lora_expand_args_t expand = {.of = rows,
                                         .y_step = out,
                                         .low = low,
                                         .in = in,
                                         .max_rank = MAX_RANK,
                                         .y = y + (size_t)first * out,
                                         .y_dtype = K_F32,
                                         .y_stride = c->out,
                                         .out = out};
    stream->ops->lora_shrink(stream, &shrink);
    stream->ops->lora_expand(stream, &expand);
}

static void check_heads(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        lora_case_t c;
        k_lora_t tables[HEADS][ADAPTERS];
        make_case(random, &c);
        for (uint32_t i = 0; i < HEADS * ADAPTERS; i++) {
            tables[i / ADAPTERS][i % ADAPTERS] = c.table[(i + i / ADAPTERS) % ADAPTERS];
            tables[i / ADAPTERS][i % ADAPTERS].scale = 0.25f * (float)(i + 1);
        }
        const size_t n = (size_t)c.rows * c.out;
        float *low =
            random_floats(random, k_lora_low_floats(c.in, (size_t)HEADS * c.rows, MAX_RANK));
        float *one = test_malloc(n * sizeof(float));
        memcpy(one, c.y, n * sizeof(float));
        run_heads(stream, &c, tables[0], HEADS, 0, low, c.y);
        for (uint32_t head = 0; head < HEADS; head++) {
            run_heads(stream, &c, tables[0], 1, head, low, one);
        }
        assert_memory_equal(one, c.y, n * sizeof(float));
        test_free(one);
        test_free(low);
        free_case(&c);
    }
    k_stream_destroy(stream);
}

static void heads_at_once_have_the_bits_of_each_alone(void **state)
{
    (void)state;
    each_isa(check_heads, 44);
}

/* ---- experts --------------------------------------------------------------------------------- */

enum { EXPERTS = 5, USED = 2 };

/* Every row has USED experts; slots lie expert by expert, and the first and last are elsewhere. */
typedef struct experts_case {
    lora_case_t rows; /* its y and out are those of slots */
    k_lora_t table[EXPERTS][ADAPTERS];
    uint32_t offsets[EXPERTS + 1];
    uint32_t row_of_slot[64 * USED];
    uint32_t expert_of[64 * USED];
    float *x;
    float *y;
    float *low;
} experts_case_t;

static void make_experts(test_random_t *random, bool has_rows, experts_case_t *c)
{
    make_case(random, &c->rows);
    uint32_t slot = 0;
    for (uint32_t e = 0; e < EXPERTS; e++) {
        c->offsets[e] = slot;
        for (uint32_t row = 0; row < c->rows.rows; row++) {
            if ((row + e) % EXPERTS < USED) {
                c->expert_of[slot] = e;
                c->row_of_slot[slot++] = row;
            }
        }
        memcpy(c->table[e], c->rows.table, sizeof(c->table[e]));
        for (uint32_t i = 0; i < ADAPTERS; i++) {
            c->table[e][i].scale = 0.25f * (float)(e + 1);
        }
    }
    c->offsets[EXPERTS] = slot;
    const size_t rows = has_rows ? c->rows.rows : slot;
    c->x = random_floats(random, rows * c->rows.in);
    c->y = random_floats(random, (size_t)slot * c->rows.out);
    c->low = random_floats(random, k_lora_low_floats(c->rows.in, slot, MAX_RANK));
}

static void run_experts(k_stream_t *stream, bool has_rows, experts_case_t *c)
{
    const k_lora_experts_args_t args = {.table = c->table[1],
                                        .places = ADAPTERS,
                                        .seqs = c->rows.seqs,
                                        .n_seqs = c->rows.n_seqs,
                                        .offsets = c->offsets + 1,
                                        .row_of_slot = c->row_of_slot,
                                        .n_experts = EXPERTS - 2,
                                        .slots = c->offsets[EXPERTS],
                                        .x = c->x,
                                        .x_stride = c->rows.in,
                                        .has_rows = has_rows,
                                        .in = c->rows.in,
                                        .low = c->low,
                                        .max_rank = MAX_RANK,
                                        .y = c->y,
                                        .y_stride = c->rows.out,
                                        .out = c->rows.out};
    stream->ops->lora_experts(stream, &args);
}

static double added_to_slot(const experts_case_t *c, bool has_rows, uint32_t slot, uint32_t column,
                            double *size_out)
{
    const uint32_t row = c->row_of_slot[slot];
    const uint32_t expert = c->expert_of[slot];
    const uint32_t adapter = c->rows.adapter_of[row];
    *size_out = 0;
    return adapter == 0 || expert == 0 || expert == EXPERTS - 1
               ? 0
               : added_to(&c->rows, &c->table[expert][adapter - 1],
                          c->x + (size_t)(has_rows ? row : slot) * c->rows.in, column, size_out);
}

static void check_experts(const char *isa, test_random_t *random)
{
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        experts_case_t *c = test_malloc(sizeof(*c));
        const bool has_rows = round % 2 == 0;
        make_experts(random, has_rows, c);
        const size_t n = (size_t)c->offsets[EXPERTS] * c->rows.out;
        float *before = test_malloc((n + 1) * sizeof(float));
        memcpy(before, c->y, n * sizeof(float));
        run_experts(stream, has_rows, c);
        for (size_t at = 0; at < n; at++) {
            double size;
            const uint32_t column = (uint32_t)(at % c->rows.out);
            const double added =
                added_to_slot(c, has_rows, (uint32_t)(at / c->rows.out), column, &size);
            const double expected = (double)before[at] + added;
            if (!(fabs((double)c->y[at] - expected) <= 2e-4 * (size + fabs(expected)) + 1e-6)) {
                fail_msg("slot %zu column %u: %g, not %g", at / c->rows.out, column,
                         (double)c->y[at], expected);
            }
        }
        test_free(before);
        test_free(c->x);
        test_free(c->y);
        test_free(c->low);
        free_case(&c->rows);
        test_free(c);
    }
    k_stream_destroy(stream);
}

static void what_is_added_to_experts_is_each_expert_s_product(void **state)
{
    (void)state;
    each_isa(check_experts, 43);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_an_adapter_adds_is_the_product),
        cmocka_unit_test(a_row_alone_has_the_same_bits),
        cmocka_unit_test(heads_at_once_have_the_bits_of_each_alone),
        cmocka_unit_test(what_is_added_to_experts_is_each_expert_s_product),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
