/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <string.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

/*
 * A tile of output rows is dequantized and transposed, so that the compiler's vector lanes are
 * output rows: each sum still runs over K from first to last.
 */
enum { TILE = 32, ROWS = 64, CHUNK = 256 };

typedef struct tile {
    float weight[CHUNK][TILE]; /* [k][output row] */
    float sum[ROWS][TILE];
} tile_t;

/* Columns [column, column + n) of output rows [first, first + TILE); rows past the end are 0. */
static void load_weight(const k_weight_t *w, uint32_t first, uint32_t column, uint32_t n,
                        float weight[CHUNK][TILE])
{
    float row[CHUNK];
    size_t row_bytes = 0;
    size_t column_bytes = 0;
    k_dtype_row_bytes(w->dtype, w->columns, &row_bytes);
    k_dtype_row_bytes(w->dtype, column, &column_bytes);
    for (uint32_t j = 0; j < TILE; j++) {
        memset(row, 0, sizeof(row));
        if (first + j < w->rows) {
            const char *data = w->data;
            k_dequantize(w->dtype, data + (first + j) * row_bytes + column_bytes, row, n);
        }
        for (uint32_t k = 0; k < n; k++) {
            weight[k][j] = row[k];
        }
    }
}

static void multiply(const float *x, uint32_t n, float weight[CHUNK][TILE], float sum_inout[TILE])
{
    float sum[TILE];
    memcpy(sum, sum_inout, sizeof(sum));
    for (uint32_t k = 0; k < n; k++) {
        for (uint32_t j = 0; j < TILE; j++) {
            sum[j] += x[k] * weight[k][j];
        }
    }
    memcpy(sum_inout, sum, sizeof(sum));
}

static void store(const k_linear_args_t *args, uint32_t row, uint32_t first, const float sum[TILE])
{
    float *y = k_row(args->y, row, args->y_stride);
    for (uint32_t j = 0; j < TILE && first + j < args->w->rows; j++) {
        float value = sum[j];
        if (args->bias != NULL) {
            value += args->bias[first + j];
        }
        y[first + j] = args->out == K_OUT_ADD ? y[first + j] + value : value;
    }
}

static void linear_tile(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const k_linear_args_t *args = arg;
    const uint32_t first = item * TILE;
    tile_t tile;

    for (uint32_t row = 0; row < args->rows; row += ROWS) {
        const uint32_t rows = args->rows - row < ROWS ? args->rows - row : ROWS;
        memset(tile.sum, 0, sizeof(tile.sum));
        for (uint32_t column = 0; column < args->w->columns; column += CHUNK) {
            const uint32_t left = args->w->columns - column;
            const uint32_t n = left < CHUNK ? left : CHUNK;
            load_weight(args->w, first, column, n, tile.weight);
            for (uint32_t r = 0; r < rows; r++) {
                const float *x = k_const_row(args->x, row + r, args->x_stride) + column;
                multiply(x, n, tile.weight, tile.sum[r]);
            }
        }
        for (uint32_t r = 0; r < rows; r++) {
            store(args, row + r, first, tile.sum[r]);
        }
    }
}

void k_ref_linear(k_stream_t *stream, const k_linear_args_t *args)
{
    assert(args->out != K_OUT_SWIGLU);
    k_team_run(stream->team, (args->w->rows + TILE - 1) / TILE, linear_tile, args);
}
