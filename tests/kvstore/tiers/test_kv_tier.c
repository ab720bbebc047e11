/* SPDX-License-Identifier: Apache-2.0 */
/* What every row of kv_tiers.def below the device must do, whatever it is made of. */
#include "kvstore/tiers/kv_tier.h"

#include <semaphore.h>
#include <string.h>

#include "tests/support/check.h"
#include "tests/support/random.h"
#include "tests/support/scratch_folder.h"

enum { TOKENS = 4, BLOCK_BYTES = 6000, NAMES = 48 };

typedef struct rig {
    const kv_tier_ops_t *ops;
    kv_tier_t *tier;
    weft_device_t *device;
    sem_t woken;
    char folder[64];
    bool is_announced[NAMES]; /* by on_stored and on_removed */
    uint32_t n_evicted;       /* told to on_evict */
    uint8_t memory[8][BLOCK_BYTES];
} rig_t;

static kv_hash_t hash_of(uint32_t n)
{
    kv_hash_t hash = {0};
    test_random_t random = {n + 1};
    for (size_t i = 0; i < sizeof(hash.bytes); i++) {
        hash.bytes[i] = (uint8_t)test_random_u64(&random);
    }
    hash.bytes[31] = (uint8_t)n;
    return hash;
}

static void fill(uint32_t n, uint8_t content[BLOCK_BYTES])
{
    test_random_t random = {n + 1000};
    for (size_t i = 0; i < BLOCK_BYTES; i++) {
        content[i] = (uint8_t)test_random_u64(&random);
    }
}

static void on_stored(void *user, const kv_name_t *name)
{
    rig_t *rig = user;
    const uint32_t n = name->hash.bytes[31];
    assert_false(rig->is_announced[n]);
    assert_int_equal(name->tokens[0], (int32_t)n);
    rig->is_announced[n] = true;
}

static void on_removed(void *user, const kv_hash_t *hash)
{
    rig_t *rig = user;
    assert_true(rig->is_announced[hash->bytes[31]]);
    rig->is_announced[hash->bytes[31]] = false;
}

static void on_evict(void *user, const kv_name_t *name, const void *content)
{
    uint8_t expected[BLOCK_BYTES];
    fill(name->hash.bytes[31], expected);
    assert_memory_equal(content, expected, BLOCK_BYTES);
    ((rig_t *)user)->n_evicted++;
}

static void wake(void *user)
{
    sem_post(&((rig_t *)user)->woken);
}

static void rig_init(rig_t *rig, const kv_tier_ops_t *ops, size_t budget)
{
    static const uint8_t fingerprint[32] = {7};
    weft_diag_t diag = {0};
    *rig = (rig_t){.ops = ops};
    sem_init(&rig->woken, 0, 0);
    scratch_folder_make(rig->folder, sizeof(rig->folder));
    assert_status(weft_device_open("cpu", 0, NULL, &rig->device), WEFT_OK);
    const kv_tier_config_t config = {
        .device = rig->device,
        .block_tokens = TOKENS,
        .block_bytes = BLOCK_BYTES,
        .budget_bytes = budget,
        .path = rig->folder,
        .fingerprint = fingerprint,
        .on_stored = on_stored,
        .on_removed = on_removed,
        .on_evict = on_evict,
        .user = rig,
        .wake = wake,
        .wake_user = rig,
    };
    if (ops->open(&config, &diag, &rig->tier) < 0) {
        fail_msg("%s", diag.text);
    }
}

static void rig_fini(rig_t *rig)
{
    rig->ops->close(rig->tier);
    weft_device_close(rig->device);
    sem_destroy(&rig->woken);
    scratch_folder_remove(rig->folder);
}

static weft_status_t put(rig_t *rig, uint32_t n)
{
    uint8_t content[BLOCK_BYTES];
    const int32_t tokens[TOKENS] = {(int32_t)n};
    const kv_name_t name = {.hash = hash_of(n), .is_first = true, .tokens = tokens};
    fill(n, content);
    const weft_status_t status = rig->ops->put(rig->tier, &name, content);
    if (rig->ops->finish_puts != NULL) {
        rig->ops->finish_puts(rig->tier);
    }
    memset(content, 0, sizeof(content)); /* it has been read */
    return status;
}

/* Until nothing is on its way; the ends that were reported, at most max. */
static uint32_t settle(rig_t *rig, kv_tier_done_t *done, uint32_t max)
{
    uint32_t n = rig->ops->poll(rig->tier, done, max);
    while (rig->ops->stats(rig->tier).in_flight > 0) {
        sem_wait(&rig->woken); /* ctest has the deadline */
        n += rig->ops->poll(rig->tier, done + n, max - n);
    }
    return n;
}

static void store(rig_t *rig, uint32_t n)
{
    kv_tier_done_t done[1];
    while (put(rig, n) == WEFT_ERR_QUEUE_FULL) {
        settle(rig, done, 0);
    }
    settle(rig, done, 0);
}

static bool has(const rig_t *rig, uint32_t n)
{
    const kv_hash_t hash = hash_of(n);
    return rig->ops->has(rig->tier, &hash);
}

static void assert_reads(rig_t *rig, uint32_t n)
{
    uint8_t expected[BLOCK_BYTES];
    kv_tier_done_t done[1];
    const kv_hash_t hash = hash_of(n);
    memset(rig->memory[0], 0, BLOCK_BYTES);
    assert_status(rig->ops->get(rig->tier, &hash, rig->memory[0], rig), WEFT_PENDING);
    assert_int_equal(settle(rig, done, 1), 1);
    assert_ptr_equal(done[0].tag, rig);
    assert_status(done[0].status, WEFT_OK);
    fill(n, expected);
    assert_memory_equal(rig->memory[0], expected, BLOCK_BYTES);
}

static uint32_t count(const rig_t *rig)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < NAMES; i++) {
        assert_int_equal(has(rig, i), rig->is_announced[i]);
        n += rig->is_announced[i];
    }
    assert_int_equal(n, rig->ops->stats(rig->tier).blocks);
    return n;
}

static void gives_back_what_it_was_given(const kv_tier_ops_t *ops)
{
    rig_t rig;
    rig_init(&rig, ops, 4 << 20);
    const kv_hash_t unknown = hash_of(40);
    assert_status(ops->get(rig.tier, &unknown, rig.memory[0], NULL), WEFT_ERR_NOT_FOUND);
    for (uint32_t n = 0; n < 20; n++) {
        assert_false(has(&rig, n));
        store(&rig, n);
        assert_true(has(&rig, n));
    }
    for (uint32_t n = 0; n < 20; n++) {
        assert_reads(&rig, n);
        assert_true(has(&rig, n)); /* a block read stays */
    }
    assert_int_equal(count(&rig), 20);
    rig_fini(&rig);
}

static void forgets_the_one_used_longest_ago(const kv_tier_ops_t *ops)
{
    rig_t rig;
    rig_init(&rig, ops, 64 << 10);
    const uint32_t room = (uint32_t)ops->stats(rig.tier).capacity_blocks;
    assert_true(room >= 4 && room < 20);
    for (uint32_t n = 0; n < room; n++) {
        store(&rig, n);
    }
    assert_int_equal(count(&rig), room);
    const kv_hash_t first = hash_of(0);
    ops->touch(rig.tier, &first);
    store(&rig, 1); /* there already: a use */
    assert_reads(&rig, 2);
    store(&rig, 30);
    assert_int_equal(count(&rig), room);
    assert_false(has(&rig, 3));
    assert_true(has(&rig, 0) && has(&rig, 1) && has(&rig, 2) && has(&rig, 30));
    assert_int_equal(ops->stats(rig.tier).evictions, 1);
    rig_fini(&rig);
}

static void ends_every_get_once(const kv_tier_ops_t *ops)
{
    rig_t rig;
    kv_tier_done_t done[8];
    rig_init(&rig, ops, 4 << 20);
    for (uint32_t n = 0; n < 8; n++) {
        store(&rig, n);
    }
    for (uint32_t n = 0; n < 8; n++) {
        const kv_hash_t hash = hash_of(n);
        assert_status(ops->get(rig.tier, &hash, rig.memory[n], rig.memory[n]), WEFT_PENDING);
    }
    uint32_t seen = 0;
    const uint32_t n_done = settle(&rig, done, 8);
    assert_int_equal(n_done, 8);
    for (uint32_t i = 0; i < n_done; i++) {
        uint8_t expected[BLOCK_BYTES];
        const uint32_t n = (uint32_t)(((uint8_t *)done[i].tag - rig.memory[0]) / BLOCK_BYTES);
        assert_status(done[i].status, WEFT_OK);
        assert_int_equal(seen & (1u << n), 0);
        seen |= 1u << n;
        fill(n, expected);
        assert_memory_equal(rig.memory[n], expected, BLOCK_BYTES);
    }
    rig_fini(&rig);
}

static void clears_without_a_word(const kv_tier_ops_t *ops)
{
    rig_t rig;
    rig_init(&rig, ops, 4 << 20);
    for (uint32_t n = 0; n < 6; n++) {
        store(&rig, n);
    }
    ops->clear(rig.tier);
    assert_int_equal(ops->stats(rig.tier).blocks, 0);
    for (uint32_t n = 0; n < 6; n++) {
        assert_true(rig.is_announced[n]);
        assert_false(has(&rig, n));
        rig.is_announced[n] = false;
    }
    store(&rig, 3);
    assert_reads(&rig, 3);
    rig_fini(&rig);
}

static void refuses_a_budget_that_holds_nothing(const kv_tier_ops_t *ops)
{
    weft_diag_t diag = {0};
    kv_tier_t *tier = NULL;
    weft_device_t *device = NULL;
    char folder[64];
    scratch_folder_make(folder, sizeof(folder));
    assert_status(weft_device_open("cpu", 0, NULL, &device), WEFT_OK);
    const kv_tier_config_t config = {.device = device,
                                     .block_tokens = TOKENS,
                                     .block_bytes = BLOCK_BYTES,
                                     .budget_bytes = BLOCK_BYTES - 1,
                                     .path = folder,
                                     .fingerprint = (const uint8_t[32]){0}};
    assert_status(ops->open(&config, &diag, &tier), WEFT_ERR_INVALID);
    assert_true(diag.text[0] != '\0');
    weft_device_close(device);
    scratch_folder_remove(folder);
}

#define EACH_TIER(claim)                                                                           \
    static void host_##claim(void **state)                                                         \
    {                                                                                              \
        (void)state;                                                                               \
        claim(&kv_tier_host);                                                                      \
    }                                                                                              \
    static void disk_##claim(void **state)                                                         \
    {                                                                                              \
        (void)state;                                                                               \
        claim(&kv_tier_disk);                                                                      \
    }

EACH_TIER(gives_back_what_it_was_given)
EACH_TIER(forgets_the_one_used_longest_ago)
EACH_TIER(ends_every_get_once)
EACH_TIER(clears_without_a_word)
EACH_TIER(refuses_a_budget_that_holds_nothing)

static void the_host_gives_what_it_loses_to_the_one_below(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig, &kv_tier_host, 4 * BLOCK_BYTES);
    for (uint32_t n = 0; n < 6; n++) {
        store(&rig, n);
    }
    assert_int_equal(rig.n_evicted, 2);
    rig.ops->close(rig.tier); /* what would be lost with the process */
    assert_int_equal(rig.n_evicted, 6);
    rig.tier = NULL;
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define BOTH(claim) cmocka_unit_test(host_##claim), cmocka_unit_test(disk_##claim)
        BOTH(gives_back_what_it_was_given),
        BOTH(forgets_the_one_used_longest_ago),
        BOTH(ends_every_get_once),
        BOTH(clears_without_a_word),
        BOTH(refuses_a_budget_that_holds_nothing),
#undef BOTH
        cmocka_unit_test(the_host_gives_what_it_loses_to_the_one_below),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
