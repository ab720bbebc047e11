/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_transfer_legs: the two requests that one becomes when prefill and decode are split, as
 * proxies and sidecars written for vLLM make them (llm-d's "nixlv2" order: the prefill leg ends,
 * then the decode leg begins).
 *
 * Threads  none of its own
 */
#pragma once

#include <jansson.h>

/*
 * The prefill leg of request, of any of the three endpoints that generate: one token, not streamed,
 * its blocks kept for a decode worker. more: members that join its kv_transfer_params, or NULL.
 * A new reference; NULL: no memory.
 */
json_t *kv_transfer_prefill_leg(json_t *request, json_t *more);

/*
 * The decode leg: request with the kv_transfer_params of the prefill leg's answer, null when that
 * has none. A new reference; NULL: no memory.
 */
json_t *kv_transfer_decode_leg(json_t *request, json_t *prefill_answer);
