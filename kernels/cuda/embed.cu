/* SPDX-License-Identifier: Apache-2.0 */
/* embed: from tables of plain element types, kept as the file has them. */
#include "kernels/cuda/k_cuda.h"
#include "kernels/cuda/k_cuda_rows.h"

enum { THREADS = 128 };

/* A table that the device reads: k_weight_t itself is the host's. */
typedef struct table {
    const void *data;
    uint32_t columns;
} table_t;

template <class T, int N> static SIMT_KERNEL(THREADS, 8) embed(k_embed_args_t args, table_t table)
{
    simt_launch_next();
    simt_wait_previous();
    const size_t row = blockIdx.x;
    const uint32_t at = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (at >= table.columns) {
        return;
    }
    const size_t id = (uint32_t)args.ids[row];
    float v[N];
    k_rows_load((const T *)table.data + id * table.columns + at, v);
    SIMT_UNROLL
    for (int i = 0; i < N; i++) {
        v[i] *= args.scale;
    }
    k_rows_store(args.y + row * args.y_stride + at, v);
}

template <class T, int N>
static int launch_typed(const k_cuda_launch_t *at, const k_embed_args_t *args)
{
    const table_t table = {args->table->data, args->table->columns};
    return simt_launch((embed<T, N>),
                       {.grid = {args->rows, k_rows_ceil_div(table.columns, THREADS * N)},
                        .block = {THREADS},
                        .stream = at->stream,
                        .overlaps_previous = true},
                       *args, table);
}

template <class T> static int launch(const k_cuda_launch_t *at, const k_embed_args_t *args)
{
    const bool is_wide = k_rows_are_wide(args->table->data, args->table->columns, sizeof(T)) &&
                         k_rows_are_wide(args->y, args->y_stride, sizeof(float));
    return is_wide ? launch_typed<T, 8>(at, args) : launch_typed<T, 1>(at, args);
}

int k_cuda_embed(const k_cuda_launch_t *at, const k_embed_args_t *args)
{
    if (args->rows == 0) {
        return cudaSuccess;
    }
    switch (args->table->dtype) {
    case K_F32:
        return launch<float>(at, args);
    case K_F16:
        return launch<__half>(at, args);
    case K_BF16:
        return launch<__nv_bfloat16>(at, args);
    default:
        return cudaErrorNotSupported;
    }
}
