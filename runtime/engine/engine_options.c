/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/engine.h"

#include <stdio.h>

const weft_option_t engine_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(engine_options_t, __VA_ARGS__)
#include "runtime/options.def"
#undef OPTION
};

const size_t engine_option_count = sizeof(engine_option_rows) / sizeof(engine_option_rows[0]);

/* "1 x 4, 2 x 2, 4 x 1": tensor by pipeline. */
static void list_fits(uint32_t size, char *text, size_t bytes)
{
    size_t used = 0;
    for (uint32_t tensor = 1; tensor <= size && used < bytes; tensor++) {
        if (size % tensor == 0) {
            used += (size_t)snprintf(text + used, bytes - used, "%s%u x %u", used > 0 ? ", " : "",
                                     tensor, size / tensor);
        }
    }
}

weft_status_t engine_shard(const engine_options_t *options, uint32_t rank, uint32_t size,
                           weft_diag_t *diag, model_shard_t *shard_out)
{
    const uint32_t tensor = options->tensor_parallel_size;
    const uint32_t stages = options->pipeline_parallel_size;
    char fits[256] = "";
    if ((uint64_t)tensor * stages != size) {
        list_fits(size, fits, sizeof(fits));
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--tensor-parallel-size %u and --pipeline-parallel-size %u need %llu "
                         "ranks, here %s %u: %s would fit",
                         tensor, stages, (unsigned long long)tensor * stages,
                         size == 1 ? "is" : "are", size, fits);
    }
    *shard_out = (model_shard_t){
        .tensor_rank = rank % tensor,
        .tensor_size = tensor,
        .stage = rank / tensor,
        .stages = stages,
        .splits_experts = options->enable_expert_parallel,
    };
    return WEFT_OK;
}
