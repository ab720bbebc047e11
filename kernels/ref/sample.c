/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

typedef struct job {
    k_stream_t *stream;
    const k_sample_args_t *args;
} job_t;

static void sample_row(const void *arg, uint32_t row, uint32_t member)
{
    const job_t *job = arg;
    const k_sample_args_t *args = job->args;
    const k_sample_row_t *params = &args->params[row];
    const float *logits = args->logits + row * args->logits_stride;
    void *scratch = k_stream_scratch(job->stream, member, k_sampling_scratch_bytes(args->vocab));

    const int32_t token = k_sampling_pick(logits, args->vocab, params, scratch);
    if (params->append_to != NULL) {
        *params->append_to = token;
    }
    if (params->wants_logprob || params->n_top > 0) {
        k_sampling_report(logits, args->vocab, token, params->n_top, &args->out[row]);
    } else {
        args->out[row].chosen = (k_logprob_t){.token = token};
        args->out[row].n_top = 0;
    }
}

void k_ref_sample(k_stream_t *stream, const k_sample_args_t *args)
{
    const job_t job = {stream, args};
    k_team_run(stream->team, args->rows, sample_row, &job);
}
