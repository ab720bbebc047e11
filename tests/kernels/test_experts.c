/* SPDX-License-Identifier: Apache-2.0 */
/* Choosing experts and computing them, against a naive choice and the plain linear. */
#include "tests/kernels/kernels_support.h"

enum { MAX_ROWS = 40, MAX_EXPERTS = 32, MAX_USED = 8, DIM = 96, OUT = 40 };

typedef struct routing {
    k_route_args_t args;
    float logits[MAX_ROWS * MAX_EXPERTS];
    float bias[MAX_EXPERTS];
    float weights[MAX_ROWS * MAX_USED];
    uint32_t slot_of[MAX_ROWS * MAX_USED];
    uint32_t row_of_slot[MAX_ROWS * MAX_USED];
    uint32_t offsets[MAX_EXPERTS + 1];
} routing_t;

static void random_routing(test_random_t *random, routing_t *r)
{
    const uint32_t groups = 1U << test_random_below(random, 3);
    const uint32_t experts = groups * test_random_between(random, 2, MAX_EXPERTS / 4);
    const uint32_t groups_used = test_random_between(random, 1, groups);
    const uint32_t most = experts / groups * groups_used;
    r->args = (k_route_args_t){
        .logits = r->logits,
        .bias = test_random_below(random, 2) == 0 ? r->bias : NULL,
        .logits_stride = experts,
        .kind = test_random_below(random, 2) == 0 ? K_ROUTE_SOFTMAX : K_ROUTE_SIGMOID,
        .rows = test_random_between(random, 1, MAX_ROWS),
        .experts = experts,
        .used = test_random_between(random, 1, most < MAX_USED ? most : MAX_USED),
        .n_groups = groups,
        .groups_used = groups_used,
        .renormalizes = test_random_below(random, 2) == 0,
        .scale = 1.5f,
        .weights = r->weights,
        .slot_of = r->slot_of,
        .row_of_slot = r->row_of_slot,
        .offsets = r->offsets,
    };
    for (uint32_t i = 0; i < MAX_ROWS * MAX_EXPERTS; i++) {
        r->logits[i] = 4 * random_float(random);
    }
    for (uint32_t i = 0; i < MAX_EXPERTS; i++) {
        r->bias[i] = random_float(random);
    }
}

static double score(const routing_t *r, uint32_t row, uint32_t expert)
{
    const float *logits = r->logits + row * r->args.experts;
    double sum = 0;
    for (uint32_t e = 0; e < r->args.experts; e++) {
        sum += exp((double)logits[e]);
    }
    return r->args.kind == K_ROUTE_SIGMOID ? 1 / (1 + exp(-(double)logits[expert]))
                                           : exp((double)logits[expert]) / sum;
}

static double choice(const routing_t *r, uint32_t row, uint32_t expert)
{
    return score(r, row, expert) + (r->args.bias == NULL ? 0 : (double)r->bias[expert]);
}

static double group_score(const routing_t *r, uint32_t row, uint32_t group)
{
    const uint32_t size = r->args.experts / r->args.n_groups;
    double best = -INFINITY;
    double second = -INFINITY;
    for (uint32_t e = group * size; e < (group + 1) * size; e++) {
        const double value = choice(r, row, e);
        second = value > best ? best : fmax(second, value);
        best = fmax(best, value);
    }
    return r->args.bias != NULL && size > 1 ? best + second : best;
}

/* Whether fewer than groups_used groups are better. */
static bool is_group_kept(const routing_t *r, uint32_t row, uint32_t group)
{
    uint32_t better = 0;
    for (uint32_t g = 0; g < r->args.n_groups; g++) {
        better += group_score(r, row, g) > group_score(r, row, group);
    }
    return better < r->args.groups_used;
}

static bool is_chosen(const routing_t *r, uint32_t row, uint32_t expert)
{
    const uint32_t size = r->args.experts / r->args.n_groups;
    uint32_t better = 0;
    for (uint32_t e = 0; e < r->args.experts; e++) {
        better += is_group_kept(r, row, e / size) && choice(r, row, e) > choice(r, row, expert);
    }
    return is_group_kept(r, row, expert / size) && better < r->args.used;
}

static uint32_t expert_of_slot(const routing_t *r, uint32_t slot)
{
    uint32_t e = 0;
    while (slot >= r->offsets[e + 1]) {
        e++;
    }
    return e;
}

static void check_row(const routing_t *r, uint32_t row)
{
    const uint32_t used = r->args.used;
    double sum = 0;
    for (uint32_t j = 0; j < used; j++) {
        sum += score(r, row, expert_of_slot(r, r->slot_of[row * used + j]));
    }
    for (uint32_t j = 0; j < used; j++) {
        const uint32_t slot = r->slot_of[row * used + j];
        const uint32_t expert = expert_of_slot(r, slot);
        assert_int_equal(r->row_of_slot[slot], row);
        assert_true(is_chosen(r, row, expert));
        const double weight =
            score(r, row, expert) / (r->args.renormalizes ? sum : 1) * (double)r->args.scale;
        assert_true(fabs((double)r->weights[row * used + j] - weight) < 1e-5 * weight);
    }
}

static void check_routes(const char *isa, test_random_t *random)
{
    static routing_t r;
    k_stream_t *stream = open_stream(isa, 2, 1, 1);
    for (uint32_t round = 0; round < test_rounds(2000); round++) {
        random_routing(random, &r);
        stream->ops->route(stream, &r.args);
        assert_int_equal(r.offsets[0], 0);
        assert_int_equal(r.offsets[r.args.experts], r.args.rows * r.args.used);
        for (uint32_t row = 0; row < r.args.rows; row++) {
            check_row(&r, row);
        }
        for (uint32_t s = 1; s < r.args.rows * r.args.used; s++) {
            assert_true(expert_of_slot(&r, s - 1) < expert_of_slot(&r, s) ||
                        r.row_of_slot[s - 1] < r.row_of_slot[s]);
        }
    }
    k_stream_destroy(stream);
}

static void route_chooses_what_a_naive_choice_does(void **state)
{
    (void)state;
    each_isa(check_routes, 41);
}

/* Whatever a file makes of its weights: an expert has at most one slot of a row. */
static void check_nans(const char *isa, test_random_t *random)
{
    static routing_t r;
    k_stream_t *stream = open_stream(isa, 1, 1, 1);
    for (uint32_t round = 0; round < test_rounds(200); round++) {
        random_routing(random, &r);
        const uint32_t some = test_random_between(random, 1, 4);
        for (uint32_t i = 0; i < MAX_ROWS * MAX_EXPERTS; i++) {
            r.logits[i] = i % some == 0 ? NAN : INFINITY;
        }
        stream->ops->route(stream, &r.args);
        assert_int_equal(r.offsets[r.args.experts], r.args.rows * r.args.used);
        for (uint32_t s = 1; s < r.args.rows * r.args.used; s++) {
            assert_true(expert_of_slot(&r, s - 1) < expert_of_slot(&r, s) ||
                        r.row_of_slot[s - 1] < r.row_of_slot[s]);
        }
    }
    k_stream_destroy(stream);
}

static void route_never_chooses_an_expert_twice_even_without_numbers(void **state)
{
    (void)state;
    each_isa(check_nans, 43);
}

/* A layer of experts, packed. */
typedef struct layer {
    k_weight_t experts[MAX_EXPERTS];
    weft_mem_t memory[MAX_EXPERTS];
    float *bias;
    uint32_t n;
} layer_t;

static k_weight_t pack_expert(k_stream_t *stream, test_random_t *random, k_dtype_t dtype,
                              uint32_t rows, uint32_t columns, weft_mem_t *mem_out)
{
    uint8_t *source = random_weights(random, dtype, (size_t)rows * columns);
    const k_weight_part_t part = {.data = source, .rows = rows};
    const size_t bytes = stream->ops->weight_bytes(dtype, K_WEIGHT_ROWS, rows, columns);
    assert_status(open_cpu()->ops->alloc(open_cpu(), bytes, 0, mem_out), WEFT_OK);
    stream->ops->weight_pack(stream, dtype, K_WEIGHT_ROWS, columns, &part, 1, mem_out->addr);
    test_free(source);
    return (k_weight_t){.dtype = dtype, .rows = rows, .columns = columns, .data = mem_out->addr};
}

static void make_layer(k_stream_t *stream, test_random_t *random, uint32_t n, k_dtype_t dtype,
                       layer_t *layer)
{
    layer->n = n;
    layer->bias = random_floats(random, (size_t)n * OUT);
    for (uint32_t e = 0; e < n; e++) {
        layer->experts[e] = pack_expert(stream, random, dtype, OUT, DIM, &layer->memory[e]);
    }
}

static void free_layer(layer_t *layer)
{
    for (uint32_t e = 0; e < layer->n; e++) {
        open_cpu()->ops->free(open_cpu(), &layer->memory[e]);
    }
    test_free(layer->bias);
}

/* Experts [first, first + n), as a rank has them. */
typedef struct run {
    uint32_t first;
    uint32_t n;
    bool replaces;
} run_t;

/* y [rows, OUT] += the experts' of rows [first, first + rows) */
static void run_experts(k_stream_t *stream, const layer_t *layer, const run_t *run,
                        const routing_t *all, uint32_t first, uint32_t rows, const float *x,
                        float *y)
{
    static routing_t r;
    static float gathered[MAX_ROWS * MAX_USED * DIM];
    static float out[MAX_ROWS * MAX_USED * OUT];
    for (size_t i = 0; i < WEFT_ARRAY_LEN(out); i++) {
        out[i] = NAN; /* what is not computed must not count */
    }
    r = *all;
    r.args.logits = all->logits + first * all->args.experts;
    r.args.bias = all->args.bias == NULL ? NULL : r.bias;
    r.args.rows = rows;
    r.args.weights = r.weights;
    r.args.slot_of = r.slot_of;
    r.args.row_of_slot = r.row_of_slot;
    r.args.offsets = r.offsets;
    stream->ops->route(stream, &r.args);
    const k_expert_linear_args_t linear = {.experts = layer->experts + run->first,
                                           .bias = layer->bias + (size_t)run->first * OUT,
                                           .offsets = r.offsets + run->first,
                                           .row_of_slot = r.row_of_slot,
                                           .x = x + (size_t)first * DIM,
                                           .gathered = gathered,
                                           .y = out,
                                           .n_experts = run->n,
                                           .slots = rows * r.args.used,
                                           .x_stride = DIM,
                                           .y_stride = OUT};
    stream->ops->expert_linear(stream, &linear);
    const k_combine_args_t combine = {.x = out,
                                      .weights = r.weights,
                                      .slot_of = r.slot_of,
                                      .offsets = run->n < layer->n ? r.offsets + run->first : NULL,
                                      .n_experts = run->n,
                                      .y = y + (size_t)first * OUT,
                                      .rows = rows,
                                      .used = r.args.used,
                                      .dim = OUT,
                                      .x_stride = OUT,
                                      .y_stride = OUT,
                                      .replaces = run->replaces};
    stream->ops->combine(stream, &combine);
    assert_status(k_stream_sync(stream), WEFT_OK);
}

static void run_layer(k_stream_t *stream, const layer_t *layer, const routing_t *all,
                      uint32_t first, uint32_t rows, const float *x, float *y)
{
    const run_t run = {0, layer->n, false};
    run_experts(stream, layer, &run, all, first, rows, x, y);
}

/* Decision 7: alone, in pieces, on other numbers of threads, a row's bits are the same. */
static void check_alone(const char *isa, test_random_t *random)
{
    static const k_dtype_t dtypes[] = {K_F32, K_BF16, K_Q8_0, K_Q4_0, K_MXFP4};
    static routing_t r;
    k_stream_t *streams[] = {open_stream(isa, 1, 300, 768), open_stream(isa, 3, 300, 768)};
    for (uint32_t round = 0; round < test_rounds(400); round++) {
        layer_t layer;
        random_routing(random, &r);
        make_layer(streams[0], random, r.args.experts, dtypes[round % WEFT_ARRAY_LEN(dtypes)],
                   &layer);
        float *x = random_floats(random, MAX_ROWS * DIM);
        float *whole = test_calloc(MAX_ROWS * OUT, sizeof(*whole));
        float *parts = test_calloc(MAX_ROWS * OUT, sizeof(*parts));
        run_layer(streams[0], &layer, &r, 0, r.args.rows, x, whole);
        for (uint32_t row = 0; row < r.args.rows;) {
            const uint32_t left = r.args.rows - row;
            const uint32_t rows = test_random_between(random, 1, left < 5 ? left : 5);
            run_layer(streams[row % 2], &layer, &r, row, rows, x, parts);
            row += rows;
        }
        assert_same_bits(parts, whole, (size_t)r.args.rows * OUT, "experts");
        test_free(x);
        test_free(whole);
        test_free(parts);
        free_layer(&layer);
    }
    k_stream_destroy(streams[0]);
    k_stream_destroy(streams[1]);
}

static void experts_give_a_row_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    each_isa(check_alone, 42);
}

/* More experts, and more rows of some, than the kernels take at a time; some have none. */
static void check_many(const char *isa, test_random_t *random)
{
    enum { EXPERTS = 150, ROWS = 700 };
    static const k_dtype_t dtypes[] = {K_F32, K_BF16, K_Q4_1, K_Q6_K, K_F8_32, K_I4_32, K_IQ2_S};
    static uint32_t offsets[EXPERTS + 1];
    k_stream_t *stream = open_stream(isa, 3, ROWS, 768);
    for (uint32_t round = 0; round < test_rounds(14); round++) {
        const k_dtype_t dtype = dtypes[round % WEFT_ARRAY_LEN(dtypes)];
        const uint32_t block = k_dtype_info(dtype)->block_elements;
        const uint32_t columns = block > 32 ? block : 64;
        const uint32_t out = test_random_between(random, 1, 70);
        const uint32_t favourite = test_random_below(random, EXPERTS);
        k_weight_t experts[2]; /* by turns */
        weft_mem_t memory[2];
        for (uint32_t i = 0; i < 2; i++) {
            experts[i] = pack_expert(stream, random, dtype, out, columns, &memory[i]);
        }
        static k_weight_t all[EXPERTS];
        static uint32_t row_of_slot[3 * ROWS];
        for (uint32_t e = 0; e < EXPERTS; e++) {
            all[e] = experts[e % 2];
            offsets[e + 1] = offsets[e] + (e == favourite ? ROWS : test_random_below(random, 10));
        }
        const uint32_t slots = offsets[EXPERTS];
        assert_true(slots <= WEFT_ARRAY_LEN(row_of_slot));
        for (uint32_t s = 0; s < slots; s++) {
            row_of_slot[s] = test_random_below(random, ROWS);
        }
        float *x = random_floats(random, (size_t)ROWS * columns);
        float *gathered = test_malloc((size_t)slots * columns * sizeof(*gathered));
        float *bias = random_floats(random, (size_t)EXPERTS * out);
        float *y = test_malloc((size_t)slots * out * sizeof(*y));
        float *alone = test_malloc((size_t)out * sizeof(*alone));
        const k_expert_linear_args_t args = {.experts = all,
                                             .bias = bias,
                                             .offsets = offsets,
                                             .row_of_slot = row_of_slot,
                                             .x = x,
                                             .gathered = gathered,
                                             .y = y,
                                             .n_experts = EXPERTS,
                                             .slots = slots,
                                             .x_stride = columns,
                                             .y_stride = out};
        stream->ops->expert_linear(stream, &args);
        for (uint32_t s = 0, e = 0; s < slots; s++) {
            while (s >= offsets[e + 1]) {
                e++;
            }
            const k_linear_args_t linear = {.w = &all[e],
                                            .bias = bias + (size_t)e * out,
                                            .x = x + (size_t)row_of_slot[s] * columns,
                                            .y = alone,
                                            .y_dtype = K_F32,
                                            .rows = 1,
                                            .x_stride = columns,
                                            .y_stride = out};
            stream->ops->linear(stream, &linear);
            assert_same_bits(y + (size_t)s * out, alone, out, k_dtype_info(dtype)->name);
        }
        test_free(x);
        test_free(gathered);
        test_free(bias);
        test_free(y);
        test_free(alone);
        for (uint32_t i = 0; i < 2 && memory[i].addr != NULL; i++) {
            open_cpu()->ops->free(open_cpu(), &memory[i]);
        }
    }
    k_stream_destroy(stream);
}

static void experts_are_linears_of_their_rows(void **state)
{
    (void)state;
    each_isa(check_many, 45);
}

/* Dealt out over ranks: the first adds its experts to what is there, the second's replace. */
static void check_runs(const char *isa, test_random_t *random)
{
    static routing_t r;
    k_stream_t *stream = open_stream(isa, 2, 300, 768);
    for (uint32_t round = 0; round < test_rounds(100); round++) {
        layer_t layer;
        random_routing(random, &r);
        make_layer(stream, random, r.args.experts, K_F32, &layer);
        const uint32_t cut = test_random_between(random, 1, layer.n - 1);
        const run_t runs[] = {{0, cut, false}, {cut, layer.n - cut, true}};
        const size_t n = (size_t)r.args.rows * OUT;
        float *x = random_floats(random, MAX_ROWS * DIM);
        float *whole = random_floats(random, n);
        float *parts[] = {test_calloc(n, sizeof(float)), random_floats(random, n)};
        memcpy(parts[0], whole, n * sizeof(float));
        run_layer(stream, &layer, &r, 0, r.args.rows, x, whole);
        for (uint32_t i = 0; i < 2; i++) {
            run_experts(stream, &layer, &runs[i], &r, 0, r.args.rows, x, parts[i]);
        }
        for (size_t i = 0; i < n; i++) {
            const double sum = (double)parts[0][i] + (double)parts[1][i];
            assert_true(fabs(sum - (double)whole[i]) <= 1e-5 * (1 + fabs(sum)));
        }
        test_free(x);
        test_free(whole);
        test_free(parts[0]);
        test_free(parts[1]);
        free_layer(&layer);
    }
    k_stream_destroy(stream);
}

static void runs_of_experts_add_up_to_all_of_them(void **state)
{
    (void)state;
    each_isa(check_runs, 44);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(route_chooses_what_a_naive_choice_does),
        cmocka_unit_test(route_never_chooses_an_expert_twice_even_without_numbers),
        cmocka_unit_test(experts_give_a_row_the_same_bits_in_any_batch),
        cmocka_unit_test(experts_are_linears_of_their_rows),
        cmocka_unit_test(runs_of_experts_add_up_to_all_of_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
