/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

/* A work item is one head of ROWS consecutive rows; rows of one sequence share the loaded chunk. */
enum { ROWS = 16, CHUNK = K_ATTENTION_CHUNK };

typedef struct chunk {
    float k[K_MAX_HEAD_DIM][CHUNK]; /* transposed: vector lanes are tokens */
    float v[CHUNK][K_MAX_HEAD_DIM];
} chunk_t;

/* Softmax so far of one row: the weights' largest exponent, their sum. */
typedef struct running {
    float max;
    float sum;
} running_t;

static void load_head(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t position, uint32_t head,
                      uint32_t part, float *to)
{
    const void *from = k_kv_address(kv, seq, position, head, part);
    if (kv->dtype == K_F32) {
        memcpy(to, from, kv->head_dim * sizeof(float));
    } else {
        k_dequantize(kv->dtype, from, to, kv->head_dim);
    }
    if (kv->dtype == K_I8) {
        const float scale = *k_kv_scale(kv, seq, position, head, part);
        for (uint32_t i = 0; i < kv->head_dim; i++) {
            to[i] *= scale;
        }
    }
}

static void load_chunk(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t head, uint32_t first,
                       uint32_t n, chunk_t *chunk)
{
    float k[K_MAX_HEAD_DIM];
    for (uint32_t t = 0; t < n; t++) {
        load_head(kv, seq, first + t, head, 0, k);
        load_head(kv, seq, first + t, head, 1, chunk->v[t]);
        for (uint32_t i = 0; i < kv->head_dim; i++) {
            chunk->k[i][t] = k[i];
        }
    }
    for (uint32_t i = 0; i < kv->head_dim; i++) {
        memset(&chunk->k[i][n], 0, (CHUNK - n) * sizeof(float));
    }
}

/*
 * Adds tokens [low, high) of the chunk to one row: the chunk's own softmax first, then merged, so
 * that chunks could as well be computed apart.
 */
static void attend(const k_attention_args_t *args, const float *q, const chunk_t *chunk,
                   uint32_t low, uint32_t high, running_t *running, float *o)
{
    const uint32_t dim = args->kv.head_dim;
    float score[CHUNK] = {0};
    for (uint32_t i = 0; i < dim; i++) {
        for (uint32_t t = 0; t < CHUNK; t++) {
            score[t] += q[i] * chunk->k[i][t];
        }
    }
    float max = -INFINITY;
    for (uint32_t t = low; t < high; t++) {
        score[t] *= args->scale;
        if (args->softcap > 0) {
            score[t] = args->softcap * tanhf(score[t] / args->softcap);
        }
        max = fmaxf(max, score[t]);
    }
    float sum = 0;
    float part[K_MAX_HEAD_DIM] = {0};
    for (uint32_t t = low; t < high; t++) {
        const float weight = expf(score[t] - max);
        sum += weight;
        for (uint32_t i = 0; i < dim; i++) {
            part[i] += weight * chunk->v[t][i];
        }
    }
    const float new_max = fmaxf(running->max, max);
    const float old_factor = expf(running->max - new_max);
    const float factor = expf(max - new_max);
    running->max = new_max;
    running->sum = running->sum * old_factor + sum * factor;
    for (uint32_t i = 0; i < dim; i++) {
        o[i] = o[i] * old_factor + part[i] * factor;
    }
}

/* Rows [row, row + rows), all of seq. */
static void attend_rows(const k_attention_args_t *args, const k_seq_t *seq, uint32_t head,
                        uint32_t row, uint32_t rows)
{
    const k_kv_view_t *kv = &args->kv;
    const uint32_t kv_head = head / (args->q_heads / kv->heads);
    const uint32_t position = seq->start + (row - seq->row);
    const uint32_t window = args->window > 0 ? args->window : UINT32_MAX;
    const uint32_t lowest = position < window ? 0 : position - window + 1;
    running_t running[ROWS];
    chunk_t chunk;

    for (uint32_t r = 0; r < rows; r++) {
        running[r] = (running_t){.max = -INFINITY};
        float *o = k_row(args->o, row + r, args->o_stride) + (size_t)head * kv->head_dim;
        memset(o, 0, kv->head_dim * sizeof(float));
    }
    for (uint32_t first = lowest / CHUNK * CHUNK; first < position + rows; first += CHUNK) {
        const uint32_t left = position + rows - first;
        load_chunk(kv, seq, kv_head, first, left < CHUNK ? left : CHUNK, &chunk);
        for (uint32_t r = 0; r < rows; r++) {
            const uint32_t end = position + r + 1; /* sees tokens [begin, end) */
            const uint32_t begin = end < window ? 0 : end - window;
            const uint32_t low = begin > first ? begin - first : 0;
            const uint32_t high = end > first ? end - first : 0;
            if (low >= CHUNK || high <= low) {
                continue;
            }
            const size_t at = (size_t)head * kv->head_dim;
            attend(args, k_const_row(args->q, row + r, args->q_stride) + at, &chunk, low,
                   high < CHUNK ? high : CHUNK, &running[r],
                   k_row(args->o, row + r, args->o_stride) + at);
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        float *o = k_row(args->o, row + r, args->o_stride) + (size_t)head * kv->head_dim;
        const float *sink = args->sinks == NULL ? NULL : &args->sinks[head];
        const float sum = running[r].sum + (sink == NULL ? 0 : expf(*sink - running[r].max));
        for (uint32_t i = 0; i < kv->head_dim; i++) {
            o[i] /= sum;
        }
    }
}

static void attention_item(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const k_attention_args_t *args = arg;
    const uint32_t head = item % args->q_heads;
    const uint32_t begin = item / args->q_heads * ROWS;
    const uint32_t all = k_seq_rows(args->seqs, args->n_seqs);
    const uint32_t end = all - begin < ROWS ? all : begin + ROWS;

    for (uint32_t row = begin; row < end;) {
        const k_seq_t *seq = k_seq_of_row(args->seqs, args->n_seqs, row);
        const uint32_t seq_end = seq->row + seq->rows;
        const uint32_t rows = (seq_end < end ? seq_end : end) - row;
        attend_rows(args, seq, head, row, rows);
        row += rows;
    }
}

void k_ref_attention(k_stream_t *stream, const k_attention_args_t *args)
{
    assert(args->kv.head_dim <= K_MAX_HEAD_DIM && args->q_heads % args->kv.heads == 0);
    const uint32_t tiles = (k_seq_rows(args->seqs, args->n_seqs) + ROWS - 1) / ROWS;
    k_team_run(stream->team, tiles * args->q_heads, attention_item, args);
}
