/* SPDX-License-Identifier: Apache-2.0 */
/*
 * adapter: LoRA adapters of a model, as PEFT saves them: a folder with adapter_config.json and
 * adapter_model.safetensors. Source: Hugging Face PEFT's LoraConfig and the names of its tensors.
 *
 * A table has places for adapters; sequences say by k_seq_t.adapter which one they have. It lies, as
 * adapters do, on the model's device and is read by the model's graph; a place may be filled while
 * sequences with other ones run.
 *
 * Threads  loading on any; put: one at a time; an adapter outlives what runs with it
 */
#pragma once

#include "base/device.h"
#include "base/diag.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "runtime/model/model_config.h"
#include "runtime/model/model_shard.h"

#define ADAPTER_MAX_RANK K_LORA_MAX_RANK

/*
 * The linears of a layer that adapters may add to; those that are computed as one are neighbours. A
 * layer has some of them. The last four are several pairs of matrices each: an expert's, and a head's
 * two, as latent attention multiplies keys and values out in a query's stead.
 */
typedef enum adapter_target {
    ADAPTER_Q,
    ADAPTER_K,
    ADAPTER_V,
    ADAPTER_O,
    ADAPTER_GATE,
    ADAPTER_UP,
    ADAPTER_DOWN,
    ADAPTER_SHARED_GATE,
    ADAPTER_SHARED_UP,
    ADAPTER_SHARED_DOWN,
    ADAPTER_ROUTER,
    ADAPTER_MLA_Q, /* or what is first, where it has two steps */
    ADAPTER_MLA_KV_A,
    ADAPTER_MLA_Q_B,
    ADAPTER_SINGLE, /* so many are one pair */
    ADAPTER_EXPERT_GATE = ADAPTER_SINGLE,
    ADAPTER_EXPERT_UP,
    ADAPTER_EXPERT_DOWN,
    ADAPTER_MLA_KV_B,
    ADAPTER_TARGETS
} adapter_target_t;

#define ADAPTER_BIT(target) (UINT32_C(1) << (target))

typedef struct adapter adapter_t;
typedef struct adapter_table adapter_table_t;

typedef struct adapter_model {
    const model_config_t *config; /* the whole model's; borrowed, as the rest */
    const model_cut_t *cut;       /* what of it this rank has: it gets that much of an adapter */
    bool is_gguf;                 /* rows of q and k lie as llama.cpp turns them */
    weft_device_t *device;
    uint32_t max_rank;
} adapter_model_t;

/*
 * path: the folder. WEFT_ERR_NOT_FOUND: there is none. WEFT_ERR_MALFORMED, _UNSUPPORTED, _TOO_LARGE (a
 * rank above max_rank): diag names file, tensor or field, and reason.
 */
weft_status_t adapter_load(const adapter_model_t *model, const char *path, weft_diag_t *diag,
                           adapter_t **adapter_out);
void adapter_destroy(adapter_t *adapter); /* NULL is fine */

/* What adapter_load would take of the device; fails as that does, but for
 * matrices that are missing or there twice, and for what the device refuses. */
weft_status_t adapter_measure(const adapter_model_t *model, const char *path, weft_diag_t *diag,
                              size_t *bytes_out);

/* How wide the input of a target's linear is, and how many of them a row has at once. */
typedef struct adapter_width {
    uint32_t in;
    uint32_t at_once;
} adapter_width_t;

adapter_width_t adapter_width(const model_config_t *config, adapter_target_t target);

/* What one of the rank takes that adds to all there is but single experts. config: as below. */
size_t adapter_bytes(const model_config_t *config, uint32_t rank);

/* config, cut: of what this rank computes. */
size_t adapter_table_bytes(const model_config_t *config, const model_cut_t *cut, uint32_t places);
weft_status_t adapter_table_create(const model_config_t *config, const model_cut_t *cut,
                                   weft_device_t *device, uint32_t places,
                                   adapter_table_t **table_out);
void adapter_table_destroy(adapter_table_t *table); /* NULL is fine; adapters are the callers' */
/* No sequence has the place; steps that begin afterwards may. WEFT_ERR_DEVICE and the like. */
weft_status_t adapter_table_put(adapter_table_t *table, uint32_t place, const adapter_t *adapter);

/* ADAPTER_BIT of the targets that some adapter which was ever there adds to, in any layer. */
uint32_t adapter_table_targets(const adapter_table_t *table);

/*
 * [places] of one linear, of an expert's target [experts of this rank][places]: memory of the device,
 * at the same address for good.
 */
const k_lora_t *adapter_table_of(const adapter_table_t *table, uint32_t layer,
                                 adapter_target_t target);
/*
 * [places] of the first head of this rank: from its queries to latents, or from latents to its values; the
 * next one's lie so many entries on.
 */
const k_lora_t *adapter_table_of_heads(const adapter_table_t *table, uint32_t layer, bool is_value);
uint32_t adapter_table_head_step(const adapter_table_t *table);
uint32_t adapter_table_places(const adapter_table_t *table);
