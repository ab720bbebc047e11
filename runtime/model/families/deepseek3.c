/* SPDX-License-Identifier: Apache-2.0 */
/* deepseek3: V2 with experts chosen by biased sigmoids, within groups. DeepSeek-AI 2024. */
#include "runtime/model/families/deepseek.h"

static void from_json(json_reader_t *root, model_config_t *config)
{
    deepseek_from_json(root, config);
    deepseek_read_groups(root, config);
    config->experts.is_sigmoid = true;
    config->experts.has_bias = true;
}

const model_family_t model_family_deepseek3 = {.name = "deepseek3",
                                               .add_layer = deepseek_add_layer};
const model_family_config_t model_family_config_deepseek3 = {.from_json = from_json};
