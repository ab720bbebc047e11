/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_kv_grid.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"
#include "kernels/k_cores.h"
#include "runtime/engine/engine_kv_dtype.h"

#define MAX_WORDS  16 /* of a list */
#define WORD_BYTES 16
#define MAX_COUNT  UINT32_C(1000000)

static const bench_kv_store_t cold = {.name = "cold", .is_cold = true};
static const bench_kv_store_t stores[] = {
    {.name = "none"},
    {.name = "host", .has_host = true},
    {.name = "disk", .has_disk = true},
};
static const char *const policies[] = {"reuse", "all"};

/* ---- which runs ------------------------------------------------------------------------------ */

/* The words between commas. */
typedef struct words {
    char items[MAX_WORDS][WORD_BYTES];
    uint32_t n;
} words_t;

static weft_status_t split(const char *flag, const char *text, weft_diag_t *diag,
                           words_t *words_out)
{
    words_t words = {0};
    for (const char *at = text;; at++) {
        const size_t length = strcspn(at, ",");
        if (length == 0 || length >= WORD_BYTES || words.n == MAX_WORDS) {
            return weft_diag(diag, WEFT_ERR_INVALID,
                             "--%s \"%.200s\": not a list with commas of 1 to %d short words", flag,
                             text, MAX_WORDS);
        }
        memcpy(words.items[words.n++], at, length);
        at += length;
        if (*at == '\0') {
            break;
        }
    }
    *words_out = words;
    return WEFT_OK;
}

static weft_status_t parse_size(const char *word, weft_diag_t *diag, double *size_out)
{
    char *end;
    const double size = strtod(word, &end);
    if (end == word || *end != '\0' || !(size > 0 && size <= 1e6)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--sizes: \"%s\" is not a number above 0", word);
    }
    *size_out = size;
    return WEFT_OK;
}

static weft_status_t find_store(const char *word, weft_diag_t *diag,
                                const bench_kv_store_t **store_out)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(stores); i++) {
        if (strcmp(word, stores[i].name) == 0) {
            *store_out = &stores[i];
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "--stores: \"%s\" is none of none, host and disk",
                     word);
}

static weft_status_t find_policy(const char *word, weft_diag_t *diag, const char **policy_out)
{
    for (size_t i = 0; i < WEFT_ARRAY_LEN(policies); i++) {
        if (strcmp(word, policies[i]) == 0) {
            *policy_out = policies[i];
            return WEFT_OK;
        }
    }
    return weft_diag(diag, WEFT_ERR_INVALID, "--policies: \"%s\" is none of reuse and all", word);
}

static weft_status_t add_run(bench_kv_grid_t *grid, const bench_kv_store_t *store,
                             const char *policy, double size, weft_diag_t *diag)
{
    if (grid->n_runs == BENCH_KV_MAX_RUNS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--stores, --sizes, --policies: more than %d runs",
                         BENCH_KV_MAX_RUNS);
    }
    const double blocks = size * (double)grid->working_set;
    grid->runs[grid->n_runs++] = (bench_kv_run_t){
        .store = store,
        .policy = policy,
        .size = size,
        .bytes = (size_t)ceil(blocks) * grid->layout.block_bytes[0],
    };
    return WEFT_OK;
}

static weft_status_t add_sizes(bench_kv_grid_t *grid, const bench_kv_store_t *store,
                               const char *policy, const words_t *sizes, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; status >= 0 && i < sizes->n; i++) {
        double size = 0;
        status = parse_size(sizes->items[i], diag, &size);
        if (status >= 0) {
            status = add_run(grid, store, policy, size, diag);
        }
    }
    return status;
}

static weft_status_t add_store(bench_kv_grid_t *grid, const char *word, const words_t *sizes,
                               const words_t *policy_words, weft_diag_t *diag)
{
    const bench_kv_store_t *store = NULL;
    weft_status_t status = find_store(word, diag, &store);
    if (status < 0 || (!store->has_host && !store->has_disk)) {
        return status < 0 ? status : add_run(grid, store, NULL, 0, diag);
    }
    if (!store->has_disk) {
        return add_sizes(grid, store, NULL, sizes, diag);
    }
    if (grid->options->disk_path[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--stores %s: give --disk-path, a folder on the disk to measure",
                         store->name);
    }
    for (uint32_t i = 0; status >= 0 && i < policy_words->n; i++) {
        const char *policy = NULL;
        status = find_policy(policy_words->items[i], diag, &policy);
        if (status >= 0) {
            status = add_sizes(grid, store, policy, sizes, diag);
        }
    }
    return status;
}

static weft_status_t add_runs(bench_kv_grid_t *grid, weft_diag_t *diag)
{
    const bench_kv_options_t *options = grid->options;
    words_t store_words;
    words_t sizes;
    words_t policy_words;
    weft_status_t status = split("stores", options->stores, diag, &store_words);
    if (status >= 0) {
        status = split("sizes", options->sizes, diag, &sizes);
    }
    if (status >= 0) {
        status = split("policies", options->policies, diag, &policy_words);
    }
    if (status >= 0 && options->cold) {
        status = add_run(grid, &cold, NULL, 0, diag);
    }
    for (uint32_t i = 0; status >= 0 && i < store_words.n; i++) {
        status = add_store(grid, store_words.items[i], &sizes, &policy_words, diag);
    }
    return status;
}

/* ---- what is replayed ------------------------------------------------------------------------ */

weft_status_t bench_kv_grid_check(const bench_kv_options_t *options, weft_diag_t *diag)
{
    const struct {
        const char *flag;
        uint32_t value;
        uint32_t min;
    } counts[] = {
        {"conversations", options->conversations, 1},
        {"turns", options->turns, 1},
        {"input-len", options->input_len, 1},
        {"output-len", options->output_len, 1},
        {"system-len", options->system_len, 0},
        {"concurrency", options->concurrency, 0},
        {"rounds", options->rounds, 1},
    };
    if (options->model[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID, "no model: give --model PATH");
    }
    for (size_t i = 0; i < WEFT_ARRAY_LEN(counts); i++) {
        if (counts[i].value < counts[i].min || counts[i].value > MAX_COUNT) {
            return weft_diag(diag, WEFT_ERR_INVALID, "--%s %u: %u to %u are possible",
                             counts[i].flag, counts[i].value, counts[i].min, MAX_COUNT);
        }
    }
    if (!(options->think_time >= 0 && options->think_time <= 86400)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--think-time %g: 0 to 86400 are possible",
                         options->think_time);
    }
    if (!(options->device_fraction > 0 && options->device_fraction <= 1000)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--device-fraction %g: above 0, up to 1000",
                         options->device_fraction);
    }
    if (options->check && !options->cold) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--check compares with the run of --cold");
    }
    return WEFT_OK;
}

static weft_status_t set_trace(bench_kv_grid_t *grid, const engine_options_t *engine,
                               weft_diag_t *diag)
{
    const bench_kv_options_t *options = grid->options;
    const uint32_t n = options->conversations;
    const uint64_t context =
        options->system_len +
        (uint64_t)options->turns * ((uint64_t)options->input_len + options->output_len);
    if (context > grid->model->max_context) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "a conversation comes to %llu tokens: the model's context is %u",
                         (unsigned long long)context, grid->model->max_context);
    }
    grid->trace = (bench_kv_trace_t){
        .conversations = n,
        .turns = options->turns,
        .system_len = options->system_len,
        .input_len = options->input_len,
        .output_len = options->output_len,
        .concurrency =
            options->concurrency == 0 || options->concurrency > n ? n : options->concurrency,
        .vocab = grid->model->vocab,
        .think_time = options->think_time,
        .seed = engine->seed,
    };
    return WEFT_OK;
}

static weft_status_t set_layout(bench_kv_grid_t *grid, const engine_options_t *engine,
                                weft_diag_t *diag)
{
    const model_config_t *model = grid->model;
    k_dtype_t dtype;
    const weft_status_t status = engine_kv_dtype_parse(engine->kv_cache_dtype, K_F16, diag, &dtype);
    if (status < 0) {
        return status;
    }
    grid->layout = (kv_layout_t){
        .order = KV_ORDER_BHLNC,
        .block_tokens = engine->block_size,
        .element_bytes = k_dtype_info(dtype)->block_bytes,
        .scale_bytes = k_kv_scale_bytes(dtype),
        .n_groups = 1,
        .groups = {{model->layers, model->kv_heads, model->head_dim, model->window}},
    };
    return kv_layout_init(&grid->layout, 1, diag);
}

static weft_status_t set_sizes(bench_kv_grid_t *grid, weft_diag_t *diag)
{
    const bench_kv_options_t *options = grid->options;
    const uint32_t block_tokens = grid->layout.block_tokens;
    const uint32_t one = (bench_kv_trace_context(&grid->trace) + block_tokens - 1) / block_tokens;
    grid->working_set = bench_kv_trace_blocks(&grid->trace, block_tokens);
    const double blocks = options->device_blocks > 0
                              ? options->device_blocks
                              : ceil(options->device_fraction * (double)grid->working_set);
    if (blocks < one || blocks > UINT32_C(1) << 30) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "%.0f KV blocks on the device: a conversation alone takes %u, and the "
                         "engine at most 2^30: see --device-fraction and --device-blocks",
                         blocks, one);
    }
    grid->device_blocks = (uint32_t)blocks;
    return WEFT_OK;
}

weft_status_t bench_kv_grid_init(bench_kv_grid_t *grid, const bench_kv_options_t *options,
                                 const engine_options_t *engine, const model_config_t *model,
                                 weft_diag_t *diag)
{
    *grid = (bench_kv_grid_t){.options = options, .model = model};
    grid->threads = engine->threads > 0 ? engine->threads : k_cores_usable();
    weft_status_t status = set_trace(grid, engine, diag);
    if (status >= 0) {
        status = set_layout(grid, engine, diag);
    }
    if (status >= 0) {
        status = set_sizes(grid, diag);
    }
    return status < 0 ? status : add_runs(grid, diag);
}
