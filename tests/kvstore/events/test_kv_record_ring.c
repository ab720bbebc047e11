/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_record_ring.h"

#include <pthread.h>
#include <string.h>

#include "kvstore/events/kv_gate.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

static void records_come_in_order_once_published(void **state)
{
    (void)state;
    kv_record_ring_t *ring = NULL;
    assert_status(kv_record_ring_create(1, &ring), WEFT_OK);
    assert_int_equal(kv_record_ring_capacity(ring), 4096);
    assert_null(kv_record_ring_front(ring));
    memcpy(kv_record_ring_reserve(ring, 4), "one", 4);
    memcpy(kv_record_ring_reserve(ring, 4), "two", 4);
    assert_null(kv_record_ring_front(ring));
    assert_true(kv_record_ring_unpublished(ring) > 0);
    kv_record_ring_publish(ring);
    assert_int_equal(kv_record_ring_unpublished(ring), 0);
    assert_string_equal(kv_record_ring_front(ring), "one");
    assert_string_equal(kv_record_ring_front(ring), "one");
    kv_record_ring_pop(ring);
    assert_string_equal(kv_record_ring_front(ring), "two");
    kv_record_ring_pop(ring);
    assert_true(kv_record_ring_is_empty(ring));
    kv_record_ring_destroy(ring);
}

static void a_full_ring_refuses_until_space_is_released(void **state)
{
    (void)state;
    kv_record_ring_t *ring = NULL;
    uint32_t n = 0;
    assert_status(kv_record_ring_create(4096, &ring), WEFT_OK);
    for (void *record; (record = kv_record_ring_reserve(ring, 1000)) != NULL; n++) {
        memset(record, (int)n, 1000);
    }
    assert_int_equal(n, 4);
    kv_record_ring_publish(ring);
    assert_false(kv_record_ring_is_half_free(ring));
    assert_non_null(kv_record_ring_front(ring));
    kv_record_ring_pop(ring);
    assert_null(kv_record_ring_reserve(ring, 1000)); /* popped, not released */
    kv_record_ring_release(ring);
    assert_non_null(kv_record_ring_reserve(ring, 1000));
    for (uint32_t i = 1; i < 4; i++) {
        const uint8_t *record = kv_record_ring_front(ring);
        assert_int_equal(record[0], i);
        assert_int_equal(record[999], i);
        kv_record_ring_pop(ring);
    }
    kv_record_ring_release(ring);
    assert_true(kv_record_ring_is_half_free(ring));
    assert_non_null(kv_record_ring_reserve(ring, 2048 - 8)); /* half of it always comes to fit */
    kv_record_ring_destroy(ring);
}

/* ---- two threads ------------------------------------------------------------------------------ */

/* A record: its size as the first word, and then its number in every byte. */
typedef struct pair {
    kv_record_ring_t *ring;
    kv_gate_t records;
    kv_gate_t room;
    uint32_t n;
    uint64_t seed;
} pair_t;

static void *write_records(void *user)
{
    pair_t *pair = user;
    test_random_t random = {pair->seed};
    for (uint32_t i = 0; i < pair->n; i++) {
        const uint32_t size = test_random_between(&random, 4, 900);
        void *record = kv_record_ring_reserve(pair->ring, size);
        while (record == NULL) {
            kv_record_ring_publish(pair->ring);
            kv_gate_wake(&pair->records);
            kv_gate_announce(&pair->room);
            record = kv_record_ring_reserve(pair->ring, size);
            if (record != NULL) {
                kv_gate_leave(&pair->room);
            } else {
                kv_gate_wait(&pair->room, -1);
            }
        }
        memset(record, (int)i, size);
        memcpy(record, &size, sizeof(size));
        if (test_random_below(&random, 8) == 0 || i + 1 == pair->n) {
            kv_record_ring_publish(pair->ring);
            kv_gate_wake(&pair->records);
        }
    }
    return NULL;
}

static void read_record(pair_t *pair, uint32_t i, test_random_t *random)
{
    const uint8_t *record;
    uint32_t size;
    while ((record = kv_record_ring_front(pair->ring)) == NULL) {
        kv_gate_announce(&pair->records);
        if (kv_record_ring_is_empty(pair->ring)) {
            kv_gate_wait(&pair->records, -1);
        } else {
            kv_gate_leave(&pair->records);
        }
    }
    memcpy(&size, record, sizeof(size));
    assert_in_range(size, 4, 900);
    for (uint32_t j = sizeof(size); j < size; j++) {
        assert_int_equal(record[j], (uint8_t)i);
    }
    kv_record_ring_pop(pair->ring);
    if (test_random_below(random, 4) == 0 || kv_record_ring_is_empty(pair->ring)) {
        kv_record_ring_release(pair->ring);
        kv_gate_wake(&pair->room);
    }
}

static void threads_that_wait_for_each_other_lose_no_record(void **state)
{
    (void)state;
    pair_t pair = {.n = test_scaled(2000000), .seed = test_seed(1)};
    test_random_t random = {pair.seed + 1};
    pthread_t writer;
    assert_status(kv_record_ring_create(4096, &pair.ring), WEFT_OK);
    assert_status(kv_gate_open(&pair.records), WEFT_OK);
    assert_status(kv_gate_open(&pair.room), WEFT_OK);
    assert_int_equal(pthread_create(&writer, NULL, write_records, &pair), 0);
    for (uint32_t i = 0; i < pair.n; i++) {
        read_record(&pair, i, &random);
    }
    pthread_join(writer, NULL);
    assert_true(kv_record_ring_is_empty(pair.ring));
    kv_gate_close(&pair.records);
    kv_gate_close(&pair.room);
    kv_record_ring_destroy(pair.ring);
}

static void creation_survives_no_memory(void **state)
{
    (void)state;
    kv_record_ring_t *ring = NULL;
    for (uint64_t n = 1; n <= 2; n++) {
        weft_alloc_fail_nth(n);
        assert_status(kv_record_ring_create(4096, &ring), WEFT_ERR_NO_MEMORY);
    }
    weft_alloc_fail_nth(0);
    assert_null(ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_come_in_order_once_published),
        cmocka_unit_test(a_full_ring_refuses_until_space_is_released),
        cmocka_unit_test(threads_that_wait_for_each_other_lose_no_record),
        cmocka_unit_test(creation_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
