/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's side of moving KV blocks between workers: requests that bring or want some. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "kernels/k_heads.h"
#include "runtime/engine/engine_priv.h"

#define WEFT_LOG_MODULE "engine"
#include "base/log.h"

/* ---- starting -------------------------------------------------------------------------------- */

static weft_status_t parse_policy(const char *policy, weft_diag_t *diag, bool *fails_out)
{
    *fails_out = strcmp(policy, "fail") == 0;
    return *fails_out || strcmp(policy, "recompute") == 0
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID,
                           "--kv-load-failure-policy %s: unknown; recompute and fail are possible",
                           policy);
}

static uint32_t landing_blocks(const void *user)
{
    return kv_transfer_landing_blocks(user);
}

static void count_held(const void *user, uint32_t *users)
{
    kv_transfer_count_held(user, users);
}

static void set_mover(engine_t *engine)
{
    engine->mover = (sched_mover_t){
        .user = engine->transfer,
        .pull_start = kv_pull_start,
        .pull_state = kv_pull_state,
        .pull_reason = kv_pull_reason,
        .pull_tokens = kv_pull_tokens,
        .pull_end = kv_pull_end,
        .lease_progress = kv_lease_progress,
        .lease_retract = kv_lease_retract,
        .lease_drop = kv_lease_drop,
        .landing_blocks = landing_blocks,
        .count_held = count_held,
    };
}

static void wake(void *user)
{
    mailbox_wake(&((engine_t *)user)->mailbox);
}

static void observe_pull(void *user, const kv_pull_report_t *report)
{
    const engine_observer_t *observer = &((engine_t *)user)->observer;
    if (observer->on_pulled != NULL) {
        observer->on_pulled(observer->user, report);
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

_Static_assert(sizeof(kv_head_move_t) == sizeof(k_head_move_t), "the same by another name");

static void convert(void *user, weft_queue_t *queue, const kv_head_form_t *to,
                    const kv_head_form_t *from, const kv_head_move_t *moves, uint32_t n)
{
    const engine_t *engine = user;
    const weft_status_t status = k_convert_heads(engine->stream, queue, form_of(to), form_of(from),
                                                 (const k_head_move_t *)moves, n);
    assert(status == WEFT_OK); /* asked for only where the pool is a device's, which has it */
    (void)status;
}

static void wake_member(void *user)
{
    kv_member_wake(((engine_t *)user)->kv.member);
}

/* What is the same whichever rank it is. */
static kv_transfer_setup_t setup_of(engine_t *engine, const model_source_t *source,
                                    const uint8_t *fingerprint)
{
    const model_config_t *model = &engine->model_config;
    const model_shard_t *shard = &engine->group.ranks.shard; /* zeros: this is all */
    return (kv_transfer_setup_t){
        .config = &engine->transfer_config,
        .fingerprint = fingerprint,
        .model = model_source_path(source),
        .dtype = k_dtype_info(engine->plan.kv_dtype)->name,
        .model_dtype =
            "torch.bfloat16", /* what models are published in; a setting says otherwise */
        .total_heads = model->kv_heads,
        .total_layers = model->layers,
        .tp_rank = shard->tensor_rank,
        .tp_size = shard->tensor_size,
        .pp_rank = shard->stage,
        .pp_size = shard->stages,
        .crew = engine->kv.crew,
        .convert = convert,
        .user = engine,
    };
}

static weft_status_t create(engine_t *engine, const model_source_t *source, weft_diag_t *diag)
{
    uint8_t fingerprint[ENGINE_FINGERPRINT_BYTES];
    weft_status_t status = engine_model_fingerprint(engine, source, fingerprint);
    if (status < 0) {
        return status;
    }
    kv_transfer_setup_t setup = setup_of(engine, source, fingerprint);
    setup.pool = kv_store_pool(engine->store);
    setup.wake = wake;
    setup.on_pulled = observe_pull;
    status = kv_transfer_create(&setup, diag, &engine->transfer);
    if (status == WEFT_OK) {
        set_mover(engine);
        weft_log_info("KV blocks can be moved engine_id=%s side_channel=%s:%u",
                      kv_transfer_engine_id(engine->transfer),
                      engine->transfer_config.side_channel_host,
                      kv_transfer_port(engine->transfer));
    }
    return status;
}

weft_status_t engine_transfer_follow(engine_t *engine, const model_source_t *source,
                                     kv_pool_t *pool, weft_diag_t *diag)
{
    uint8_t fingerprint[ENGINE_FINGERPRINT_BYTES];
    kv_transfer_t *transfer = NULL;
    if (engine->transfer_config.role == 0) {
        return WEFT_OK;
    }
    weft_status_t status = engine_model_fingerprint(engine, source, fingerprint);
    if (status < 0) {
        return status;
    }
    kv_transfer_setup_t setup = setup_of(engine, source, fingerprint);
    setup.pool = pool;
    setup.wake = wake_member;
    status = kv_transfer_create(&setup, diag, &transfer);
    if (status == WEFT_OK) {
        kv_member_set_transfer(engine->kv.member, transfer);
    }
    return status;
}

weft_status_t engine_transfer_parse(engine_t *engine, const engine_options_t *options,
                                    weft_diag_t *diag)
{
    kv_transfer_config_t *config = &engine->transfer_config;
    weft_status_t status =
        parse_policy(options->kv_load_failure_policy, diag, &engine->fails_without_pull);
    if (status < 0 || options->kv_transfer_config[0] == '\0') {
        return status;
    }
    status = kv_transfer_config_parse(options->kv_transfer_config, options->data_parallel_rank,
                                      diag, config);
    if (status == WEFT_OK && config->policy != KV_TRANSFER_UNSAID) {
        engine->fails_without_pull = config->policy == KV_TRANSFER_FAIL;
    }
    return status;
}

weft_status_t engine_transfer_create(engine_t *engine, const model_source_t *source,
                                     weft_diag_t *diag)
{
    if (engine->transfer_config.role == 0) {
        return WEFT_OK;
    }
    const weft_status_t status = create(engine, source, diag);
    if (status == WEFT_OK && !engine->is_caching) {
        weft_log_warn(
            "--kv-transfer-config without --enable-prefix-caching: all blocks of a prompt "
            "are moved, also those that came before");
    }
    return status;
}

/* ---- decoding what others prefilled ---------------------------------------------------------- */

/* False: the request is not to run without; sample->reason says why. */
static bool expect(engine_t *engine, engine_request_t *r)
{
    engine_sample_t *sample = &r->samples[0];
    weft_diag_t diag = {0};
    weft_status_t status = kv_transfer_params_check(&r->transfer, &diag);
    if (status == WEFT_ERR_NOT_FOUND) {
        return true; /* an empty list: nothing to be had */
    }
    if (status == WEFT_OK) {
        status = kv_transfer_expect(engine->transfer, &r->transfer, r->n_prompt, &diag,
                                    &sample->seq.pull);
    }
    if (status < 0) {
        engine_transfer_failed(&sample->seq, status, diag.text);
    }
    sample->seq.needs_pull = engine->fails_without_pull;
    return status >= 0 || !engine->fails_without_pull;
}

bool engine_transfer_begin(engine_t *engine, engine_request_t *r)
{
    sched_seq_t *seq = &r->samples[0].seq;
    if (engine->transfer == NULL || !r->has_transfer) {
        return true;
    }
    const kv_transfer_role_t role = kv_transfer_config(engine->transfer)->role;
    seq->is_kept = r->transfer.do_remote_decode && (role & KV_TRANSFER_PRODUCER) != 0;
    return !r->transfer.do_remote_prefill || expect(engine, r);
}

void engine_transfer_failed(sched_seq_t *seq, weft_status_t status, const char *reason)
{
    engine_sample_t *sample = seq->user;
    engine_request_t *r = sample->request;
    snprintf(r->transfer_reason, sizeof(r->transfer_reason), "%s",
             reason[0] != '\0' ? reason : weft_strerror(status));
    if (r->engine->fails_without_pull) {
        sample->reason = r->transfer_reason;
    }
    weft_log_warn("id=%s the prefill worker's blocks cannot be had, the prompt is %s reason=\"%s\"",
                  r->id, r->engine->fails_without_pull ? "given up" : "computed here",
                  r->transfer_reason);
}

/* ---- prefilling for others ------------------------------------------------------------------- */

void engine_transfer_open(engine_t *engine, sched_seq_t *seq)
{
    const engine_request_t *r = ((engine_sample_t *)seq->user)->request;
    if (seq->is_kept && r->transfer.transfer_id != NULL) {
        seq->lease = kv_transfer_open(engine->transfer, r->transfer.transfer_id);
    }
}

void engine_transfer_hold(engine_t *engine, sched_seq_t *seq, const kv_block_id_t *blocks,
                          uint32_t n, uint32_t n_tokens)
{
    engine_request_t *r = ((engine_sample_t *)seq->user)->request;
    const weft_status_t status = kv_transfer_hold(engine->transfer, seq->lease, r->internal_id,
                                                  blocks, n, n_tokens, &r->held);
    r->has_held = status >= 0;
    if (status < 0) {
        weft_log_warn("id=%s its blocks are not kept status=%s", r->id, weft_strerror(status));
    }
}

const kv_transfer_params_t *engine_request_transfer(const engine_request_t *request)
{
    /* The end was released after it. */
    const int finish = atomic_load_explicit(&request->samples[0].finish, memory_order_acquire);
    return finish != ENGINE_FINISH_NONE && request->has_held ? &request->held : NULL;
}

/* ---- requests that are not to be ------------------------------------------------------------- */

typedef struct decline {
    engine_command_t command;
    kv_transfer_params_t params;
} decline_t;

void engine_decline(engine_t *engine, const kv_transfer_params_t *params)
{
    if (engine->transfer == NULL || !params->do_remote_prefill) {
        return;
    }
    decline_t *decline = weft_zalloc(sizeof(*decline), "engine.decline");
    if (decline == NULL || kv_transfer_params_copy(params, &decline->params) < 0) {
        weft_free(decline); /* its lease runs out by itself */
        return;
    }
    engine_post(engine, &decline->command, ENGINE_COMMAND_DECLINE);
}

void engine_do_decline(engine_t *engine, engine_command_t *command)
{
    decline_t *decline = WEFT_CONTAINER(command, decline_t, command);
    kv_transfer_decline(engine->transfer, &decline->params);
    kv_transfer_params_fini(&decline->params);
    weft_free(decline);
}

kv_transfer_t *engine_transfer(const engine_t *engine)
{
    return engine->transfer;
}
