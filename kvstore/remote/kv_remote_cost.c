/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_remote_cost.h"

#define NEWEST_PART 0.125

double kv_remote_read_ns(const kv_remote_rates_t *rates, const kv_remote_work_t *work)
{
    return rates->answer_ns + rates->latency_ns +
           work->n_blocks * work->block_bytes * rates->byte_ns;
}

static double compute_ns(const kv_remote_work_t *work)
{
    return work->n_blocks * work->block_compute_ns;
}

bool kv_remote_is_worth(const kv_remote_rates_t *rates, const kv_remote_work_t *work)
{
    return work->n_blocks > 0 &&
           (work->block_compute_ns == 0 ||
            compute_ns(work) >= KV_REMOTE_LEAST_GAIN * kv_remote_read_ns(rates, work));
}

/* With nothing known of computing the most blocks, sooner. */
double kv_remote_gain_ns(const kv_remote_rates_t *rates, const kv_remote_work_t *work)
{
    const double assumed = KV_REMOTE_LEAST_GAIN * work->block_bytes * rates->byte_ns;
    const double compute =
        work->block_compute_ns == 0 ? work->n_blocks * assumed : compute_ns(work);
    return compute - kv_remote_read_ns(rates, work);
}

void kv_remote_rate_note(double *known, double now)
{
    *known = *known == 0 ? now : *known + (now - *known) * NEWEST_PART;
}
