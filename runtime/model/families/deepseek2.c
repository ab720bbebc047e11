/* SPDX-License-Identifier: Apache-2.0 */
/* deepseek2: latent attention, experts chosen by a softmax beside shared ones. DeepSeek-AI 2024. */
#include <string.h>

#include "runtime/model/families/deepseek.h"

static void from_json(json_reader_t *root, model_config_t *config)
{
    const char *method = json_reader_string(root, "topk_method", "greedy");
    deepseek_from_json(root, config);
    if (strcmp(method, "group_limited_greedy") == 0) {
        deepseek_read_groups(root, config);
    } else if (strcmp(method, "greedy") != 0) {
        json_reader_refuse(root, WEFT_ERR_UNSUPPORTED, "topk_method",
                           "only greedy and group_limited_greedy are supported");
    }
}

const model_family_t model_family_deepseek2 = {.name = "deepseek2",
                                               .add_layer = deepseek_add_layer};
const model_family_config_t model_family_config_deepseek2 = {.from_json = from_json,
                                                             .from_gguf = deepseek_from_gguf};
