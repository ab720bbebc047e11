/* SPDX-License-Identifier: Apache-2.0 */
/* What peers need to know of this agent, put together from its ways and regions. */
#include <string.h>

#include "base/alloc.h"
#include "transport/xfer/xfer_blob.h"
#include "transport/xfer/xfer_region_priv.h"

typedef struct export
{
    xfer_agent_t *agent;
    xfer_blob_t blob;
    weft_buffer_t addresses[XFER_MAX_WAYS];
    xfer_blob_conn_t conns[XFER_MAX_WAYS];
    xfer_blob_section_t *sections; /* [one a kind of memory and way] */
    xfer_blob_region_t *regions;   /* those of all sections */
}
export_t;

static const xfer_space_t spaces[] = {XFER_DRAM, XFER_VRAM, XFER_FILE};

static xfer_bytes_t text_bytes(const char *text)
{
    return (xfer_bytes_t){text, strlen(text)};
}

static weft_status_t add_conns(export_t *export)
{
    const xfer_agent_t *agent = export->agent;
    for (size_t w = 0; w < agent->n_ways; w++) {
        const xfer_way_t *way = &agent->ways[w];
        weft_buffer_t *address = &export->addresses[w];
        weft_status_t status = way->backend->address(way->port, address);
        if (status == WEFT_OK && address->is_failed) {
            status = WEFT_ERR_NO_MEMORY;
        }
        if (status < 0) {
            return status;
        }
        export->conns[w] = (xfer_blob_conn_t){.backend = text_bytes(way->backend->wire_name),
                                              .address = {address->data, address->length}};
    }
    export->blob.conns = export->conns;
    export->blob.n_conns = agent->n_ways;
    return WEFT_OK;
}

/* The regions of one kind of memory that one way took, in the set's order, as peers expect. */
static void add_section(export_t *export, xfer_space_t space, size_t w, size_t *n_regions)
{
    const xfer_ranges_t *set = &export->agent->regions;
    xfer_blob_section_t section = {
        .backend = text_bytes(export->agent->ways[w].backend->wire_name),
        .space = (int32_t)space,
        .regions = &export->regions[*n_regions],
    };
    for (size_t i = 0; i < set->n; i++) {
        const xfer_region_t *region = (const xfer_region_t *)set->items[i];
        if (!region->is_wanted || region->memory.space != space ||
            (region->range.ways & UINT32_C(1) << w) == 0) {
            continue;
        }
        section.regions[section.n++] = (xfer_blob_region_t){
            .addr = region->memory.addr,
            .bytes = region->memory.bytes,
            .device = region->memory.device,
            .key = {region->at[w].key.data, region->at[w].key.length},
        };
    }
    if (section.n > 0) { /* peers do not accept empty ones */
        *n_regions += section.n;
        export->sections[export->blob.n_sections++] = section;
    }
}

static weft_status_t add_sections(export_t *export)
{
    const xfer_agent_t *agent = export->agent;
    const size_t n_sections = WEFT_ARRAY_LEN(spaces) * agent->n_ways;
    export->sections = weft_calloc(n_sections, sizeof(*export->sections), "xfer.export");
    export->regions =
        weft_calloc(agent->regions.n * agent->n_ways + 1, sizeof(*export->regions), "xfer.export");
    if (export->sections == NULL || export->regions == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    size_t n_regions = 0;
    for (size_t s = 0; s < WEFT_ARRAY_LEN(spaces); s++) {
        for (size_t w = 0; w < agent->n_ways; w++) {
            add_section(export, spaces[s], w, &n_regions);
        }
    }
    export->blob.sections = export->sections;
    return WEFT_OK;
}

static void mark_wanted(xfer_agent_t *agent, xfer_region_t *const *regions, size_t n)
{
    for (size_t i = 0; i < agent->regions.n; i++) {
        ((xfer_region_t *)agent->regions.items[i])->is_wanted = regions == NULL;
    }
    for (size_t i = 0; regions != NULL && i < n; i++) {
        regions[i]->is_wanted = true;
    }
}

weft_status_t xfer_export(xfer_agent_t *agent, xfer_region_t *const *regions, size_t n,
                          bool with_connection, weft_buffer_t *out)
{
    export_t export = {.agent = agent, .blob.agent = text_bytes(agent->name)};
    weft_status_t status = WEFT_OK;
    xfer_agent_enter(agent);
    pthread_mutex_lock(&agent->tables);
    mark_wanted(agent, regions, n);
    if (with_connection) {
        status = add_conns(&export);
    }
    if (status == WEFT_OK) {
        status = add_sections(&export);
    }
    if (status == WEFT_OK) {
        xfer_blob_encode(&export.blob, out);
        status = out->is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    }
    pthread_mutex_unlock(&agent->tables);
    xfer_agent_leave(agent);
    for (size_t w = 0; w < agent->n_ways; w++) {
        weft_buffer_free(&export.addresses[w]);
    }
    weft_free(export.sections);
    weft_free(export.regions);
    return status;
}
