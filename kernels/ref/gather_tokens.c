/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/ref/ref_ops.h"

void k_ref_gather_tokens(k_stream_t *stream, const k_gather_tokens_args_t *args)
{
    (void)stream;
    for (uint32_t i = 0; i < args->n_seqs; i++) {
        const k_seq_t *seq = &args->seqs[i];
        memcpy(args->ids + seq->row, seq->history + seq->start, seq->rows * sizeof(int32_t));
    }
}
