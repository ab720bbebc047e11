/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/model/rope_table.h"

#include <math.h>

#define TWO_PI 6.283185307179586

static double clamp(double x, double low, double high)
{
    return x < low ? low : x > high ? high : x;
}

/* kept: the share of the unscaled frequency. */
static double mix(double freq, double factor, double kept)
{
    return freq * kept + freq / factor * (1.0 - kept);
}

static double scale_llama3(const model_rope_t *rope, double freq)
{
    const double turns = rope->original_context * freq / TWO_PI;
    const double low = rope->low_freq_factor;
    const double high = rope->high_freq_factor;
    return mix(freq, rope->factor, clamp((turns - low) / (high - low), 0.0, 1.0));
}

/* The pair, as a real number, that turns `turns` times within the original context. */
static double yarn_pair(const model_rope_t *rope, double turns)
{
    return rope->dim * log(rope->original_context / (turns * TWO_PI)) / (2.0 * log(rope->theta));
}

static double scale_yarn(const model_rope_t *rope, double freq, uint32_t pair)
{
    const double first = yarn_pair(rope, rope->beta_fast);
    const double last = yarn_pair(rope, rope->beta_slow);
    const double low = fmax(rope->keeps_ramp ? first : floor(first), 0.0);
    const double high = fmin(rope->keeps_ramp ? last : ceil(last), rope->dim - 1.0);
    const double width = high == low ? 0.001 : high - low;
    return mix(freq, rope->factor, 1.0 - clamp((pair - low) / width, 0.0, 1.0));
}

static double scale(const model_rope_t *rope, double freq, uint32_t pair)
{
    switch (rope->kind) {
    case MODEL_ROPE_LINEAR:
        return freq / rope->factor;
    case MODEL_ROPE_LLAMA3:
        return scale_llama3(rope, freq);
    case MODEL_ROPE_YARN:
        return scale_yarn(rope, freq, pair);
    case MODEL_ROPE_PLAIN:
    case MODEL_ROPE_FACTORS:
    case MODEL_ROPE_LONG:
        break;
    }
    return freq;
}

weft_status_t rope_table_fill(const model_rope_t *rope, const float *factors, weft_diag_t *diag,
                              float *inv_freq_out)
{
    for (uint32_t i = 0; i < rope->dim / 2; i++) {
        double freq = scale(rope, pow(rope->theta, -2.0 * i / rope->dim), i);
        if (factors != NULL) {
            freq /= factors[i];
        }
        if (!(freq > 0.0) || !isfinite((float)freq)) {
            return weft_diag(diag, WEFT_ERR_INVALID, "rope: frequency of pair %u is %g", i, freq);
        }
        inv_freq_out[i] = (float)freq;
    }
    return WEFT_OK;
}
