/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_journal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/check.h"
#include "tests/support/random.h"

enum { SLOTS = 16, TOKENS = 2 };

typedef struct rig {
    char path[64];
    kv_journal_config_t config;
    kv_journal_found_t found;
    kv_journal_t *journal;
    weft_diag_t diag;
} rig_t;

static void rig_init(rig_t *rig)
{
    *rig = (rig_t){.path = "/tmp/weft-kv-journal-XXXXXX"};
    assert_non_null(mkdtemp(rig->path));
    rig->config = (kv_journal_config_t){
        .dir_fd = open(rig->path, O_RDONLY | O_DIRECTORY),
        .path = rig->path,
        .identity = {.block_tokens = TOKENS, .block_bytes = 4096},
        .n_slots = SLOTS,
    };
    assert_true(rig->config.dir_fd >= 0);
}

static void rig_open(rig_t *rig)
{
    assert_status(kv_journal_open(&rig->config, &rig->diag, &rig->found, &rig->journal), WEFT_OK);
}

static void rig_reopen(rig_t *rig)
{
    kv_journal_close(rig->journal);
    rig_open(rig);
}

static void rig_fini(rig_t *rig)
{
    kv_journal_close(rig->journal);
    assert_int_equal(unlinkat(rig->config.dir_fd, "journal", 0), 0);
    close(rig->config.dir_fd);
    assert_int_equal(rmdir(rig->path), 0);
}

static void store(kv_journal_t *journal, uint32_t slot, uint64_t generation)
{
    const int32_t tokens[TOKENS] = {(int32_t)slot, (int32_t)generation};
    kv_name_t name = {.is_first = true, .tokens = tokens};
    memcpy(name.hash.bytes, &generation, sizeof(generation));
    assert_status(kv_extra_create(generation % 2 == 0 ? "salt" : NULL, NULL, NULL, &name.extra),
                  WEFT_OK);
    kv_journal_stored(journal, slot, generation, &name);
    kv_extra_release(name.extra);
}

/* ---- what an open finds ------------------------------------------------------------------------ */

static void an_open_finds_the_last_word_about_each_slot(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig);
    rig_open(&rig);
    assert_int_equal(rig.found.live + rig.found.torn, 0);
    assert_int_equal(rig.found.next_generation, 1);
    for (uint32_t slot = 0; slot < 4; slot++) {
        kv_journal_begin(rig.journal, slot);
        store(rig.journal, slot, 10 + slot);
    }
    kv_journal_removed(rig.journal, 1);
    kv_journal_begin(rig.journal, 2); /* and no stored */
    kv_journal_begin(rig.journal, 3);
    store(rig.journal, 3, 20);
    rig_reopen(&rig);
    assert_int_equal(rig.found.live, 2);
    assert_int_equal(rig.found.torn, 1);
    assert_int_equal(rig.found.unread_bytes, 0);
    assert_int_equal(rig.found.next_generation, 21);
    assert_int_equal(kv_journal_generation(rig.journal, 0), 10);
    assert_int_equal(kv_journal_generation(rig.journal, 1), 0);
    assert_int_equal(kv_journal_generation(rig.journal, 2), 0);
    assert_int_equal(kv_journal_generation(rig.journal, 3), 20);
    rig_reopen(&rig);
    assert_int_equal(rig.found.live, 2);
    assert_int_equal(rig.found.torn, 0); /* said once */
    assert_int_equal(rig.found.next_generation, 21);
    rig_fini(&rig);
}

static void a_clear_covers_what_is_still_being_stored(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig);
    rig_open(&rig);
    store(rig.journal, 0, 1);
    kv_journal_begin(rig.journal, 1);
    kv_journal_clear(rig.journal, 3);
    store(rig.journal, 1, 2); /* given before the clear, written after it */
    store(rig.journal, 2, 3);
    assert_int_equal(kv_journal_generation(rig.journal, 0), 0);
    rig_reopen(&rig);
    assert_int_equal(rig.found.live, 1);
    assert_int_equal(rig.found.torn, 0);
    assert_int_equal(kv_journal_generation(rig.journal, 2), 3);
    rig_fini(&rig);
}

static void fewer_slots_forget_the_others(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig);
    rig_open(&rig);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        store(rig.journal, slot, 1 + slot);
    }
    rig.config.n_slots = 5;
    rig_reopen(&rig);
    assert_int_equal(rig.found.live, 5);
    assert_int_equal(rig.found.beyond, SLOTS - 5);
    rig.config.n_slots = SLOTS;
    rig_reopen(&rig);
    assert_int_equal(rig.found.live, 5);
    rig_fini(&rig);
}

/* ---- what can be in the file ------------------------------------------------------------------- */

/* Cut at each byte: what is found is what the whole records before it say. */
static void a_cut_journal_is_a_beginning_of_itself(void **state)
{
    (void)state;
    rig_t rig;
    static uint8_t data[4096];
    rig_init(&rig);
    rig_open(&rig);
    for (uint32_t slot = 0; slot < 3; slot++) {
        kv_journal_begin(rig.journal, slot);
        store(rig.journal, slot, 1 + slot);
    }
    assert_status(kv_journal_flush(rig.journal), WEFT_OK);
    int fd = openat(rig.config.dir_fd, "journal", O_RDWR);
    const ssize_t size = pread(fd, data, sizeof(data), 0);
    close(fd);
    uint32_t live = 0;
    for (ssize_t cut = KV_DISK_JOURNAL_HEADER_BYTES; cut <= size; cut++) {
        kv_journal_close(rig.journal);
        fd = openat(rig.config.dir_fd, "journal", O_RDWR | O_TRUNC);
        assert_int_equal(pwrite(fd, data, (size_t)cut, 0), cut);
        close(fd);
        rig_open(&rig);
        assert_true(rig.found.live == live || rig.found.live == live + 1);
        live = rig.found.live;
        assert_true(rig.found.torn <= 1);
        for (uint32_t slot = 0; slot < SLOTS; slot++) {
            assert_int_equal(kv_journal_generation(rig.journal, slot), slot < live ? 1 + slot : 0);
        }
    }
    assert_int_equal(live, 3);
    assert_int_equal(rig.found.unread_bytes, 0);
    rig_fini(&rig);
}

static void what_is_no_journal_is_left_as_it_is(void **state)
{
    (void)state;
    rig_t rig;
    char data[200];
    const char *contents[] = {"", "x", "weftkvjl",
                              "this is somebody's diary, long enough for the "
                              "header that is looked for in its beginning"};
    rig_init(&rig);
    for (size_t i = 0; i < sizeof(contents) / sizeof(contents[0]); i++) {
        const ssize_t length = (ssize_t)strlen(contents[i]);
        int fd = openat(rig.config.dir_fd, "journal", O_RDWR | O_CREAT | O_TRUNC, 0600);
        assert_int_equal(write(fd, contents[i], (size_t)length), length);
        assert_status(kv_journal_open(&rig.config, &rig.diag, &rig.found, &rig.journal),
                      WEFT_ERR_EXISTS);
        assert_non_null(strstr(rig.diag.text, "damaged"));
        assert_int_equal(pread(fd, data, sizeof(data), 0), length);
        assert_memory_equal(data, contents[i], (size_t)length);
        close(fd);
    }
    rig_fini(&rig);
}

static void a_journal_of_another_version_says_which(void **state)
{
    (void)state;
    rig_t rig;
    const uint8_t version = 9;
    rig_init(&rig);
    rig_open(&rig);
    kv_journal_close(rig.journal);
    rig.journal = NULL;
    const int fd = openat(rig.config.dir_fd, "journal", O_RDWR);
    assert_int_equal(pwrite(fd, &version, 1, 16), 1);
    close(fd);
    assert_status(kv_journal_open(&rig.config, &rig.diag, &rig.found, &rig.journal),
                  WEFT_ERR_EXISTS);
    assert_non_null(strstr(rig.diag.text, "format 9"));
    rig_fini(&rig);
}

/* ---- use --------------------------------------------------------------------------------------- */

typedef struct seen {
    const uint64_t *generations; /* [SLOTS] */
    uint32_t n;
    uint64_t last;
} seen_t;

static void see(void *user, const kv_disk_record_t *stored)
{
    seen_t *seen = user;
    int32_t tokens[TOKENS];
    kv_disk_tokens_decode(stored->tokens, TOKENS, tokens);
    assert_int_equal(stored->generation, seen->generations[stored->slot]);
    assert_int_equal(tokens[0], stored->slot);
    assert_int_equal(tokens[1], stored->generation);
    assert_int_equal(stored->salt != NULL, stored->generation % 2 == 0);
    assert_true(stored->generation > seen->last); /* in the order they were stored */
    seen->last = stored->generation;
    seen->n++;
}

static void assert_model(rig_t *rig, const uint64_t *generations)
{
    seen_t seen = {.generations = generations};
    uint32_t live = 0;
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        assert_int_equal(kv_journal_generation(rig->journal, slot), generations[slot]);
        live += generations[slot] != 0;
    }
    assert_status(kv_journal_visit(rig->journal, see, &seen), WEFT_OK);
    assert_int_equal(seen.n, live);
}

static void a_random_life_agrees_with_an_array(void **state)
{
    (void)state;
    test_random_t random = {test_seed(13)};
    uint64_t generations[SLOTS] = {0};
    uint64_t next = 1;
    uint64_t most = 0;
    rig_t rig;
    rig_init(&rig);
    rig_open(&rig);
    for (uint32_t i = 0; i < 20000; i++) {
        const uint32_t slot = test_random_below(&random, SLOTS);
        const uint32_t what = test_random_below(&random, 2000);
        if (what < 1500) {
            kv_journal_begin(rig.journal, slot);
            store(rig.journal, slot, next);
            generations[slot] = next++;
        } else if (what < 1980) {
            kv_journal_removed(rig.journal, slot);
            generations[slot] = 0;
        } else if (what < 1985) {
            kv_journal_clear(rig.journal, next);
            memset(generations, 0, sizeof(generations));
        } else if (what < 1995) {
            assert_status(kv_journal_tidy(rig.journal), WEFT_OK);
            assert_model(&rig, generations);
        } else {
            rig_reopen(&rig);
            assert_int_equal(rig.found.torn, 0);
            assert_true(rig.found.next_generation >= next || next == 1);
            assert_model(&rig, generations);
        }
        most = kv_journal_bytes(rig.journal) > most ? kv_journal_bytes(rig.journal) : most;
    }
    assert_model(&rig, generations);
    assert_true(most > 100000); /* so that tidying had something to do */
    rig_fini(&rig);
}

static void tidying_keeps_the_file_small_and_writes_under_way(void **state)
{
    (void)state;
    rig_t rig;
    rig_init(&rig);
    rig_open(&rig);
    kv_journal_begin(rig.journal, 7);
    for (uint64_t i = 1; i < 50000; i++) {
        store(rig.journal, (uint32_t)(i % 4), i);
        assert_status(kv_journal_tidy(rig.journal), WEFT_OK);
        assert_true(kv_journal_bytes(rig.journal) < 600 * 1024);
    }
    rig_reopen(&rig);
    assert_int_equal(rig.found.live, 4);
    assert_int_equal(rig.found.torn, 1);
    rig_fini(&rig);
}

static void opening_survives_no_memory(void **state)
{
    (void)state;
    rig_t rig;
    uint64_t n = 0;
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    rig_init(&rig);
    rig_open(&rig);
    store(rig.journal, 3, 4);
    kv_journal_close(rig.journal);
    rig.journal = NULL;
    const size_t before = weft_alloc_live_bytes();
    while (status == WEFT_ERR_NO_MEMORY) {
        weft_alloc_fail_nth(++n);
        status = kv_journal_open(&rig.config, &rig.diag, &rig.found, &rig.journal);
        weft_alloc_fail_nth(0);
        assert_true(status == WEFT_OK || weft_alloc_live_bytes() == before);
    }
    assert_status(status, WEFT_OK);
    assert_int_equal(n, 5);
    assert_int_equal(rig.found.live, 1);
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_open_finds_the_last_word_about_each_slot),
        cmocka_unit_test(a_clear_covers_what_is_still_being_stored),
        cmocka_unit_test(fewer_slots_forget_the_others),
        cmocka_unit_test(a_cut_journal_is_a_beginning_of_itself),
        cmocka_unit_test(what_is_no_journal_is_left_as_it_is),
        cmocka_unit_test(a_journal_of_another_version_says_which),
        cmocka_unit_test(a_random_life_agrees_with_an_array),
        cmocka_unit_test(tidying_keeps_the_file_small_and_writes_under_way),
        cmocka_unit_test(opening_survives_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
