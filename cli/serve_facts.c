/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/serve_facts.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/model_sample.h"

/* Options in which ranks may differ: of rank 0 alone, of memory that they agree on later, of their hosts. */
static const char *const own_affairs[] = {
    "device", /* of one kind, which is told when they meet */
    "threads",
    "max-num-queued-reqs",
    "kv-cache-memory-bytes",
    "gpu-memory-utilization",
    "kv-host-bytes",
    "kv-disk-path",
    "kv-disk-bytes",
    "kv-disk-admission",
    "kv-pin-quota",
    "kv-events-config",
    "kv-events-encoding",
    "kv-load-failure-policy",
    "seed",
    "rank",
    "world-size",
    "leader",
    "secret-file",
    "join-timeout",
    "nnodes",
    "node-rank",
    "master-addr",
    "master-port",
};

static bool is_own_affair(const char *flag)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(own_affairs); i++) {
        if (strcmp(flag, own_affairs[i]) == 0) {
            return true;
        }
    }
    return false;
}

static void write_value(const weft_option_t *row, const void *config, char *text)
{
    const void *field = (const char *)config + row->offset;
    switch (row->type) {
    case WEFT_OPTION_BOOL:
        snprintf(text, SERVE_FACT_BYTES, "%s", *(const bool *)field ? "true" : "false");
        break;
    case WEFT_OPTION_U32:
    case WEFT_OPTION_AUTO:
        snprintf(text, SERVE_FACT_BYTES, "%" PRIu32, *(const uint32_t *)field);
        break;
    case WEFT_OPTION_U64:
    case WEFT_OPTION_BYTES:
        snprintf(text, SERVE_FACT_BYTES, "%" PRIu64, *(const uint64_t *)field);
        break;
    case WEFT_OPTION_I64:
        snprintf(text, SERVE_FACT_BYTES, "%" PRId64, *(const int64_t *)field);
        break;
    case WEFT_OPTION_F64:
        snprintf(text, SERVE_FACT_BYTES, "%.17g", *(const double *)field);
        break;
    case WEFT_OPTION_STR:
        snprintf(text, SERVE_FACT_BYTES, "%s", *(const char *const *)field);
        break;
    case WEFT_OPTION_LIST:
        snprintf(text, SERVE_FACT_BYTES, "%" PRIu32 " values", ((const weft_list_t *)field)->count);
        break;
    }
}

static char *add(serve_facts_t *facts, const char *prefix, const char *key)
{
    assert(facts->n < SERVE_MAX_FACTS);
    const uint32_t i = facts->n++;
    snprintf(facts->keys[i], sizeof(facts->keys[i]), "%s%s", prefix, key);
    facts->facts[i] = (launch_fact_t){facts->keys[i], facts->values[i]};
    return facts->values[i];
}

static void add_rows(serve_facts_t *facts, const weft_option_t *rows, size_t n, const void *config)
{
    for (size_t i = 0; i < n; i++) {
        if (!is_own_affair(rows[i].flag)) {
            write_value(&rows[i], config, add(facts, "--", rows[i].flag));
        }
    }
}

weft_status_t serve_facts_make(const char *model, const engine_options_t *engine,
                               const launch_options_t *launch, weft_diag_t *diag,
                               serve_facts_t *facts_out)
{
    facts_out->n = 0;
    const weft_status_t status = model_sample(model, diag, add(facts_out, "", "the model's files"));
    add_rows(facts_out, engine_option_rows, engine_option_count, engine);
    add_rows(facts_out, launch_option_rows, launch_option_count, launch);
    return status;
}
