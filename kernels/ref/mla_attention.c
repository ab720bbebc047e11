/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

/* A work item is up to HEADS heads of one row: they share the chunk that is loaded. */
enum { HEADS = 16, CHUNK = K_ATTENTION_CHUNK };

typedef struct chunk {
    float across[K_MAX_LATENT][CHUNK]; /* transposed: vector lanes are tokens */
    float along[CHUNK][K_MAX_LATENT];
} chunk_t;

typedef struct running {
    float max;
    float sum;
} running_t;

static void load_chunk(const k_kv_view_t *kv, const k_seq_t *seq, uint32_t first, uint32_t n,
                       chunk_t *chunk)
{
    const uint32_t dim = 2 * kv->head_dim;
    for (uint32_t t = 0; t < n; t++) {
        k_dequantize(kv->dtype, k_kv_address(kv, seq, first + t, 0, 0), chunk->along[t], dim);
        for (uint32_t i = 0; i < dim; i++) {
            chunk->across[i][t] = chunk->along[t][i];
        }
    }
    for (uint32_t i = 0; i < dim; i++) {
        memset(&chunk->across[i][n], 0, (CHUNK - n) * sizeof(float));
    }
}

/* Adds the first n tokens of the chunk: its own softmax, then merged, as attention does. */
static void attend(const k_mla_attention_args_t *args, const float *q, const chunk_t *chunk,
                   uint32_t n, running_t *running, float *o)
{
    float score[CHUNK] = {0};
    for (uint32_t i = 0; i < 2 * args->kv.head_dim; i++) {
        for (uint32_t t = 0; t < CHUNK; t++) {
            score[t] += q[i] * chunk->across[i][t];
        }
    }
    float max = -INFINITY;
    for (uint32_t t = 0; t < n; t++) {
        score[t] *= args->scale;
        max = fmaxf(max, score[t]);
    }
    float sum = 0;
    float part[K_MAX_LATENT] = {0};
    for (uint32_t t = 0; t < n; t++) {
        const float weight = expf(score[t] - max);
        sum += weight;
        for (uint32_t i = 0; i < args->latent; i++) {
            part[i] += weight * chunk->along[t][i];
        }
    }
    const float new_max = fmaxf(running->max, max);
    const float old_factor = expf(running->max - new_max);
    const float factor = expf(max - new_max);
    running->max = new_max;
    running->sum = running->sum * old_factor + sum * factor;
    for (uint32_t i = 0; i < args->latent; i++) {
        o[i] = o[i] * old_factor + part[i] * factor;
    }
}

static void attend_heads(const k_mla_attention_args_t *args, uint32_t row, uint32_t first_head,
                         uint32_t heads)
{
    const uint32_t dim = 2 * args->kv.head_dim;
    const k_seq_t *seq = k_seq_of_row(args->seqs, args->n_seqs, row);
    const uint32_t tokens = seq->start + (row - seq->row) + 1;
    const float *q = k_const_row(args->q, row, args->q_stride) + (size_t)first_head * dim;
    float *o = k_row(args->o, row, args->o_stride) + (size_t)first_head * args->latent;
    running_t running[HEADS];
    chunk_t chunk;

    memset(o, 0, (size_t)heads * args->latent * sizeof(float));
    for (uint32_t h = 0; h < heads; h++) {
        running[h] = (running_t){.max = -INFINITY};
    }
    for (uint32_t first = 0; first < tokens; first += CHUNK) {
        const uint32_t n = tokens - first < CHUNK ? tokens - first : CHUNK;
        load_chunk(&args->kv, seq, first, n, &chunk);
        for (uint32_t h = 0; h < heads; h++) {
            attend(args, q + (size_t)h * dim, &chunk, n, &running[h], o + (size_t)h * args->latent);
        }
    }
    for (uint32_t h = 0; h < heads; h++) {
        for (uint32_t i = 0; i < args->latent; i++) {
            o[(size_t)h * args->latent + i] /= running[h].sum;
        }
    }
}

static void mla_attention_item(const void *arg, uint32_t item, uint32_t member)
{
    (void)member;
    const k_mla_attention_args_t *args = arg;
    const uint32_t tiles = (args->q_heads + HEADS - 1) / HEADS;
    const uint32_t first = item % tiles * HEADS;
    const uint32_t left = args->q_heads - first;
    attend_heads(args, item / tiles, first, left < HEADS ? left : HEADS);
}

void k_ref_mla_attention(k_stream_t *stream, const k_mla_attention_args_t *args)
{
    assert(args->latent <= 2 * args->kv.head_dim && 2 * args->kv.head_dim <= K_MAX_LATENT);
    assert(args->kv.heads == 1);
    const uint32_t tiles = (args->q_heads + HEADS - 1) / HEADS;
    k_team_run(stream->team, k_seq_rows(args->seqs, args->n_seqs) * tiles, mla_attention_item,
               args);
}
