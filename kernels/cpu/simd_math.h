/* SPDX-License-Identifier: Apache-2.0 */
/* simd_math: exp, tanh, SiLU and sine on lanes. Included after a simd_*.h. */
#pragma once

/*
 * e^x within 2 ulp; 0 below -104, +inf above 88.8, NaN stays NaN. Cody & Waite's reduction
 * x = n ln 2 + r, |r| ≤ ln 2 / 2, then the Taylor polynomial of degree 7 (error below 2^-27).
 */
static inline vf vf_exp(vf x)
{
    /* min and max keep their second operand when one is NaN. */
    const vf clamped = vf_min(vf_set(89.0f), vf_max(vf_set(-104.0f), x));
    const vf n = vf_round(vf_mul(clamped, vf_set(0x1.715476p+0f)));
    vf r = vf_fnma(n, vf_set(0x1.62e4p-1f), clamped);
    r = vf_fnma(n, vf_set(0x1.7f7d1cp-20f), r);
    vf p = vf_set(1.0f / 5040);
    p = vf_fma(p, r, vf_set(1.0f / 720));
    p = vf_fma(p, r, vf_set(1.0f / 120));
    p = vf_fma(p, r, vf_set(1.0f / 24));
    p = vf_fma(p, r, vf_set(1.0f / 6));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_fma(p, r, vf_set(1.0f));
    p = vf_fma(p, r, vf_set(1.0f));
    return vf_scale_exponent(p, n);
}

/* tanh x = 1 − 2 / (e^2x + 1): within 2^-23, not relative to a small result. */
static inline vf vf_tanh(vf x)
{
    const vf e = vf_exp(vf_add(x, x));
    return vf_sub(vf_set(1), vf_div(vf_set(2), vf_add(e, vf_set(1))));
}

/*
 * Sine and cosine within 2 ulp of 1 for |x| < 2^20. x = q π/2 + r in three parts, then minimax-like
 * Taylor polynomials on |r| ≤ π/4 (error below 2^-25), chosen by q mod 4.
 */
static inline void vf_sincos(vf x, vf *sine_out, vf *cosine_out)
{
    const vf q = vf_round(vf_mul(x, vf_set(0x1.45f306p-1f)));
    vf r = vf_fnma(q, vf_set(0x1.921fb6p+0f), x);
    r = vf_fnma(q, vf_set(-0x1.777a5cp-25f), r);
    r = vf_fnma(q, vf_set(-0x1.ee59dap-50f), r);
    const vf r2 = vf_mul(r, r);

    vf s = vf_fma(vf_set(1.0f / 362880), r2, vf_set(-1.0f / 5040));
    s = vf_fma(s, r2, vf_set(1.0f / 120));
    s = vf_fma(s, r2, vf_set(-1.0f / 6));
    s = vf_fma(vf_mul(s, r2), r, r);
    vf c = vf_fma(vf_set(-1.0f / 3628800), r2, vf_set(1.0f / 40320));
    c = vf_fma(c, r2, vf_set(-1.0f / 720));
    c = vf_fma(c, r2, vf_set(1.0f / 24));
    c = vf_fma(c, r2, vf_set(-0.5f));
    c = vf_fma(c, r2, vf_set(1.0f));

    const vf fours = vf_round(vf_mul(vf_sub(q, vf_set(1.5f)), vf_set(0.25f)));
    const vf quadrant = vf_fnma(fours, vf_set(4), q);
    const vf minus_s = vf_sub(vf_set(0), s);
    const vf minus_c = vf_sub(vf_set(0), c);
    const vf sine_low = vf_select_less(quadrant, vf_set(0.5f), s, c);
    const vf sine_high = vf_select_less(quadrant, vf_set(2.5f), minus_s, minus_c);
    const vf cosine_low = vf_select_less(quadrant, vf_set(0.5f), c, minus_s);
    const vf cosine_high = vf_select_less(quadrant, vf_set(2.5f), minus_c, s);
    *sine_out = vf_select_less(quadrant, vf_set(1.5f), sine_low, sine_high);
    *cosine_out = vf_select_less(quadrant, vf_set(1.5f), cosine_low, cosine_high);
}

/* silu(gate) · up */
static inline vf silu_mul(vf gate, vf up)
{
    const vf sigmoid = vf_div(gate, vf_add(vf_set(1), vf_exp(vf_sub(vf_set(0), gate))));
    return vf_mul(sigmoid, up);
}
