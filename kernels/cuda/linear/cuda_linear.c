/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/linear/cuda_linear.h"

#include "kernels/cuda/linear/cuda_linear_priv.h"

/* Shared memory of a block, less the barriers'. */
#define RING_BYTES (224u << 10)
#define WALK_BYTES (4u << 10) /* of which a walk over many matrices takes some (group_walk.cuh) */
#define MAX_STAGES 32
/* Rows of x that mma.sync takes before wgmma is faster. */
#define FEW_ROWS 8

/* Bytes of a unit × k block; 0: no kernel. weight_formats.h has the same numbers. */
static size_t block_bytes(k_dtype_t dtype)
{
    switch (dtype) {
    case K_BF16:
    case K_F16:
        return 2048;
    case K_F32:
        return 4096;
    case K_Q8_0:
        return 1088;
    case K_F8_32:
        return 1152;
    case K_F8_8X32:
        return 1040;
    case K_Q4_0:
        return 576;
    case K_MXFP4:
        return 544;
    case K_Q4_1:
    case K_Q4_K:
    case K_I4_32:
        return 640;
    case K_Q6_K:
        return 896;
    default:
        return 0;
    }
}

size_t k_cuda_weight_bytes(k_dtype_t dtype, bool is_gate_up, uint32_t rows, uint32_t columns)
{
    const size_t bytes = block_bytes(dtype);
    size_t units = linear_units(is_gate_up, rows);
    if (bytes == 0 || (is_gate_up && rows % 2 != 0)) {
        return SIZE_MAX;
    }
    if (dtype == K_BF16) { /* whole tiles of 64 rows */
        units = (units + 3) / 4 * 4;
    }
    return units * linear_k_blocks(columns) * bytes;
}

int k_cuda_weight_clear(const k_cuda_weight_t *w, cudaStream_t stream)
{
    const size_t bytes = k_cuda_weight_bytes(w->dtype, w->is_gate_up, w->rows, w->columns);
    if (bytes == SIZE_MAX) {
        return cudaErrorNotSupported;
    }
    return cudaMemsetAsync((void *)w->data, 0, bytes, stream);
}

/* ---- the wgmma kernel's plan ----------------------------------------------------------------- */

/*
 * Clocks of a multiprocessor for one k block of a tile, estimated: memory brings it 20 bytes a clock
 * when every one streams, L2 46; an instruction of 64 rows and k 16 takes tokens / 2 clocks, and 16
 * at least to read its operands.
 */
static uint32_t tile_clocks(uint32_t span, uint32_t tokens, bool streams)
{
    const uint32_t weights = span * LINEAR_UNIT_ROWS * 128;
    const uint32_t x = tokens * 128;
    const uint32_t memory = streams ? weights / 20 : 0;
    const uint32_t l2 = (weights + x) / 46;
    const uint32_t step = tokens / 2 > 16 ? tokens / 2 : 16;
    const uint32_t math = (span + 3) / 4 * 4 * step;
    const uint32_t most = memory > l2 ? memory : l2;
    return most > math ? most : math;
}

static uint32_t divide_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static uint32_t tokens_of(uint32_t rows)
{
    uint32_t tokens = 8;
    while (tokens < rows && tokens < 256) {
        tokens *= 2;
    }
    return tokens;
}

/*
 * Cuts stages of a tile: large ones, for each costs its producers and consumers some 300 clocks, but
 * four at least where a stage has several blocks. With few tokens memory is all that counts, and
 * smaller ones begin sooner.
 */
static void plan_ring(linear_wgmma_plan_t *plan, uint32_t k_blocks, uint32_t ring_bytes)
{
    const uint32_t block = plan->span * LINEAR_UNIT_ROWS * 128 + plan->tokens * 128;
    const uint32_t most = plan->tokens < 64 ? 44u << 10 : ring_bytes / 4;
    uint32_t blocks = 1;
    while (blocks < 8 && blocks * 2 * block <= most && blocks < k_blocks) {
        blocks *= 2;
    }
    /* consumers read 64 rows each, whatever the span */
    const uint32_t window =
        (blocks - 1) * plan->span * LINEAR_UNIT_ROWS * 128 + plan->groups * 64 * 128;
    const uint32_t bytes = blocks * block > window ? blocks * block : window;
    plan->stage_blocks = blocks;
    plan->stage_bytes = (bytes + 1023) / 1024 * 1024;
    plan->stages = ring_bytes / plan->stage_bytes;
    plan->stages = plan->stages < MAX_STAGES ? plan->stages : MAX_STAGES;
}

/* The best span of one choice of tokens, of which there are so many tiles; returns its clocks. */
static uint64_t plan_span(linear_wgmma_plan_t *plan, uint32_t units, uint32_t k_blocks,
                          uint32_t token_blocks, bool streams, uint32_t processors)
{
    const uint32_t max_span = plan->tokens <= 64 ? 16 : 8;
    uint64_t best = UINT64_MAX;
    for (uint32_t span = 1; span <= max_span; span++) {
        const uint32_t tiles = divide_up(units, span) * token_blocks;
        const uint64_t tile = (uint64_t)tile_clocks(span, plan->tokens, streams) * k_blocks;
        const uint64_t clocks = divide_up(tiles, processors) * (tile + 1000 + 16 * plan->tokens);
        if (clocks <= best) { /* of equals the widest: x is read less often */
            best = clocks;
            plan->span = span;
            plan->blocks = tiles < processors ? tiles : processors;
        }
    }
    return best;
}

linear_wgmma_plan_t linear_wgmma_plan(uint32_t units, uint32_t k_blocks, uint32_t rows,
                                      uint32_t processors)
{
    linear_wgmma_plan_t plan = {0};
    uint64_t best = UINT64_MAX;
    const uint32_t enough = tokens_of(rows);
    for (uint32_t tokens = enough <= 64 ? enough : 64; tokens <= enough; tokens *= 2) {
        linear_wgmma_plan_t candidate = {.tokens = tokens};
        const uint32_t blocks = divide_up(rows, tokens);
        const uint64_t clocks =
            plan_span(&candidate, units, k_blocks, blocks, blocks == 1, processors);
        if (clocks <= best) {
            best = clocks;
            plan = candidate;
        }
    }
    plan.groups = divide_up(plan.span, 4);
    plan_ring(&plan, k_blocks, RING_BYTES);
    return plan;
}

linear_wgmma_plan_t linear_wgmma_plan_groups(uint32_t units, uint32_t k_blocks, uint32_t rows,
                                             uint32_t groups, uint32_t processors)
{
    linear_wgmma_plan_t plan = {.tokens = tokens_of(2 * divide_up(rows, groups))};
    const uint32_t taken = rows < groups ? rows : groups;
    const uint32_t blocks = divide_up(rows, groups * plan.tokens) * taken;
    (void)plan_span(&plan, units, k_blocks, blocks, rows <= groups * plan.tokens, processors);
    plan.blocks = processors;
    plan.groups = divide_up(plan.span, 4);
    plan_ring(&plan, k_blocks, RING_BYTES - WALK_BYTES);
    return plan;
}

/* ---- weights with scales -------------------------------------------------------------------- */

typedef struct scaled_cut {
    uint32_t tokens;
    uint32_t spans;
    uint32_t shares;
} scaled_cut_t;

static const scaled_cut_t scaled_cuts[LINEAR_SCALED_SHAPE_COUNT] = {
#define SHAPE(name, tokens, spans, shares) [LINEAR_SCALED_##name] = {tokens, spans, shares},
    LINEAR_SCALED_SHAPES(SHAPE)
#undef SHAPE
};

/*
 * Clocks of a multiprocessor until its blocks are done, estimated. Each warp group takes a k block in
 * some 100 + 5/4 tokens instructions a warp (counted in the SASS of Q4_0 and Q8_0), of which a
 * scheduler issues one a clock, and the tensor cores in 2 tokens; L2 brings 46 bytes a clock.
 */
static uint64_t scaled_clocks(const scaled_cut_t *cut, uint32_t units, uint32_t k_blocks,
                              uint32_t unit_bytes, uint32_t rows, uint32_t processors)
{
    const uint32_t groups = cut->spans * cut->shares;
    const uint32_t issue = groups * (100 + cut->tokens * 5 / 4);
    const uint32_t math = groups * 2 * cut->tokens;
    const uint32_t l2 = (cut->shares * cut->tokens * 128 + groups * 4 * unit_bytes) / 46;
    const uint32_t most = issue > math ? issue : math;
    const uint64_t block = (uint64_t)divide_up(k_blocks, cut->shares) * (most > l2 ? most : l2);
    const uint32_t blocks = divide_up(units, 4 * cut->spans) * divide_up(rows, cut->tokens);
    return divide_up(blocks, processors) * (block + 1500 + 16 * cut->tokens);
}

linear_scaled_shape_t linear_scaled_shape(k_dtype_t dtype, uint32_t units, uint32_t k_blocks,
                                          uint32_t rows, uint32_t processors)
{
    const uint32_t unit_bytes = (uint32_t)block_bytes(dtype);
    uint64_t best = UINT64_MAX;
    linear_scaled_shape_t shape = 0;
    for (int i = 0; i < LINEAR_SCALED_SHAPE_COUNT; i++) {
        const uint64_t clocks =
            scaled_clocks(&scaled_cuts[i], units, k_blocks, unit_bytes, rows, processors);
        if (clocks < best) {
            best = clocks;
            shape = (linear_scaled_shape_t)i;
        }
    }
    return shape;
}

/* ---- dispatch -------------------------------------------------------------------------------- */

/* TMA can fetch x. */
static bool x_fits(const k_cuda_linear_t *args)
{
    return args->x_stride % 8 == 0 && (uintptr_t)args->x % 16 == 0;
}

bool linear_has_scales(k_dtype_t dtype)
{
    return dtype != K_BF16 && dtype != K_F16 && dtype != K_F32;
}

static int attribute(enum cudaDeviceAttr name, int device, int *value_out)
{
    return cudaDeviceGetAttribute(value_out, name, device);
}

int linear_current_device(linear_device_t *device_out)
{
    int device = 0;
    int major = 0;
    int minor = 0;
    int processors = 0;
    int shared = 0;
    int error = cudaGetDevice(&device);
    error = error != 0 ? error : attribute(cudaDevAttrComputeCapabilityMajor, device, &major);
    error = error != 0 ? error : attribute(cudaDevAttrComputeCapabilityMinor, device, &minor);
    error = error != 0 ? error : attribute(cudaDevAttrMultiProcessorCount, device, &processors);
    error =
        error != 0 ? error : attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, &shared);
    *device_out = (linear_device_t){.processors = (uint32_t)processors,
                                    .shared_bytes = (uint32_t)shared,
                                    .is_hopper = major == 9 && minor == 0};
    return error;
}

int k_cuda_linear(const k_cuda_linear_t *args, cudaStream_t stream)
{
    linear_device_t device;
    if ((args->out == K_CUDA_OUT_SWIGLU) != args->w.is_gate_up) {
        return cudaErrorInvalidValue;
    }
    const int error = linear_current_device(&device);
    if (error != cudaSuccess) {
        return error;
    }
    const uint32_t units = linear_units(args->w.is_gate_up, args->w.rows);
    const bool is_scaled = linear_has_scales(args->w.dtype);
    const bool can = args->path != K_CUDA_LINEAR_MMA && device.is_hopper && x_fits(args) &&
                     (is_scaled || args->w.dtype == K_BF16);
    if (!can && args->path == K_CUDA_LINEAR_WGMMA) {
        return cudaErrorNotSupported;
    }
    if (args->rows == 0) {
        return cudaSuccess;
    }
    if (can && is_scaled && (args->path == K_CUDA_LINEAR_WGMMA || args->rows > FEW_ROWS)) {
        const linear_scaled_shape_t shape = linear_scaled_shape(
            args->w.dtype, units, linear_k_blocks(args->w.columns), args->rows, device.processors);
        return k_cuda_linear_scaled(args, shape, stream);
    }
    if (!can || is_scaled) {
        return k_cuda_linear_mma(args, &device, stream);
    }
    const linear_wgmma_plan_t plan =
        linear_wgmma_plan(units, linear_k_blocks(args->w.columns), args->rows, device.processors);
    return k_cuda_linear_wgmma(args, &plan, stream);
}
