/* SPDX-License-Identifier: Apache-2.0 */
/* deepseek: what DeepSeek V2 and V3 have in common. */
#pragma once

#include "runtime/model/families/graph.h"

/* Latent attention and experts, but how these are grouped. */
void deepseek_from_json(json_reader_t *root, model_config_t *config);
void deepseek_read_groups(json_reader_t *root, model_config_t *config);

/* Both: GGUF calls V3 "deepseek2", too. */
void deepseek_from_gguf(model_gguf_reader_t *reader, model_config_t *config);

void deepseek_add_layer(const graph_t *graph, uint32_t index);
