/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/draft/draft_model.h"

#include <string.h>

#include "base/alloc.h"
#include "runtime/engine/engine_kv_dtype.h"
#include "runtime/sched/sched.h"

/* ---- its vocabulary -------------------------------------------------------------------------- */

/* An id that one of them lacks is padding there. */
static bool is_same_token(const text_tokenizer_t *a, const text_tokenizer_t *b, int32_t id)
{
    text_bytes_t in_a = {0};
    text_bytes_t in_b = {0};
    const bool is_in_both = text_tokenizer_token_string(a, id, &in_a) >= 0 &&
                            text_tokenizer_token_string(b, id, &in_b) >= 0;
    const bool is_same = !is_in_both || (in_a.length == in_b.length &&
                                         memcmp(in_a.data, in_b.data, in_a.length) == 0);
    text_bytes_free(in_a);
    text_bytes_free(in_b);
    return is_same;
}

static weft_status_t compare_tokens(const text_tokenizer_t *a, const text_tokenizer_t *b,
                                    const char *path, weft_diag_t *diag)
{
    const uint32_t in_a = text_tokenizer_size(a);
    const uint32_t in_b = text_tokenizer_size(b);
    for (uint32_t id = 0; id < in_a && id < in_b; id++) {
        if (!is_same_token(a, b, (int32_t)id)) {
            return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                             "--speculative-config: model %s has another vocabulary: token %u is "
                             "not that of the model it guesses for",
                             path, id);
        }
    }
    return WEFT_OK;
}

weft_status_t draft_model_check_vocab(const model_source_t *source, const model_config_t *answering,
                                      const text_tokenizer_t *tokenizer, weft_diag_t *diag)
{
    const uint32_t vocab = model_source_config(source)->vocab;
    text_tokenizer_t *own = NULL;
    if (tokenizer == NULL) {
        return vocab == answering->vocab
                   ? WEFT_OK
                   : weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                               "--speculative-config: model %s has a vocabulary of %u tokens, the "
                               "model it guesses for one of %u",
                               model_source_path(source), vocab, answering->vocab);
    }
    weft_status_t status = model_source_tokenizer(source, diag, &own);
    if (status >= 0) {
        status = compare_tokens(tokenizer, own, model_source_path(source), diag);
    }
    text_tokenizer_destroy(own);
    return status;
}

/* ---- its sizes ------------------------------------------------------------------------------- */

weft_status_t draft_model_plan_init(draft_model_plan_t *plan, const model_source_t *source,
                                    uint32_t block_tokens, k_dtype_t kv_dtype, weft_diag_t *diag)
{
    const model_config_t *config = model_source_config(source);
    const weft_status_t status = engine_kv_dtype_check(kv_dtype, config, diag);
    if (status < 0) {
        weft_diag_prefix(diag, "%s", model_source_path(source));
        return status;
    }
    *plan = (draft_model_plan_t){
        .kv_dtype = kv_dtype,
        .n_blocks = 1,
        .layout = {.order = KV_ORDER_BHLNC,
                   .block_tokens = block_tokens,
                   .element_bytes = k_dtype_info(kv_dtype)->block_bytes,
                   .scale_bytes = k_kv_scale_bytes(kv_dtype),
                   .n_groups = 1,
                   .groups = {{.layers = config->layers,
                               .heads = config->kv_heads,
                               .head_dim = config->head_dim,
                               .window = model_kv_window(config)}}},
    };
    return kv_layout_init(&plan->layout, 1, diag);
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

void draft_model_plan_steps(draft_model_plan_t *plan, const model_source_t *source,
                            const step_limits_t *limits, uint32_t max_context)
{
    const uint32_t own = model_source_config(source)->max_context;
    const uint32_t most = max_context > 0 ? smaller(max_context, own) : own;
    const uint32_t context = smaller(limits->max_context, most);
    plan->limits =
        sched_limits(limits->max_slots, limits->max_tokens, context, plan->layout.block_tokens, 0);
    plan->limits.max_biases = 0;
    plan->model_limits = (model_limits_t){
        .max_rows = plan->limits.max_tokens,
        .max_outputs = plan->limits.max_outputs,
        .max_context = context,
    };
}

weft_status_t draft_model_memory(const draft_model_plan_t *plan, const model_source_t *source,
                                 const k_ops_t *ops, bool is_host, weft_diag_t *diag,
                                 size_t *bytes_out)
{
    size_t weights = 0;
    size_t activations = 0;
    const size_t steps = executor_memory(&plan->limits, model_source_config(source), NULL,
                                         plan->layout.block_tokens, EXECUTOR_MIN_DEPTH, is_host);
    const weft_status_t status =
        model_memory(source, NULL, &plan->model_limits, ops, diag, &weights, &activations);
    const size_t model = weights > SIZE_MAX - activations ? SIZE_MAX : weights + activations;
    if (status >= 0) {
        *bytes_out = model > SIZE_MAX - steps ? SIZE_MAX : model + steps;
    }
    return status;
}

weft_status_t draft_model_scratch(const draft_model_plan_t *plan, const model_source_t *source,
                                  const k_ops_t *ops, uint32_t threads, bool is_host,
                                  weft_diag_t *diag, size_t *bytes_out)
{
    size_t model = 0;
    const size_t steps =
        executor_scratch(&plan->limits, model_source_config(source), NULL, ops, threads, is_host);
    const weft_status_t status =
        model_scratch(source, NULL, &plan->model_limits, ops, threads, diag, &model);
    if (status >= 0) {
        *bytes_out = model > steps ? model : steps;
    }
    return status;
}

/* ---- life ------------------------------------------------------------------------------------ */

static weft_status_t create_parts(draft_model_t *draft, const draft_model_plan_t *plan,
                                  const model_source_t *source, k_stream_t *stream,
                                  weft_diag_t *diag)
{
    const size_t kv_bytes = plan->layout.block_bytes[0] * plan->n_blocks;
    weft_status_t status = draft->device->ops->alloc(draft->device, kv_bytes, 0, &draft->kv);
    if (status < 0) {
        return weft_diag(diag, status, "no memory for the KV cache of %s, %zu MiB",
                         model_source_path(source), kv_bytes >> 20);
    }
    status = model_create(source, NULL, &plan->model_limits, stream, diag, &draft->model);
    if (status < 0) {
        return status;
    }
    const executor_config_t config = {
        .model = draft->model,
        .stream = stream,
        .limits = plan->limits,
        .layout = &plan->layout,
        .kv_dtype = plan->kv_dtype,
        .kv_base = draft->kv.addr,
        .depth = EXECUTOR_MIN_DEPTH,
    };
    status = executor_create(&config, diag, &draft->executor);
    if (status >= 0 && step_plan_create(&plan->limits, &draft->step) < 0) {
        status = weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for the plan of a step");
    }
    return status;
}

weft_status_t draft_model_create(const draft_model_plan_t *plan, const model_source_t *source,
                                 k_stream_t *stream, weft_diag_t *diag, draft_model_t **draft_out)
{
    draft_model_t *draft = weft_zalloc(sizeof(*draft), "runtime.draft_model");
    if (draft == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "no memory for the model that guesses");
    }
    draft->device = stream->device;
    const weft_status_t status = create_parts(draft, plan, source, stream, diag);
    if (status < 0) {
        draft_model_destroy(draft);
        return status;
    }
    *draft_out = draft;
    return WEFT_OK;
}

void draft_model_destroy(draft_model_t *draft)
{
    if (draft == NULL) {
        return;
    }
    step_plan_destroy(draft->step);
    executor_destroy(draft->executor); /* it waits for its steps: before their KV cache goes */
    model_destroy(draft->model);
    if (draft->kv.addr != NULL) {
        draft->device->ops->free(draft->device, &draft->kv);
    }
    weft_free(draft);
}
