/* SPDX-License-Identifier: Apache-2.0 */
/* The host's half of simt_tma.h. libcuda's encoder is asked of the runtime, so nothing links it. */
#include "kernels/cuda/simt/simt.h"

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                              const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_fn find_encoder(void)
{
    void *function = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess) {
        return nullptr;
    }
    return reinterpret_cast<encode_fn>(function);
}

static CUtensorMapDataType type_of(uint32_t element_bytes)
{
    return element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
           : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                : CU_TENSOR_MAP_DATA_TYPE_UINT32;
}

cudaError_t simt_tensor_map_encode(const simt_tensor_t *tensor, simt_tensor_map_t *map_out)
{
    static const encode_fn encode = find_encoder();
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};

    if (encode == nullptr) {
        return cudaErrorNotSupported;
    }
    CUresult result =
        encode(map_out, type_of(tensor->element_bytes), tensor->rank, tensor->data, tensor->dims,
               tensor->strides, tensor->box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               tensor->swizzle == SIMT_SWIZZLE_128 ? CU_TENSOR_MAP_SWIZZLE_128B
                                                   : CU_TENSOR_MAP_SWIZZLE_NONE,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
