/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/transfer/kv_transfer_legs.h"

static json_t *params_of_prefill(json_t *more)
{
    json_t *params =
        json_pack("{s:b, s:b, s:n, s:n, s:n, s:n}", "do_remote_decode", 1, "do_remote_prefill", 0,
                  "remote_engine_id", "remote_block_ids", "remote_host", "remote_port");
    if (params != NULL && more != NULL && json_object_update(params, more) != 0) {
        json_decref(params);
        return NULL;
    }
    return params;
}

/* generate has its limits in sampling_params; the others at the top, under both names. */
static int set_limits(json_t *leg)
{
    json_t *params = json_object_get(leg, "sampling_params");
    if (json_is_array(json_object_get(leg, "token_ids"))) {
        json_t *copy = json_is_object(params) ? json_copy(params) : json_object();
        return json_object_set_new(copy, "max_tokens", json_integer(1)) |
               json_object_set_new(copy, "min_tokens", json_integer(1)) |
               json_object_set_new(leg, "sampling_params", copy);
    }
    return json_object_set_new(leg, "max_tokens", json_integer(1)) |
           json_object_set_new(leg, "max_completion_tokens", json_integer(1)) |
           json_object_set_new(leg, "min_tokens", json_integer(1));
}

json_t *kv_transfer_prefill_leg(json_t *request, json_t *more)
{
    json_t *leg = json_copy(request);
    if (leg == NULL) {
        return NULL;
    }
    (void)json_object_del(leg, "stream_options");
    if (json_object_set_new(leg, "stream", json_false()) != 0 || set_limits(leg) != 0 ||
        json_object_set_new(leg, "kv_transfer_params", params_of_prefill(more)) != 0) {
        json_decref(leg);
        return NULL;
    }
    return leg;
}

json_t *kv_transfer_decode_leg(json_t *request, json_t *prefill_answer)
{
    json_t *params = json_object_get(prefill_answer, "kv_transfer_params");
    json_t *leg = json_copy(request);
    if (leg == NULL) {
        return NULL;
    }
    params = params == NULL ? json_null() : json_incref(params);
    if (json_object_set_new(leg, "kv_transfer_params", params) != 0) {
        json_decref(leg);
        return NULL;
    }
    return leg;
}
