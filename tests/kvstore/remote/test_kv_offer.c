/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/remote/kv_offer.h"

#include "tests/support/check.h"

enum { BLOCKS = 200, BYTES = 64 };

typedef struct rig {
    weft_device_t *device;
    weft_mem_t memory;
    kv_offer_t *offer;
    uint32_t shelf;
    kv_hash_t hashes[BLOCKS];
    kv_offer_place_t places[BLOCKS];
} rig_t;

static rig_t rig;

static int open_rig(void **state)
{
    (void)state;
    rig = (rig_t){0};
    assert_status(weft_device_open("cpu", 0, NULL, &rig.device), WEFT_OK);
    assert_status(rig.device->ops->alloc(rig.device, (size_t)BLOCKS * BYTES, 0, &rig.memory),
                  WEFT_OK);
    assert_status(kv_offer_create(&rig.offer), WEFT_OK);
    const kv_offer_shelf_t shelf = {&rig.memory, BYTES, BLOCKS};
    assert_status(kv_offer_add_shelf(rig.offer, &shelf, &rig.shelf), WEFT_OK);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        rig.hashes[i].bytes[0] = (uint8_t)i;
        rig.hashes[i].bytes[9] = 1;
    }
    return 0;
}

static int close_rig(void **state)
{
    (void)state;
    kv_offer_destroy(rig.offer);
    rig.device->ops->free(rig.device, &rig.memory);
    weft_device_close(rig.device);
    return 0;
}

static uint32_t find_all(void)
{
    return kv_offer_find(rig.offer, rig.hashes, BLOCKS, rig.places);
}

static void put_all(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        kv_offer_put(rig.offer, rig.shelf, i, &rig.hashes[i]);
    }
}

static uint64_t epoch_of(uint32_t block)
{
    return ((const uint64_t *)kv_offer_words(rig.offer, rig.shelf)->addr)[block];
}

static void only_leading_blocks_are_found(void **state)
{
    (void)state;
    assert_int_equal(find_all(), 0);
    put_all(BLOCKS);
    assert_int_equal(find_all(), BLOCKS);
    kv_offer_take_back(rig.offer, rig.shelf, 150);
    assert_int_equal(find_all(), 150);
    kv_offer_take_back(rig.offer, rig.shelf, 0);
    assert_int_equal(find_all(), 0);
    assert_int_equal(kv_offer_blocks(rig.offer), BLOCKS - 2);
}

static void a_place_has_the_epoch_that_readers_see(void **state)
{
    (void)state;
    put_all(2);
    assert_int_equal(find_all(), 2);
    assert_int_equal(rig.places[1].block, 1);
    assert_true(rig.places[1].epoch == epoch_of(1));
    assert_true(rig.places[0].epoch != rig.places[1].epoch);
}

static void what_is_taken_back_has_another_epoch(void **state)
{
    (void)state;
    put_all(2);
    assert_int_equal(find_all(), 2);
    kv_offer_take_back(rig.offer, rig.shelf, 1);
    assert_true(rig.places[1].epoch != epoch_of(1));
    assert_true(rig.places[0].epoch == epoch_of(0));
    const kv_offer_place_t before = rig.places[1];
    put_all(2);
    assert_int_equal(find_all(), 2);
    assert_true(rig.places[1].epoch != before.epoch);
}

static void clearing_takes_all_back(void **state)
{
    (void)state;
    put_all(3);
    assert_int_equal(find_all(), 3);
    kv_offer_clear(rig.offer, rig.shelf);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(rig.places[i].epoch != epoch_of(i));
    }
    assert_int_equal(find_all(), 0);
    assert_int_equal(kv_offer_blocks(rig.offer), 0);
}

static void a_block_is_found_on_either_shelf(void **state)
{
    (void)state;
    uint32_t other;
    const kv_offer_shelf_t shelf = {&rig.memory, BYTES, BLOCKS};
    assert_status(kv_offer_add_shelf(rig.offer, &shelf, &other), WEFT_OK);
    kv_offer_put(rig.offer, rig.shelf, 5, &rig.hashes[0]);
    kv_offer_put(rig.offer, other, 7, &rig.hashes[1]);
    assert_int_equal(find_all(), 2);
    assert_int_equal(rig.places[0].shelf, rig.shelf);
    assert_int_equal(rig.places[1].shelf, other);
    assert_int_equal(rig.places[1].block, 7);
    kv_offer_put(rig.offer, other, 8, &rig.hashes[0]);
    kv_offer_take_back(rig.offer, rig.shelf, 5);
    assert_int_equal(find_all(), 2);
    assert_int_equal(rig.places[0].block, 8);
}

static void nothing_is_done_without_an_offer(void **state)
{
    (void)state;
    kv_offer_put(NULL, 0, 0, &rig.hashes[0]);
    kv_offer_take_back(NULL, 0, 0);
    kv_offer_clear(NULL, 0);
    kv_offer_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(claim) cmocka_unit_test_setup_teardown(claim, open_rig, close_rig)
        TEST(only_leading_blocks_are_found),        TEST(a_place_has_the_epoch_that_readers_see),
        TEST(what_is_taken_back_has_another_epoch), TEST(clearing_takes_all_back),
        TEST(a_block_is_found_on_either_shelf),     TEST(nothing_is_done_without_an_offer),
#undef TEST
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
