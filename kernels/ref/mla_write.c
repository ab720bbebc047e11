/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <math.h>

#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

typedef struct rotation {
    float cosine[K_MAX_LATENT / 2];
    float sine[K_MAX_LATENT / 2];
} rotation_t;

static void rotate(const rotation_t *rotation, const k_mla_write_args_t *args, const float *x,
                   float *y)
{
    const uint32_t half = args->rotary / 2;
    for (uint32_t i = 0; i < half; i++) {
        const uint32_t first = args->interleaved ? 2 * i : i;
        const uint32_t second = args->interleaved ? 2 * i + 1 : i + half;
        const float a = x[first];
        const float b = x[second];
        y[first] = a * rotation->cosine[i] - b * rotation->sine[i];
        y[second] = b * rotation->cosine[i] + a * rotation->sine[i];
    }
}

static void mla_write_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_mla_write_args_t *args = arg;
    const k_seq_t *seq = k_seq_of_row(args->seqs, args->n_seqs, row);
    const uint32_t position = seq->start + (row - seq->row);
    rotation_t rotation;
    for (uint32_t i = 0; i < args->rotary / 2; i++) {
        const float angle = (float)position * args->inv_freq[i];
        rotation.cosine[i] = cosf(angle) * args->mscale;
        rotation.sine[i] = sinf(angle) * args->mscale;
    }
    const float *q = k_const_row(args->q, row, args->q_stride);
    float *q_out = k_row(args->q_out, row, args->q_out_stride);
    for (uint32_t h = 0; h < args->q_heads; h++) {
        rotate(&rotation, args, q + (size_t)h * args->q_dim + (args->q_dim - args->rotary),
               q_out + (size_t)h * (args->latent + args->rotary) + args->latent);
    }
    float *c = k_row(args->c, row, args->c_stride);
    rotate(&rotation, args, c + args->latent, c + args->latent);
    k_kv_store(args->kv.dtype, k_kv_address(&args->kv, seq, position, 0, 0), c,
               2 * args->kv.head_dim);
}

void k_ref_mla_write(k_stream_t *stream, const k_mla_write_args_t *args)
{
    assert(args->latent + args->rotary == 2 * args->kv.head_dim && args->kv.heads == 1);
    assert(args->latent + args->rotary <= K_MAX_LATENT);
    k_team_run(stream->team, k_seq_rows(args->seqs, args->n_seqs), mla_write_row, args);
}
