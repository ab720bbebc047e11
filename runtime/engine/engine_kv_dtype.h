/* SPDX-License-Identifier: Apache-2.0 */
/* engine_kv_dtype: what --kv-cache-dtype may say, here and where models are only measured. */
#pragma once

#include "base/diag.h"
#include "base/status.h"
#include "kernels/dtypes.h"
#include "runtime/model/model_config.h"

/* if_auto: what "auto" means. WEFT_ERR_INVALID: diag lists the names there are. */
weft_status_t engine_kv_dtype_parse(const char *name, k_dtype_t if_auto, weft_diag_t *diag,
                                    k_dtype_t *dtype_out);

/* WEFT_ERR_UNSUPPORTED: a model of this kind cannot keep its cache so. */
weft_status_t engine_kv_dtype_check(k_dtype_t dtype, const model_config_t *config,
                                    weft_diag_t *diag);
