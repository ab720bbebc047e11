/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_step_plan: a step message's bytes; what is accepted keeps the bounds and is written the same. */
#include <stdlib.h>
#include <string.h>

#include "runtime/sched/step_plan_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define VOCAB 70
#define WORDS 3
#define SLOTS 4

static const step_wire_bounds_t bounds = {
    .limits = {.max_slots = SLOTS,
               .max_tokens = 16,
               .max_context = 64,
               .max_blocks = 8,
               .max_bind_tokens = 64,
               .max_biases = 3,
               .max_outputs = 2,
               .max_drafts = 2},
    .vocab = VOCAB,
    .n_blocks = 12,
};

static void require(bool claim)
{
    if (!claim) {
        abort();
    }
}

static void check_plan(const step_plan_t *plan)
{
    require(step_plan_check(plan, &bounds.limits, NULL) == WEFT_OK);
    for (uint32_t i = 0; i < plan->n_blocks; i++) {
        require(plan->blocks[i].block < bounds.n_blocks);
    }
    for (uint32_t i = 0; i < plan->n_tokens; i++) {
        require(plan->tokens[i] >= 0 && plan->tokens[i] < VOCAB);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static step_plan_t *plan;
    _Alignas(8) static char again[4096];
    uint32_t masks[SLOTS * WORDS] = {0};
    bool is_stop = false;
    if (plan == NULL) {
        require(step_plan_create(&bounds.limits, &plan) == WEFT_OK);
    }
    const weft_status_t status = step_wire_decode(data, size, &bounds, NULL, plan, masks, &is_stop);
    require(status == WEFT_OK || status == WEFT_ERR_MALFORMED);
    if (status == WEFT_OK && !is_stop) {
        check_plan(plan);
        require(step_wire_encode(plan, masks, VOCAB, again) == size);
    }
    return 0;
}
