/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "runtime/engine/adapter_order.h"
#include "tests/support/check.h"

static const adapter_order_t load = {ADAPTER_ORDER_LOAD, ADAPTER_ORDER_NO_PLACE, UINT64_C(1) << 40,
                                     "sql", "adapters/sql"};

static void orders_are_read_one_after_the_other(void **state)
{
    (void)state;
    const adapter_order_t drop = {ADAPTER_ORDER_DROP, 7, 0, "", ""};
    uint8_t bytes[2 * ADAPTER_ORDER_MAX_BYTES];
    adapter_order_t order;
    weft_diag_t diag = {0};
    size_t used = 0;
    const size_t first = adapter_order_encode(&load, bytes);
    const size_t n = first + adapter_order_encode(&drop, bytes + first);
    assert_status(adapter_order_decode(bytes, n, &diag, &order, &used), WEFT_OK);
    assert_int_equal(used, first);
    assert_int_equal(order.verb, load.verb);
    assert_int_equal(order.place, load.place);
    assert_int_equal(order.serial, load.serial);
    assert_string_equal(order.name, load.name);
    assert_string_equal(order.path, load.path);
    assert_status(adapter_order_decode(bytes + used, n - used, &diag, &order, &used), WEFT_OK);
    assert_int_equal(used, n - first);
    assert_int_equal(order.verb, ADAPTER_ORDER_DROP);
    assert_int_equal(order.place, 7);
    assert_string_equal(order.path, "");
}

static void texts_that_do_not_fit_are_not_written(void **state)
{
    (void)state;
    static char text[ADAPTER_ORDER_MAX_BYTES + 1];
    uint8_t bytes[ADAPTER_ORDER_MAX_BYTES];
    adapter_order_t order = load;
    memset(text, 'x', sizeof(text) - 1);
    order.path = text;
    assert_int_equal(adapter_order_encode(&order, bytes), 0);
    order.name = text;
    assert_int_equal(adapter_order_encode(&order, bytes), 0);
    const size_t fixed = adapter_order_encode(&load, bytes) - strlen(load.path);
    order = load;
    order.path = text + sizeof(text) - 1 - (ADAPTER_ORDER_MAX_BYTES - fixed);
    assert_int_equal(adapter_order_encode(&order, bytes), ADAPTER_ORDER_MAX_BYTES);
    order.path--;
    assert_int_equal(adapter_order_encode(&order, bytes), 0);
}

/* Each in memory of just its size, where a sanitizer sees what is read beyond. */
static void check_malformed(const uint8_t *bytes, size_t n)
{
    adapter_order_t order;
    size_t used;
    weft_diag_t diag = {0};
    uint8_t *copy = malloc(n + 1);
    assert_non_null(copy);
    memcpy(copy + 1, bytes, n); /* they may lie anywhere */
    assert_status(adapter_order_decode(copy + 1, n, &diag, &order, &used), WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "adapter order"));
    free(copy);
}

static void orders_that_are_cut_or_wrong_are_malformed(void **state)
{
    (void)state;
    uint8_t bytes[ADAPTER_ORDER_MAX_BYTES];
    const size_t n = adapter_order_encode(&load, bytes);
    for (size_t cut = 0; cut < n; cut++) {
        check_malformed(bytes, cut);
    }
    const struct {
        size_t at;
        uint8_t value;
    } faults[] = {{0, 0},     {0, 4},  {1, 1},     {16, 0},      {16, 3},  {16, 5},
                  {19, 0xff}, {20, 0}, {23, 0xff}, {n - 1, 'x'}, {27, 'x'}};
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        const uint8_t right = bytes[faults[i].at];
        bytes[faults[i].at] = faults[i].value;
        check_malformed(bytes, n);
        bytes[faults[i].at] = right;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orders_are_read_one_after_the_other),
        cmocka_unit_test(texts_that_do_not_fit_are_not_written),
        cmocka_unit_test(orders_that_are_cut_or_wrong_are_malformed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
