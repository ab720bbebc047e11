/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_kernels_cases.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"

enum { MAX_COPIES = 128, BLOCK_TOKENS = 16 };

#define CACHE_BYTES (UINT64_C(128) << 20) /* decode cycles through more weights than caches hold */

static const bench_shape_t shapes[] = {
    {"135m", 576, 9, 3, 64, 1536, 49152},
    {"1b", 2048, 32, 8, 64, 8192, 128256},
    {"8b", 4096, 32, 8, 128, 14336, 128256},
};

const bench_shape_t *bench_shape_of(const char *name)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(shapes); i++) {
        if (strcmp(shapes[i].name, name) == 0) {
            return &shapes[i];
        }
    }
    return NULL;
}

/* What a case takes from the device, given back together. */
typedef struct memory {
    weft_device_t *device;
    weft_mem_t mems[MAX_COPIES + 8];
    uint32_t n;
    bool is_short;
} memory_t;

static void *take(memory_t *memory, size_t bytes)
{
    weft_mem_t *mem = &memory->mems[memory->n];
    if (memory->is_short || memory->device->ops->alloc(memory->device, bytes, 0, mem) < 0) {
        memory->is_short = true;
        return NULL;
    }
    memory->n++;
    return mem->addr;
}

static weft_status_t give_back(memory_t *memory)
{
    for (uint32_t i = 0; i < memory->n; i++) {
        memory->device->ops->free(memory->device, &memory->mems[i]);
    }
    return memory->is_short ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

/*
 * Activations as models have them: a few channels, here one unit of 32 in five, are several times
 * the others, which decides how often kernels keep a residual.
 */
static float *take_floats(memory_t *memory, size_t rows, size_t columns)
{
    float *x = take(memory, rows * columns * sizeof(*x));
    for (size_t i = 0; x != NULL && i < rows * columns; i++) {
        const float noise = (float)((uint32_t)(i * UINT64_C(2654435761)) >> 16) * 0x1p-15f - 1;
        x[i] = noise * (i % columns / 32 % 5 == 2 ? 3.0f : 0.7f);
    }
    return x;
}

/* ---- linear -------------------------------------------------------------------------------- */

typedef struct linear_state {
    k_stream_t *stream;
    k_weight_t weights[MAX_COPIES];
    uint32_t copies;
    uint32_t next;
    k_linear_args_t args;
} linear_state_t;

static void run_linear(void *user)
{
    linear_state_t *state = user;
    state->args.w = &state->weights[state->next];
    state->next = (state->next + 1) % state->copies;
    state->stream->ops->linear(state->stream, &state->args);
    k_stream_sync(state->stream);
}

/* One weight of zeros, packed as often as it takes to outgrow the caches. */
static void take_weights(memory_t *memory, linear_state_t *state, k_weight_t weight,
                         const void *source, size_t bytes, uint32_t copies)
{
    const k_weight_part_t half = {.data = source, .rows = weight.rows / 2};
    const k_weight_part_t halves[] = {half, half};
    const k_weight_part_t whole = {.data = source, .rows = weight.rows};
    const bool is_gate_up = weight.form == K_WEIGHT_GATE_UP;
    for (uint32_t i = 0; i < copies; i++) {
        void *packed = bytes > 0 ? take(memory, bytes) : NULL;
        if (packed != NULL) {
            state->stream->ops->weight_pack(state->stream, weight.dtype, weight.form,
                                            weight.columns, is_gate_up ? halves : &whole,
                                            is_gate_up ? 2 : 1, packed);
        }
        weight.data = bytes > 0 ? packed : source;
        state->weights[state->copies++] = weight;
    }
}

static weft_status_t linear_case(k_stream_t *stream, const bench_case_t *one, k_weight_t weight,
                                 const bench_visitor_t *visitor)
{
    size_t row_bytes;
    if (k_dtype_row_bytes(weight.dtype, weight.columns, &row_bytes) < 0) {
        return WEFT_OK;
    }
    if (stream->ops->weight_bytes(weight.dtype, weight.form, weight.rows, weight.columns) ==
        SIZE_MAX) {
        weight.form = K_WEIGHT_ROWS;
    }
    const size_t bytes =
        stream->ops->weight_bytes(weight.dtype, weight.form, weight.rows, weight.columns);
    const bool is_fused = weight.form == K_WEIGHT_GATE_UP;
    memory_t memory = {.device = stream->device};
    linear_state_t state = {.stream = stream};
    bench_case_t with = *one;
    const uint64_t copies = CACHE_BYTES / (row_bytes * weight.rows) + 1;
    const size_t width = is_fused ? weight.rows / 2 : weight.rows;
    const void *source = take(&memory, weight.rows * row_bytes);
    state.args = (k_linear_args_t){.x = take_floats(&memory, one->rows, weight.columns),
                                   .y = take(&memory, one->rows * width * sizeof(float)),
                                   .y_dtype = K_F32,
                                   .out = is_fused ? K_OUT_SWIGLU : K_OUT_STORE,
                                   .rows = one->rows,
                                   .x_stride = weight.columns,
                                   .y_stride = width};
    if (!memory.is_short) {
        take_weights(&memory, &state, weight, source, bytes,
                     copies < MAX_COPIES ? (uint32_t)copies : MAX_COPIES);
    }
    if (!memory.is_short) {
        const double activations = (double)one->rows * ((double)weight.columns + (double)width);
        with.bytes = (double)row_bytes * weight.rows + activations * sizeof(float);
        with.operations = 2.0 * one->rows * weight.rows * weight.columns;
        visitor->visit(visitor->user, &with, run_linear, &state);
    }
    return give_back(&memory);
}

weft_status_t bench_linear_cases(k_stream_t *stream, const bench_shape_t *shape, k_dtype_t dtype,
                                 uint32_t rows, const bench_visitor_t *visitor)
{
    const uint32_t q = shape->heads * shape->head_dim;
    const uint32_t kv = shape->kv_heads * shape->head_dim;
    const struct {
        const char *name;
        k_weight_t weight;
    } matrices[] = {
        {"qkv", {.rows = q + 2 * kv, .columns = shape->hidden}},
        {"o", {.rows = shape->hidden, .columns = q}},
        {"gate_up",
         {.form = K_WEIGHT_GATE_UP, .rows = 2 * shape->intermediate, .columns = shape->hidden}},
        {"down", {.rows = shape->hidden, .columns = shape->intermediate}},
        {"output", {.rows = shape->vocab, .columns = shape->hidden}},
    };
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; status >= 0 && i < WEFT_ARRAY_LEN(matrices); i++) {
        if (rows > 64 && strcmp(matrices[i].name, "output") == 0) {
            continue; /* a prefill makes logits of its last row only */
        }
        k_weight_t weight = matrices[i].weight;
        weight.dtype = dtype;
        const bench_case_t one = {.op = "linear",
                                  .detail = matrices[i].name,
                                  .shape = shape,
                                  .dtype = dtype,
                                  .rows = rows};
        status = linear_case(stream, &one, weight, visitor);
    }
    return status;
}

/* ---- rms_norm ------------------------------------------------------------------------------ */

typedef struct norm_state {
    k_stream_t *stream;
    k_rms_norm_args_t args;
} norm_state_t;

static void run_norm(void *user)
{
    norm_state_t *state = user;
    state->stream->ops->rms_norm(state->stream, &state->args);
    k_stream_sync(state->stream);
}

weft_status_t bench_norm_case(k_stream_t *stream, const bench_shape_t *shape, uint32_t rows,
                              const bench_visitor_t *visitor)
{
    memory_t memory = {.device = stream->device};
    norm_state_t state = {.stream = stream};
    const double elements = (double)rows * shape->hidden;
    const bench_case_t one = {.op = "rms_norm",
                              .detail = "hidden",
                              .shape = shape,
                              .dtype = K_F32,
                              .rows = rows,
                              .bytes = 2 * elements * sizeof(float),
                              .operations = 4 * elements};
    state.args = (k_rms_norm_args_t){.x = take_floats(&memory, rows, shape->hidden),
                                     .x_dtype = K_F32,
                                     .w = take_floats(&memory, 1, shape->hidden),
                                     .y = take_floats(&memory, rows, shape->hidden),
                                     .rows = rows,
                                     .groups = 1,
                                     .dim = shape->hidden,
                                     .x_stride = shape->hidden,
                                     .y_stride = shape->hidden,
                                     .eps = 1e-5f};
    if (!memory.is_short) {
        visitor->visit(visitor->user, &one, run_norm, &state);
    }
    return give_back(&memory);
}

/* ---- attention ----------------------------------------------------------------------------- */

typedef struct attention_state {
    k_stream_t *stream;
    k_seq_t seq;
    k_attention_args_t args;
} attention_state_t;

static void run_attention(void *user)
{
    attention_state_t *state = user;
    state->stream->ops->attention(state->stream, &state->args);
    k_stream_sync(state->stream);
}

/* One layer of a cache of blocks that follow each other; base is to be filled in. */
static k_kv_view_t cache_view(const bench_shape_t *shape, k_dtype_t dtype)
{
    const size_t part = (size_t)shape->head_dim * k_dtype_info(dtype)->block_bytes;
    const size_t codes = BLOCK_TOKENS * 2 * part;
    const size_t head = codes + 2 * BLOCK_TOKENS * (size_t)k_kv_scale_bytes(dtype);
    return (k_kv_view_t){.dtype = dtype,
                         .block_tokens = BLOCK_TOKENS,
                         .heads = shape->kv_heads,
                         .head_dim = shape->head_dim,
                         .block_stride = head * shape->kv_heads,
                         .head_stride = head,
                         .token_stride = 2 * part,
                         .part_stride = part,
                         .scale_offset = k_kv_scale_bytes(dtype) > 0 ? codes : 0};
}

/* Rows [context - rows, context) of one sequence, its blocks in order. */
static weft_status_t attention_case(k_stream_t *stream, const bench_case_t *one, uint32_t context,
                                    const bench_visitor_t *visitor)
{
    const bench_shape_t *shape = one->shape;
    const uint32_t blocks = (context + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    const size_t width = (size_t)shape->heads * shape->head_dim;
    memory_t memory = {.device = stream->device};
    attention_state_t state = {.stream = stream};
    uint32_t *table = take(&memory, blocks * sizeof(*table));
    for (uint32_t i = 0; table != NULL && i < blocks; i++) {
        table[i] = i;
    }
    state.seq = (k_seq_t){.rows = one->rows, .start = context - one->rows, .block_table = table};
    state.args = (k_attention_args_t){
        .q = take_floats(&memory, one->rows, width),
        .o = take_floats(&memory, one->rows, width),
        .q_stride = width,
        .o_stride = width,
        .q_heads = shape->heads,
        .scale = 1 / sqrtf((float)shape->head_dim),
        .kv = cache_view(shape, one->dtype),
        .seqs = &state.seq,
        .n_seqs = 1,
        .max_tokens = context,
    };
    state.args.kv.base = take(&memory, blocks * state.args.kv.block_stride);
    bench_case_t with = *one;
    const double seen = (double)one->rows * ((double)context - ((double)one->rows - 1) / 2);
    with.bytes = (double)context / BLOCK_TOKENS * (double)state.args.kv.block_stride;
    with.operations = 4.0 * seen * (double)width;
    if (!memory.is_short) {
        visitor->visit(visitor->user, &with, run_attention, &state);
    }
    return give_back(&memory);
}

weft_status_t bench_attention_cases(k_stream_t *stream, const bench_shape_t *shape, uint32_t rows,
                                    const bench_visitor_t *visitor)
{
    static const struct {
        const char *name;
        uint32_t before;
        k_dtype_t dtype;
    } contexts[] = {{"from 0", 0, K_F16},
                    {"after 512", 512, K_F16},
                    {"after 4096", 4096, K_F16},
                    {"after 4096", 4096, K_F8},
                    {"after 4096", 4096, K_I8}};
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; status >= 0 && i < WEFT_ARRAY_LEN(contexts); i++) {
        const bench_case_t one = {.op = "attention",
                                  .detail = contexts[i].name,
                                  .shape = shape,
                                  .dtype = contexts[i].dtype,
                                  .rows = rows};
        status = attention_case(stream, &one, contexts[i].before + rows, visitor);
    }
    return status;
}

/* ---- sample -------------------------------------------------------------------------------- */

typedef struct sample_state {
    k_stream_t *stream;
    const float *logits; /* [rows, vocab], which sampling destroys */
    float *copy;
    k_sample_row_t *params;
    k_sample_args_t args;
} sample_state_t;

static void run_sample(void *user)
{
    sample_state_t *state = user;
    memcpy(state->copy, state->logits,
           (size_t)state->args.rows * state->args.vocab * sizeof(float));
    state->stream->ops->sample(state->stream, &state->args);
    k_stream_sync(state->stream);
}

static weft_status_t sample_case(k_stream_t *stream, const bench_case_t *one,
                                 const k_sample_row_t *row, const bench_visitor_t *visitor)
{
    const uint32_t vocab = one->shape->vocab;
    memory_t memory = {.device = stream->device};
    sample_state_t state = {.stream = stream};
    state.logits = take_floats(&memory, one->rows, vocab);
    state.copy = take(&memory, (size_t)one->rows * vocab * sizeof(float));
    state.params = take(&memory, one->rows * sizeof(*state.params));
    k_sampled_t *out = take(&memory, one->rows * sizeof(*out));
    state.args = (k_sample_args_t){.logits = state.copy,
                                   .params = state.params,
                                   .out = out,
                                   .rows = one->rows,
                                   .vocab = vocab,
                                   .logits_stride = vocab};
    if (!memory.is_short) {
        for (uint32_t i = 0; i < one->rows; i++) {
            state.params[i] = *row;
            state.params[i].seed = i;
        }
        visitor->visit(visitor->user, one, run_sample, &state);
    }
    return give_back(&memory);
}

weft_status_t bench_sample_cases(k_stream_t *stream, const bench_shape_t *shape, uint32_t rows,
                                 const bench_visitor_t *visitor)
{
    static const struct {
        const char *name;
        k_sample_row_t row;
    } kinds[] = {
        {"greedy", {.top_p = 1, .repetition_penalty = 1}},
        {"noise", {.temperature = 1, .top_p = 1, .repetition_penalty = 1}},
        {"top-k 50", {.temperature = 1, .top_p = 1, .top_k = 50, .repetition_penalty = 1}},
        {"top-p 0.9", {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1}},
    };
    weft_status_t status = WEFT_OK;
    for (size_t i = 0; status >= 0 && i < WEFT_ARRAY_LEN(kinds); i++) {
        /* The copy into place counts: it reads and writes every logit once. */
        const bench_case_t one = {.op = "sample",
                                  .detail = kinds[i].name,
                                  .shape = shape,
                                  .dtype = K_F32,
                                  .rows = rows,
                                  .bytes = 3.0 * rows * shape->vocab * sizeof(float)};
        status = sample_case(stream, &one, &kinds[i].row, visitor);
    }
    return status;
}
