/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_xfer_blob: what a stranger says of itself. What is understood is what would be written for it
 * again; then an agent with a backend called UCX imports it, twice.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "transport/xfer/xfer_agent_priv.h"
#include "transport/xfer/xfer_blob.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

/* ---- a backend that only has a name ---------------------------------------------------------- */

static xfer_port_t only_port;

static weft_status_t name_open(const xfer_port_config_t *config, weft_diag_t *diag,
                               xfer_port_t **port_out)
{
    (void)diag;
    only_port.config = *config;
    *port_out = &only_port;
    return WEFT_OK;
}

static void name_close(xfer_port_t *port)
{
    (void)port;
}

static const xfer_backend_t name_backend = {.name = "ucx",
                                            .wire_name = "UCX",
                                            .caps = XFER_CAP_DRAM,
                                            .open = name_open,
                                            .close = name_close};
static const xfer_backend_t *const table[] = {&name_backend, NULL};

/* ---- the target ------------------------------------------------------------------------------ */

static void check_same(const uint8_t *data, size_t size)
{
    xfer_blob_t blob;
    weft_buffer_t again = {0};
    if (xfer_blob_decode(data, size, NULL, &blob) != WEFT_OK) {
        return;
    }
    xfer_blob_encode(&blob, &again);
    require(again.length == size && memcmp(again.data, data, size) == 0);
    weft_buffer_free(&again);
    xfer_blob_fini(&blob);
}

/* Each region that was taken can be described whole. */
static void check_regions(xfer_agent_t *agent, xfer_peer_t *peer, const uint8_t *data, size_t size)
{
    xfer_blob_t blob;
    require(xfer_blob_decode(data, size, NULL, &blob) == WEFT_OK);
    for (size_t s = 0; s < blob.n_sections; s++) {
        const xfer_blob_section_t *section = &blob.sections[s];
        if (section->backend.n != 3 || memcmp(section->backend.data, "UCX", 3) != 0 ||
            section->space != XFER_DRAM) {
            continue;
        }
        for (size_t i = 0; i < section->n; i++) {
            const xfer_blob_region_t *region = &section->regions[i];
            const xfer_run_t run = {
                .addr = region->addr, .bytes = region->bytes, .device = region->device, .count = 1};
            xfer_list_t *list = NULL;
            require(xfer_peer_has(peer, XFER_DRAM, region->addr, region->bytes));
            require(xfer_list_create(agent, peer, XFER_DRAM, &run, 1, NULL, &list) == WEFT_OK);
            xfer_list_destroy(list);
        }
    }
    xfer_blob_fini(&blob);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static xfer_agent_t *agent;
    if (agent == NULL) {
        const xfer_agent_config_t config = {.name = "fuzzed"};
        require(xfer_agent_open(&config, table, NULL, &agent) == WEFT_OK);
    }
    check_same(data, size);
    xfer_peer_t *peer = NULL;
    xfer_peer_t *again = NULL;
    if (xfer_import(agent, data, size, NULL, &peer) == WEFT_OK) {
        require(xfer_import(agent, data, size, NULL, &again) == WEFT_OK && again == peer);
        check_regions(agent, peer, data, size);
        xfer_forget(agent, peer);
    }
    return 0;
}
