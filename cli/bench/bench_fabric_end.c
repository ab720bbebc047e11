/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_end.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/compiler.h"
#include "cli/bench/bench_fabric_netns.h"

#define GUARD_BYTES 4096

/* ---- making ---------------------------------------------------------------------------------- */

static void add_param(weft_buffer_t *params, const char *backend, const char *key,
                      const char *value)
{
    weft_buffer_printf(params, "%s%s.%s=%s", params->length > 0 ? "," : "", backend, key, value);
}

/* What the command line says, and what follows from its other options for backends that have it. */
static char *make_params(const bench_fabric_options_t *options, const char *host)
{
    static const char *const backends[] = {"tcp", "ofi"};
    const bool has_host = host[0] != '\0' && strstr(options->params, ".host=") == NULL;
    weft_buffer_t params = {0};
    weft_buffer_puts(&params, options->params);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(backends); i++) {
        const bool is_meant = strstr(options->backend, backends[i]) != NULL ||
                              (i == 0 && options->backend[0] == '\0');
        if (is_meant && has_host) {
            add_param(&params, backends[i], "host", host);
        }
        if (is_meant && strcmp(options->checksum, "auto") != 0) {
            add_param(&params, backends[i], "checksum", options->checksum);
        }
    }
    for (uint32_t rail = 1; has_host && rail < options->rails; rail++) {
        char name[16];
        char at[64];
        snprintf(name, sizeof(name), "tcp%u", rail);
        bench_fabric_netns_rail(host, rail, at);
        add_param(&params, name, "host", at);
        if (strcmp(options->checksum, "auto") != 0) {
            add_param(&params, name, "checksum", options->checksum);
        }
    }
    weft_buffer_append(&params, "", 1);
    return weft_buffer_take(&params, NULL);
}

/* NULL: all that can be had. */
static const char *backends_of(const bench_fabric_options_t *options)
{
    static const char *const rails[] = {"tcp", "tcp,tcp1", "tcp,tcp1,tcp2", "tcp,tcp1,tcp2,tcp3"};
    static_assert(WEFT_ARRAY_LEN(rails) == BENCH_FABRIC_MAX_RAILS, "one row for each number");
    if (options->rails > 1) {
        return rails[options->rails - 1];
    }
    return options->backend[0] == '\0' ? NULL : options->backend;
}

static weft_status_t create_agent(const bench_fabric_options_t *options,
                                  const bench_fabric_end_config_t *config, weft_diag_t *diag,
                                  bench_fabric_end_t *end)
{
    if (strcmp(options->checksum, "auto") != 0 && strcmp(options->checksum, "on") != 0 &&
        strcmp(options->checksum, "off") != 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--checksum %s: auto, on or off",
                         options->checksum);
    }
    char *params = make_params(options, config->host);
    if (params == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const xfer_agent_config_t agent = {
        .name = config->name,
        .backends = backends_of(options),
        .params = params[0] == '\0' ? NULL : params,
        .has_thread = config->has_thread,
        .on_event = config->on_event,
        .user = config->user,
    };
    const weft_status_t status = xfer_agent_create(&agent, diag, &end->agent);
    weft_free(params);
    return status;
}

static weft_status_t open_memory(const bench_fabric_options_t *options,
                                 const bench_fabric_end_config_t *config, weft_diag_t *diag,
                                 bench_fabric_end_t *end)
{
    weft_status_t status = bench_fabric_segment_open(
        config->segment, options->memory, options->file_path, config->bytes, diag, &end->segment);
    if (status >= 0) {
        status =
            bench_fabric_segment_open("dram", options->memory, "", GUARD_BYTES, diag, &end->guard);
    }
    if (status < 0) {
        return status;
    }
    const uint64_t word = BENCH_FABRIC_GUARD_WORD;
    memcpy(end->guard.mem.addr, &word, sizeof(word));
    status = xfer_register(end->agent, &end->segment.memory, diag, &end->region);
    return status < 0 ? status
                      : xfer_register(end->agent, &end->guard.memory, diag, &end->guard_region);
}

weft_status_t bench_fabric_end_open(const bench_fabric_options_t *options,
                                    const bench_fabric_end_config_t *config, weft_diag_t *diag,
                                    bench_fabric_end_t *end_out)
{
    bench_fabric_end_t end = {0};
    weft_status_t status = create_agent(options, config, diag, &end);
    if (status >= 0 && config->segment != NULL) {
        status = open_memory(options, config, diag, &end);
    }
    if (status < 0) {
        bench_fabric_end_close(&end);
        return status;
    }
    *end_out = end;
    return WEFT_OK;
}

void bench_fabric_end_close(bench_fabric_end_t *end)
{
    xfer_agent_destroy(end->agent);
    bench_fabric_segment_close(&end->segment);
    bench_fabric_segment_close(&end->guard);
    *end = (bench_fabric_end_t){0};
}

/* ---- looking --------------------------------------------------------------------------------- */

typedef struct comparison {
    const bench_fabric_geometry_t *geometry;
    bench_fabric_side_t side;
    uint64_t salt;
    uint32_t *ours;
    uint32_t *theirs;
    uint64_t *words; /* of a block */
} comparison_t;

static uint64_t count_wrong(const comparison_t *c, uint64_t offset)
{
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < c->geometry->block_bytes / sizeof(uint64_t); i++) {
        wrong += c->words[i] != bench_fabric_word(offset + i * sizeof(uint64_t), c->salt);
    }
    return wrong;
}

static weft_status_t compare_lane(bench_fabric_end_t *end, const comparison_t *c, uint64_t lane,
                                  uint64_t *wrong)
{
    const bench_fabric_geometry_t *geometry = c->geometry;
    const bench_fabric_side_t other =
        c->side == BENCH_FABRIC_TARGET ? BENCH_FABRIC_INITIATOR : BENCH_FABRIC_TARGET;
    const xfer_run_t run = bench_fabric_lane(geometry, 0, lane);
    weft_status_t status = bench_fabric_pick(geometry, c->side, lane, c->ours);
    if (status >= 0) {
        status = bench_fabric_pick(geometry, other, lane, c->theirs);
    }
    for (uint64_t i = 0; status >= 0 && i < geometry->n_blocks; i++) {
        status = bench_fabric_segment_read(&end->segment, run.addr + c->ours[i] * run.stride,
                                           c->words, geometry->block_bytes);
        *wrong += status < 0 ? 0 : count_wrong(c, run.addr + c->theirs[i] * run.stride);
    }
    return status;
}

weft_status_t bench_fabric_end_compare(bench_fabric_end_t *end, bench_fabric_side_t side,
                                       const bench_fabric_geometry_t *geometry, uint64_t salt,
                                       uint64_t *wrong_out)
{
    const comparison_t c = {
        .geometry = geometry,
        .side = side,
        .salt = salt,
        .ours = weft_calloc(geometry->n_blocks, sizeof(uint32_t), "bench_fabric.ids"),
        .theirs = weft_calloc(geometry->n_blocks, sizeof(uint32_t), "bench_fabric.ids"),
        .words = weft_alloc(geometry->block_bytes, "bench_fabric.block"),
    };
    weft_status_t status =
        c.ours == NULL || c.theirs == NULL || c.words == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    uint64_t wrong = 0;
    for (uint64_t lane = 0; status >= 0 && lane < geometry->lanes; lane++) {
        status = compare_lane(end, &c, lane, &wrong);
    }
    if (status >= 0) {
        *wrong_out = wrong;
    }
    weft_free(c.ours);
    weft_free(c.theirs);
    weft_free(c.words);
    return status;
}

weft_status_t bench_fabric_end_clear(bench_fabric_end_t *end, bench_fabric_side_t side,
                                     const bench_fabric_geometry_t *geometry)
{
    uint32_t *ids = weft_calloc(geometry->n_blocks, sizeof(*ids), "bench_fabric.ids");
    weft_status_t status = ids == NULL ? WEFT_ERR_NO_MEMORY : WEFT_OK;
    for (uint64_t lane = 0; status >= 0 && lane < geometry->lanes; lane++) {
        const xfer_run_t run = bench_fabric_lane(geometry, 0, lane);
        status = bench_fabric_pick(geometry, side, lane, ids);
        for (uint64_t i = 0; status >= 0 && i < geometry->n_blocks; i++) {
            status = bench_fabric_segment_clear(&end->segment, run.addr + ids[i] * run.stride,
                                                geometry->block_bytes);
        }
    }
    weft_free(ids);
    return status;
}

weft_status_t bench_fabric_pin(const bench_fabric_options_t *options, uint32_t place,
                               weft_diag_t *diag)
{
    const char *at = options->cpus;
    for (uint32_t i = 0; at != NULL && i < place; i++) {
        at = strchr(at, ',');
        at = at == NULL ? NULL : at + 1;
    }
    if (at == NULL || *at == '\0') {
        return WEFT_OK;
    }
    const unsigned long cpu = strtoul(at, NULL, 10);
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < CPU_SETSIZE) {
        CPU_SET(cpu, &set);
    }
    return sched_setaffinity(0, sizeof(set), &set) == 0
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID, "--cpus %s: %s", options->cpus, strerror(errno));
}
