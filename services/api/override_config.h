/* SPDX-License-Identifier: Apache-2.0 */
/* override_config: --override-generation-config, a JSON object of sampling defaults. */
#pragma once

#include "services/api/api_model.h"

/* text "": nothing. Unknown members are refused by name. */
weft_status_t override_config_apply(const char *text, api_model_t *model, weft_diag_t *diag);
