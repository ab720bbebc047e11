/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/transfer_rig.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/k_heads.h"
#include "kvstore/transfer/kv_slices.h"
#include "tests/support/tally.h"

/* Workers of the process: whoever is woken, all are polled. */
static transfer_worker_t *workers[TRANSFER_RIG_MAX_WORKERS];
static tally_t woken = TALLY_INIT;

void transfer_rig_wake(void *user)
{
    (void)user;
    tally_add(&woken);
}

static void on_pulled(void *user, const kv_pull_report_t *report)
{
    transfer_worker_t *worker = user;
    worker->last_report = *report;
    worker->n_reports++;
}

/* ---- open ------------------------------------------------------------------------------------ */

static const char *dtype_of(const transfer_worker_config_t *config)
{
    return config->dtype == NULL ? "f32" : config->dtype;
}

static void open_pool(transfer_worker_t *worker, const transfer_worker_config_t *config)
{
    uint32_t heads;
    const char *dtype = dtype_of(config);
    const uint32_t tokens = config->block_tokens == 0 ? 16 : config->block_tokens;
    const uint32_t n_blocks = config->n_blocks == 0 ? TRANSFER_RIG_BLOCKS : config->n_blocks;
    assert_true(kv_heads_of(TRANSFER_RIG_HEADS, config->tp_size == 0 ? 1 : config->tp_size,
                            config->tp_rank, &worker->first_head, &heads));
    worker->tolerance = config->tolerance;
    worker->form = (kv_head_form_t){.block_tokens = tokens, .head_dim = TRANSFER_RIG_HEAD_DIM};
    assert_true(kv_element_parse(dtype, (uint32_t)strlen(dtype), &worker->form.element));
    kv_pool_config_t pool = {.device = worker->device,
                             .layout = {.order = config->order,
                                        .block_tokens = tokens,
                                        .element_bytes = kv_element_bytes(worker->form.element),
                                        .scale_bytes = kv_element_scale_bytes(worker->form.element),
                                        .n_groups = 1,
                                        .groups = {{.layers = TRANSFER_RIG_LAYERS,
                                                    .heads = heads,
                                                    .head_dim = TRANSFER_RIG_HEAD_DIM}}},
                             .n_blocks = n_blocks};
    assert_status(kv_layout_init(&pool.layout, n_blocks, NULL), WEFT_OK);
    assert_status(kv_pool_create(&pool, &worker->pool), WEFT_OK);
}

static void open_device(transfer_worker_t *worker, const transfer_worker_config_t *config)
{
    const char *name = config->device == NULL ? "cpu" : config->device;
    assert_status(weft_device_open(name, 0, NULL, &worker->device), WEFT_OK);
    if (!worker->device->ops->is_host) {
        assert_status(k_stream_create(worker->device, "auto", 0, NULL, &worker->stream), WEFT_OK);
    }
}

static k_head_form_t form_of(const kv_head_form_t *form)
{
    static const k_dtype_t dtypes[] = {[KV_ELEMENT_F32] = K_F32,
                                       [KV_ELEMENT_F16] = K_F16,
                                       [KV_ELEMENT_BF16] = K_BF16,
                                       [KV_ELEMENT_F8] = K_F8,
                                       [KV_ELEMENT_I8] = K_I8};
    return (k_head_form_t){.element = dtypes[form->element],
                           .is_transposed = form->is_transposed,
                           .block_tokens = form->block_tokens,
                           .head_dim = form->head_dim};
}

static void convert(void *user, weft_queue_t *queue, const kv_head_form_t *to,
                    const kv_head_form_t *from, const kv_head_move_t *moves, uint32_t n)
{
    const transfer_worker_t *worker = user;
    assert_status(k_convert_heads(worker->stream, queue, form_of(to), form_of(from),
                                  (const k_head_move_t *)moves, n),
                  WEFT_OK);
}

static void parse_config(const transfer_worker_config_t *config, kv_transfer_config_t *parsed)
{
    char id[96] = "";
    char backend[64] = "";
    char text[1024];
    const char *wanted = getenv("WEFT_TEST_BACKEND");
    weft_diag_t diag = {0};
    if (config->engine_id != NULL) {
        snprintf(id, sizeof(id), "\"engine_id\": \"%s\", ", config->engine_id);
    }
    const char *extra = config->extra == NULL ? "" : config->extra;
    if (wanted != NULL && strstr(extra, "backends") == NULL) {
        snprintf(backend, sizeof(backend), "\"backends\": [\"%s\"]%s", wanted,
                 extra[0] == '\0' ? "" : ", ");
    }
    snprintf(text, sizeof(text),
             "{\"kv_connector\": \"WeftConnector\", \"kv_role\": \"%s\", %s"
             "\"kv_connector_extra_config\": {%s%s}}",
             config->role == NULL ? "kv_both" : config->role, id, backend, extra);
    if (kv_transfer_config_parse(text, 0, &diag, parsed) != WEFT_OK) {
        fail_msg("%s", diag.text);
    }
}

static void remember(transfer_worker_t *worker)
{
    for (int i = 0; i < TRANSFER_RIG_MAX_WORKERS; i++) {
        if (workers[i] == NULL) {
            workers[i] = worker;
            return;
        }
    }
    fail_msg("too many workers");
}

void transfer_worker_open(transfer_worker_t *worker, const transfer_worker_config_t *config)
{
    uint8_t fingerprint[32] = {config->model};
    char port[8];
    kv_transfer_config_t parsed;
    weft_diag_t diag = {0};
    setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1", 1);
    snprintf(port, sizeof(port), "%u", config->port);
    setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", port, 1);
    *worker = (transfer_worker_t){0};
    open_device(worker, config);
    open_pool(worker, config);
    if (worker->stream != NULL) {
        worker->mirror = test_malloc(kv_pool_memory(worker->pool)->bytes);
    }
    parse_config(config, &parsed);
    const kv_transfer_setup_t setup = {.config = &parsed,
                                       .pool = worker->pool,
                                       .fingerprint = fingerprint,
                                       .model = "org/model",
                                       .dtype = dtype_of(config),
                                       .model_dtype = "torch.float32",
                                       .total_heads = TRANSFER_RIG_HEADS,
                                       .total_layers = TRANSFER_RIG_LAYERS,
                                       .tp_rank = config->tp_rank,
                                       .tp_size = config->tp_size,
                                       .side_channel = config->side_channel,
                                       .wake = transfer_rig_wake,
                                       .on_pulled = on_pulled,
                                       .convert = convert,
                                       .user = worker};
    if (kv_transfer_create(&setup, &diag, &worker->transfer) != WEFT_OK) {
        fail_msg("%s", diag.text);
    }
    kv_transfer_config_fini(&parsed);
    remember(worker);
}

void transfer_worker_close(transfer_worker_t *worker)
{
    for (int i = 0; i < TRANSFER_RIG_MAX_WORKERS; i++) {
        workers[i] = workers[i] == worker ? NULL : workers[i];
    }
    kv_transfer_destroy(worker->transfer);
    if (worker->pool != NULL) {
        assert_int_equal(kv_pool_held_blocks(worker->pool), 0);
    }
    kv_pool_destroy(worker->pool);
    if (worker->mirror != NULL) {
        test_free(worker->mirror);
    }
    k_stream_destroy(worker->stream);
    weft_device_close(worker->device);
    *worker = (transfer_worker_t){0};
}

/* ---- poll ------------------------------------------------------------------------------------ */

void transfer_rig_poll(void)
{
    for (int i = 0; i < TRANSFER_RIG_MAX_WORKERS; i++) {
        if (workers[i] != NULL) {
            kv_transfer_poll(workers[i]->transfer);
        }
    }
}

bool transfer_rig_until(bool (*done)(void *user), void *user)
{
    const uint64_t deadline = weft_clock_ns() + TRANSFER_RIG_DEADLINE_S * WEFT_NS_PER_SECOND;
    transfer_rig_poll();
    while (!done(user)) {
        if (weft_clock_ns() > deadline) {
            return false;
        }
        tally_take(&woken);
        transfer_rig_poll();
    }
    return true;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static float content(uint64_t prompt, uint32_t layer, uint32_t head, uint32_t token,
                     uint32_t element)
{
    uint64_t z = prompt * UINT64_C(0x9e3779b97f4a7c15) + ((uint64_t)layer << 40) +
                 ((uint64_t)head << 32) + ((uint64_t)token << 8) + element;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (float)((int)(z >> 59) - 16);
}

void transfer_rig_token(uint64_t prompt, uint32_t layer, uint32_t head, uint32_t token,
                        float elements_out[2 * TRANSFER_RIG_HEAD_DIM])
{
    for (uint32_t i = 0; i < 2 * TRANSFER_RIG_HEAD_DIM; i++) {
        elements_out[i] = content(prompt, layer, head, token, i);
    }
}

static const kv_head_form_t plain = {KV_ELEMENT_F32, false, 1, TRANSFER_RIG_HEAD_DIM};

static void *head_of(const transfer_worker_t *worker, const kv_block_id_t *blocks, uint32_t layer,
                     uint32_t head, uint32_t token)
{
    const kv_layout_t *layout = kv_pool_layout(worker->pool);
    char *pool = kv_pool_memory(worker->pool)->addr;
    char *block = kv_pool_block(worker->pool, blocks[token / layout->block_tokens]);
    return (worker->mirror == NULL ? pool : worker->mirror) + (block - pool) +
           layer * layout->strides[0].layer + head * layout->strides[0].head;
}

static void copy(const transfer_worker_t *worker, void *to, const void *from, size_t bytes)
{
    worker->device->ops->copy(worker->stream->queue, to, from, bytes);
    assert_status(worker->device->ops->sync(worker->stream->queue), WEFT_OK);
}

static void upload(const transfer_worker_t *worker, const char *at, size_t bytes)
{
    copy(worker, (char *)kv_pool_memory(worker->pool)->addr + (at - worker->mirror), at, bytes);
}

/* What was written to the mirror: elements, and the scales of K and of V. */
static void upload_token(const transfer_worker_t *worker, const char *head, uint32_t token)
{
    const kv_layout_t *layout = kv_pool_layout(worker->pool);
    const kv_strides_t *strides = &layout->strides[0];
    const uint32_t in_block = token % layout->block_tokens;
    if (worker->mirror == NULL) {
        return;
    }
    upload(worker, head + in_block * strides->token, strides->token);
    for (uint32_t part = 0; part < 2 && layout->scale_bytes > 0; part++) {
        const uint32_t index = part * layout->block_tokens + in_block;
        upload(worker, head + strides->scales + index * layout->scale_bytes, layout->scale_bytes);
    }
}

void transfer_worker_write(transfer_worker_t *worker, const kv_block_id_t *blocks, uint32_t first,
                           uint32_t n, uint64_t prompt)
{
    float elements[2 * TRANSFER_RIG_HEAD_DIM];
    const uint32_t heads = kv_pool_layout(worker->pool)->groups[0].heads;
    for (uint32_t layer = 0; layer < TRANSFER_RIG_LAYERS; layer++) {
        for (uint32_t head = 0; head < heads; head++) {
            for (uint32_t token = first; token < first + n; token++) {
                transfer_rig_token(prompt, layer, head + worker->first_head, token, elements);
                void *at = head_of(worker, blocks, layer, head, token);
                kv_convert_head(&plain, elements, 0, &worker->form, at,
                                token % worker->form.block_tokens, 1);
                upload_token(worker, at, token);
            }
        }
    }
}

static bool are_near(const float *a, const float *b, float tolerance)
{
    for (uint32_t i = 0; i < 2 * TRANSFER_RIG_HEAD_DIM; i++) {
        if (!(fabsf(a[i] - b[i]) <= tolerance)) {
            return false;
        }
    }
    return true;
}

bool transfer_worker_has(const transfer_worker_t *worker, const kv_block_id_t *blocks,
                         uint32_t first, uint32_t n, uint64_t prompt)
{
    float expected[2 * TRANSFER_RIG_HEAD_DIM];
    float elements[2 * TRANSFER_RIG_HEAD_DIM];
    const uint32_t heads = kv_pool_layout(worker->pool)->groups[0].heads;
    if (worker->mirror != NULL) {
        const weft_mem_t *pool = kv_pool_memory(worker->pool);
        copy(worker, worker->mirror, pool->addr, pool->bytes);
    }
    for (uint32_t layer = 0; layer < TRANSFER_RIG_LAYERS; layer++) {
        for (uint32_t head = 0; head < heads; head++) {
            for (uint32_t token = first; token < first + n; token++) {
                transfer_rig_token(prompt, layer, head + worker->first_head, token, expected);
                kv_convert_head(&worker->form, head_of(worker, blocks, layer, head, token),
                                token % worker->form.block_tokens, &plain, elements, 0, 1);
                if (!are_near(elements, expected, worker->tolerance)) {
                    return false;
                }
            }
        }
    }
    return true;
}

kv_transfer_stats_t transfer_worker_stats(transfer_worker_t *worker)
{
    kv_transfer_stats_t stats;
    kv_transfer_stats(worker->transfer, &stats);
    return stats;
}
