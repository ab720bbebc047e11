/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "runtime/model/adapter_priv.h"

struct adapter_table {
    weft_device_t *device;
    weft_mem_t memory; /* of the device: [layers][of_layer.n][places] */
    uint32_t places;
    adapter_pairs_t of_layer;
    uint32_t layers;
    atomic_uint targets; /* set by put before sequences with the adapter run */
};

size_t adapter_table_bytes(const model_config_t *config, const model_cut_t *cut, uint32_t places)
{
    return (size_t)config->layers * adapter_pairs(config, cut).n * places * sizeof(k_lora_t);
}

weft_status_t adapter_table_create(const model_config_t *config, const model_cut_t *cut,
                                   weft_device_t *device, uint32_t places,
                                   adapter_table_t **table_out)
{
    const adapter_pairs_t of_layer = adapter_pairs(config, cut);
    const size_t bytes = adapter_table_bytes(config, cut, places);
    adapter_table_t *table = weft_zalloc(sizeof(*table), "runtime.adapter_table");
    if (table == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    table->device = device;
    table->places = places;
    table->of_layer = of_layer;
    table->layers = config->layers;
    const weft_status_t status =
        device->ops->alloc(device, bytes, 0, &table->memory); /* zeros: rank 0 */
    if (status < 0) {
        adapter_table_destroy(table);
        return status;
    }
    *table_out = table;
    return WEFT_OK;
}

void adapter_table_destroy(adapter_table_t *table)
{
    if (table == NULL) {
        return;
    }
    adapter_free_memory(table->device, &table->memory);
    weft_free(table);
}

weft_status_t adapter_table_put(adapter_table_t *table, uint32_t place, const adapter_t *adapter)
{
    const weft_device_ops_t *device = table->device->ops;
    k_lora_t *entries = table->memory.addr;
    weft_queue_t *queue = NULL;
    assert(place < table->places && adapter->layers == table->layers &&
           adapter->of_layer.n == table->of_layer.n);
    weft_status_t status = device->open_queue(table->device, &queue);
    if (status < 0) {
        return status;
    }
    for (uint32_t i = 0; i < table->layers * table->of_layer.n; i++) {
        if (adapter->pairs[i].rank > 0) {
            const uint32_t pair = i % table->of_layer.n;
            atomic_fetch_or(&table->targets,
                            ADAPTER_BIT(adapter_target_of(&table->of_layer, pair)));
        }
        device->copy(queue, &entries[(size_t)i * table->places + place], &adapter->pairs[i],
                     sizeof(k_lora_t));
    }
    status = device->sync(queue);
    device->close_queue(queue);
    return status;
}

uint32_t adapter_table_targets(const adapter_table_t *table)
{
    return atomic_load_explicit(&table->targets, memory_order_relaxed);
}

uint32_t adapter_table_places(const adapter_table_t *table)
{
    return table->places;
}

const k_lora_t *adapter_table_of(const adapter_table_t *table, uint32_t layer,
                                 adapter_target_t target)
{
    const k_lora_t *entries = table->memory.addr;
    const uint32_t pair = adapter_pair_of(&table->of_layer, target);
    return entries + ((size_t)layer * table->of_layer.n + pair) * table->places;
}

const k_lora_t *adapter_table_of_heads(const adapter_table_t *table, uint32_t layer, bool is_value)
{
    return adapter_table_of(table, layer, ADAPTER_MLA_KV_B) + (is_value ? table->places : 0);
}

uint32_t adapter_table_head_step(const adapter_table_t *table)
{
    return 2 * table->places;
}
