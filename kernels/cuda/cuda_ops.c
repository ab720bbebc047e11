/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda_ops.h"

#include <cuda_runtime_api.h>

#include "base/device_cuda.h"
#include "kernels/cuda/cuda_loader.h"

k_cuda_launch_t k_cuda_launch_of(const k_stream_t *stream)
{
    return (k_cuda_launch_t){
        .stream = weft_device_cuda_stream(stream->queue),
        .scratch = stream->scratch.addr,
        .scratch_bytes = stream->scratch.bytes,
        .multiprocessors = stream->multiprocessors,
    };
}

#define OP(name)                                                                                   \
    static void launch_##name(k_stream_t *stream, const k_##name##_args_t *args)                   \
    {                                                                                              \
        const k_cuda_launch_t at = k_cuda_launch_of(stream);                                       \
        (void)weft_device_cuda_note(stream->device, k_cuda_##name(&at, args), "kernel " #name);    \
    }
#include "kernels/cuda/k_cuda_ops.def"
#undef OP

static void load_weight(k_stream_t *stream, k_dtype_t dtype, k_weight_form_t form, uint32_t columns,
                        const k_weight_part_t *parts, uint32_t n_parts, void *dst)
{
    k_weight_t weight = {.dtype = dtype, .form = form, .columns = columns, .data = dst};
    for (uint32_t i = 0; i < n_parts; i++) {
        weight.rows += parts[i].rows;
    }
    if (stream->loader == NULL &&
        cuda_loader_create(stream->device, stream->multiprocessors, &stream->loader) < 0) {
        (void)weft_device_cuda_note(stream->device, cudaErrorMemoryAllocation, "loading weights");
        return;
    }
    cuda_loader_post(stream->loader, &weight, parts, n_parts);
}

/* A device "cuda" would not have opened otherwise. */
static bool is_supported(void)
{
    return true;
}

static size_t scratch_bytes(uint32_t rows, uint32_t width, uint32_t threads)
{
    (void)threads;
    return k_cuda_sample_scratch_bytes(rows, width);
}

const k_ops_t k_ops_cuda = {
    .name = "cuda",
    .is_supported = is_supported,
    .act = K_BF16,
    .weight_bytes = k_cuda_weight_bytes,
    .weight_pack = load_weight,
    .scratch_bytes = scratch_bytes,
#define OP(name) .name = launch_##name,
#include "kernels/cuda/k_cuda_ops.def"
#undef OP
};
