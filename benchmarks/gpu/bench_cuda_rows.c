/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_cuda_rows: the element-wise ops, adapters and sampling at the shapes of an 8B model, as launched
 * from a CUDA graph: microseconds an op, median of REPLAYS, and GB/s of the bytes it must read and write.
 *
 *   bench_cuda_rows            one line a measurement: op, rows, µs, GB/s
 *   bench_cuda_rows adapters   these alone; also rows, sampling
 */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/k_cuda.h"

enum {
    HIDDEN = 4096,
    INTERMEDIATE = 14336,
    HEADS = 32,
    HEAD_DIM = 128,
    VOCAB = 128256,
    HISTORY = 2048,
    LAUNCHES = 24, /* in a graph */
    REPLAYS = 15,
    MAX_ROWS = 2048,
    MAX_SAMPLED = 256,
};

/* Buffers of one size that ops take in turn, so that they do not find the last one's in L2. */
enum { SETS = 4 };

static void check(int error, const char *what)
{
    if (error != 0) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString((cudaError_t)error));
        exit(1);
    }
}

static void *device_bytes(size_t bytes)
{
    void *at = NULL;
    check(cudaMalloc(&at, bytes), "cudaMalloc");
    return at;
}

static uint64_t random_state = 1;

/* -1 … 1 */
static float random_float(void)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)((double)(int64_t)random_state * 0x1p-63);
}

/* Device memory with n floats: sums of three within ±spread each, close to a bell. */
static float *device_floats(size_t n, float spread)
{
    float *host = malloc(n * sizeof(*host));
    for (size_t i = 0; host != NULL && i < n; i++) {
        host[i] = spread * (random_float() + random_float() + random_float());
    }
    float *at = device_bytes(n * sizeof(*at));
    check(cudaMemcpy(at, host, n * sizeof(*at), cudaMemcpyHostToDevice), "cudaMemcpy");
    free(host);
    return at;
}

/* ---- timing ---------------------------------------------------------------------------------- */

/* Enqueues one op; set: which of the SETS buffers it uses. */
typedef int (*op_fn)(const k_cuda_launch_t *at, uint32_t rows, uint32_t set);

static int compare_floats(const void *a, const void *b)
{
    const float x = *(const float *)a;
    const float y = *(const float *)b;
    return (x > y) - (x < y);
}

static float time_graph(cudaGraphExec_t graph, cudaStream_t stream)
{
    cudaEvent_t begin;
    cudaEvent_t end;
    float times[REPLAYS];
    check(cudaEventCreate(&begin), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    for (int i = -2; i < REPLAYS; i++) {
        check(cudaEventRecord(begin, stream), "cudaEventRecord");
        check(cudaGraphLaunch(graph, stream), "cudaGraphLaunch");
        check(cudaEventRecord(end, stream), "cudaEventRecord");
        check(cudaEventSynchronize(end), "cudaEventSynchronize");
        check(cudaEventElapsedTime(&times[i < 0 ? 0 : i], begin, end), "cudaEventElapsedTime");
    }
    check(cudaEventDestroy(begin), "cudaEventDestroy");
    check(cudaEventDestroy(end), "cudaEventDestroy");
    qsort(times, REPLAYS, sizeof(times[0]), compare_floats);
    return times[REPLAYS / 2];
}

static void measure(const k_cuda_launch_t *at, const char *name, op_fn op, uint32_t rows,
                    double bytes)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    check(cudaStreamBeginCapture(at->stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (uint32_t i = 0; i < LAUNCHES; i++) {
        check(op(at, rows, i % SETS), name);
    }
    check(cudaStreamEndCapture(at->stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    const double us = 1e3 * (double)time_graph(exec, at->stream) / LAUNCHES;
    printf("%-34s rows %5u  %8.2f us  %8.1f GB/s\n", name, rows, us, bytes / us * 1e-3);
    fflush(stdout);
    check(cudaGraphExecDestroy(exec), "cudaGraphExecDestroy");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

/* ---- rows ------------------------------------------------------------------------------------ */

static struct buffers {
    float *x;      /* [MAX_ROWS, HIDDEN] */
    float *y;      /* [MAX_ROWS, HIDDEN] */
    void *wide;    /* [MAX_ROWS, 2 · INTERMEDIATE] bf16 */
    float *logits; /* [MAX_SAMPLED, VOCAB] */
} sets[SETS];

static float *norm_w;
static uint32_t *row_index;

static int norm_hidden(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_rms_norm_args_t args = {.x = sets[set].x,
                                    .x_dtype = K_F32,
                                    .w = norm_w,
                                    .y = sets[set].wide,
                                    .rows = rows,
                                    .groups = 1,
                                    .dim = HIDDEN,
                                    .x_stride = HIDDEN,
                                    .y_stride = HIDDEN,
                                    .eps = 1e-5f};
    return k_cuda_rms_norm(at, &args);
}

static int norm_heads(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_rms_norm_args_t args = {.x = sets[set].wide,
                                    .x_dtype = K_BF16,
                                    .w = norm_w,
                                    .y = sets[set].wide,
                                    .rows = rows,
                                    .groups = HEADS,
                                    .dim = HEAD_DIM,
                                    .x_stride = (size_t)HEADS * HEAD_DIM,
                                    .y_stride = (size_t)HEADS * HEAD_DIM,
                                    .eps = 1e-5f};
    return k_cuda_rms_norm(at, &args);
}

static int silu_mul(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_silu_mul_args_t args = {.gate = sets[set].wide,
                                    .up = (uint16_t *)sets[set].wide + INTERMEDIATE,
                                    .y = sets[set].wide,
                                    .rows = rows,
                                    .dim = INTERMEDIATE,
                                    .gate_stride = (size_t)2 * INTERMEDIATE,
                                    .up_stride = (size_t)2 * INTERMEDIATE,
                                    .y_stride = (size_t)2 * INTERMEDIATE};
    return k_cuda_silu_mul(at, &args);
}

static int add(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_add_args_t args = {.x = sets[set].wide,
                               .scale = 1,
                               .y = sets[set].y,
                               .rows = rows,
                               .dim = HIDDEN,
                               .x_stride = HIDDEN,
                               .y_stride = HIDDEN};
    return k_cuda_add(at, &args);
}

static int gather(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_gather_rows_args_t args = {sets[set].x, row_index, sets[set].y, rows,
                                       HIDDEN,      HIDDEN,    HIDDEN};
    return k_cuda_gather_rows(at, &args);
}

/* ---- experts: 8 of 128, as Qwen3 ------------------------------------------------------------- */

enum {
    EXPERTS = 128,
    USED = 8,
    SLOT_STRIDE = 3576, /* 16384 slots have room in a buffer when they overlap */
};

static struct routed {
    float *weights;
    uint32_t *slot_of;
    uint32_t *row_of_slot;
    uint32_t *offsets;
} routed;

static int route(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_route_args_t args = {.logits = sets[set].x,
                                 .logits_stride = EXPERTS,
                                 .kind = K_ROUTE_SOFTMAX,
                                 .rows = rows,
                                 .experts = EXPERTS,
                                 .used = USED,
                                 .renormalizes = true,
                                 .scale = 1,
                                 .weights = routed.weights,
                                 .slot_of = routed.slot_of,
                                 .row_of_slot = routed.row_of_slot,
                                 .offsets = routed.offsets};
    return k_cuda_route(at, &args);
}

static int combine(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_combine_args_t args = {.x = sets[set].wide,
                                   .weights = routed.weights,
                                   .slot_of = routed.slot_of,
                                   .y = sets[set].y,
                                   .rows = rows,
                                   .used = USED,
                                   .dim = HIDDEN,
                                   .x_stride = SLOT_STRIDE,
                                   .y_stride = HIDDEN};
    return k_cuda_combine(at, &args);
}

static void measure_rows(const k_cuda_launch_t *at)
{
    static const uint32_t rows[] = {1, 64, 2048};
    for (size_t i = 0; i < 3; i++) {
        const double n = rows[i];
        measure(at, "rms_norm f32 4096", norm_hidden, rows[i], n * HIDDEN * (4 + 2));
        measure(at, "rms_norm bf16 32 heads of 128", norm_heads, rows[i], n * HIDDEN * (2 + 2));
        measure(at, "silu_mul 14336", silu_mul, rows[i], n * INTERMEDIATE * (2 + 2 + 2));
        measure(at, "add 4096", add, rows[i], n * HIDDEN * (2 + 4 + 4));
        measure(at, "gather_rows 4096", gather, rows[i], n * HIDDEN * (4 + 4));
        measure(at, "route 8 of 128", route, rows[i], n * (EXPERTS * 4 + USED * 12));
        measure(at, "combine 8 of 4096", combine, rows[i], n * HIDDEN * (USED * 2 + 4 + 4));
    }
}

/* ---- adapters: rank 16, dealt out over the rows of a decode step; one for a whole prompt ----- */

enum { ADAPTERS = 8, RANK = 16 };

static struct adapters {
    k_lora_t *table;       /* [SETS][ADAPTERS] */
    k_seq_t *decode_seqs;  /* [MAX_ROWS] */
    k_seq_t *prefill_seqs; /* [1] */
    float *low;
} adapters;

static k_lora_rows_t lora_rows(uint32_t rows, uint32_t set)
{
    return (k_lora_rows_t){
        .table = adapters.table + (size_t)set * ADAPTERS,
        .n_heads = 1,
        .seqs = rows == MAX_ROWS ? adapters.prefill_seqs : adapters.decode_seqs,
        .n_seqs = rows == MAX_ROWS ? 1 : rows,
        .rows = rows,
    };
}

static int shrink(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_lora_shrink_args_t args = {.of = lora_rows(rows, set),
                                       .x = sets[set].wide,
                                       .x_stride = INTERMEDIATE,
                                       .in = INTERMEDIATE,
                                       .low = adapters.low,
                                       .max_rank = RANK};
    return k_cuda_lora_shrink(at, &args);
}

static int expand(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_lora_expand_args_t args = {.of = lora_rows(rows, set),
                                       .low = adapters.low,
                                       .in = INTERMEDIATE,
                                       .max_rank = RANK,
                                       .y = sets[set].wide,
                                       .y_dtype = K_BF16,
                                       .y_stride = INTERMEDIATE,
                                       .out = INTERMEDIATE};
    return k_cuda_lora_expand(at, &args);
}

static void make_adapters(void)
{
    k_lora_t table[SETS * ADAPTERS];
    k_seq_t seqs[MAX_ROWS];
    const k_seq_t prompt = {.rows = MAX_ROWS, .adapter = 1};
    for (uint32_t i = 0; i < SETS * ADAPTERS; i++) {
        table[i] = (k_lora_t){.a = device_floats((size_t)RANK * INTERMEDIATE, 0.01f),
                              .b = device_floats((size_t)RANK * INTERMEDIATE, 0.01f),
                              .rank = RANK,
                              .scale = 1};
    }
    for (uint32_t i = 0; i < MAX_ROWS; i++) {
        seqs[i] = (k_seq_t){.row = i, .rows = 1, .adapter = 1 + i % ADAPTERS};
    }
    adapters.table = device_bytes(sizeof(table));
    adapters.decode_seqs = device_bytes(sizeof(seqs));
    adapters.prefill_seqs = device_bytes(sizeof(prompt));
    adapters.low = device_bytes(k_lora_low_floats(INTERMEDIATE, MAX_ROWS, RANK) * sizeof(float));
    check(cudaMemcpy(adapters.table, table, sizeof(table), cudaMemcpyHostToDevice), "cudaMemcpy");
    check(cudaMemcpy(adapters.decode_seqs, seqs, sizeof(seqs), cudaMemcpyHostToDevice),
          "cudaMemcpy");
    check(cudaMemcpy(adapters.prefill_seqs, &prompt, sizeof(prompt), cudaMemcpyHostToDevice),
          "cudaMemcpy");
}

static void measure_adapters(const k_cuda_launch_t *at)
{
    static const uint32_t rows[] = {1, 8, 64, 2048};
    make_adapters();
    for (size_t i = 0; i < 4; i++) {
        const double n = rows[i];
        const double used = rows[i] == MAX_ROWS ? 1 : n < ADAPTERS ? n : ADAPTERS;
        const double matrices = used * RANK * INTERMEDIATE * 4;
        measure(at, "lora_shrink 14336 to 16", shrink, rows[i], matrices + n * INTERMEDIATE * 2);
        measure(at, "lora_expand 16 to 14336", expand, rows[i], matrices + n * INTERMEDIATE * 4);
    }
}

/* ---- sampling -------------------------------------------------------------------------------- */

static k_sample_row_t *sample_params; /* [MAX_SAMPLED] */
static k_sampled_t *sampled;
static int32_t *history; /* [HISTORY] */

static int sample(const k_cuda_launch_t *at, uint32_t rows, uint32_t set)
{
    const k_sample_args_t args = {sets[set].logits, sample_params, sampled, rows, VOCAB, VOCAB};
    return k_cuda_sample(at, &args);
}

static void measure_sample(const k_cuda_launch_t *at, const char *name, k_sample_row_t params)
{
    static const uint32_t rows[] = {1, 64, 256};
    k_sample_row_t *host = malloc(MAX_SAMPLED * sizeof(*host));
    for (uint32_t i = 0; host != NULL && i < MAX_SAMPLED; i++) {
        params.seed = i;
        host[i] = params;
    }
    check(cudaMemcpy(sample_params, host, MAX_SAMPLED * sizeof(*host), cudaMemcpyHostToDevice),
          "cudaMemcpy");
    free(host);
    for (size_t i = 0; i < 3; i++) {
        measure(at, name, sample, rows[i], (double)rows[i] * VOCAB * sizeof(float));
    }
}

static void measure_sampling(const k_cuda_launch_t *at)
{
    k_sample_row_t params = {.temperature = 0, .top_p = 1, .repetition_penalty = 1};
    measure_sample(at, "sample greedy", params);
    params.temperature = 1;
    measure_sample(at, "sample temperature", params);
    params.top_k = 50;
    measure_sample(at, "sample top_k 50", params);
    params.top_p = 0.9f;
    measure_sample(at, "sample top_k 50 top_p 0.9", params);
    params.top_k = 0;
    measure_sample(at, "sample top_p 0.9", params);
    params.top_p = 1;
    params.min_p = 0.05f;
    measure_sample(at, "sample min_p 0.05", params);
    params = (k_sample_row_t){.temperature = 0,
                              .top_p = 1,
                              .repetition_penalty = 1.1f,
                              .history = history,
                              .history_tokens = HISTORY};
    measure_sample(at, "sample greedy, penalties over 2048", params);
    params = (k_sample_row_t){
        .temperature = 0, .top_p = 1, .repetition_penalty = 1, .wants_logprob = true, .n_top = 5};
    measure_sample(at, "sample greedy, 5 logprobs", params);
    params.n_top = K_MAX_LOGPROBS;
    measure_sample(at, "sample greedy, 20 logprobs", params);
}

/* ---- the device ------------------------------------------------------------------------------ */

static void make_buffers(void)
{
    for (uint32_t i = 0; i < SETS; i++) {
        sets[i].x = device_floats((size_t)MAX_ROWS * HIDDEN, 1);
        sets[i].y = device_floats((size_t)MAX_ROWS * HIDDEN, 1);
        sets[i].wide = device_bytes((size_t)MAX_ROWS * 2 * INTERMEDIATE * 2);
        check(cudaMemset(sets[i].wide, 0x3e, (size_t)MAX_ROWS * 2 * INTERMEDIATE * 2), "memset");
        /* Most of the weight on some hundred tokens. */
        sets[i].logits = device_bytes((size_t)MAX_SAMPLED * VOCAB * sizeof(float));
        float *some = device_floats((size_t)4 * VOCAB + 512, 5);
        for (uint32_t row = 0; row < MAX_SAMPLED; row++) {
            check(cudaMemcpy(sets[i].logits + (size_t)row * VOCAB,
                             some + (size_t)(row % 4) * VOCAB + row, VOCAB * sizeof(float),
                             cudaMemcpyDeviceToDevice),
                  "cudaMemcpy");
        }
        check(cudaFree(some), "cudaFree");
    }
    norm_w = device_floats(HIDDEN, 1);
    uint32_t index[MAX_ROWS];
    int32_t tokens[HISTORY];
    for (uint32_t i = 0; i < MAX_ROWS; i++) {
        index[i] = (i * 1021) % MAX_ROWS;
    }
    for (uint32_t i = 0; i < HISTORY; i++) {
        tokens[i] = (int32_t)(i * 7919 % VOCAB);
    }
    row_index = device_bytes(sizeof(index));
    history = device_bytes(sizeof(tokens));
    check(cudaMemcpy(row_index, index, sizeof(index), cudaMemcpyHostToDevice), "cudaMemcpy");
    check(cudaMemcpy(history, tokens, sizeof(tokens), cudaMemcpyHostToDevice), "cudaMemcpy");
    routed.weights = device_bytes((size_t)MAX_ROWS * USED * sizeof(float));
    routed.slot_of = device_bytes((size_t)MAX_ROWS * USED * sizeof(uint32_t));
    routed.row_of_slot = device_bytes((size_t)MAX_ROWS * USED * sizeof(uint32_t));
    routed.offsets = device_bytes((EXPERTS + 1) * sizeof(uint32_t));
    sample_params = device_bytes(MAX_SAMPLED * sizeof(*sample_params));
    sampled = device_bytes(MAX_SAMPLED * sizeof(*sampled));
}

static bool wants(int argc, char **argv, const char *part)
{
    return argc < 2 || strcmp(argv[1], part) == 0;
}

int main(int argc, char **argv)
{
    struct cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
    make_buffers();
    k_cuda_launch_t at = {.multiprocessors = (uint32_t)properties.multiProcessorCount};
    check(cudaStreamCreateWithFlags(&at.stream, cudaStreamNonBlocking), "cudaStreamCreate");
    at.scratch_bytes = k_cuda_sample_scratch_bytes(MAX_SAMPLED, VOCAB);
    at.scratch = device_bytes(at.scratch_bytes);
    if (wants(argc, argv, "rows")) {
        measure_rows(&at);
    }
    if (wants(argc, argv, "adapters")) {
        measure_adapters(&at);
    }
    if (wants(argc, argv, "sampling")) {
        measure_sampling(&at);
    }
    return 0;
}
