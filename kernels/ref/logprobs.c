/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

static void logprobs_row(const void *arg, uint32_t row, uint32_t member)
{
    (void)member;
    const k_logprobs_args_t *args = arg;
    k_sampling_report(args->logits + row * args->logits_stride, args->vocab, args->targets[row],
                      args->n_top[row], &args->out[row]);
}

void k_ref_logprobs(k_stream_t *stream, const k_logprobs_args_t *args)
{
    k_team_run(stream->team, args->rows, logprobs_row, args);
}
