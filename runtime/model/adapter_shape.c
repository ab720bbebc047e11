/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"
#include "runtime/model/adapter_priv.h"

/* ---- names ---------------------------------------------------------------------------------- */

static const char *const modules[ADAPTER_TARGETS] = {
    [ADAPTER_Q] = "self_attn.q_proj",
    [ADAPTER_K] = "self_attn.k_proj",
    [ADAPTER_V] = "self_attn.v_proj",
    [ADAPTER_O] = "self_attn.o_proj",
    [ADAPTER_GATE] = "mlp.gate_proj",
    [ADAPTER_UP] = "mlp.up_proj",
    [ADAPTER_DOWN] = "mlp.down_proj",
    [ADAPTER_SHARED_GATE] = "mlp.shared_experts.gate_proj",
    [ADAPTER_SHARED_UP] = "mlp.shared_experts.up_proj",
    [ADAPTER_SHARED_DOWN] = "mlp.shared_experts.down_proj",
    [ADAPTER_ROUTER] = "mlp.gate",
    [ADAPTER_MLA_Q] = "self_attn.q_proj",
    [ADAPTER_MLA_KV_A] = "self_attn.kv_a_proj_with_mqa",
    [ADAPTER_MLA_Q_B] = "self_attn.q_b_proj",
    [ADAPTER_EXPERT_GATE] = "gate_proj",
    [ADAPTER_EXPERT_UP] = "up_proj",
    [ADAPTER_EXPERT_DOWN] = "down_proj",
    [ADAPTER_MLA_KV_B] = "self_attn.kv_b_proj",
};

/* Linears that are one in the families that have them so. */
typedef struct fused {
    const char *module;
    adapter_target_t first;
    uint32_t n;
} fused_t;

static const fused_t fused_modules[] = {
    {"self_attn.qkv_proj", ADAPTER_Q, 3},
    {"mlp.gate_up_proj", ADAPTER_GATE, 2},
};

bool adapter_is_of_expert(adapter_target_t target)
{
    return target >= ADAPTER_EXPERT_GATE && target <= ADAPTER_EXPERT_DOWN;
}

static bool is_mixtral(const model_config_t *config)
{
    return strcmp(config->family, "mixtral") == 0;
}

const char *adapter_module(const model_config_t *config, adapter_target_t target)
{
    static const char *const of_mixtral[] = {"w1", "w3", "w2"};
    const bool has_two_steps = target == ADAPTER_MLA_Q && config->mla.q_latent > 0;
    if (is_mixtral(config) && adapter_is_of_expert(target)) {
        return of_mixtral[target - ADAPTER_EXPERT_GATE];
    }
    return has_two_steps                                    ? "self_attn.q_a_proj"
           : is_mixtral(config) && target == ADAPTER_ROUTER ? "block_sparse_moe.gate"
                                                            : modules[target];
}

/* GPT-OSS. */
static bool has_experts_in_one(const model_config_t *config)
{
    return config->experts.has_linear_bias;
}

bool adapter_layer_has(const model_config_t *config, uint32_t layer, adapter_target_t target)
{
    const bool is_latent = config->mla.kv_latent > 0;
    const bool has_experts = model_layer_has_experts(config, layer);
    switch (target) {
    case ADAPTER_Q:
    case ADAPTER_K:
    case ADAPTER_V:
        return !is_latent;
    case ADAPTER_GATE:
    case ADAPTER_UP:
    case ADAPTER_DOWN:
        return !has_experts;
    case ADAPTER_SHARED_GATE:
    case ADAPTER_SHARED_UP:
    case ADAPTER_SHARED_DOWN:
        return has_experts && config->experts.shared_intermediate > 0;
    case ADAPTER_ROUTER:
        return has_experts;
    case ADAPTER_EXPERT_GATE:
    case ADAPTER_EXPERT_UP:
    case ADAPTER_EXPERT_DOWN:
        return has_experts && !has_experts_in_one(config);
    case ADAPTER_MLA_Q:
    case ADAPTER_MLA_KV_A:
    case ADAPTER_MLA_KV_B:
        return is_latent;
    case ADAPTER_MLA_Q_B:
        return is_latent && config->mla.q_latent > 0;
    default:
        return true;
    }
}

/* ---- shapes --------------------------------------------------------------------------------- */

/* Numbers of a model, or of what a rank has of it, that make up the shapes of its matrices. */
typedef struct sizes {
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t ffn;
    uint32_t shared_ffn;
    uint32_t expert_ffn;
} sizes_t;

static sizes_t sizes_of(const model_config_t *config)
{
    return (sizes_t){config->heads, config->kv_heads, config->intermediate,
                     config->experts.shared_intermediate, config->experts.intermediate};
}

/* Of the matrix as if the model had these sizes; the first of a cut one's, it begins at that. */
static adapter_shape_t shape_with(const model_config_t *config, const sizes_t *sizes,
                                  adapter_target_t target, adapter_shape_t uncut)
{
    const model_mla_t *mla = &config->mla;
    const uint32_t q_dim = mla->plain + mla->rotary;
    const uint32_t o_dim = mla->kv_latent > 0 ? mla->value : config->head_dim;
    const uint32_t in = uncut.in;
    const uint32_t out = uncut.out;
    switch (target) {
    case ADAPTER_Q:
        return (adapter_shape_t){in, sizes->heads * config->head_dim};
    case ADAPTER_K:
    case ADAPTER_V:
        return (adapter_shape_t){in, sizes->kv_heads * config->head_dim};
    case ADAPTER_O:
        return (adapter_shape_t){sizes->heads * o_dim, out};
    case ADAPTER_GATE:
    case ADAPTER_UP:
        return (adapter_shape_t){in, sizes->ffn};
    case ADAPTER_DOWN:
        return (adapter_shape_t){sizes->ffn, out};
    case ADAPTER_SHARED_GATE:
    case ADAPTER_SHARED_UP:
        return (adapter_shape_t){in, sizes->shared_ffn};
    case ADAPTER_SHARED_DOWN:
        return (adapter_shape_t){sizes->shared_ffn, out};
    case ADAPTER_EXPERT_GATE:
    case ADAPTER_EXPERT_UP:
        return (adapter_shape_t){in, sizes->expert_ffn};
    case ADAPTER_EXPERT_DOWN:
        return (adapter_shape_t){sizes->expert_ffn, out};
    case ADAPTER_MLA_Q:
        return (adapter_shape_t){in, mla->q_latent > 0 ? out : sizes->heads * q_dim};
    case ADAPTER_MLA_Q_B:
        return (adapter_shape_t){in, sizes->heads * q_dim};
    case ADAPTER_MLA_KV_B:
        return (adapter_shape_t){in, sizes->heads * (mla->plain + mla->value)};
    default:
        return uncut;
    }
}

/* What no cut changes of it. */
static adapter_shape_t uncut_of(const model_config_t *config, adapter_target_t target)
{
    const model_mla_t *mla = &config->mla;
    const uint32_t hidden = config->hidden;
    switch (target) {
    case ADAPTER_ROUTER:
        return (adapter_shape_t){hidden, config->experts.count};
    case ADAPTER_MLA_Q:
        return (adapter_shape_t){hidden, mla->q_latent};
    case ADAPTER_MLA_KV_A:
        return (adapter_shape_t){hidden, mla->kv_latent + mla->rotary};
    case ADAPTER_MLA_Q_B:
        return (adapter_shape_t){mla->q_latent, 0};
    case ADAPTER_MLA_KV_B:
        return (adapter_shape_t){mla->kv_latent, 0};
    default:
        return (adapter_shape_t){hidden, hidden};
    }
}

adapter_shape_t adapter_shape(const model_config_t *config, adapter_target_t target)
{
    const sizes_t sizes = sizes_of(config);
    return shape_with(config, &sizes, target, uncut_of(config, target));
}

adapter_width_t adapter_width(const model_config_t *config, adapter_target_t target)
{
    const model_mla_t *mla = &config->mla;
    if (target == ADAPTER_MLA_KV_B) { /* as a head's keys and its values are summed */
        return (adapter_width_t){mla->plain < mla->kv_latent ? mla->kv_latent : mla->plain,
                                 config->heads};
    }
    return (adapter_width_t){adapter_shape(config, target).in,
                             adapter_is_of_expert(target) ? config->experts.used : 1};
}

adapter_part_t adapter_part(const adapter_model_t *model, adapter_target_t target)
{
    const model_cut_t *cut = model->cut;
    const sizes_t first = {cut->heads.first, cut->kv_heads.first, cut->ffn.first,
                           cut->shared_ffn.first, cut->expert_ffn.first};
    const sizes_t n = {cut->heads.n, cut->kv_heads.n, cut->ffn.n, cut->shared_ffn.n,
                       cut->expert_ffn.n};
    const adapter_shape_t begin =
        shape_with(model->config, &first, target, (adapter_shape_t){0, 0});
    const adapter_shape_t here =
        shape_with(model->config, &n, target, uncut_of(model->config, target));
    return (adapter_part_t){{begin.in, here.in}, {begin.out, here.out}};
}

adapter_pairs_t adapter_pairs(const model_config_t *config, const model_cut_t *cut)
{
    const uint32_t experts = config->experts.count > 0 ? cut->experts.n : 0;
    const uint32_t heads = config->mla.kv_latent > 0 ? cut->heads.n : 0;
    return (adapter_pairs_t){experts, heads, ADAPTER_SINGLE + 3 * experts + 2 * heads};
}

uint32_t adapter_pair_of(const adapter_pairs_t *pairs, adapter_target_t target)
{
    return target < ADAPTER_SINGLE
               ? target
               : ADAPTER_SINGLE + (target - ADAPTER_EXPERT_GATE) * pairs->experts;
}

adapter_target_t adapter_target_of(const adapter_pairs_t *pairs, uint32_t pair)
{
    const uint32_t more = pair < ADAPTER_SINGLE ? 0 : pair - ADAPTER_SINGLE;
    return pair < ADAPTER_SINGLE       ? (adapter_target_t)pair
           : more < 3 * pairs->experts ? ADAPTER_EXPERT_GATE + more / pairs->experts
                                       : ADAPTER_MLA_KV_B;
}

size_t adapter_bytes(const model_config_t *config, uint32_t rank)
{
    size_t floats = 0;
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        for (adapter_target_t t = 0; t < ADAPTER_TARGETS; t++) {
            const adapter_shape_t shape = adapter_shape(config, t);
            floats += adapter_layer_has(config, layer, t) && !adapter_is_of_expert(t)
                          ? adapter_floats(rank, shape.in) + adapter_floats(rank, shape.out)
                          : 0;
        }
    }
    return floats * sizeof(float);
}

/* ---- where a tensor belongs ------------------------------------------------------------------ */

/* What follows `start` in text, NULL: it does not begin so. */
static const char *behind(const char *text, const char *start)
{
    const size_t length = strlen(start);
    return strncmp(text, start, length) == 0 ? text + length : NULL;
}

/* The number that text begins with, before a dot: what follows that, or NULL. */
static const char *parse_number(const char *text, uint32_t *number_out)
{
    char *end = NULL;
    if (text == NULL || *text < '0' || *text > '9') {
        return NULL;
    }
    const unsigned long number = strtoul(text, &end, 10);
    *number_out = number < UINT32_MAX ? (uint32_t)number : UINT32_MAX;
    return *end == '.' ? end + 1 : NULL;
}

/* base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight: the layer, and what follows it */
const char *adapter_parse_layer(const char *name, uint32_t *layer_out)
{
    return parse_number(behind(name, "base_model.model.model.layers."), layer_out);
}

/* mlp.experts.5.up_proj.lora_A.weight: the expert, and what follows it */
static const char *parse_expert(const model_config_t *config, const char *module,
                                uint32_t *expert_out)
{
    const char *at = parse_number(
        behind(module, is_mixtral(config) ? "block_sparse_moe.experts." : "mlp.experts."),
        expert_out);
    return at != NULL && *expert_out < config->experts.count ? at : NULL;
}

/* lora_A.weight, or of b: which of both */
static bool parse_side(const char *side, bool *is_b_out)
{
    const bool is_a = side != NULL && strcmp(side, "lora_A.weight") == 0;
    *is_b_out = !is_a;
    return is_a || (side != NULL && strcmp(side, "lora_B.weight") == 0);
}

/* mlp.experts.base_layer.lora_A.weight, mlp.experts.lora_A.weight */
static bool parse_experts_in_one(const model_config_t *config, adapter_target_t outer,
                                 const char *module, adapter_place_t *place)
{
    const char *own = has_experts_in_one(config) ? behind(module, "mlp.experts.") : NULL;
    const char *inner = own == NULL ? NULL : behind(own, "base_layer.");
    place->target = inner != NULL ? ADAPTER_EXPERT_GATE : outer;
    place->n_targets = place->target == ADAPTER_EXPERT_GATE ? 2 : 1;
    place->is_of_all = true;
    return parse_side(inner != NULL ? inner : own, &place->is_b) &&
           (inner == NULL || outer != ADAPTER_EXPERT_GATE);
}

/* What follows the module that `start` names, and its dot; NULL: it is another one. */
static const char *behind_module(const char *text, const char *start)
{
    const char *side = text == NULL ? NULL : behind(text, start);
    return side != NULL && *side == '.' ? side + 1 : NULL;
}

/* self_attn.qkv_proj.lora_A.weight */
static bool parse_fused(const model_config_t *config, const char *module, adapter_place_t *place)
{
    for (size_t i = 0; config->is_fused && i < WEFT_ARRAY_LEN(fused_modules); i++) {
        const fused_t *fused = &fused_modules[i];
        if (adapter_layer_has(config, place->layer, fused->first) &&
            parse_side(behind_module(module, fused->module), &place->is_b)) {
            place->target = fused->first;
            place->n_targets = fused->n;
            return true;
        }
    }
    return false;
}

/* mlp.up_proj.lora_A.weight, mlp.experts.5.up_proj.lora_A.weight */
static bool parse_single(const model_config_t *config, const char *module, adapter_place_t *place)
{
    const char *in_expert = parse_expert(config, module, &place->expert);
    place->n_targets = 1;
    for (adapter_target_t t = 0; t < ADAPTER_TARGETS; t++) {
        const char *from = adapter_is_of_expert(t) ? in_expert : module;
        if (adapter_layer_has(config, place->layer, t) &&
            parse_side(behind_module(from, adapter_module(config, t)), &place->is_b)) {
            place->target = t;
            return true;
        }
    }
    return false;
}

bool adapter_parse_name(const model_config_t *config, adapter_target_t outer, const char *name,
                        adapter_place_t *place_out)
{
    adapter_place_t place = {0};
    const char *module = adapter_parse_layer(name, &place.layer);
    if (module == NULL || place.layer >= config->layers) {
        return false;
    }
    if (model_layer_has_experts(config, place.layer) &&
        parse_experts_in_one(config, outer, module, &place)) {
        *place_out = place;
        return true;
    }
    place.is_of_all = false;
    if (parse_fused(config, module, &place) || parse_single(config, module, &place)) {
        *place_out = place;
        return true;
    }
    return false;
}
