/* SPDX-License-Identifier: Apache-2.0 */
/* A process killed at any moment leaves a disk tier that opens again and serves nothing wrong. */
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WEFT_LOG_MODULE "test"
#include "base/log.h"
#include "kvstore/disk/kv_io.h"
#include "tests/support/disk_rig.h"
#include "tests/support/faulty_io.h"
#include "tests/support/random.h"
#include "tests/support/test_fork.h"

enum { SLOTS = 40, BLOCKS = 100 };

static const kv_io_ops_t *const rows[] = {NULL, &kv_io_pread};

/* A byte for each thing it did; the first before the folder is opened. Never returns. */
static void live(disk_rig_t *rig, const kv_io_ops_t *io, uint64_t seed, int steps)
{
    test_random_t random = {seed};
    const char step = '.';
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)!write(steps, &step, 1);
    if (disk_rig_open(rig, io) != WEFT_OK) {
        _exit(1);
    }
    for (;;) {
        const uint32_t block = test_random_below(&random, BLOCKS);
        const uint32_t what = test_random_below(&random, 1000);
        weft_status_t status = WEFT_OK;
        if (what < 800) {
            status = disk_rig_put(rig, block);
        } else if (what < 999) {
            status = disk_rig_get(rig, block);
        } else {
            kv_tier_disk.clear(rig->tier);
            memset(rig->is_there, 0, sizeof(rig->is_there));
        }
        if (status == WEFT_ERR_QUEUE_FULL) {
            disk_rig_settle(rig);
        } else if (status != WEFT_OK && status != WEFT_ERR_NOT_FOUND) {
            _exit(2);
        }
        kv_tier_disk.poll(rig->tier, NULL, 0);
        (void)!write(steps, &step, 1);
    }
}

/* A process that lives in rig and is killed once it has done n_steps. */
static void kill_one(disk_rig_t *rig, const kv_io_ops_t *io, uint64_t seed, uint32_t n_steps)
{
    int ends[2];
    int wait_status;
    char step;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    const pid_t child = test_fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(ends[0]);
        live(rig, io, seed, ends[1]);
    }
    close(ends[1]);
    for (uint32_t i = 0; i < n_steps; i++) {
        assert_int_equal(read(ends[0], &step, 1), 1); /* else it ended by itself */
    }
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &wait_status, 0), child);
    assert_true(WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGKILL);
    close(ends[0]);
}

/* All that is found is right, to the last byte; disk_rig_get holds content against the name. */
static uint32_t check_all(disk_rig_t *rig)
{
    assert_status(disk_rig_open(rig, NULL), WEFT_OK);
    disk_rig_settle(rig);
    const uint32_t found = disk_rig_blocks(rig);
    assert_int_equal(rig->n_stored, found);
    assert_false(rig->is_orphan_told);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        assert_status(disk_rig_get(rig, block),
                      rig->is_there[block] ? WEFT_OK : WEFT_ERR_NOT_FOUND);
    }
    disk_rig_close(rig);
    return found;
}

static void a_killed_process_leaves_nothing_wrong_behind(void **state)
{
    (void)state;
    const uint64_t seed = test_seed(1);
    test_random_t random = {seed};
    disk_rig_t rig;
    uint32_t found = 0;
    disk_rig_init(&rig, SLOTS);
    for (uint32_t i = 0; i < test_rounds(100); i++) {
        /* Some die while they open, some late enough to have written a second journal. */
        const uint32_t least = i % 5 == 4 ? 2000 : 1;
        const uint32_t most = i % 5 == 4 ? 8000 : i % 5 == 3 ? 3 : 400;
        const uint32_t n_steps = test_random_between(&random, least, most);
        kill_one(&rig, rows[test_random_below(&random, 2)], seed + i, n_steps);
        found += check_all(&rig);
    }
    assert_true(found > 0);
    disk_rig_fini(&rig);
}

static void a_process_that_dies_within_a_write_loses_that_block_alone(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= SLOTS + 5; n += 4) {
        disk_rig_t rig;
        int wait_status;
        disk_rig_init(&rig, SLOTS);
        fflush(NULL);
        const pid_t child = test_fork();
        assert_true(child >= 0);
        if (child == 0) {
            faulty_io_plan = (faulty_io_plan_t){.tear_write = n, .dies = true};
            if (disk_rig_open(&rig, &kv_io_faulty) != WEFT_OK) {
                _exit(1);
            }
            for (uint32_t block = 0; block < BLOCKS; block++) {
                disk_rig_store(&rig, block);
            }
            _exit(2);
        }
        assert_int_equal(waitpid(child, &wait_status, 0), child);
        assert_true(WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGKILL);
        assert_int_equal(check_all(&rig), n <= SLOTS ? n - 1 : SLOTS - 1);
        disk_rig_fini(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_process_leaves_nothing_wrong_behind),
        cmocka_unit_test(a_process_that_dies_within_a_write_loses_that_block_alone),
    };
    weft_log_set_level(WEFT_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
