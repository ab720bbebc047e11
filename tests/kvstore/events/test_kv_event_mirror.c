/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/events/kv_event_mirror.h"

#include <string.h>

#include "base/compiler.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

/* A forest of blocks that may be stored; the model is which media have each one. */
enum { BLOCKS = 200, TOKENS = 4, MEDIA = 3 };

static const char *const media[MEDIA] = {"GPU", "CPU", NULL};

static const kv_event_hash_t none;

typedef struct block {
    kv_event_hash_t hash;
    int parent; /* -1: none */
    uint32_t tokens[TOKENS];
    const char *salt; /* of a first block, or NULL */
    const char *lora; /* of a chain, or NULL */
    uint8_t present;
} block_t;

typedef struct model {
    block_t blocks[BLOCKS];
    uint32_t holes[KV_EVENT_HOLE_GAP + 1]; /* reported */
} model_t;

static void count_hole(void *user, kv_event_hole_t hole, const kv_event_hash_t *hash)
{
    model_t *model = user;
    assert_int_equal(hash == NULL, hole == KV_EVENT_HOLE_GAP);
    model->holes[hole]++;
}

static kv_event_mirror_t *make_mirror(model_t *model)
{
    kv_event_mirror_t *mirror = NULL;
    const kv_event_mirror_config_t config = {
        .block_tokens = TOKENS, .on_hole = count_hole, .user = model};
    assert_status(kv_event_mirror_create(&config, &mirror), WEFT_OK);
    return mirror;
}

static void make_model(model_t *model, test_random_t *random)
{
    *model = (model_t){0};
    for (int i = 0; i < BLOCKS; i++) {
        block_t *block = &model->blocks[i];
        const bool is_digest = i % 3 == 0;
        uint8_t digest[KV_HASH_BYTES];
        for (int j = 0; j < KV_HASH_BYTES; j++) {
            digest[j] = (uint8_t)test_random_u64(random);
        }
        block->hash = is_digest ? kv_event_hash_bytes(digest, KV_HASH_BYTES)
                                : kv_event_hash_number(test_random_u64(random));
        block->parent = i == 0 || test_random_below(random, 12) == 0
                            ? -1
                            : (int)test_random_below(random, (uint32_t)i);
        if (block->parent >= 0) {
            block->lora = model->blocks[block->parent].lora;
        } else {
            block->salt = test_random_below(random, 2) == 0 ? "a tenant's" : NULL;
            block->lora = test_random_below(random, 3) == 0 ? "sql" : NULL;
        }
        for (int j = 0; j < TOKENS; j++) {
            block->tokens[j] = (uint32_t)test_random_u64(random) >> test_random_below(random, 32);
        }
    }
}

static void put_extra(weft_buffer_t *out, const block_t *block)
{
    const uint32_t n = (block->lora != NULL) + (block->salt != NULL);
    if (n == 0) {
        kv_event_put_nil(out);
        return;
    }
    kv_event_put_array(out, n);
    if (block->lora != NULL) {
        kv_event_put_text(out, kv_event_text(block->lora));
    }
    if (block->salt != NULL) {
        kv_event_put_text(out, kv_event_text(block->salt));
    }
}

/* Announces the last n blocks of the chain that ends with block `last`. */
static void store(model_t *model, kv_event_mirror_t *mirror, int last, uint32_t n, uint32_t medium)
{
    int chain[BLOCKS];
    kv_event_hash_t hashes[BLOCKS];
    uint32_t tokens[BLOCKS * TOKENS];
    weft_buffer_t extras = {0};
    uint32_t length = 0;
    for (int i = last; i >= 0 && length < n; i = model->blocks[i].parent) {
        chain[length++] = i;
    }
    kv_event_put_array(&extras, length);
    for (uint32_t i = 0; i < length; i++) {
        block_t *block = &model->blocks[chain[length - 1 - i]];
        hashes[i] = block->hash;
        memcpy(tokens + (size_t)i * TOKENS, block->tokens, sizeof(block->tokens));
        put_extra(&extras, block);
    }
    const int parent = model->blocks[chain[length - 1]].parent;
    const kv_event_hash_t *above = parent < 0 ? &none : &model->blocks[parent].hash;
    const kv_event_t event = {
        .kind = KV_EVENT_STORED,
        .block_hashes = {hashes, length},
        .parent_block_hash = *above,
        .token_ids = {tokens, length * TOKENS},
        .block_size = TOKENS,
        .medium = kv_event_text(media[medium]),
        .lora_name = kv_event_text(model->blocks[last].lora),
        .extra_keys = {extras.data, (uint32_t)extras.length},
        .group_idx = {true, 0},
        .kv_cache_spec_kind = kv_event_text("full_attention"),
    };
    const uint32_t holes = model->holes[KV_EVENT_HOLE_PARENT];
    assert_status(kv_event_mirror_apply(mirror, &event), WEFT_OK);
    const bool is_orphan = parent >= 0 && model->blocks[parent].present == 0;
    assert_int_equal(model->holes[KV_EVENT_HOLE_PARENT], holes + is_orphan);
    for (uint32_t i = 0; i < length; i++) {
        model->blocks[chain[i]].present |= (uint8_t)(1u << medium);
    }
    weft_buffer_free(&extras);
}

static void erase(model_t *model, kv_event_mirror_t *mirror, int index, uint32_t medium)
{
    block_t *block = &model->blocks[index];
    const kv_event_t event = {.kind = KV_EVENT_REMOVED,
                              .block_hashes = {&block->hash, 1},
                              .medium = kv_event_text(media[medium])};
    const uint32_t holes = model->holes[KV_EVENT_HOLE_ABSENT];
    const bool is_present = (block->present >> medium & 1) != 0;
    assert_status(kv_event_mirror_apply(mirror, &event), WEFT_OK);
    assert_int_equal(model->holes[KV_EVENT_HOLE_ABSENT], holes + !is_present);
    block->present &= (uint8_t)~(1u << medium);
}

static void erase_all(model_t *model, kv_event_mirror_t *mirror)
{
    const kv_event_t event = {.kind = KV_EVENT_CLEARED};
    assert_status(kv_event_mirror_apply(mirror, &event), WEFT_OK);
    for (int i = 0; i < BLOCKS; i++) {
        model->blocks[i].present = 0;
    }
}

static void assert_holds(const model_t *model, const kv_event_mirror_t *mirror)
{
    uint64_t blocks = 0;
    for (int i = 0; i < BLOCKS; i++) {
        for (uint32_t medium = 0; medium < MEDIA; medium++) {
            assert_int_equal(kv_event_mirror_has(mirror, kv_event_text(media[medium]), 0,
                                                 &model->blocks[i].hash),
                             model->blocks[i].present >> medium & 1);
        }
        blocks += model->blocks[i].present != 0;
    }
    assert_int_equal(kv_event_mirror_blocks(mirror), blocks);
}

/* ---- written again --------------------------------------------------------------------------- */

typedef struct copy {
    const model_t *model;
    kv_event_mirror_t *mirror;
    uint32_t events;
} copy_t;

static const block_t *block_called(const model_t *model, const kv_event_hash_t *hash)
{
    for (int i = 0; i < BLOCKS; i++) {
        if (memcmp(&model->blocks[i].hash, hash, sizeof(*hash)) == 0) {
            return &model->blocks[i];
        }
    }
    fail_msg("a block of no such name was stored");
    return NULL;
}

static weft_status_t check_event(void *user, const kv_event_t *event)
{
    copy_t *copy = user;
    weft_buffer_t extras = {0};
    const uint32_t n = event->block_hashes.count;
    const kv_event_hash_t *parent = &event->parent_block_hash;
    assert_int_equal(event->token_ids.count, n * TOKENS);
    kv_event_put_array(&extras, n);
    for (uint32_t i = 0; i < n; i++) {
        const block_t *block = block_called(copy->model, &event->block_hashes.items[i]);
        put_extra(&extras, block);
        assert_memory_equal(event->token_ids.items + (size_t)i * TOKENS, block->tokens,
                            sizeof(block->tokens));
        assert_true(kv_event_text_equal(event->lora_name, kv_event_text(block->lora)));
        if (block->parent < 0) {
            assert_int_equal(parent->n_bytes, 0);
        } else {
            const block_t *above = &copy->model->blocks[block->parent];
            assert_memory_equal(parent, &above->hash, sizeof(*parent));
            /* Parents first, so far as they are present. */
            assert_true(above->present == 0 || i > 0 ||
                        kv_event_mirror_has(copy->mirror, kv_event_text("GPU"), 0, parent) ||
                        kv_event_mirror_has(copy->mirror, kv_event_text("CPU"), 0, parent) ||
                        kv_event_mirror_has(copy->mirror, kv_event_text(NULL), 0, parent));
        }
        parent = &event->block_hashes.items[i];
    }
    assert_int_equal(event->extra_keys.length, extras.length);
    assert_memory_equal(event->extra_keys.data, extras.data, extras.length);
    assert_true(kv_event_text_equal(event->kv_cache_spec_kind, kv_event_text("full_attention")));
    assert_true(event->group_idx.is_set && event->group_idx.value == 0);
    assert_int_equal(event->block_size, TOKENS);
    weft_buffer_free(&extras);
    copy->events++;
    return kv_event_mirror_apply(copy->mirror, event);
}

static void assert_writes_itself(const model_t *model, kv_event_mirror_t *mirror)
{
    model_t ignored = {0};
    copy_t copy = {.model = model, .mirror = make_mirror(&ignored)};
    assert_status(kv_event_mirror_write(mirror, check_event, &copy), WEFT_OK);
    assert_holds(model, copy.mirror);
    kv_event_mirror_destroy(copy.mirror);
}

static void random_streams_leave_what_a_naive_model_has(void **state)
{
    (void)state;
    test_random_t random = {test_seed(7)};
    const size_t before = weft_alloc_live_bytes();
    static model_t model;
    for (uint32_t round = 0; round < 20; round++) {
        make_model(&model, &random);
        kv_event_mirror_t *mirror = make_mirror(&model);
        for (uint32_t step = 0; step < 3000; step++) {
            const uint32_t medium = test_random_below(&random, MEDIA);
            const int block = (int)test_random_below(&random, BLOCKS);
            const uint32_t choice = test_random_below(&random, 1000);
            if (choice == 0) {
                erase_all(&model, mirror);
            } else if (choice < 300) {
                store(&model, mirror, block, 1 + test_random_below(&random, 8), medium);
            } else if (choice < 310) {
                assert_writes_itself(&model, mirror);
            } else {
                erase(&model, mirror, block, medium);
            }
        }
        assert_holds(&model, mirror);
        assert_writes_itself(&model, mirror);
        kv_event_mirror_destroy(mirror);
    }
    assert_int_equal(weft_alloc_live_bytes(), before);
}

static void a_chain_is_written_as_one_event(void **state)
{
    (void)state;
    static model_t model;
    test_random_t random = {3};
    make_model(&model, &random);
    for (int i = 0; i < BLOCKS; i++) {
        model.blocks[i].parent = i - 1;
        model.blocks[i].lora = NULL;
        model.blocks[i].salt = i == 0 ? "x" : NULL;
    }
    kv_event_mirror_t *mirror = make_mirror(&model);
    for (int i = 0; i < BLOCKS; i++) {
        store(&model, mirror, i, 1, 0);
    }
    model_t ignored = {0};
    copy_t copy = {.model = &model, .mirror = make_mirror(&ignored)};
    assert_status(kv_event_mirror_write(mirror, check_event, &copy), WEFT_OK);
    assert_int_equal(copy.events, 1);
    assert_int_equal(kv_event_mirror_present(copy.mirror, kv_event_text("GPU")), BLOCKS);
    kv_event_mirror_destroy(copy.mirror);
    kv_event_mirror_destroy(mirror);
}

static kv_event_t stored_event(const kv_event_hash_t *hash, kv_event_hash_t parent)
{
    return (kv_event_t){
        .kind = KV_EVENT_STORED, .block_hashes = {hash, 1}, .parent_block_hash = parent};
}

static weft_status_t count_event(void *user, const kv_event_t *event)
{
    *(uint32_t *)user += event->block_hashes.count;
    return WEFT_OK;
}

static void circles_of_parents_are_survived(void **state)
{
    (void)state;
    model_t model = {0};
    kv_event_mirror_t *mirror = make_mirror(&model);
    const kv_event_hash_t a = kv_event_hash_number(1);
    const kv_event_hash_t b = kv_event_hash_number(2);
    const kv_event_hash_t c = kv_event_hash_number(3);
    const kv_event_t events[] = {stored_event(&a, b), stored_event(&b, a), stored_event(&c, b),
                                 stored_event(&c, c)};
    uint32_t written = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(events); i++) {
        assert_status(kv_event_mirror_apply(mirror, &events[i]), WEFT_OK);
    }
    assert_int_equal(kv_event_mirror_blocks(mirror), 3);
    assert_int_equal(model.holes[KV_EVENT_HOLE_UNKNOWN], 3);
    assert_status(kv_event_mirror_write(mirror, count_event, &written), WEFT_OK);
    assert_true(written <= 3);
    for (size_t i = 0; i < 3; i++) {
        const kv_event_hash_t *const names[] = {&a, &b, &c};
        const kv_event_t removed = {.kind = KV_EVENT_REMOVED, .block_hashes = {names[i], 1}};
        assert_status(kv_event_mirror_apply(mirror, &removed), WEFT_OK);
    }
    assert_int_equal(kv_event_mirror_blocks(mirror), 0);
    kv_event_mirror_destroy(mirror);
}

static void a_gap_is_a_hole_unless_all_begins_anew(void **state)
{
    (void)state;
    model_t model = {0};
    kv_event_mirror_t *mirror = make_mirror(&model);
    kv_event_t cleared = {.kind = KV_EVENT_CLEARED};
    const kv_event_batch_t empty = {0};
    const kv_event_batch_t anew = {.n_events = 1, .events = &cleared};
    assert_status(kv_event_mirror_apply_batch(mirror, 5, &empty), WEFT_OK);
    assert_status(kv_event_mirror_apply_batch(mirror, 6, &empty), WEFT_OK);
    assert_int_equal(model.holes[KV_EVENT_HOLE_GAP], 0);
    assert_status(kv_event_mirror_apply_batch(mirror, 8, &empty), WEFT_OK);
    assert_int_equal(model.holes[KV_EVENT_HOLE_GAP], 1);
    assert_status(kv_event_mirror_apply_batch(mirror, 20, &anew), WEFT_OK);
    assert_status(kv_event_mirror_apply_batch(mirror, 21, &empty), WEFT_OK);
    assert_int_equal(model.holes[KV_EVENT_HOLE_GAP], 1);
    kv_event_mirror_restart(mirror);
    assert_status(kv_event_mirror_apply_batch(mirror, 0, &empty), WEFT_OK);
    assert_int_equal(model.holes[KV_EVENT_HOLE_GAP], 1);
    kv_event_mirror_destroy(mirror);
}

static void media_beyond_the_table_are_refused(void **state)
{
    (void)state;
    model_t model = {0};
    kv_event_mirror_t *mirror = make_mirror(&model);
    const kv_event_hash_t hash = kv_event_hash_number(1);
    kv_event_t event = stored_event(&hash, none);
    for (int i = 0; i < KV_EVENT_MIRROR_MEDIA; i++) {
        const char name[2] = {(char)('a' + i), '\0'};
        event.medium = kv_event_text(name);
        assert_status(kv_event_mirror_apply(mirror, &event), WEFT_OK);
    }
    event.medium = kv_event_text("one more");
    assert_status(kv_event_mirror_apply(mirror, &event), WEFT_ERR_UNSUPPORTED);
    assert_int_equal(kv_event_mirror_blocks(mirror), 1);
    kv_event_mirror_destroy(mirror);
}

static void every_failed_allocation_is_said_and_loses_nothing(void **state)
{
    (void)state;
    static model_t model;
    test_random_t random = {5};
    make_model(&model, &random);
    const size_t before = weft_alloc_live_bytes();
    bool is_through = false;
    for (uint64_t n = 1; !is_through; n++) {
        kv_event_mirror_t *mirror = NULL;
        const kv_event_mirror_config_t config = {.block_tokens = TOKENS};
        weft_alloc_fail_nth(n);
        weft_status_t status = kv_event_mirror_create(&config, &mirror);
        for (int i = 0; i < BLOCKS && status >= 0; i++) {
            kv_event_t event = stored_event(&model.blocks[i].hash, none);
            event.token_ids = (kv_event_tokens_t){model.blocks[i].tokens, TOKENS};
            event.block_size = TOKENS;
            event.lora_id = (kv_event_int_t){true, i};
            status = kv_event_mirror_apply(mirror, &event);
        }
        weft_alloc_fail_nth(0);
        is_through = status == WEFT_OK;
        assert_true(is_through || status == WEFT_ERR_NO_MEMORY);
        kv_event_mirror_destroy(mirror);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_streams_leave_what_a_naive_model_has),
        cmocka_unit_test(a_chain_is_written_as_one_event),
        cmocka_unit_test(circles_of_parents_are_survived),
        cmocka_unit_test(a_gap_is_a_hole_unless_all_begins_anew),
        cmocka_unit_test(media_beyond_the_table_are_refused),
        cmocka_unit_test(every_failed_allocation_is_said_and_loses_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
