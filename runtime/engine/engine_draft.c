/* SPDX-License-Identifier: Apache-2.0 */
/* Guesses of the tokens that follow, for requests whose tokens do not depend on more than logits. */
#include "runtime/engine/engine_priv.h"

#define WEFT_LOG_MODULE "engine"
#include "base/log.h"

weft_status_t engine_draft_check(const engine_options_t *options, weft_diag_t *diag)
{
    draft_config_t config = {0};
    weft_status_t status = draft_config_parse(options->speculative_config, diag, &config);
    if (config.kind != NULL && options->pipeline_parallel_size > 1) {
        status = weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                           "--speculative-config: not with --pipeline-parallel-size %u yet, only "
                           "with 1",
                           options->pipeline_parallel_size);
    }
    draft_config_fini(&config);
    return status;
}

weft_status_t engine_draft_open(engine_t *engine, const engine_options_t *options,
                                weft_diag_t *diag)
{
    draft_config_t *config = &engine->draft.config;
    weft_status_t status = draft_config_parse(options->speculative_config, diag, config);
    const bool leads = engine->group.rank == 0; /* it guesses, the others are told */
    if (status < 0 || config->kind == NULL || !config->kind->has_model || !leads) {
        return status;
    }
    status = model_source_open(config->model, diag, &engine->draft.source);
    if (status < 0) {
        weft_diag_prefix(diag, "--speculative-config: model");
    }
    return status;
}

weft_status_t engine_draft_create(engine_t *engine, const text_tokenizer_t *tokenizer,
                                  weft_diag_t *diag)
{
    engine_draft_t *draft = &engine->draft;
    weft_status_t status = WEFT_OK;
    if (draft->config.kind == NULL) {
        return WEFT_OK;
    }
    if (draft->source != NULL) {
        status = draft_model_check_vocab(draft->source, &engine->model_config, tokenizer, diag);
    }
    if (status < 0) {
        return status;
    }
    const draft_model_plan_t *plan = &engine->plan.draft_model;
    const drafter_config_t config = {
        .how = &draft->config,
        .vocab = engine->model_config.vocab,
        .source = draft->source,
        .plan = plan,
        .stream = engine->stream,
    };
    status = drafter_create(&config, diag, &draft->drafter);
    if (status >= 0 && draft->source != NULL) {
        weft_log_info("guesses by model=%s tokens=%u max_model_len=%u kv_mib=%zu",
                      draft->config.model, draft->config.n_tokens, plan->limits.max_context,
                      (plan->layout.block_bytes[0] * plan->n_blocks) >> 20);
    }
    return status;
}

void engine_draft_close(engine_t *engine)
{
    drafter_destroy(engine->draft.drafter);
    model_source_close(engine->draft.source);
    draft_config_fini(&engine->draft.config);
}

bool engine_may_draft(const engine_t *engine, const engine_submit_t *submit,
                      const step_sampling_t *sampling, bool has_mask)
{
    return engine->draft.config.kind != NULL && submit->sampling.max_tokens > 1 &&
           !step_has_penalties(sampling) && !has_mask;
}

void engine_draft(void *user, const sched_draft_t *rows, uint32_t n)
{
    drafter_guess(((const engine_t *)user)->draft.drafter, rows, n);
}
