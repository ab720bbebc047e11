/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kvstore/disk/kv_io.h"
#include "tests/support/disk_rig.h"
#include "tests/support/faulty_io.h"
#include "tests/support/random.h"

/* ---- what comes back ------------------------------------------------------------------------ */

static void round_trip(const kv_io_ops_t *io)
{
    disk_rig_t rig;
    disk_rig_init(&rig, 40);
    assert_status(disk_rig_open(&rig, io), WEFT_OK);
    assert_int_equal(kv_tier_disk.stats(rig.tier).capacity_blocks, 40);
    for (uint32_t block = 0; block < 40; block++) {
        assert_status(disk_rig_get(&rig, block), WEFT_ERR_NOT_FOUND);
        disk_rig_store(&rig, block);
        assert_status(disk_rig_get(&rig, block), WEFT_OK);
    }
    for (uint32_t block = 0; block < 40; block++) {
        assert_status(disk_rig_get(&rig, block), WEFT_OK);
    }
    const kv_tier_stats_t stats = kv_tier_disk.stats(rig.tier);
    assert_int_equal(stats.blocks, 40);
    assert_int_equal(stats.puts, 40);
    assert_int_equal(stats.gets, 80);
    assert_int_equal(stats.read_bytes, 80 * RIG_BLOCK_BYTES);
    assert_int_equal(stats.written_bytes, 40 * RIG_BLOCK_BYTES);
    assert_int_equal(stats.gets_failed + stats.damaged + stats.in_flight + stats.evictions, 0);
    disk_rig_fini(&rig);
}

static void what_was_put_comes_back_with_the_best_row(void **state)
{
    (void)state;
    round_trip(NULL);
}

static void what_was_put_comes_back_with_pread(void **state)
{
    (void)state;
    round_trip(&kv_io_pread);
}

static void what_was_put_comes_back_with_io_uring(void **state)
{
    (void)state;
    kv_io_t *io = NULL;
    if (kv_io_uring.open(0, 4, &io) == WEFT_ERR_UNSUPPORTED) {
        print_message("io_uring is refused on this machine\n");
        skip();
    }
    kv_io_uring.close(io);
    round_trip(&kv_io_uring);
}

/* Where O_DIRECT may be refused, or means nothing. */
static void what_was_put_comes_back_from_memory_files(void **state)
{
    (void)state;
    disk_rig_t rig;
    char path[] = "/dev/shm/weft-kv-disk-XXXXXX";
    if (mkdtemp(path) == NULL) {
        print_message("no /dev/shm to write to\n");
        skip();
    }
    disk_rig_init(&rig, 8);
    rig.config.path = path;
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    for (uint32_t block = 0; block < 8; block++) {
        disk_rig_store(&rig, block);
        assert_status(disk_rig_get(&rig, block), WEFT_OK);
    }
    disk_rig_close(&rig);
    char file[64];
    snprintf(file, sizeof(file), "%s/blocks.kv", path);
    assert_int_equal(unlink(file), 0);
    snprintf(file, sizeof(file), "%s/journal", path);
    assert_int_equal(unlink(file), 0);
    assert_int_equal(rmdir(path), 0);
    disk_rig_fini(&rig);
}

static void what_comes_in_parts_comes_back_whole(void **state)
{
    (void)state;
    faulty_io_plan = (faulty_io_plan_t){.is_short = true};
    round_trip(&kv_io_faulty);
}

static void many_puts_and_gets_run_at_once(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 64);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    for (uint32_t block = 0; block < 64; block++) {
        if (disk_rig_put(&rig, block) == WEFT_ERR_QUEUE_FULL) {
            disk_rig_store(&rig, block);
        }
    }
    disk_rig_settle(&rig);
    enum { GETS = 32 };
    static uint8_t memory[GETS][RIG_BLOCK_BYTES];
    bool is_done[GETS] = {false};
    for (uint32_t i = 0; i < GETS; i++) {
        const kv_hash_t hash = disk_rig_hash(2 * i);
        assert_status(kv_tier_disk.get(rig.tier, &hash, memory[i], memory[i]), WEFT_PENDING);
    }
    for (uint32_t n = 0; n < GETS;) {
        kv_tier_done_t done[3];
        const uint32_t now = kv_tier_disk.poll(rig.tier, done, 3);
        for (uint32_t i = 0; i < now; i++) {
            const size_t at = (size_t)((uint8_t(*)[RIG_BLOCK_BYTES])done[i].tag - memory);
            uint8_t expected[RIG_BLOCK_BYTES] = {0};
            disk_rig_content((uint32_t)(2 * at), expected);
            assert_status(done[i].status, WEFT_OK);
            assert_memory_equal(memory[at], expected, RIG_BLOCK_BYTES);
            assert_false(is_done[at]);
            is_done[at] = true;
        }
        n += now;
        if (now == 0) {
            tally_take(&rig.woken);
        }
    }
    disk_rig_fini(&rig);
}

static void a_block_is_found_once_it_is_written_and_not_before(void **state)
{
    (void)state;
    disk_rig_t rig;
    faulty_io_plan = (faulty_io_plan_t){.is_holding = true};
    disk_rig_init(&rig, 8);
    assert_status(disk_rig_open(&rig, &kv_io_faulty), WEFT_OK);
    assert_status(disk_rig_put(&rig, 0), WEFT_OK);
    assert_status(disk_rig_put(&rig, 0), WEFT_OK); /* it is on its way */
    assert_false(disk_rig_has(&rig, 0));
    assert_status(disk_rig_get(&rig, 0), WEFT_ERR_NOT_FOUND);
    assert_int_equal(kv_tier_disk.poll(rig.tier, NULL, 0) + rig.n_stored, 0);
    faulty_io_release();
    disk_rig_settle(&rig);
    assert_true(disk_rig_has(&rig, 0));
    assert_int_equal(rig.n_stored, 1);
    assert_int_equal(kv_tier_disk.stats(rig.tier).puts, 1);
    disk_rig_fini(&rig);
}

static void a_chain_put_tail_first_is_told_of_head_first(void **state)
{
    (void)state;
    disk_rig_t rig;
    faulty_io_plan = (faulty_io_plan_t){.is_holding = true};
    disk_rig_init(&rig, 8);
    assert_status(disk_rig_open(&rig, &kv_io_faulty), WEFT_OK);
    for (uint32_t block = 4; block-- > 0;) {
        assert_status(disk_rig_put(&rig, block), WEFT_OK);
    }
    faulty_io_release();
    disk_rig_settle(&rig);
    assert_int_equal(rig.n_stored, 4);
    assert_false(rig.is_orphan_told);
    disk_rig_fini(&rig);
}

static void puts_are_refused_before_gets_when_the_disk_is_behind(void **state)
{
    (void)state;
    disk_rig_t rig;
    uint32_t n = 0;
    faulty_io_plan = (faulty_io_plan_t){0};
    disk_rig_init(&rig, 200);
    assert_status(disk_rig_open(&rig, &kv_io_faulty), WEFT_OK);
    disk_rig_store(&rig, 0);
    atomic_store(&faulty_io_plan.is_holding, true);
    while (disk_rig_put(&rig, 1 + n) == WEFT_OK) {
        n++;
    }
    assert_status(disk_rig_put(&rig, 1 + n), WEFT_ERR_QUEUE_FULL);
    assert_int_equal(kv_tier_disk.stats(rig.tier).in_flight, n);
    const kv_hash_t hash = disk_rig_hash(0);
    uint32_t n_gets = 0;
    while (kv_tier_disk.get(rig.tier, &hash, rig.memory, NULL) == WEFT_PENDING) {
        n_gets++;
    }
    assert_true(n_gets >= 2);
    faulty_io_release();
    disk_rig_close(&rig); /* ends them all */
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    assert_int_equal(disk_rig_blocks(&rig), 1 + n);
    disk_rig_fini(&rig);
}

static void a_poll_without_room_moves_writes_on_and_loses_no_get(void **state)
{
    (void)state;
    disk_rig_t rig;
    kv_tier_done_t done;
    faulty_io_plan = (faulty_io_plan_t){0};
    disk_rig_init(&rig, 8);
    assert_status(disk_rig_open(&rig, &kv_io_faulty), WEFT_OK);
    assert_status(disk_rig_put(&rig, 1), WEFT_OK);
    while (!disk_rig_has(&rig, 1)) {
        assert_int_equal(kv_tier_disk.poll(rig.tier, NULL, 0), 0);
    }
    const kv_hash_t hash = disk_rig_hash(1);
    assert_status(kv_tier_disk.get(rig.tier, &hash, rig.memory, &rig), WEFT_PENDING);
    for (uint32_t block = 2; block < 5; block++) {
        assert_status(disk_rig_put(&rig, block), WEFT_OK);
    }
    while (kv_tier_disk.poll(rig.tier, NULL, 0) + kv_tier_disk.poll(rig.tier, &done, 1) == 0) {
        tally_take(&rig.woken);
    }
    assert_ptr_equal(done.tag, &rig);
    disk_rig_settle(&rig);
    assert_int_equal(disk_rig_blocks(&rig), 4);
    disk_rig_fini(&rig);
}

/* ---- what is forgotten ------------------------------------------------------------------------ */

static void the_block_used_longest_ago_is_evicted(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 4);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    for (uint32_t block = 0; block < 4; block++) {
        disk_rig_store(&rig, block);
    }
    const kv_hash_t hash = disk_rig_hash(2);
    assert_status(disk_rig_get(&rig, 0), WEFT_OK); /* each of these is a use */
    assert_status(disk_rig_put(&rig, 1), WEFT_OK);
    kv_tier_disk.touch(rig.tier, &hash);
    disk_rig_store(&rig, 4);
    assert_false(rig.is_there[3]);
    disk_rig_store(&rig, 5);
    assert_false(rig.is_there[0]);
    disk_rig_store(&rig, 6);
    assert_false(rig.is_there[1]);
    assert_int_equal(rig.n_removed, 3);
    assert_int_equal(kv_tier_disk.stats(rig.tier).evictions, 3);
    for (uint32_t block = 0; block < 7; block++) {
        assert_int_equal(disk_rig_has(&rig, block), rig.is_there[block]);
        assert_status(disk_rig_get(&rig, block),
                      rig.is_there[block] ? WEFT_OK : WEFT_ERR_NOT_FOUND);
    }
    disk_rig_fini(&rig);
}

static void a_block_being_read_is_not_evicted(void **state)
{
    (void)state;
    disk_rig_t rig;
    faulty_io_plan = (faulty_io_plan_t){0};
    disk_rig_init(&rig, 2);
    assert_status(disk_rig_open(&rig, &kv_io_faulty), WEFT_OK);
    disk_rig_store(&rig, 0);
    disk_rig_store(&rig, 1);
    atomic_store(&faulty_io_plan.is_holding, true);
    const kv_hash_t hash = disk_rig_hash(0);
    assert_status(kv_tier_disk.get(rig.tier, &hash, rig.memory, NULL), WEFT_PENDING);
    kv_tier_disk.touch(rig.tier, &(kv_hash_t){0});
    const kv_hash_t other = disk_rig_hash(1);
    kv_tier_disk.touch(rig.tier, &other); /* now 0 is the oldest, but busy */
    assert_status(disk_rig_put(&rig, 2), WEFT_OK);
    assert_true(disk_rig_has(&rig, 0));
    assert_false(disk_rig_has(&rig, 1));
    assert_status(disk_rig_put(&rig, 3), WEFT_ERR_QUEUE_FULL); /* nothing may go */
    faulty_io_release();
    kv_tier_done_t done;
    while (kv_tier_disk.poll(rig.tier, &done, 1) == 0) {
        tally_take(&rig.woken);
    }
    assert_status(done.status, WEFT_OK);
    disk_rig_fini(&rig);
}

static void clear_forgets_all_silently_and_for_good(void **state)
{
    (void)state;
    disk_rig_t rig;
    faulty_io_plan = (faulty_io_plan_t){0};
    disk_rig_init(&rig, 8);
    assert_status(disk_rig_open(&rig, &kv_io_faulty), WEFT_OK);
    for (uint32_t block = 0; block < 5; block++) {
        disk_rig_store(&rig, block);
    }
    atomic_store(&faulty_io_plan.is_holding, true);
    const kv_hash_t hash = disk_rig_hash(1);
    assert_status(kv_tier_disk.get(rig.tier, &hash, rig.memory, &rig), WEFT_PENDING);
    assert_status(disk_rig_put(&rig, 6), WEFT_OK);
    kv_tier_disk.clear(rig.tier);
    assert_int_equal(disk_rig_blocks(&rig), 0);
    assert_false(disk_rig_has(&rig, 1));
    assert_status(disk_rig_put(&rig, 7), WEFT_OK); /* after the clear: stays */
    faulty_io_release();
    kv_tier_done_t done = {0};
    while (kv_tier_disk.stats(rig.tier).in_flight > 0) {
        kv_tier_done_t one;
        if (kv_tier_disk.poll(rig.tier, &one, 1) == 1) {
            done = one;
        }
    }
    assert_ptr_equal(done.tag, &rig); /* a get in flight ends as ever */
    assert_int_equal(rig.n_removed, 0);
    assert_false(disk_rig_has(&rig, 6));
    assert_true(disk_rig_has(&rig, 7));
    disk_rig_close(&rig);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    assert_int_equal(disk_rig_blocks(&rig), 1);
    assert_status(disk_rig_get(&rig, 7), WEFT_OK);
    for (uint32_t block = 0; block < 8; block++) { /* every slot can be used again */
        disk_rig_store(&rig, 20 + block);
    }
    disk_rig_fini(&rig);
}

static void the_longest_names_are_kept(void **state)
{
    (void)state;
    disk_rig_t rig;
    static char salt[KV_EXTRA_MAX_BYTES];
    static const uint8_t content[RIG_BLOCK_BYTES];
    const int32_t tokens[RIG_TOKENS] = {0};
    kv_name_t name = {.is_first = true, .tokens = tokens};
    disk_rig_init(&rig, 8);
    rig.config.on_stored = NULL;
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    memset(salt, 's', sizeof(salt) - 1);
    assert_status(kv_extra_create(salt, NULL, NULL, &name.extra), WEFT_OK);
    assert_status(kv_tier_disk.put(rig.tier, &name, content), WEFT_OK);
    kv_extra_release(name.extra);
    disk_rig_close(&rig);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    assert_int_equal(disk_rig_blocks(&rig), 1);
    disk_rig_fini(&rig);
}

/* ---- open ------------------------------------------------------------------------------------- */

static void a_closed_tier_opens_again_with_its_blocks(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 64);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    for (uint32_t block = 60; block > 0; block--) { /* children before parents */
        disk_rig_store(&rig, block - 1);
    }
    disk_rig_close(&rig);
    assert_status(disk_rig_open(&rig, &kv_io_pread), WEFT_OK);
    assert_int_equal(rig.n_stored, 0); /* not before the first poll */
    assert_int_equal(kv_tier_disk.poll(rig.tier, NULL, 0), 0);
    assert_int_equal(rig.n_stored, 60);
    assert_false(rig.is_orphan_told);
    for (uint32_t block = 0; block < 60; block++) {
        assert_status(disk_rig_get(&rig, block), WEFT_OK);
    }
    disk_rig_fini(&rig);
}

static void a_smaller_budget_keeps_what_fits(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 20);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    for (uint32_t block = 0; block < 20; block++) {
        disk_rig_store(&rig, block);
    }
    disk_rig_close(&rig);
    rig.config.budget_bytes /= 2;
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    disk_rig_settle(&rig);
    assert_int_equal(rig.n_stored, 10);
    for (uint32_t block = 0; block < 20; block++) {
        assert_status(disk_rig_get(&rig, block),
                      rig.is_there[block] ? WEFT_OK : WEFT_ERR_NOT_FOUND);
    }
    disk_rig_close(&rig);
    rig.config.budget_bytes *= 2;
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    assert_int_equal(disk_rig_blocks(&rig), 10);
    for (uint32_t block = 0; block < 20; block++) {
        disk_rig_store(&rig, block);
    }
    disk_rig_fini(&rig);
}

static void budgets_and_blocks_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 1);
    rig.config.budget_bytes--;
    assert_status(disk_rig_open(&rig, NULL), WEFT_ERR_INVALID);
    assert_non_null(strstr(rig.diag.text, "hold no block"));
    rig.config.block_bytes = (size_t)2 << 30;
    assert_status(disk_rig_open(&rig, NULL), WEFT_ERR_UNSUPPORTED);
    disk_rig_fini(&rig);
}

static void files_are_for_their_owner_alone(void **state)
{
    (void)state;
    disk_rig_t rig;
    struct stat info;
    char path[128];
    char blocks[160];
    disk_rig_init(&rig, 4);
    snprintf(path, sizeof(path), "%s/made/for/this", rig.path);
    snprintf(blocks, sizeof(blocks), "%s/blocks.kv", path);
    rig.config.path = path;
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    assert_int_equal(stat(blocks, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(info.st_size, 4 * RIG_SLOT_BYTES);
    assert_true(info.st_blocks * 512 >= info.st_size); /* its space is taken */
    disk_rig_close(&rig);
    assert_int_equal(unlink(blocks), 0);
    snprintf(blocks, sizeof(blocks), "%s/journal", path);
    assert_int_equal(stat(blocks, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(unlink(blocks), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rmdir(path), 0);
        *strrchr(path, '/') = '\0';
    }
    disk_rig_fini(&rig);
}

static void a_folder_is_one_tiers_at_a_time(void **state)
{
    (void)state;
    disk_rig_t rig;
    kv_tier_t *second = NULL;
    disk_rig_init(&rig, 4);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    disk_rig_store(&rig, 1);
    assert_status(kv_tier_disk.open(&rig.config, &rig.diag, &second), WEFT_ERR_IN_USE);
    assert_non_null(strstr(rig.diag.text, "another process"));
    assert_non_null(strstr(rig.diag.text, rig.path));
    disk_rig_store(&rig, 2);
    assert_status(disk_rig_get(&rig, 1), WEFT_OK);
    disk_rig_close(&rig);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    disk_rig_fini(&rig);
}

static void blocks_of_another_model_are_left_alone(void **state)
{
    (void)state;
    disk_rig_t rig;
    static const uint8_t other[32] = "another";
    disk_rig_init(&rig, 4);
    const kv_tier_config_t config = rig.config;
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    disk_rig_store(&rig, 1);
    disk_rig_close(&rig);
    rig.config.fingerprint = other;
    assert_status(disk_rig_open(&rig, NULL), WEFT_ERR_EXISTS);
    assert_non_null(strstr(rig.diag.text, "another model"));
    assert_non_null(strstr(rig.diag.text, "--kv-disk-path"));
    rig.config = config;
    rig.config.block_bytes /= 2;
    assert_status(disk_rig_open(&rig, NULL), WEFT_ERR_EXISTS);
    rig.config = config;
    rig.config.block_tokens *= 2;
    assert_status(disk_rig_open(&rig, NULL), WEFT_ERR_EXISTS);
    rig.config = config;
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    assert_status(disk_rig_get(&rig, 1), WEFT_OK);
    disk_rig_fini(&rig);
}

static void opening_survives_no_memory(void **state)
{
    (void)state;
    disk_rig_t rig;
    uint64_t n = 0;
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    disk_rig_init(&rig, 8);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    for (uint32_t block = 0; block < 8; block++) {
        disk_rig_store(&rig, block);
    }
    disk_rig_close(&rig);
    const size_t before = weft_alloc_live_bytes();
    while (status == WEFT_ERR_NO_MEMORY) {
        weft_alloc_fail_nth(++n);
        status = disk_rig_open(&rig, NULL);
        weft_alloc_fail_nth(0);
        assert_true(status == WEFT_OK || weft_alloc_live_bytes() == before);
    }
    assert_status(status, WEFT_OK);
    assert_true(n > 15);
    assert_int_equal(disk_rig_blocks(&rig), 8);
    assert_status(disk_rig_get(&rig, 5), WEFT_OK);
    disk_rig_fini(&rig);
}

static void use_allocates_nothing(void **state)
{
    (void)state;
    disk_rig_t rig;
    kv_tier_done_t done;
    static const uint8_t content[RIG_BLOCK_BYTES];
    const int32_t tokens[RIG_TOKENS] = {0};
    disk_rig_init(&rig, 4);
    rig.config.on_stored = NULL;
    rig.config.on_removed = NULL;
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    kv_tier_disk.poll(rig.tier, &done, 1);
    weft_alloc_fail_nth(0);
    for (uint32_t block = 0; block < 12; block++) {
        const kv_name_t name = {.hash = disk_rig_hash(block), .is_first = true, .tokens = tokens};
        assert_status(kv_tier_disk.put(rig.tier, &name, content), WEFT_OK);
        while (!disk_rig_has(&rig, block)) {
            kv_tier_disk.poll(rig.tier, &done, 1);
        }
        assert_status(kv_tier_disk.get(rig.tier, &name.hash, rig.memory, NULL), WEFT_PENDING);
        while (kv_tier_disk.poll(rig.tier, &done, 1) == 0) {
            tally_take(&rig.woken);
        }
        assert_status(done.status, WEFT_OK);
    }
    assert_int_equal(weft_alloc_fail_nth(0), 0);
    disk_rig_fini(&rig);
}

/* ---- a random life ---------------------------------------------------------------------------- */

static void a_random_life_serves_only_what_was_put(void **state)
{
    (void)state;
    test_random_t random = {test_seed(11)};
    disk_rig_t rig;
    disk_rig_init(&rig, 24);
    for (uint32_t life = 0; life < 4; life++) {
        const kv_io_ops_t *rows[] = {NULL, &kv_io_pread};
        assert_status(disk_rig_open(&rig, rows[life % 2]), WEFT_OK);
        disk_rig_settle(&rig);
        for (uint32_t i = 0; i < test_scaled(60000); i++) {
            const uint32_t block = test_random_below(&random, 60);
            const uint32_t what = test_random_below(&random, 100);
            if (what < 50) {
                const weft_status_t status = disk_rig_put(&rig, block);
                assert_true(status == WEFT_OK || status == WEFT_ERR_QUEUE_FULL);
            } else if (what < 98) {
                const weft_status_t status = disk_rig_get(&rig, block);
                assert_true(status == WEFT_OK || status == WEFT_ERR_NOT_FOUND);
            } else {
                disk_rig_settle(&rig);
                for (uint32_t each = 0; each < 60; each++) {
                    assert_int_equal(disk_rig_has(&rig, each), rig.is_there[each]);
                }
            }
        }
        disk_rig_settle(&rig);
        assert_int_equal(disk_rig_blocks(&rig), rig.n_stored - rig.n_removed);
        disk_rig_close(&rig);
    }
    disk_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_put_comes_back_with_the_best_row),
        cmocka_unit_test(what_was_put_comes_back_with_pread),
        cmocka_unit_test(what_was_put_comes_back_with_io_uring),
        cmocka_unit_test(what_was_put_comes_back_from_memory_files),
        cmocka_unit_test(what_comes_in_parts_comes_back_whole),
        cmocka_unit_test(many_puts_and_gets_run_at_once),
        cmocka_unit_test(a_block_is_found_once_it_is_written_and_not_before),
        cmocka_unit_test(a_chain_put_tail_first_is_told_of_head_first),
        cmocka_unit_test(puts_are_refused_before_gets_when_the_disk_is_behind),
        cmocka_unit_test(a_poll_without_room_moves_writes_on_and_loses_no_get),
        cmocka_unit_test(the_block_used_longest_ago_is_evicted),
        cmocka_unit_test(a_block_being_read_is_not_evicted),
        cmocka_unit_test(clear_forgets_all_silently_and_for_good),
        cmocka_unit_test(the_longest_names_are_kept),
        cmocka_unit_test(a_closed_tier_opens_again_with_its_blocks),
        cmocka_unit_test(a_smaller_budget_keeps_what_fits),
        cmocka_unit_test(budgets_and_blocks_that_make_no_sense_are_refused),
        cmocka_unit_test(files_are_for_their_owner_alone),
        cmocka_unit_test(a_folder_is_one_tiers_at_a_time),
        cmocka_unit_test(blocks_of_another_model_are_left_alone),
        cmocka_unit_test(opening_survives_no_memory),
        cmocka_unit_test(use_allocates_nothing),
        cmocka_unit_test(a_random_life_serves_only_what_was_put),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
