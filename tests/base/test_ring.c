/* SPDX-License-Identifier: Apache-2.0 */
#include "base/ring.h"

#include <pthread.h>
#include <sched.h>

#include "base/clock.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

#define PRODUCERS 3
#define ITEMS     20000

static void a_ring_gives_back_in_order_and_says_when_it_is_full(void **state)
{
    (void)state;
    weft_ring_t *ring = NULL;
    int items[5];
    assert_status(weft_ring_create(3, &ring), WEFT_OK);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 4; i++) {
            assert_status(weft_ring_push(ring, &items[i]), WEFT_OK);
        }
        assert_status(weft_ring_push(ring, &items[4]), WEFT_ERR_QUEUE_FULL);
        for (int i = 0; i < 4; i++) {
            assert_ptr_equal(weft_ring_pop(ring), &items[i]);
        }
        assert_null(weft_ring_pop(ring));
    }
    weft_ring_destroy(ring);
}

static void random_pushes_and_pops_agree_with_a_plain_queue(void **state)
{
    (void)state;
    test_random_t random = {test_seed(weft_clock_ns())};
    static char items[1000];
    size_t pushed = 0;
    size_t popped = 0;
    weft_ring_t *ring = NULL;
    assert_status(weft_ring_create(8, &ring), WEFT_OK);
    while (popped < sizeof(items)) {
        if (pushed < sizeof(items) && test_random_below(&random, 2) == 0) {
            const bool is_full = pushed - popped == 8;
            assert_status(weft_ring_push(ring, &items[pushed]),
                          is_full ? WEFT_ERR_QUEUE_FULL : WEFT_OK);
            pushed += is_full ? 0 : 1;
        } else {
            void *expected = popped == pushed ? NULL : &items[popped];
            assert_ptr_equal(weft_ring_pop(ring), expected);
            popped += expected == NULL ? 0 : 1;
        }
    }
    weft_ring_destroy(ring);
}

typedef struct producer {
    pthread_t thread;
    weft_ring_t *ring;
    uintptr_t index;
} producer_t;

static void *produce(void *user)
{
    const producer_t *producer = user;
    for (uintptr_t i = 1; i <= ITEMS; i++) {
        void *item = (void *)(producer->index * (ITEMS + 1) + i); /* never followed */
        while (weft_ring_push(producer->ring, item) != WEFT_OK) {
            sched_yield();
        }
    }
    return NULL;
}

static void producers_on_many_threads_lose_and_reorder_nothing(void **state)
{
    (void)state;
    producer_t producers[PRODUCERS];
    uintptr_t seen[PRODUCERS] = {0};
    weft_ring_t *ring = NULL;
    assert_status(weft_ring_create(64, &ring), WEFT_OK);
    for (uintptr_t i = 0; i < PRODUCERS; i++) {
        producers[i] = (producer_t){.ring = ring, .index = i};
        assert_int_equal(pthread_create(&producers[i].thread, NULL, produce, &producers[i]), 0);
    }
    for (size_t n = 0; n < PRODUCERS * (size_t)ITEMS;) {
        const uintptr_t item = (uintptr_t)weft_ring_pop(ring);
        if (item == 0) {
            sched_yield();
            continue;
        }
        const uintptr_t from = item / (ITEMS + 1);
        assert_int_equal(item % (ITEMS + 1), seen[from] + 1);
        seen[from]++;
        n++;
    }
    for (size_t i = 0; i < PRODUCERS; i++) {
        pthread_join(producers[i].thread, NULL);
    }
    assert_null(weft_ring_pop(ring));
    weft_ring_destroy(ring);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const size_t before = weft_alloc_live_bytes();
    for (uint64_t n = 1; n <= 2; n++) {
        weft_ring_t *ring = NULL;
        weft_alloc_fail_nth(n);
        assert_status(weft_ring_create(8, &ring), WEFT_ERR_NO_MEMORY);
    }
    weft_alloc_fail_nth(0);
    weft_ring_t *ring = NULL;
    assert_status(weft_ring_create(SIZE_MAX, &ring), WEFT_ERR_NO_MEMORY);
    assert_int_equal(weft_alloc_live_bytes(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_ring_gives_back_in_order_and_says_when_it_is_full),
        cmocka_unit_test(random_pushes_and_pops_agree_with_a_plain_queue),
        cmocka_unit_test(producers_on_many_threads_lose_and_reorder_nothing),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
