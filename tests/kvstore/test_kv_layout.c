/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/kv_layout.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/compiler.h"

static kv_layout_t small_layout(kv_order_t order)
{
    return (kv_layout_t){
        .order = order,
        .block_tokens = 4,
        .element_bytes = 2,
        .n_groups = 1,
        .groups = {{.layers = 3, .heads = 2, .head_dim = 8}},
    };
}

static void every_order_gives_each_element_its_own_place(void **state)
{
    (void)state;
    enum { BLOCKS = 5, PARTS = BLOCKS * 3 * 2 * 4 * 2, PART_BYTES = 16 };
    const kv_order_t orders[] = {KV_ORDER_BHLNC, KV_ORDER_BLHNC, KV_ORDER_LBHNC};
    for (size_t o = 0; o < WEFT_ARRAY_LEN(orders); o++) {
        kv_layout_t layout = small_layout(orders[o]);
        assert_int_equal(kv_layout_init(&layout, BLOCKS, NULL), WEFT_OK);
        assert_int_equal(layout.block_bytes[0] * BLOCKS, PARTS * PART_BYTES);
        bool taken[PARTS] = {false};
        const kv_strides_t *s = &layout.strides[0];
        for (size_t i = 0; i < PARTS; i++) {
            const size_t part = i % 2, token = i / 2 % 4, head = i / 8 % 2, layer = i / 16 % 3;
            const size_t at = i / 48 * s->block + layer * s->layer + head * s->head +
                              token * s->token + part * s->part;
            assert_int_equal(at % PART_BYTES, 0);
            assert_true(at / PART_BYTES < PARTS);
            assert_false(taken[at / PART_BYTES]);
            taken[at / PART_BYTES] = true;
        }
    }
}

static void default_order_keeps_a_block_and_its_heads_contiguous(void **state)
{
    (void)state;
    kv_layout_t layout = small_layout(KV_ORDER_BHLNC);
    assert_int_equal(kv_layout_init(&layout, 7, NULL), WEFT_OK);
    assert_int_equal(layout.strides[0].block, layout.block_bytes[0]);
    assert_int_equal(layout.strides[0].head * 2, layout.strides[0].block);
    assert_int_equal(layout.strides[0].layer * 3, layout.strides[0].head);
    assert_int_equal(layout.strides[0].part, 8 * 2);
}

static void scales_follow_the_tokens_of_their_head(void **state)
{
    (void)state;
    const kv_order_t orders[] = {KV_ORDER_BHLNC, KV_ORDER_BLHNC, KV_ORDER_LBHNC};
    for (size_t o = 0; o < WEFT_ARRAY_LEN(orders); o++) {
        kv_layout_t layout = small_layout(orders[o]);
        layout.element_bytes = 1;
        layout.scale_bytes = 4;
        layout.block_tokens = 1;
        layout.groups[0].head_dim = 6;
        assert_int_equal(kv_layout_init(&layout, 5, NULL), WEFT_OK);
        const kv_strides_t *s = &layout.strides[0];
        const size_t slice = orders[o] == KV_ORDER_BHLNC ? s->layer : s->head;
        assert_int_equal(s->scales, 12);
        assert_int_equal(slice, 12 + 2 * 4);
        assert_int_equal(layout.block_bytes[0], 3 * 2 * slice);
        layout.groups[0].head_dim = 7;
        assert_int_equal(kv_layout_init(&layout, 5, NULL), WEFT_ERR_INVALID);
    }
    kv_layout_t plain = small_layout(KV_ORDER_BHLNC);
    assert_int_equal(kv_layout_init(&plain, 5, NULL), WEFT_OK);
    assert_int_equal(plain.strides[0].scales, 0);
}

static void bad_extents_are_named(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    kv_layout_t layout = small_layout(KV_ORDER_BHLNC);
    layout.block_tokens = 12;
    assert_int_equal(kv_layout_init(&layout, 1, &diag), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "12 tokens"));
    layout = small_layout(KV_ORDER_BHLNC);
    layout.groups[0].heads = 0;
    assert_int_equal(kv_layout_init(&layout, 1, &diag), WEFT_ERR_INVALID);
    layout = small_layout(KV_ORDER_BHLNC);
    assert_int_equal(kv_layout_init(&layout, 0, &diag), WEFT_ERR_INVALID);
    layout.n_groups = KV_MAX_GROUPS + 1;
    assert_int_equal(kv_layout_init(&layout, 1, &diag), WEFT_ERR_INVALID);
}

static void sizes_past_the_address_space_are_refused(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    kv_layout_t layout = small_layout(KV_ORDER_BHLNC);
    layout.groups[0] = (kv_group_t){UINT32_MAX, UINT32_MAX, 128, 0};
    assert_int_equal(kv_layout_init(&layout, 1, &diag), WEFT_ERR_TOO_LARGE);
    layout = small_layout(KV_ORDER_LBHNC);
    layout.groups[0] = (kv_group_t){1 << 20, 1 << 20, 1 << 10, 0};
    assert_int_equal(kv_layout_init(&layout, UINT32_MAX, &diag), WEFT_ERR_TOO_LARGE);
}

static void orders_are_known_by_their_names(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    kv_order_t order;
    for (kv_order_t i = KV_ORDER_BHLNC; i <= KV_ORDER_LBHNC; i++) {
        assert_int_equal(kv_order_parse(kv_order_name(i), &diag, &order), WEFT_OK);
        assert_int_equal(order, i);
    }
    assert_int_equal(kv_order_parse("HND", &diag, &order), WEFT_ERR_INVALID);
    assert_non_null(strstr(diag.text, "BHLNC, BLHNC and LBHNC"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orders_are_known_by_their_names),
        cmocka_unit_test(every_order_gives_each_element_its_own_place),
        cmocka_unit_test(default_order_keeps_a_block_and_its_heads_contiguous),
        cmocka_unit_test(scales_follow_the_tokens_of_their_head),
        cmocka_unit_test(bad_extents_are_named),
        cmocka_unit_test(sizes_past_the_address_space_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
