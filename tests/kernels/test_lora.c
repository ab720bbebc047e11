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
    const k_lora_shrink_args_t shrink = {.table = c->table,
                                         .seqs = c->seqs,
                                         .n_seqs = c->n_seqs,
                                         .rows = c->rows,
                                         .x = c->x,
                                         .x_stride = c->in,
                                         .in = c->in,
                                         .low = c->low,
                                         .max_rank = MAX_RANK};
    const k_lora_expand_args_t expand = {.table = c->table,
                                         .seqs = c->seqs,
                                         .n_seqs = c->n_seqs,
                                         .rows = c->rows,
                                         .low = c->low,
                                         .max_rank = MAX_RANK,
                                         .y = c->y,
                                         .y_dtype = K_F32,
                                         .y_stride = c->out,
                                         .out = c->out};
    stream->ops->lora_shrink(stream, &shrink);
    stream->ops->lora_expand(stream, &expand);
}

static double added_to(const lora_case_t *c, uint32_t row, uint32_t column, double *size_out)
{
    const k_lora_t *lora = &c->table[c->adapter_of[row] - 1];
    double sum = 0;
    *size_out = 0;
    for (uint32_t r = 0; r < lora->rank; r++) {
        double low = 0;
        for (uint32_t i = 0; i < c->in; i++) {
            low += (double)lora->a[(size_t)r * c->in + i] * (double)c->x[(size_t)row * c->in + i];
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
            const double expected = (double)before[at] + added_to(&c, row, at % c.out, &size);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_an_adapter_adds_is_the_product),
        cmocka_unit_test(a_row_alone_has_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
