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
#include "runtime/model_config.h"

#define ADAPTER_MAX_RANK 512

/* The linears of a layer that adapters may add to. */
typedef enum adapter_target {
    ADAPTER_Q,
    ADAPTER_K,
    ADAPTER_V,
    ADAPTER_O,
    ADAPTER_GATE,
    ADAPTER_UP,
    ADAPTER_DOWN,
    ADAPTER_TARGETS
} adapter_target_t;

typedef struct adapter adapter_t;
typedef struct adapter_table adapter_table_t;

typedef struct adapter_model {
    const model_config_t *config; /* borrowed, as the rest */
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

/* What one of the rank takes that adds to all there is. */
size_t adapter_bytes(const model_config_t *config, uint32_t rank);

/* Whether a model's layers have the linears that adapters add to. WEFT_ERR_UNSUPPORTED: diag says why. */
weft_status_t adapter_check_model(const model_config_t *config, weft_diag_t *diag);

weft_status_t adapter_table_create(const model_config_t *config, weft_device_t *device,
                                   uint32_t places, adapter_table_t **table_out);
void adapter_table_destroy(adapter_table_t *table); /* NULL is fine; adapters are the callers' */
/* No sequence has the place; steps that begin afterwards may. WEFT_ERR_DEVICE and the like. */
weft_status_t adapter_table_put(adapter_table_t *table, uint32_t place, const adapter_t *adapter);

/* [places] of one linear: memory of the device, at the same address for good. */
const k_lora_t *adapter_table_of(const adapter_table_t *table, uint32_t layer,
                                 adapter_target_t target);
