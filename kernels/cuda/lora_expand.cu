/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lora_expand: a warp has 32 columns of y in all rows of its tile; b, transposed, is the left matrix of
 * mma.sync and low the right one, 16 ranks at a time from the first on. Of the nine products of two
 * numbers in three parts the six that f32 can tell are added up.
 */
#include "kernels/cuda/k_cuda_lora.h"

enum {
    WARPS = 4,
    THREADS = WARPS * SIMT_WARP,
    COLUMNS = 32, /* of a warp, 4 a lane */
    TURNS = 4,    /* times as many, where there are many rows: low is split once for all */
    RANKS = 16,
    HELD = 64,               /* ranks of low in shared memory */
    Y_GROUPS = 4,            /* of 8 rows of y, on their way at a time */
    PARTS_AHEAD = 32,        /* of a thread's sums, on their way at a time */
    PARTS_BYTES = 128 << 10, /* as many of a multiprocessor take about as long as a kernel */
};

/* low as pairs of bf16; 8 words more a row: the lanes of a load meet no bank twice. */
template <int ROWS> struct lora_low {
    uint32_t part[LORA_PARTS][ROWS][HELD / 2 + 8];
};

/*
 * Ranks [r, r + n) of the tile's `mine` rows, of which low is the first one's, zeros beyond the adapter's;
 * n is a multiple of 16.
 */
template <int ROWS>
SIMT_DEVICE void hold(const lora_expand_t &expand, const float *low, size_t part_step,
                      uint32_t rank, uint32_t r, uint32_t n, uint64_t mine, lora_low<ROWS> &held)
{
    constexpr uint32_t PAIRS = ROWS == 8 * LORA_FEW ? 1 : 2; /* of a thread at a time */
    static_assert(PAIRS == 1 || ROWS * RANKS / 2 % (THREADS * PAIRS) == 0,
                  "each thread has as many");
    for (uint32_t e = threadIdx.x; e < ROWS * n / 2; e += THREADS * PAIRS) {
        const float *first[2 * PAIRS];
        float sums[2 * PAIRS] = {};
        SIMT_UNROLL
        for (uint32_t i = 0; i < PAIRS; i++) {
            const uint32_t item = e + i * THREADS;
            const uint32_t row = item / (n / 2);
            const uint32_t at = r + item % (n / 2) * 2;
            const float *of_pair = low + (size_t)row * expand.max_rank + at;
            const bool is_mine = (mine >> row & 1) != 0;
            first[2 * i] = is_mine && at < rank ? of_pair : nullptr;
            first[2 * i + 1] = is_mine && at + 1 < rank ? of_pair + 1 : nullptr;
        }
        lora_sum_parts<PARTS_AHEAD / (2 * PAIRS)>(first, expand.parts, part_step, sums);
        SIMT_UNROLL
        for (uint32_t i = 0; i < PAIRS; i++) {
            const uint32_t item = e + i * THREADS;
            uint32_t part[LORA_PARTS];
            lora_split(sums[2 * i], sums[2 * i + 1], part);
            SIMT_UNROLL
            for (int p = 0; p < LORA_PARTS; p++) {
                held.part[p][item / (n / 2)][item % (n / 2)] = part[p];
            }
        }
    }
}

/* Ranks r + 4t.. of b in columns [column, column + 4), as left matrices of the even and odd pairs. */
template <bool IS_WIDE>
SIMT_DEVICE void load_b(const k_lora_t &lora, uint32_t out, uint32_t column, uint32_t r,
                        uint32_t (&left)[2][LORA_PARTS][4])
{
    float b[4][4] = {};
    SIMT_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t rank = r + simt_lane() % 4 * 4 + i;
        const float *row = lora.b + (size_t)rank * out;
        if constexpr (IS_WIDE) {
            if (rank < lora.rank && column < out) {
                k_rows_load(row + column, b[i]);
            }
        } else {
            SIMT_UNROLL
            for (uint32_t e = 0; e < 4; e++) {
                b[i][e] = rank < lora.rank && column + e < out ? row[column + e] : 0.0f;
            }
        }
    }
    SIMT_UNROLL
    for (int m = 0; m < 2; m++) {
        SIMT_UNROLL
        for (int e = 0; e < 4; e++) { /* rows g and g + 8, then the next two ranks */
            const int rank = e / 2 * 2;
            uint32_t part[LORA_PARTS];
            lora_split(b[rank][2 * m + e % 2], b[rank + 1][2 * m + e % 2], part);
            SIMT_UNROLL
            for (int p = 0; p < LORA_PARTS; p++) {
                left[m][p][e] = part[p];
            }
        }
    }
}

/* sums += 16 ranks of b, from `left`, and of low, from `pair` on. */
template <int TILES>
SIMT_DEVICE void multiply(const uint32_t (&left)[2][LORA_PARTS][4], const lora_low<8 * TILES> &low,
                          uint32_t pair, uint64_t mine, float (&sums)[TILES][2][4])
{
    const int g = simt_lane() / 4;
    const int t = simt_lane() % 4;
    SIMT_UNROLL
    for (int n = 0; n < TILES; n++) {
        if ((mine >> 8 * n & 0xff) == 0) {
            continue;
        }
        uint32_t right[LORA_PARTS][2];
        SIMT_UNROLL
        for (int p = 0; p < LORA_PARTS; p++) {
            const uint32_t *from = &low.part[p][8 * n + g][pair + 2 * t];
            right[p][0] = from[0];
            right[p][1] = from[1];
        }
        SIMT_UNROLL
        for (int m = 0; m < 2; m++) {
            SIMT_UNROLL
            for (int p = 0; p < LORA_PARTS; p++) {
                SIMT_UNROLL
                for (int q = 0; p + q < LORA_PARTS; q++) {
                    simt_mma_bf16(sums[n][m], left[m][p], right[q]);
                }
            }
        }
    }
}

template <class T, bool IS_WIDE>
SIMT_DEVICE void load_y(const T *from, uint32_t left, float (&y)[4])
{
    if constexpr (IS_WIDE) {
        k_rows_load(from, y);
    } else {
        SIMT_UNROLL
        for (uint32_t e = 0; e < 4; e++) {
            float one[1] = {};
            if (e < left) {
                k_rows_load(from + e, one);
            }
            y[e] = one[0];
        }
    }
}

template <class T, bool IS_WIDE> SIMT_DEVICE void store_y(T *to, uint32_t left, const float (&y)[4])
{
    if constexpr (IS_WIDE) {
        k_rows_store(to, y);
    } else {
        SIMT_UNROLL
        for (uint32_t e = 0; e < 4; e++) {
            const float one[1] = {y[e]};
            if (e < left) {
                k_rows_store(to + e, one);
            }
        }
    }
}

/*
 * y += scale · sums in two rows of each of N groups of 8, of which y and mine are the first one's. All of y
 * is on its way before any is stored: the compiler cannot tell that rows lie apart.
 */
template <class T, bool IS_WIDE, int N>
SIMT_DEVICE void add_groups(T *y, size_t stride, uint32_t left, float scale, uint64_t mine,
                            const float (*sums)[2][4])
{
    float old[N][2][4] = {};
    SIMT_UNROLL
    for (int n = 0; n < N; n++) {
        SIMT_UNROLL
        for (int j = 0; j < 2; j++) {
            if ((mine >> (8 * n + j) & 1) != 0) {
                load_y<T, IS_WIDE>(y + (8 * n + j) * stride, left, old[n][j]);
            }
        }
    }
    SIMT_UNROLL
    for (int n = 0; n < N; n++) {
        SIMT_UNROLL
        for (int j = 0; j < 2; j++) {
            const float(&sum)[2][4] = sums[n];
            const float added[4] = {sum[0][j], sum[0][2 + j], sum[1][j], sum[1][2 + j]};
            SIMT_UNROLL
            for (int e = 0; e < 4; e++) {
                old[n][j][e] = fmaf(scale, added[e], old[n][j][e]);
            }
            if ((mine >> (8 * n + j) & 1) != 0) {
                store_y<T, IS_WIDE>(y + (8 * n + j) * stride, left, old[n][j]);
            }
        }
    }
}

template <class T, int TILES, bool IS_WIDE>
SIMT_DEVICE void add_rows(const lora_expand_t &expand, T *y, uint32_t column, float scale,
                          uint64_t mine, const float (&sums)[TILES][2][4])
{
    constexpr int AT_ONCE = TILES < Y_GROUPS ? TILES : Y_GROUPS;
    const uint32_t row = (uint32_t)simt_lane() % 4 * 2; /* of this lane's two in a group */
    if (column >= expand.out) {
        return;
    }
    SIMT_UNROLL
    for (int n = 0; n < TILES; n += AT_ONCE) {
        add_groups<T, IS_WIDE, AT_ONCE>(y + (8 * n + row) * expand.y_stride + column,
                                        expand.y_stride, expand.out - column, scale,
                                        mine >> (8 * n + row), &sums[n]);
    }
}

template <class T, int TILES, bool IS_WIDE>
static SIMT_KERNEL(THREADS, TILES == LORA_FEW ? 8 : 3)
    lora_expand(lora_rows_t rows, lora_expand_t expand)
{
    constexpr int ROWS = 8 * TILES;
    constexpr uint32_t turns = TILES == LORA_FEW ? 1 : TURNS;
    SIMT_SHARED(lora_tile<ROWS>, tile, [1]);
    SIMT_SHARED(lora_low<ROWS>, low, [1]);
    const uint32_t first = blockIdx.x * ROWS;
    const uint32_t head = blockIdx.z % rows.n_heads;
    const uint32_t lane_column = (uint32_t)simt_warp() * COLUMNS + (uint32_t)simt_lane() / 4 * 4;
    const size_t part_step = lora_part_step(rows, expand.max_rank);
    const float *of_tile = expand.low + ((size_t)head * rows.rows + first) * expand.max_rank;
    T *y = (T *)expand.y + (size_t)head * expand.y_step + first * expand.y_stride;
    simt_launch_next();
    if (rows.offsets != nullptr) {
        simt_wait_previous();
    }
    lora_look_up(rows, head, first, tile[0]);
    constexpr uint32_t of_block = WARPS * COLUMNS * turns;
    lora_bring(rows, tile[0], &k_lora_t::b, expand.out, blockIdx.y * of_block, of_block, 0, HELD);
    simt_wait_previous();
    for (uint32_t i = blockIdx.z / rows.n_heads; i < tile[0].n; i += gridDim.z / rows.n_heads) {
        const k_lora_t lora = rows.table[tile[0].entries[i] - 1];
        const uint64_t mine = tile[0].mine[i];
        for (uint32_t turn = 0; turn < turns; turn++) {
            const uint32_t column = (blockIdx.y * turns + turn) * WARPS * COLUMNS + lane_column;
            float sums[TILES][2][4] = {};
            for (uint32_t r = 0; r < lora.rank; r += HELD) {
                const uint32_t left = (lora.rank - r + RANKS - 1) / RANKS * RANKS;
                const uint32_t n = left < HELD ? left : (uint32_t)HELD;
                if (turn == 0 || lora.rank > HELD) {
                    simt_sync_block();
                    hold(expand, of_tile, part_step, lora.rank, r, n, mine, low[0]);
                    simt_sync_block();
                }
                for (uint32_t k = 0; k < n; k += RANKS) {
                    uint32_t b[2][LORA_PARTS][4];
                    load_b<IS_WIDE>(lora, expand.out, column, r + k, b);
                    multiply<TILES>(b, low[0], k / 2, mine, sums);
                }
            }
            add_rows<T, TILES, IS_WIDE>(expand, y, column, lora.scale, mine, sums);
        }
    }
}

static uint32_t columns_of_block(uint32_t tile_rows)
{
    return WARPS * COLUMNS * (tile_rows == 8 * LORA_FEW ? 1 : TURNS);
}

template <class T, int TILES, bool IS_WIDE>
static int launch(const k_cuda_launch_t *at, const lora_rows_t *rows, const lora_expand_t *expand)
{
    const uint32_t columns = columns_of_block(8 * TILES);
    return simt_launch(
        (lora_expand<T, TILES, IS_WIDE>),
        {.grid = {k_rows_ceil_div(rows->rows, 8 * TILES), k_rows_ceil_div(expand->out, columns),
                  rows->n_heads * lora_blocks_of_tile(rows)},
         .block = {THREADS},
         .stream = at->stream,
         .overlaps_previous = true},
        *rows, *expand);
}

template <class T, int TILES>
static int launch_sized(const k_cuda_launch_t *at, const lora_rows_t *rows,
                        const lora_expand_t *expand)
{
    const bool is_wide = expand->out % 4 == 0 && expand->y_step % 4 == 0 &&
                         (uintptr_t)expand->y % (4 * sizeof(T)) == 0 && expand->y_stride % 4 == 0;
    return is_wide ? launch<T, TILES, true>(at, rows, expand)
                   : launch<T, TILES, false>(at, rows, expand);
}

template <class T>
static int launch_typed(const k_cuda_launch_t *at, const lora_rows_t *rows,
                        const lora_expand_t *expand)
{
    return lora_tile_rows(rows) == 8 * LORA_FEW ? launch_sized<T, LORA_FEW>(at, rows, expand)
                                                : launch_sized<T, LORA_MANY>(at, rows, expand);
}

/*
 * Every block reads the parts of all its rows. Where that is much, a kernel in between adds them up
 * once; where it is little, one kernel less is sooner done. In the same order either way.
 */
static bool wants_sums(const k_cuda_launch_t *at, const lora_rows_t *rows,
                       const lora_expand_t *expand)
{
    const size_t sums =
        (size_t)rows->n_heads * rows->rows * expand->max_rank * sizeof(*expand->low);
    const size_t read =
        sums * expand->parts * k_rows_ceil_div(expand->out, columns_of_block(lora_tile_rows(rows)));
    return expand->parts > 1 && sums <= at->scratch_bytes &&
           read > (size_t)at->multiprocessors * PARTS_BYTES;
}

int k_cuda_lora_expand_rows(const k_cuda_launch_t *at, const lora_rows_t *rows,
                            const lora_expand_t *expand)
{
    if (rows->rows == 0 || expand->out == 0 || expand->max_rank == 0) {
        return cudaSuccess;
    }
    lora_expand_t whole = *expand;
    int error = cudaSuccess;
    if (wants_sums(at, rows, expand)) {
        error = k_cuda_lora_sum_rows(at, rows, expand, (float *)at->scratch);
        whole.low = (const float *)at->scratch;
        whole.parts = 1;
    }
    if (error != cudaSuccess) {
        return error;
    }
    return whole.y_dtype == K_F32 ? launch_typed<float>(at, rows, &whole)
                                  : launch_typed<__nv_bfloat16>(at, rows, &whole);
}

int k_cuda_lora_expand(const k_cuda_launch_t *at, const k_lora_expand_args_t *args)
{
    const lora_rows_t rows = lora_rows_of(&args->of);
    const lora_expand_t expand = {
        .low = args->low,
        .parts = k_lora_parts(args->in),
        .max_rank = args->max_rank,
        .y = args->y,
        .y_dtype = args->y_dtype,
        .y_stride = args->y_stride,
        .y_step = args->y_step,
        .out = args->out,
    };
    return k_cuda_lora_expand_rows(at, &rows, &expand);
}
