/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_cuda_experts: a layer's experts, and latent attention, as launched from a CUDA graph.
 *
 *   bench_cuda_experts [experts|prefill|mla]     all without an argument
 *
 * experts: gate·up, activation and down of one layer by batches of 1, 16 and 64 tokens whose experts are
 * random: µs, and bytes of the experts that somebody chose over the time, beside a copy's bandwidth.
 * prefill: the same of 2048 tokens, in TFLOP/s. mla: a step's attention over caches of 8192 tokens.
 */
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention/mla_attention.h"
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/linear/cuda_groups.h"

enum { LAUNCHES = 12, REPLAYS = 7, MAX_TOKENS = 2048, SCRATCH = 128 << 20 };

static double copy_gbs;
static cudaStream_t stream;
static void *scratch;

static void check(int error, const char *what)
{
    if (error != 0) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString((cudaError_t)error));
        exit(1);
    }
}

static void *device_bytes(size_t bytes, int fill)
{
    void *at = NULL;
    check(cudaMalloc(&at, bytes), "cudaMalloc");
    check(cudaMemset(at, fill, bytes), "cudaMemset");
    return at;
}

static void *upload(const void *from, size_t bytes)
{
    void *at = device_bytes(bytes, 0);
    check(cudaMemcpy(at, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    return at;
}

static uint32_t random_below(uint32_t n)
{
    static uint64_t state = 1;
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((state >> 33) % n);
}

/* ---- timing ---------------------------------------------------------------------------------- */

typedef void (*launch_fn)(const void *what, uint32_t turn);

static int compare_floats(const void *a, const void *b)
{
    const float x = *(const float *)a;
    const float y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Microseconds of one of LAUNCHES launches, median of REPLAYS. */
static double time_launches(launch_fn launch, const void *what)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin;
    cudaEvent_t end;
    float times[REPLAYS];
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (uint32_t i = 0; i < LAUNCHES; i++) {
        launch(what, i);
    }
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    check(cudaEventCreate(&begin), "cudaEventCreate");
    check(cudaEventCreate(&end), "cudaEventCreate");
    for (int i = -2; i < REPLAYS; i++) {
        check(cudaEventRecord(begin, stream), "cudaEventRecord");
        check(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
        check(cudaEventRecord(end, stream), "cudaEventRecord");
        check(cudaEventSynchronize(end), "cudaEventSynchronize");
        check(cudaEventElapsedTime(&times[i < 0 ? 0 : i], begin, end), "cudaEventElapsedTime");
    }
    check(cudaEventDestroy(begin), "cudaEventDestroy");
    check(cudaEventDestroy(end), "cudaEventDestroy");
    check(cudaGraphExecDestroy(exec), "cudaGraphExecDestroy");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    qsort(times, REPLAYS, sizeof(times[0]), compare_floats);
    return 1e3 * (double)times[REPLAYS / 2] / LAUNCHES;
}

/* A kernel's copy, which is faster than cudaMemcpy's. */
static void launch_copy(const void *what, uint32_t turn)
{
    const k_cuda_launch_t at = {stream, scratch, SCRATCH, 0};
    (void)turn;
    check(k_cuda_gather_rows(&at, what), "gather_rows");
}

static void measure_copy(void)
{
    enum { ROWS = 1 << 16, DIM = 4096 };
    const size_t bytes = (size_t)ROWS * DIM * sizeof(float);
    uint32_t *index = calloc(ROWS, sizeof(*index));
    for (uint32_t i = 0; i < ROWS; i++) {
        index[i] = i;
    }
    uint32_t *index_device = upload(index, ROWS * sizeof(*index));
    float *from = device_bytes(bytes, 0);
    float *to = device_bytes(bytes, 0);
    const k_gather_rows_args_t args = {from, index_device, to, ROWS, DIM, DIM, DIM};
    copy_gbs = 2 * (double)bytes / time_launches(launch_copy, &args) * 1e-3;
    printf("copy of 1 GiB: %.0f GB/s\n", copy_gbs);
    check(cudaFree(index_device), "cudaFree");
    check(cudaFree(from), "cudaFree");
    check(cudaFree(to), "cudaFree");
    free(index);
}

/* ---- experts --------------------------------------------------------------------------------- */

typedef struct shape {
    const char *name;
    uint32_t experts;
    uint32_t used;
    uint32_t hidden;
    uint32_t intermediate;
} shape_t;

static const shape_t shapes[] = {{"Mixtral 8x7B", 8, 2, 4096, 14336},
                                 {"Qwen3-30B-A3B", 128, 8, 2048, 768},
                                 {"GPT-OSS 120B", 128, 4, 2880, 2880}};

/* Which experts each token of a step chose. */
typedef struct routing {
    uint32_t *offsets;
    uint32_t *row_of;
    uint32_t chosen; /* experts that anybody chose */
} routing_t;

typedef struct layer {
    shape_t shape;
    k_cuda_weight_t gate_up;
    k_cuda_weight_t down;
    size_t gate_up_bytes;
    size_t down_bytes;
    uint32_t tokens;
    routing_t routings[LAUNCHES];
    uint16_t *x;    /* [tokens, hidden] */
    uint16_t *rows; /* [slots, hidden] */
    uint16_t *ffn;  /* [slots, 2 · intermediate] */
} layer_t;

static routing_t random_routing(const shape_t *shape, uint32_t tokens)
{
    static uint32_t chosen[MAX_TOKENS][8];
    uint32_t *offsets = calloc(shape->experts + 1, sizeof(*offsets));
    uint32_t *row_of = calloc((size_t)tokens * shape->used, sizeof(*row_of));
    routing_t routing = {0};
    uint32_t slots = 0;
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t j = 0; j < shape->used; j++) {
            bool is_new = false;
            while (!is_new) {
                chosen[t][j] = random_below(shape->experts);
                is_new = true;
                for (uint32_t i = 0; i < j; i++) {
                    is_new = is_new && chosen[t][i] != chosen[t][j];
                }
            }
        }
    }
    for (uint32_t e = 0; e < shape->experts; e++) {
        offsets[e] = slots;
        for (uint32_t i = 0; i < tokens * shape->used; i++) {
            if (chosen[i / shape->used][i % shape->used] == e) {
                row_of[slots++] = i / shape->used;
            }
        }
        routing.chosen += slots > offsets[e];
    }
    offsets[shape->experts] = slots;
    routing.offsets = upload(offsets, (shape->experts + 1) * sizeof(*offsets));
    routing.row_of = upload(row_of, slots * sizeof(*row_of));
    free(offsets);
    free(row_of);
    return routing;
}

static void launch_layer(const void *what, uint32_t turn)
{
    const layer_t *l = what;
    const routing_t *routing = &l->routings[turn];
    const uint32_t slots = l->tokens * l->shape.used;
    const size_t ffn_stride = (size_t)2 * l->shape.intermediate;
    const k_cuda_launch_t at = {stream, scratch, SCRATCH, 0};
    const k_cuda_groups_t gate_up = {.w = l->gate_up,
                                     .w_step = l->gate_up_bytes,
                                     .n = l->shape.experts,
                                     .offsets = routing->offsets,
                                     .rows = slots,
                                     .x = l->x,
                                     .row_of = routing->row_of,
                                     .gathered = l->rows,
                                     .y = l->ffn,
                                     .x_stride = l->shape.hidden,
                                     .y_stride = ffn_stride};
    const k_silu_mul_args_t activation = {.gate = l->ffn,
                                          .up = l->ffn + l->shape.intermediate,
                                          .y = l->ffn,
                                          .rows = slots,
                                          .dim = l->shape.intermediate,
                                          .gate_stride = ffn_stride,
                                          .up_stride = ffn_stride,
                                          .y_stride = ffn_stride};
    const k_cuda_groups_t down = {.w = l->down,
                                  .w_step = l->down_bytes,
                                  .n = l->shape.experts,
                                  .offsets = routing->offsets,
                                  .rows = slots,
                                  .x = l->ffn,
                                  .y = l->rows,
                                  .x_stride = ffn_stride,
                                  .y_stride = l->shape.hidden};
    check(k_cuda_groups(&gate_up, stream), "gate·up");
    check(k_cuda_silu_mul(&at, &activation), "silu_mul");
    check(k_cuda_groups(&down, stream), "down");
}

static layer_t make_layer(const shape_t *shape, k_dtype_t dtype)
{
    layer_t l = {.shape = *shape};
    const size_t slots = (size_t)MAX_TOKENS * shape->used;
    l.gate_up = (k_cuda_weight_t){
        .dtype = dtype, .rows = 2 * shape->intermediate, .columns = shape->hidden};
    l.down =
        (k_cuda_weight_t){.dtype = dtype, .rows = shape->hidden, .columns = shape->intermediate};
    l.gate_up_bytes = k_cuda_weight_bytes(dtype, false, l.gate_up.rows, l.gate_up.columns);
    l.down_bytes = k_cuda_weight_bytes(dtype, false, l.down.rows, l.down.columns);
    l.gate_up.data = device_bytes(l.gate_up_bytes * shape->experts, 0x2a);
    l.down.data = device_bytes(l.down_bytes * shape->experts, 0x2a);
    l.x = device_bytes((size_t)MAX_TOKENS * shape->hidden * 2, 0x3c);
    l.rows = device_bytes(slots * shape->hidden * 2, 0);
    l.ffn = device_bytes(slots * 2 * shape->intermediate * 2, 0);
    return l;
}

static void free_layer(layer_t *l)
{
    check(cudaFree((void *)l->gate_up.data), "cudaFree");
    check(cudaFree((void *)l->down.data), "cudaFree");
    check(cudaFree(l->x), "cudaFree");
    check(cudaFree(l->rows), "cudaFree");
    check(cudaFree(l->ffn), "cudaFree");
}

/* Returns µs; experts chosen, on average, in *chosen_out. */
static double time_layer(layer_t *l, uint32_t tokens, double *chosen_out)
{
    *chosen_out = 0;
    l->tokens = tokens;
    for (uint32_t i = 0; i < LAUNCHES; i++) {
        l->routings[i] = random_routing(&l->shape, tokens);
        *chosen_out += (double)l->routings[i].chosen / LAUNCHES;
    }
    const double us = time_launches(launch_layer, l);
    for (uint32_t i = 0; i < LAUNCHES; i++) {
        check(cudaFree(l->routings[i].offsets), "cudaFree");
        check(cudaFree(l->routings[i].row_of), "cudaFree");
    }
    return us;
}

static const k_dtype_t dtypes[] = {K_BF16, K_Q4_K, K_I4_32, K_MXFP4, K_F8_32, K_Q8_0};

static bool has_columns(const shape_t *shape, k_dtype_t dtype)
{
    const uint32_t block = k_dtype_info(dtype)->block_elements;
    return shape->hidden % block == 0 && shape->intermediate % block == 0;
}

static void measure_layer(const shape_t *shape, k_dtype_t dtype, bool is_prefill)
{
    static const uint32_t batches[] = {1, 16, 64};
    layer_t l = make_layer(shape, dtype);
    double chosen;
    for (size_t i = 0; i < 3 && !is_prefill; i++) {
        const double us = time_layer(&l, batches[i], &chosen);
        const double bytes = chosen * (double)(l.gate_up_bytes + l.down_bytes);
        printf("%-14s %-6s batch %2u: %8.1f us, %5.1f experts, %5.0f GB/s, %3.0f%% of copy\n",
               shape->name, k_dtype_info(dtype)->name, batches[i], us, chosen, bytes / us * 1e-3,
               bytes / us * 1e-1 / copy_gbs);
        fflush(stdout);
    }
    if (is_prefill) {
        const double us = time_layer(&l, MAX_TOKENS, &chosen);
        const double flops =
            6.0 * MAX_TOKENS * shape->used * (double)shape->hidden * shape->intermediate;
        printf("%-14s %-6s prefill of %u: %8.1f us, %5.0f TFLOP/s\n", shape->name,
               k_dtype_info(dtype)->name, MAX_TOKENS, us, flops / us * 1e-6);
        fflush(stdout);
    }
    free_layer(&l);
}

static void measure_experts(bool is_prefill)
{
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (size_t j = 0; j < sizeof(dtypes) / sizeof(dtypes[0]); j++) {
            if (has_columns(&shapes[i], dtypes[j])) {
                measure_layer(&shapes[i], dtypes[j], is_prefill);
            }
        }
    }
}

/* ---- latent attention ------------------------------------------------------------------------ */

enum { LATENT = 512, DIM = 576, BLOCK = 64 };

static void launch_mla(const void *what, uint32_t turn)
{
    const k_mla_attention_args_t *args = what;
    const k_cuda_attention_plan_t plan = {
        .max_rows = args->max_rows, .scratch = scratch, .scratch_bytes = SCRATCH};
    (void)turn;
    check(k_cuda_mla_attention(args, &plan, stream), "mla_attention");
}

/* n_seqs sequences of `rows` rows behind `start` tokens. */
static void measure_mla(uint32_t heads, uint32_t n_seqs, uint32_t start, uint32_t rows)
{
    const uint32_t tokens = start + rows;
    const uint32_t blocks = (tokens + BLOCK - 1) / BLOCK;
    const size_t all_rows = (size_t)n_seqs * rows;
    k_seq_t *seqs = calloc(n_seqs, sizeof(*seqs));
    uint32_t *table = calloc((size_t)n_seqs * blocks, sizeof(*table));
    for (uint32_t i = 0; i < n_seqs * blocks; i++) {
        table[i] = i;
    }
    uint32_t *table_device = upload(table, (size_t)n_seqs * blocks * sizeof(*table));
    for (uint32_t i = 0; i < n_seqs; i++) {
        seqs[i] = (k_seq_t){.row = i * rows,
                            .rows = rows,
                            .start = start,
                            .block_table = table_device + (size_t)i * blocks};
    }
    k_seq_t *seqs_device = upload(seqs, n_seqs * sizeof(*seqs));
    const size_t token_bytes = (size_t)DIM * 2;
    const k_kv_view_t kv = {.base =
                                device_bytes((size_t)n_seqs * blocks * BLOCK * token_bytes, 0x3c),
                            .dtype = K_BF16,
                            .block_tokens = BLOCK,
                            .heads = 1,
                            .head_dim = DIM / 2,
                            .block_stride = BLOCK * token_bytes,
                            .head_stride = BLOCK * token_bytes,
                            .token_stride = token_bytes,
                            .part_stride = token_bytes / 2};
    const k_mla_attention_args_t args = {.q = device_bytes(all_rows * heads * DIM * 2, 0x3c),
                                         .o = device_bytes(all_rows * heads * LATENT * 2, 0),
                                         .q_stride = (size_t)heads * DIM,
                                         .o_stride = (size_t)heads * LATENT,
                                         .q_heads = heads,
                                         .latent = LATENT,
                                         .scale = 0.07f,
                                         .kv = kv,
                                         .seqs = seqs_device,
                                         .n_seqs = n_seqs,
                                         .max_tokens = tokens,
                                         .max_rows = rows};
    const double us = time_launches(launch_mla, &args);
    const double bytes = (double)n_seqs * tokens * (double)token_bytes;
    const double pairs = (double)n_seqs * rows * ((double)start + (rows + 1) / 2.0);
    const double flops = 2.0 * pairs * heads * (DIM + LATENT);
    printf("mla %3u heads, %2u x %u rows behind %5u: %8.1f us, %5.0f GB/s, %3.0f%% of copy, "
           "%4.0f TFLOP/s\n",
           heads, n_seqs, rows, start, us, bytes / us * 1e-3, bytes / us * 1e-1 / copy_gbs,
           flops / us * 1e-6);
    fflush(stdout);
    void *const all[] = {table_device, seqs_device, kv.base, (void *)args.q, args.o};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        check(cudaFree(all[i]), "cudaFree");
    }
    free(table);
    free(seqs);
}

int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : "";
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    scratch = device_bytes(SCRATCH, 0);
    measure_copy();
    if (*only == '\0' || strcmp(only, "mla") == 0) {
        measure_mla(16, 64, 8191, 1);
        measure_mla(16, 1, 8191, 1);
        measure_mla(128, 64, 8191, 1);
        measure_mla(128, 1, 8191, 1);
        measure_mla(16, 1, 0, 2048);
    }
    if (*only == '\0' || strcmp(only, "experts") == 0) {
        measure_experts(false);
    }
    if (*only == '\0' || strcmp(only, "prefill") == 0) {
        measure_experts(true);
    }
    return 0;
}
