/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

typedef struct rotation {
    float cosine[K_MAX_HEAD_DIM / 2];
    float sine[K_MAX_HEAD_DIM / 2];
} rotation_t;

static void rotation_init(rotation_t *rotation, const k_rope_kv_write_args_t *args,
                          uint32_t position)
{
    for (uint32_t i = 0; i < args->rotary / 2; i++) {
        const float angle = (float)position * args->inv_freq[i];
        rotation->cosine[i] = cosf(angle) * args->mscale;
        rotation->sine[i] = sinf(angle) * args->mscale;
    }
}

static void rotate_head(const rotation_t *rotation, const k_rope_kv_write_args_t *args, float *head)
{
    const uint32_t half = args->rotary / 2;
    for (uint32_t i = 0; i < half; i++) {
        float *first = args->interleaved ? &head[2 * i] : &head[i];
        float *second = args->interleaved ? &head[2 * i + 1] : &head[i + half];
        const float a = *first;
        const float b = *second;
        *first = a * rotation->cosine[i] - b * rotation->sine[i];
        *second = b * rotation->cosine[i] + a * rotation->sine[i];
    }
}

static void rope_kv_write_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_rope_kv_write_args_t *args = arg;
    const k_kv_view_t *kv = &args->kv;
    const k_seq_t *seq = k_seq_of_row(args->seqs, args->n_seqs, row);
    const uint32_t position = seq->start + (row - seq->row);
    rotation_t rotation;
    rotation_init(&rotation, args, position);

    float *q = k_row(args->q, row, args->q_stride);
    for (uint32_t h = 0; h < args->q_heads; h++) {
        rotate_head(&rotation, args, q + (size_t)h * kv->head_dim);
    }
    float *k = k_row(args->k, row, args->k_stride);
    const float *v = k_const_row(args->v, row, args->v_stride);
    for (uint32_t h = 0; h < kv->heads; h++) {
        const size_t offset = (size_t)h * kv->head_dim;
        rotate_head(&rotation, args, k + offset);
        k_kv_store_head(kv, seq, position, h, 0, k + offset);
        k_kv_store_head(kv, seq, position, h, 1, v + offset);
    }
}

void k_ref_rope_kv_write(k_stream_t *stream, const k_rope_kv_write_args_t *args)
{
    assert(args->kv.head_dim <= K_MAX_HEAD_DIM && args->rotary <= args->kv.head_dim);
    k_team_run(stream->team, k_seq_rows(args->seqs, args->n_seqs), rope_kv_write_row, args);
}
