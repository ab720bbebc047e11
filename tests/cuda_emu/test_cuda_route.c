/* SPDX-License-Identifier: Apache-2.0 */
/* Routing to experts on the GPU against kernels/ref, and the sum of what they gave. */
#include "tests/cuda_emu/device_arrays.h"

enum { ROUNDS = 200, MAX_ROWS = 40, MAX_USED = 12 };

/* What route writes. */
typedef struct routed {
    float *weights;        /* [rows, used] */
    uint32_t *slot_of;     /* [rows, used] */
    uint32_t *row_of_slot; /* [rows · used] */
    uint32_t *offsets;     /* [experts + 1] */
} routed_t;

/* Some of DeepSeek's groups, some of Mixtral's few experts, some of Qwen's many. */
static k_route_args_t random_args(test_random_t *random)
{
    k_route_args_t args = {
        .kind = test_random_below(random, 2) == 0 ? K_ROUTE_SOFTMAX : K_ROUTE_SIGMOID,
        .rows = test_random_between(random, 1, MAX_ROWS),
        .experts = test_random_between(random, 1, 70),
        .renormalizes = test_random_below(random, 2) == 0,
        .scale = test_random_below(random, 2) == 0 ? 1 : 2.5f,
    };
    args.used = test_random_between(random, 1, args.experts < MAX_USED ? args.experts : MAX_USED);
    if (test_random_below(random, 3) == 0) {
        args.n_groups = test_random_between(random, 2, 6);
        args.groups_used = test_random_between(random, 1, args.n_groups);
        args.experts = args.n_groups * test_random_between(random, 1, 9);
        const uint32_t choosable = args.experts / args.n_groups * args.groups_used;
        args.used = test_random_between(random, 1, choosable < MAX_USED ? choosable : MAX_USED);
    }
    args.logits_stride = args.experts + test_random_below(random, 4);
    return args;
}

/* A few characters: all different by more than a rounding, or full of exact ties. */
static float *random_logits(test_random_t *random, const k_route_args_t *args)
{
    const size_t n = args->rows * args->logits_stride;
    const bool ties = test_random_below(random, 3) == 0;
    float *logits = random_floats(random, n);
    for (size_t i = 0; i < n; i++) {
        logits[i] = ties ? roundf(2 * logits[i]) : roundf(logits[i] * 40000) / 10000;
    }
    return logits;
}

static routed_t routed_on_host(const k_route_args_t *args)
{
    const size_t slots = (size_t)args->rows * args->used;
    return (routed_t){test_calloc(slots, sizeof(float)), test_calloc(slots, sizeof(uint32_t)),
                      test_calloc(slots, sizeof(uint32_t)),
                      test_calloc(args->experts + 1, sizeof(uint32_t))};
}

static void routed_free(routed_t *routed)
{
    test_free(routed->weights);
    test_free(routed->slot_of);
    test_free(routed->row_of_slot);
    test_free(routed->offsets);
}

static routed_t route_on_cpu(k_route_args_t args)
{
    k_stream_t *stream = open_stream("ref", 1, 1, 1);
    const routed_t routed = routed_on_host(&args);
    args.weights = routed.weights;
    args.slot_of = routed.slot_of;
    args.row_of_slot = routed.row_of_slot;
    args.offsets = routed.offsets;
    stream->ops->route(stream, &args);
    k_stream_destroy(stream);
    return routed;
}

static routed_t route_on_gpu(k_route_args_t args)
{
    const size_t slots = (size_t)args.rows * args.used;
    const k_cuda_launch_t at = device_launch(slots * sizeof(uint32_t));
    args.logits = device_array(args.logits, args.rows * args.logits_stride * sizeof(float));
    args.bias = args.bias == NULL ? NULL : device_array(args.bias, args.experts * sizeof(float));
    args.weights = device_array(NULL, slots * sizeof(float));
    args.slot_of = device_array(NULL, slots * sizeof(uint32_t));
    args.row_of_slot = device_array(NULL, slots * sizeof(uint32_t));
    args.offsets = device_array(NULL, (args.experts + 1) * sizeof(uint32_t));
    assert_cuda(k_cuda_route(&at, &args));
    const routed_t routed = {cuda_download(args.weights, slots * sizeof(float)),
                             cuda_download(args.slot_of, slots * sizeof(uint32_t)),
                             cuda_download(args.row_of_slot, slots * sizeof(uint32_t)),
                             cuda_download(args.offsets, (args.experts + 1) * sizeof(uint32_t))};
    device_free_all();
    return routed;
}

static void assert_same_slots(const k_route_args_t *args, const routed_t *got,
                              const routed_t *expected)
{
    const size_t slots = (size_t)args->rows * args->used;
    assert_memory_equal(got->offsets, expected->offsets, (args->experts + 1) * sizeof(uint32_t));
    assert_memory_equal(got->slot_of, expected->slot_of, slots * sizeof(uint32_t));
    assert_memory_equal(got->row_of_slot, expected->row_of_slot, slots * sizeof(uint32_t));
}

static void route_round(test_random_t *random, k_route_args_t args)
{
    const size_t slots = (size_t)args.rows * args.used;
    float *logits = random_logits(random, &args);
    float *bias = random_floats(random, args.experts);
    for (uint32_t e = 0; e < args.experts; e++) {
        bias[e] = roundf(bias[e] * 8) / 8;
    }
    args.logits = logits;
    args.bias = args.kind == K_ROUTE_SIGMOID && test_random_below(random, 2) == 0 ? bias : NULL;
    routed_t expected = route_on_cpu(args);
    routed_t got = route_on_gpu(args);
    assert_same_slots(&args, &got, &expected);
    for (size_t i = 0; i < slots; i++) {
        if (!(fabsf(got.weights[i] - expected.weights[i]) <= 1e-5f * expected.weights[i])) {
            fail_msg("weight %zu is %g, not %g", i, (double)got.weights[i],
                     (double)expected.weights[i]);
        }
    }
    routed_free(&got);
    routed_free(&expected);
    test_free(bias);
    test_free(logits);
}

static void route_orders_slots_as_the_reference_does(void **state)
{
    (void)state;
    test_random_t random = {test_seed(81)};
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        route_round(&random, random_args(&random));
    }
    /* More slots than a block has threads, more experts than a warp has lanes. */
    k_route_args_t many = {.kind = K_ROUTE_SOFTMAX,
                           .rows = 90,
                           .experts = 130,
                           .used = 8,
                           .logits_stride = 130,
                           .scale = 1};
    route_round(&random, many);
}

/* Rows of NaN, of ∓infinity, and with some NaN among numbers: what the reference makes of them. */
static void rows_without_a_number_choose_no_expert_twice(void **state)
{
    enum { ROWS = 5, EXPERTS = 12 };
    (void)state;
    static float logits[ROWS * EXPERTS];
    for (size_t i = 0; i < WEFT_ARRAY_LEN(logits); i++) {
        const float rows[ROWS] = {NAN, -INFINITY, INFINITY, i % 3 == 0 ? NAN : (float)(i % 7),
                                  i % 4 == 0 ? INFINITY : 1};
        logits[i] = rows[i / EXPERTS];
    }
    for (uint32_t round = 0; round < 4; round++) {
        const uint32_t groups = round % 2 == 0 ? 1 : 4;
        const k_route_args_t args = {.logits = logits,
                                     .kind = round < 2 ? K_ROUTE_SIGMOID : K_ROUTE_SOFTMAX,
                                     .rows = ROWS,
                                     .experts = EXPERTS,
                                     .used = 5,
                                     .n_groups = groups,
                                     .groups_used = groups / 2,
                                     .logits_stride = EXPERTS,
                                     .scale = 1};
        routed_t expected = route_on_cpu(args);
        routed_t got = route_on_gpu(args);
        assert_same_slots(&args, &got, &expected);
        assert_int_equal(got.offsets[EXPERTS], ROWS * args.used);
        routed_free(&got);
        routed_free(&expected);
    }
}

static void combine_adds_weighted_slots(void **state)
{
    (void)state;
    test_random_t random = {test_seed(82)};
    const k_cuda_launch_t at = device_launch(0);
    for (uint32_t round = 0; round < test_rounds(ROUNDS); round++) {
        const uint32_t rows = test_random_between(&random, 1, 5);
        const uint32_t used = test_random_between(&random, 1, 8);
        const uint32_t dim = test_random_between(&random, 1, 40) * (round % 2 == 0 ? 8 : 3);
        const size_t stride = dim + (size_t)test_random_below(&random, 2) * 8;
        const uint32_t slots = rows * used;
        float *x = random_floats(&random, slots * stride);
        uint16_t *x_bf16 = bf16_of(x, slots * stride);
        float *weights = random_floats(&random, slots);
        float *before = random_floats(&random, rows * stride);
        uint32_t slot_of[40];
        for (uint32_t i = 0; i < slots; i++) {
            slot_of[i] = (i * 7 + round) % slots;
        }
        /* Sometimes slots [begin, end) alone are here, and sometimes y is replaced. */
        const bool is_part = round % 3 == 0;
        const bool replaces = round % 5 == 0;
        const uint32_t begin = is_part ? test_random_below(&random, slots) : 0;
        const uint32_t end = is_part ? test_random_between(&random, begin, slots) : slots;
        const uint32_t offsets[] = {begin, begin, end};
        float *y = device_array(before, rows * stride * sizeof(*y));
        const k_combine_args_t args = {.x = device_array(x_bf16, slots * stride * sizeof(*x_bf16)),
                                       .weights = device_array(weights, slots * sizeof(*weights)),
                                       .slot_of = device_array(slot_of, sizeof(slot_of)),
                                       .offsets =
                                           is_part ? device_array(offsets, sizeof(offsets)) : NULL,
                                       .n_experts = 2,
                                       .y = y,
                                       .rows = rows,
                                       .used = used,
                                       .dim = dim,
                                       .x_stride = stride,
                                       .y_stride = stride,
                                       .replaces = replaces};
        assert_cuda(k_cuda_combine(&at, &args));
        float *got = cuda_download(y, rows * stride * sizeof(*got));
        for (uint32_t i = 0; i < rows * stride; i++) {
            const uint32_t row = i / (uint32_t)stride;
            const bool is_kept = !replaces || i % stride >= dim;
            double expected = is_kept ? (double)before[i] : 0;
            for (uint32_t j = 0; i % stride < dim && j < used; j++) {
                const uint32_t slot = slot_of[row * used + j];
                if (slot >= begin && slot < end) {
                    expected +=
                        (double)weights[row * used + j] * (double)x[slot * stride + i % stride];
                }
            }
            if (!(fabs((double)got[i] - expected) <= 1e-6 * (1 + used))) {
                fail_msg("combine is %g, not %g", (double)got[i], expected);
            }
        }
        device_free_all();
        test_free(got);
        test_free(before);
        test_free(weights);
        test_free(x_bf16);
        test_free(x);
    }
}

int main(void)
{
    cuda_skip_without_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(route_orders_slots_as_the_reference_does),
        cmocka_unit_test(rows_without_a_number_choose_no_expert_twice),
        cmocka_unit_test(combine_adds_weighted_slots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
