/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/xfer/xfer_op_queue.h"

#include <stdlib.h>

#include "tests/support/check.h"

#define OPS 64

/* What is queued, in the order of its coming. */
typedef struct naive {
    xfer_op_t *ops[OPS];
    size_t n;
} naive_t;

static xfer_op_t *naive_first(const naive_t *naive)
{
    xfer_op_t *first = NULL;
    for (size_t i = 0; i < naive->n; i++) {
        if (first == NULL || naive->ops[i]->priority < first->priority) {
            first = naive->ops[i];
        }
    }
    return first;
}

static void naive_remove(naive_t *naive, const xfer_op_t *op)
{
    size_t kept = 0;
    for (size_t i = 0; i < naive->n; i++) {
        if (naive->ops[i] != op) {
            naive->ops[kept++] = naive->ops[i];
        }
    }
    naive->n = kept;
}

static bool naive_has(const naive_t *naive, const xfer_op_t *op)
{
    for (size_t i = 0; i < naive->n; i++) {
        if (naive->ops[i] == op) {
            return true;
        }
    }
    return false;
}

static void the_first_is_the_oldest_of_the_lowest_priority(void **state)
{
    (void)state;
    static xfer_op_queue_t queue;
    static xfer_op_t ops[OPS];
    naive_t naive = {.n = 0};
    uint64_t seed = 12345;
    assert_null(xfer_op_queue_first(&queue));
    for (int round = 0; round < 20000; round++) {
        seed = seed * UINT64_C(6364136223846793005) + 1;
        xfer_op_t *op = &ops[seed >> 58];
        if (naive_has(&naive, op)) {
            xfer_op_queue_remove(&queue, op);
            naive_remove(&naive, op);
        } else {
            op->priority = (uint8_t)((seed >> 40 & 3) * 85); /* 0 and 255 are among them */
            xfer_op_queue_append(&queue, op);
            naive.ops[naive.n++] = op;
        }
        assert_ptr_equal(xfer_op_queue_first(&queue), naive_first(&naive));
    }
}

static void a_links_ops_are_found_wherever_they_are(void **state)
{
    (void)state;
    static xfer_op_queue_t queue;
    xfer_link_t links[2] = {{0}};
    xfer_op_t ops[3] = {{.priority = 3, .link = &links[0]},
                        {.priority = 3, .link = &links[1]},
                        {.priority = 200, .link = &links[0]}};
    for (size_t i = 0; i < 3; i++) {
        xfer_op_queue_append(&queue, &ops[i]);
    }
    assert_ptr_equal(xfer_op_queue_find(&queue, &links[0]), &ops[0]);
    xfer_op_queue_remove(&queue, &ops[0]);
    assert_ptr_equal(xfer_op_queue_find(&queue, &links[0]), &ops[2]);
    xfer_op_queue_remove(&queue, &ops[2]);
    assert_null(xfer_op_queue_find(&queue, &links[0]));
    assert_ptr_equal(xfer_op_queue_find(&queue, &links[1]), &ops[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_is_the_oldest_of_the_lowest_priority),
        cmocka_unit_test(a_links_ops_are_found_wherever_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
