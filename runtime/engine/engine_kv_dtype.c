/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/engine_kv_dtype.h"

#include <string.h>

#include "base/compiler.h"

weft_status_t engine_kv_dtype_parse(const char *name, k_dtype_t if_auto, weft_diag_t *diag,
                                    k_dtype_t *dtype_out)
{
    /* The longer names are vLLM's. */
    static const struct {
        const char *name;
        k_dtype_t dtype;
    } names[] = {
        {"f32", K_F32},
        {"float32", K_F32},
        {"f16", K_F16},
        {"fp16", K_F16},
        {"float16", K_F16},
        {"bf16", K_BF16},
        {"fp8", K_F8},
        {"bfloat16", K_BF16},
        {"fp8_e4m3", K_F8},
        {"int8", K_I8},
        {"int8_per_token_head", K_I8},
    };
    if (strcmp(name, "auto") == 0) {
        *dtype_out = if_auto;
        return WEFT_OK;
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i].name) == 0) {
            *dtype_out = names[i].dtype;
            return WEFT_OK;
        }
    }
    return weft_diag(
        diag, WEFT_ERR_INVALID,
        "--kv-cache-dtype %s: unknown; auto, f32, f16, bf16, fp8 and int8 are possible", name);
}

/* The scales of int8 are of K and of V apart; latents are both. */
weft_status_t engine_kv_dtype_check(k_dtype_t dtype, const model_config_t *config,
                                    weft_diag_t *diag)
{
    if (dtype == K_I8 && config->mla.kv_latent > 0) {
        return weft_diag(
            diag, WEFT_ERR_UNSUPPORTED,
            "--kv-cache-dtype int8: not for latent attention (%s); use bf16, f16 or fp8",
            config->architecture);
    }
    return WEFT_OK;
}
