/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "runtime/sched/step_plan_wire.h"
#include "tests/support/check.h"

#define VOCAB 70 /* masks of three words, the last one short */
#define WORDS 3

static const step_wire_bounds_t bounds = {
    .limits = {.max_slots = 4,
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

typedef struct wire_rig {
    step_plan_t *plan; /* uses everything */
    step_plan_t *read;
    uint32_t masks[4][WORDS];
    uint32_t read_masks[4][WORDS];
    _Alignas(8) char message[4096];
    size_t bytes;
    bool is_stop;
} wire_rig_t;

static void fill_plan(step_plan_t *plan)
{
    step_plan_clear(plan, 41);
    plan->binds[plan->n_binds++] = (step_bind_t){
        .slot = 3,
        .prompt_tokens = 15,
        .first_token = 10,
        .n_tokens = 20,
        .first_bias = 1,
        .n_bias = 2,
        .sampling = {.temperature = 0.5f, .top_p = 0.9f, .top_k = 7, .seed = UINT64_MAX - 3},
    };
    for (int32_t i = 0; i < 30; i++) {
        plan->tokens[plan->n_tokens++] = VOCAB - 1 - i;
    }
    for (int32_t i = 0; i < 3; i++) {
        plan->biases[plan->n_biases++] = (step_bias_t){i, (float)i / 4};
    }
    plan->blocks[plan->n_blocks++] = (step_block_t){.slot = 3, .index = 0, .block = 9};
    plan->blocks[plan->n_blocks++] = (step_block_t){.slot = 3, .index = 1, .block = 11};
    plan->rows[plan->n_rows++] = (step_row_t){
        .slot = 3, .flags = STEP_ROW_MASKED | STEP_ROW_SAMPLE, .start = 5, .n_tokens = 15};
    plan->rows[plan->n_rows++] = (step_row_t){.slot = 0,
                                              .flags = STEP_ROW_FROM_SLOT | STEP_ROW_SAMPLE,
                                              .start = 63,
                                              .n_tokens = 1,
                                              .output_index = UINT64_C(1) << 40};
}

static void open_rig(wire_rig_t *rig)
{
    *rig = (wire_rig_t){0};
    assert_status(step_plan_create(&bounds.limits, &rig->plan), WEFT_OK);
    assert_status(step_plan_create(&bounds.limits, &rig->read), WEFT_OK);
    fill_plan(rig->plan);
    for (uint32_t slot = 0; slot < 4; slot++) {
        for (uint32_t i = 0; i < WORDS; i++) {
            rig->masks[slot][i] = 100 * slot + i;
        }
    }
    assert_true(step_wire_max_bytes(&bounds) <= sizeof(rig->message));
    rig->bytes = step_wire_encode(rig->plan, rig->masks[0], VOCAB, rig->message);
}

static void close_rig(wire_rig_t *rig)
{
    step_plan_destroy(rig->plan);
    step_plan_destroy(rig->read);
}

static weft_status_t decode(wire_rig_t *rig, const void *message, size_t bytes)
{
    weft_diag_t diag = {0};
    const weft_status_t status = step_wire_decode(message, bytes, &bounds, &diag, rig->read,
                                                  rig->read_masks[0], &rig->is_stop);
    assert_true(status == WEFT_OK || diag.text[0] != '\0');
    return status;
}

static void what_is_read_is_what_was_written(void **state)
{
    (void)state;
    wire_rig_t rig;
    open_rig(&rig);
    const step_plan_t *a = rig.plan;
    const step_plan_t *b = rig.read;
    rig.is_stop = true;
    assert_status(decode(&rig, rig.message, rig.bytes), WEFT_OK);
    assert_false(rig.is_stop);
    assert_int_equal(b->step, 41);
    assert_int_equal(b->n_binds, a->n_binds);
    assert_int_equal(b->n_blocks, a->n_blocks);
    assert_int_equal(b->n_rows, a->n_rows);
    assert_int_equal(b->n_tokens, a->n_tokens);
    assert_int_equal(b->n_biases, a->n_biases);
    assert_memory_equal(b->binds, a->binds, a->n_binds * sizeof(step_bind_t));
    assert_memory_equal(b->blocks, a->blocks, a->n_blocks * sizeof(step_block_t));
    assert_memory_equal(b->rows, a->rows, a->n_rows * sizeof(step_row_t));
    assert_memory_equal(b->tokens, a->tokens, a->n_tokens * sizeof(int32_t));
    assert_memory_equal(b->biases, a->biases, a->n_biases * sizeof(step_bias_t));
    close_rig(&rig);
}

static void masks_come_to_the_slots_of_masked_rows_alone(void **state)
{
    (void)state;
    wire_rig_t rig;
    open_rig(&rig);
    assert_status(decode(&rig, rig.message, rig.bytes), WEFT_OK);
    assert_memory_equal(rig.read_masks[3], rig.masks[3], sizeof(rig.masks[3]));
    const uint32_t untouched[WORDS] = {0};
    for (uint32_t slot = 0; slot < 3; slot++) {
        assert_memory_equal(rig.read_masks[slot], untouched, sizeof(untouched));
    }
    close_rig(&rig);
}

static void a_message_may_lie_at_any_address(void **state)
{
    (void)state;
    wire_rig_t rig;
    open_rig(&rig);
    memmove(rig.message + 3, rig.message, rig.bytes);
    assert_status(decode(&rig, rig.message + 3, rig.bytes), WEFT_OK);
    assert_memory_equal(rig.read->rows, rig.plan->rows, 2 * sizeof(step_row_t));
    close_rig(&rig);
}

static void a_stop_is_read_as_one(void **state)
{
    (void)state;
    wire_rig_t rig;
    open_rig(&rig);
    const size_t bytes = step_wire_encode_stop(rig.message);
    assert_status(decode(&rig, rig.message, bytes), WEFT_OK);
    assert_true(rig.is_stop);
    assert_int_equal(rig.read->n_rows, 0);
    close_rig(&rig);
}

/* They are for somebody else to read: a plan they are not. */
static void orders_are_told_from_plans(void **state)
{
    (void)state;
    wire_rig_t rig;
    const void *orders = NULL;
    size_t n = 0;
    open_rig(&rig);
    assert_false(step_wire_has_orders(STEP_WIRE_ORDERS, rig.message, rig.bytes, &orders, &n));
    assert_false(step_wire_has_orders(STEP_WIRE_ORDERS, rig.message, 4, &orders, &n));
    const size_t bytes = step_wire_encode_orders(STEP_WIRE_ORDERS, "abcde", 5, rig.message);
    assert_false(step_wire_has_orders(STEP_WIRE_ADAPTER, rig.message, bytes, &orders, &n));
    assert_true(step_wire_has_orders(STEP_WIRE_ORDERS, rig.message, bytes, &orders, &n));
    assert_int_equal(n, 5);
    assert_memory_equal(orders, "abcde", 5);
    assert_status(decode(&rig, rig.message, bytes), WEFT_ERR_MALFORMED);
    close_rig(&rig);
}

static void the_largest_plan_fits_the_largest_message(void **state)
{
    (void)state;
    wire_rig_t rig;
    open_rig(&rig);
    step_plan_t *plan = rig.plan;
    const step_limits_t *limits = &bounds.limits;
    plan->n_binds = plan->n_rows = limits->max_slots;
    plan->n_blocks = limits->max_blocks;
    plan->n_tokens = limits->max_bind_tokens;
    plan->n_biases = limits->max_biases;
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        plan->rows[i] = (step_row_t){.slot = i, .flags = STEP_ROW_MASKED, .n_tokens = 1};
    }
    assert_int_equal(step_wire_encode(plan, rig.masks[0], VOCAB, rig.message),
                     step_wire_max_bytes(&bounds));
    close_rig(&rig);
}

static void a_message_cut_short_or_too_long_is_refused(void **state)
{
    (void)state;
    wire_rig_t rig;
    open_rig(&rig);
    for (size_t bytes = 0; bytes < rig.bytes; bytes++) {
        assert_status(decode(&rig, rig.message, bytes), WEFT_ERR_MALFORMED);
    }
    assert_status(decode(&rig, rig.message, rig.bytes + 4), WEFT_ERR_MALFORMED);
    close_rig(&rig);
}

/* What a broken or hostile leader might say; each is a change of a message that is right. */
static void claims_that_cannot_be_are_refused(void **state)
{
    (void)state;
    wire_rig_t rig;
    for (uint32_t i = 0; i < 11; i++) {
        open_rig(&rig);
        step_wire_header_t *header = (step_wire_header_t *)rig.message;
        step_plan_t *plan = rig.plan;
        bool is_plan = true;
        switch (i) {
        case 0:
            plan->tokens[29] = VOCAB;
            break;
        case 1:
            plan->tokens[0] = -1;
            break;
        case 2:
            plan->biases[2].token = VOCAB;
            break;
        case 3:
            plan->blocks[1].block = 12;
            break;
        case 4:
            plan->rows[0].slot = 4;
            break;
        case 5:
            plan->binds[0].n_bias = 3;
            break;
        default:
            is_plan = false;
        }
        if (is_plan) {
            /* a slot that is none must not lead the encoder astray */
            plan->rows[0].flags &= ~(i == 4 ? STEP_ROW_MASKED : 0);
            rig.bytes = step_wire_encode(plan, rig.masks[0], VOCAB, rig.message);
        }
        header->magic += i == 6;
        header->version += i == 7;
        header->kind += i == 8 ? 2 : 0;
        header->n_tokens += i == 9 ? UINT32_C(1) << 31 : 0;
        header->mask_words -= i == 10;
        assert_status(decode(&rig, rig.message, rig.bytes), WEFT_ERR_MALFORMED);
        close_rig(&rig);
    }
}

static void masks_are_as_many_as_masked_rows(void **state)
{
    (void)state;
    wire_rig_t rig;
    open_rig(&rig);
    step_wire_header_t *header = (step_wire_header_t *)rig.message;
    header->n_masks = 2;
    assert_status(decode(&rig, rig.message, rig.bytes + WORDS * sizeof(uint32_t)),
                  WEFT_ERR_MALFORMED);
    header->n_masks = 0;
    assert_status(decode(&rig, rig.message, rig.bytes - WORDS * sizeof(uint32_t)),
                  WEFT_ERR_MALFORMED);
    close_rig(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_read_is_what_was_written),
        cmocka_unit_test(masks_come_to_the_slots_of_masked_rows_alone),
        cmocka_unit_test(a_message_may_lie_at_any_address),
        cmocka_unit_test(a_stop_is_read_as_one),
        cmocka_unit_test(orders_are_told_from_plans),
        cmocka_unit_test(the_largest_plan_fits_the_largest_message),
        cmocka_unit_test(a_message_cut_short_or_too_long_is_refused),
        cmocka_unit_test(claims_that_cannot_be_are_refused),
        cmocka_unit_test(masks_are_as_many_as_masked_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
