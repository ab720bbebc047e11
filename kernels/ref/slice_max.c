/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_sampling_priv.h"
#include "kernels/k_team.h"
#include "kernels/ref/ref_ops.h"

typedef struct job {
    k_stream_t *stream;
    const k_slice_max_args_t *args;
} job_t;

/* The lowest token of the slice that the mask allows, -1 when it allows none or there is no mask. */
static int32_t find_allowed(const uint32_t *mask, uint32_t first, uint32_t n)
{
    for (uint32_t t = first; mask != NULL && t < first + n; t++) {
        if (k_mask_allows(mask, t)) {
            return (int32_t)t;
        }
    }
    return -1;
}

static float logit_of(const float *logits, const k_slice_max_args_t *args, int32_t token)
{
    const uint32_t at = (uint32_t)token - args->first_token;
    return token >= 0 && at < args->tokens ? k_clean_logit(logits[at]) : -INFINITY;
}

/* What is left to choose from under mask, bias and penalties. */
static void filter(const job_t *job, uint32_t row, uint32_t member, k_slice_max_t *out)
{
    const k_slice_max_args_t *args = job->args;
    const k_sample_row_t *params = &args->params[row];
    const float *logits = args->logits + row * args->stride;
    float *z = args->z + row * args->stride;
    void *memory = k_stream_scratch(job->stream, member, k_sampling_scratch_bytes(args->tokens));
    const k_sampling_scratch_t scratch = k_sampling_split(memory, args->tokens);
    k_sampling_filter(logits, args->first_token, args->tokens, params, scratch.counts, z);
    const k_top_t best = k_sampling_max(z, args->first_token, args->tokens);
    out->z = best.logit;
    out->token = best.token;
    out->logit = logit_of(logits, args, best.token);
    if (out->z == -INFINITY) {
        out->allowed = find_allowed(params->mask, args->first_token, args->tokens);
        out->allowed_logit = logit_of(logits, args, out->allowed);
    }
}

static void slice_row(const void *arg, uint32_t row, uint32_t member)
{
    const job_t *job = arg;
    const k_slice_max_args_t *args = job->args;
    const float *logits = args->logits + row * args->stride;
    const k_top_t max = k_sampling_max(logits, args->first_token, args->tokens);
    k_slice_max_t out = {.max_logit = max.logit,
                         .max_token = max.token,
                         .z = max.logit,
                         .token = max.token,
                         .logit = max.logit,
                         .allowed = -1};
    if (args->params == NULL) {
        out.target_logit = logit_of(logits, args, args->targets[row]);
    } else if (!k_sampling_is_plain(&args->params[row])) {
        filter(job, row, member, &out);
    }
    args->out[row] = out;
}

void k_ref_slice_max(k_stream_t *stream, const k_slice_max_args_t *args)
{
    const job_t job = {stream, args};
    k_team_run(stream->team, args->rows, slice_row, &job);
}
