/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void embed_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_embed_args_t *args = arg;
    const k_weight_t *table = args->table;
    const uint32_t id = (uint32_t)args->ids[row] - args->first_id;
    float *y = args->y + row * args->y_stride;
    if (id >= table->rows) {
        memset(y, 0, table->columns * sizeof(*y));
        return;
    }
    size_t row_bytes = 0;
    k_dtype_row_bytes(table->dtype, table->columns, &row_bytes);
    k_dequantize(table->dtype, (const char *)table->data + id * row_bytes, y, table->columns);
    for (uint32_t i = 0; i < table->columns; i++) {
        y[i] *= args->scale;
    }
}

void k_ref_embed(k_stream_t *stream, const k_embed_args_t *args)
{
    k_team_run(stream->team, args->rows, embed_row, args);
}
