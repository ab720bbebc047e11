/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's part in exchanging cached blocks with other workers: what it tells the store of them. */
#include <stdio.h>

#include "base/clock.h"
#include "runtime/engine/engine_priv.h"

bool engine_has_peers(const engine_options_t *options)
{
    return options->kv_remote_peers[0] != '\0' || options->kv_remote_listen[0] != '\0';
}

bool engine_keeps_blocks(const engine_t *engine, const engine_options_t *options)
{
    return engine->device->ops->is_host && options->kv_transfer_config[0] == '\0' &&
           !engine_has_peers(options);
}

/* Of digests; enough to tell two that somebody may meet. */
#define FACT_BYTES 16

static void put_hex(const uint8_t *bytes, char text_out[2 * FACT_BYTES + 1])
{
    for (size_t i = 0; i < FACT_BYTES; i++) {
        snprintf(text_out + 2 * i, 3, "%02x", bytes[i]);
    }
}

/* What two workers must have alike for their blocks to be the same, in the order of telling. */
static weft_status_t add_facts(const engine_t *engine, const model_source_t *source,
                               kv_remote_facts_t *facts)
{
    const engine_plan_t *plan = &engine->plan;
    const kv_layout_t *layout = &plan->layout;
    const kv_group_t *group = &layout->groups[0];
    uint8_t model[ENGINE_FINGERPRINT_BYTES];
    char text[2 * FACT_BYTES + 1];
    const weft_status_t status = engine_model_fingerprint(engine, source, model);
    if (status < 0) {
        return status;
    }
    kv_remote_facts_add(facts, "layers", "%u", group->layers);
    kv_remote_facts_add(facts, "KV heads", "%u", group->heads);
    kv_remote_facts_add(facts, "head size", "%u", group->head_dim);
    kv_remote_facts_add(facts, "--kv-cache-dtype", "%s", k_dtype_info(plan->kv_dtype)->name);
    kv_remote_facts_add(facts, "--block-size", "%u", layout->block_tokens);
    kv_remote_facts_add(facts, "--kv-cache-layout", "%s", kv_order_name(layout->order));
    kv_remote_facts_add(facts, "bytes of a block", "%zu", layout->block_bytes[0]);
    kv_remote_facts_add(facts, "device", "%s", engine->device->ops->name);
    kv_remote_facts_add(facts, "--cpu-isa", "%s", engine->stream->ops->name);
    kv_remote_facts_add(facts, "--prefix-caching-hash-algo", "%s",
                        kv_hash_algo_name(kv_hasher_algo(engine->hasher)));
    put_hex(kv_hasher_root(engine->hasher)->bytes, text);
    kv_remote_facts_add(facts, "root of hashes (PYTHONHASHSEED)", "%s", text);
    put_hex(model, text);
    kv_remote_facts_add(facts, "weights and configuration of the model", "%s", text);
    return WEFT_OK;
}

static kv_remote_config_t config_of(const engine_options_t *options)
{
    return (kv_remote_config_t){
        .listen = options->kv_remote_listen,
        .port_offset = options->data_parallel_rank,
        .peers = options->kv_remote_peers,
        .backends = options->kv_remote_backends,
        .params = options->kv_remote_params,
        .wait_ns = (uint64_t)(options->kv_remote_wait * (double)WEFT_NS_PER_SECOND),
    };
}

weft_status_t engine_remote_check(const engine_options_t *options, weft_diag_t *diag)
{
    const kv_remote_config_t config = config_of(options);
    return kv_remote_config_check(&config, diag);
}

weft_status_t engine_remote_config(const engine_t *engine, const engine_options_t *options,
                                   const model_source_t *source, kv_remote_config_t *config_out)
{
    *config_out = config_of(options);
    return engine_has_peers(options) ? add_facts(engine, source, &config_out->facts) : WEFT_OK;
}
