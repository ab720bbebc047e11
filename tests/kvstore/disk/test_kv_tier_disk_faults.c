/* SPDX-License-Identifier: Apache-2.0 */
/* What a disk and its files can do to a disk tier; and that no wrong block is ever served. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define WEFT_LOG_MODULE "test"
#include "base/log.h"
#include "kvstore/disk/kv_io.h"
#include "tests/support/disk_rig.h"
#include "tests/support/faulty_io.h"
#include "tests/support/random.h"
#include "tests/support/test_fork.h"

enum { BLOCKS = 12 };

static void open_with_blocks(disk_rig_t *rig, uint32_t n, const kv_io_ops_t *io)
{
    disk_rig_init(rig, n);
    assert_status(disk_rig_open(rig, NULL), WEFT_OK);
    for (uint32_t block = 0; block < n; block++) {
        disk_rig_store(rig, block);
    }
    if (io != NULL) {
        disk_rig_close(rig);
        assert_status(disk_rig_open(rig, io), WEFT_OK);
    }
}

/* ---- the disk fails --------------------------------------------------------------------------- */

static void assert_absent(disk_rig_t *rig, uint32_t announced)
{
    disk_rig_settle(rig);
    assert_int_equal(rig->n_stored, announced);
    assert_int_equal(rig->n_removed, announced);
    assert_int_equal(disk_rig_blocks(rig), 0);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        assert_false(disk_rig_has(rig, block));
        assert_status(disk_rig_get(rig, block), WEFT_ERR_NOT_FOUND);
        assert_status(disk_rig_put(rig, block), WEFT_ERR_IO);
    }
}

static void a_read_error_turns_the_tier_off(void **state)
{
    (void)state;
    disk_rig_t rig;
    faulty_io_plan = (faulty_io_plan_t){.fail_read = 3, .error = EIO};
    open_with_blocks(&rig, BLOCKS, &kv_io_faulty);
    assert_status(disk_rig_get(&rig, 0), WEFT_OK);
    assert_status(disk_rig_get(&rig, 1), WEFT_OK);
    assert_status(disk_rig_get(&rig, 2), WEFT_ERR_IO);
    assert_int_equal(kv_tier_disk.stats(rig.tier).gets_failed, 1);
    assert_absent(&rig, BLOCKS);
    disk_rig_fini(&rig);
}

static void a_write_error_turns_the_tier_off(void **state)
{
    (void)state;
    const int errors[] = {ENOSPC, EIO, EROFS};
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        disk_rig_t rig;
        faulty_io_plan = (faulty_io_plan_t){.fail_write = 2, .error = errors[i]};
        open_with_blocks(&rig, BLOCKS, &kv_io_faulty);
        disk_rig_store(&rig, BLOCKS);
        assert_status(disk_rig_put(&rig, BLOCKS + 1), WEFT_OK);
        assert_absent(&rig, BLOCKS + 1);
        disk_rig_close(&rig);
        /* What was not being written is there when the disk is well again. */
        assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
        assert_int_equal(disk_rig_blocks(&rig), BLOCKS - 1);
        assert_status(disk_rig_get(&rig, BLOCKS), WEFT_OK);
        disk_rig_fini(&rig);
    }
}

static void all_gets_in_flight_end_when_the_disk_fails(void **state)
{
    (void)state;
    disk_rig_t rig;
    enum { GETS = 6 };
    static uint8_t memory[GETS][RIG_BLOCK_BYTES];
    faulty_io_plan = (faulty_io_plan_t){.fail_read = 1, .error = EIO, .is_holding = true};
    open_with_blocks(&rig, BLOCKS, &kv_io_faulty);
    for (uint32_t i = 0; i < GETS; i++) {
        const kv_hash_t hash = disk_rig_hash(i);
        assert_status(kv_tier_disk.get(rig.tier, &hash, memory[i], memory[i]), WEFT_PENDING);
    }
    assert_status(disk_rig_put(&rig, BLOCKS), WEFT_OK);
    faulty_io_release();
    for (uint32_t n = 0; n < GETS;) {
        kv_tier_done_t done;
        if (kv_tier_disk.poll(rig.tier, &done, 1) == 1) {
            assert_status(done.status, WEFT_ERR_IO);
            n++;
        }
    }
    assert_absent(&rig, BLOCKS);
    kv_tier_disk.clear(rig.tier);
    disk_rig_close(&rig);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    assert_int_equal(disk_rig_blocks(&rig), 0); /* a clear counts on a tier that is off, too */
    disk_rig_fini(&rig);
}

static void transient_errors_are_tried_again(void **state)
{
    (void)state;
    disk_rig_t rig;
    faulty_io_plan = (faulty_io_plan_t){.fail_read = 1, .fail_write = 1, .error = EAGAIN};
    open_with_blocks(&rig, BLOCKS, &kv_io_faulty);
    disk_rig_store(&rig, BLOCKS);
    assert_status(disk_rig_get(&rig, BLOCKS), WEFT_OK);
    disk_rig_fini(&rig);
}

static void a_file_cut_under_us_turns_the_tier_off(void **state)
{
    (void)state;
    const kv_io_ops_t *rows[] = {NULL, &kv_io_pread};
    for (size_t i = 0; i < 2; i++) {
        disk_rig_t rig;
        open_with_blocks(&rig, BLOCKS, rows[i]);
        disk_rig_settle(&rig);
        const int fd = disk_rig_file(&rig, "blocks.kv");
        assert_int_equal(ftruncate(fd, RIG_SLOT_BYTES + 100), 0);
        close(fd);
        weft_status_t status = WEFT_OK;
        for (uint32_t block = 0; block < BLOCKS && status == WEFT_OK; block++) {
            status = disk_rig_get(&rig, block);
        }
        assert_status(status, WEFT_ERR_IO);
        assert_absent(&rig, BLOCKS);
        disk_rig_fini(&rig);
    }
}

static void a_torn_write_is_found_when_it_is_read(void **state)
{
    (void)state;
    disk_rig_t rig;
    faulty_io_plan = (faulty_io_plan_t){.tear_write = 1};
    open_with_blocks(&rig, BLOCKS, &kv_io_faulty);
    disk_rig_store(&rig, BLOCKS);
    assert_status(disk_rig_get(&rig, BLOCKS), WEFT_ERR_MALFORMED);
    assert_false(disk_rig_has(&rig, BLOCKS));
    assert_false(rig.is_there[BLOCKS]);
    assert_int_equal(kv_tier_disk.stats(rig.tier).damaged, 1);
    disk_rig_store(&rig, BLOCKS); /* and its slot is good for another */
    assert_status(disk_rig_get(&rig, BLOCKS), WEFT_OK);
    disk_rig_fini(&rig);
}

static void two_reads_of_one_damaged_block_count_it_once(void **state)
{
    (void)state;
    disk_rig_t rig;
    static uint8_t memory[2][RIG_BLOCK_BYTES];
    faulty_io_plan = (faulty_io_plan_t){.tear_write = 1};
    open_with_blocks(&rig, BLOCKS, &kv_io_faulty);
    disk_rig_store(&rig, BLOCKS);
    const kv_hash_t hash = disk_rig_hash(BLOCKS);
    for (int i = 0; i < 2; i++) {
        assert_status(kv_tier_disk.get(rig.tier, &hash, memory[i], NULL), WEFT_PENDING);
    }
    for (uint32_t n = 0; n < 2;) {
        kv_tier_done_t done;
        if (kv_tier_disk.poll(rig.tier, &done, 1) == 1) {
            assert_status(done.status, WEFT_ERR_MALFORMED);
            n++;
        }
    }
    assert_int_equal(kv_tier_disk.stats(rig.tier).damaged, 1);
    assert_int_equal(kv_tier_disk.stats(rig.tier).gets_failed, 2);
    disk_rig_fini(&rig);
}

/* ---- the disk is full, or not ours ------------------------------------------------------------- */

/* In a child, whose limits are its own. Returns its exit code. */
static int in_child(int (*fn)(disk_rig_t *rig), disk_rig_t *rig)
{
    int wait_status;
    fflush(NULL);
    const pid_t child = test_fork();
    assert_true(child >= 0);
    if (child == 0) {
        _exit(fn(rig));
    }
    assert_int_equal(waitpid(child, &wait_status, 0), child);
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

static int limit_before_open(disk_rig_t *rig)
{
    const struct rlimit limit = {.rlim_cur = RIG_SLOT_BYTES, .rlim_max = RIG_SLOT_BYTES};
    setrlimit(RLIMIT_FSIZE, &limit);
    const weft_status_t status = disk_rig_open(rig, NULL);
    return status == WEFT_ERR_TOO_LARGE && strstr(rig->diag.text, "needs 65536 bytes") != NULL ? 0
                                                                                               : 1;
}

static int limit_while_open(disk_rig_t *rig)
{
    const struct rlimit limit = {.rlim_cur = 100, .rlim_max = 100};
    if (disk_rig_open(rig, NULL) != WEFT_OK) {
        return 1;
    }
    disk_rig_store(rig, 0);
    setrlimit(RLIMIT_FSIZE, &limit);
    if (disk_rig_put(rig, 1) != WEFT_OK) {
        return 2;
    }
    disk_rig_settle(rig);
    return disk_rig_put(rig, 2) == WEFT_ERR_IO && rig->n_removed == 1 ? 0 : 3;
}

static void a_disk_that_is_full_at_open_is_an_error_with_figures(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 4);
    assert_int_equal(in_child(limit_before_open, &rig), 0);
    struct statvfs fs;
    assert_int_equal(statvfs(rig.path, &fs), 0);
    rig.config.block_bytes = (size_t)256 << 20;
    rig.config.budget_bytes = 2 * fs.f_blocks * fs.f_frsize + ((size_t)1 << 30);
    assert_status(disk_rig_open(&rig, NULL), WEFT_ERR_TOO_LARGE);
    assert_non_null(strstr(rig.diag.text, "are free"));
    disk_rig_fini(&rig);
}

static void a_disk_that_fills_up_later_turns_the_tier_off(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 4);
    assert_int_equal(in_child(limit_while_open, &rig), 0);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    assert_int_equal(disk_rig_blocks(&rig), 1);
    assert_status(disk_rig_get(&rig, 0), WEFT_OK);
    disk_rig_fini(&rig);
}

/* As containers refuse it: the call is not permitted. */
static bool refuse_io_uring(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int use_without_io_uring(disk_rig_t *rig)
{
    kv_io_t *io;
    if (!refuse_io_uring()) {
        return 77;
    }
    if (kv_io_uring.open(0, 4, &io) != WEFT_ERR_UNSUPPORTED ||
        disk_rig_open(rig, NULL) != WEFT_OK) {
        return 1;
    }
    disk_rig_store(rig, 0);
    const weft_status_t status = disk_rig_get(rig, 0);
    disk_rig_close(rig);
    return status == WEFT_OK ? 0 : 2;
}

static void a_machine_that_refuses_io_uring_uses_pread(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 4);
    const int code = in_child(use_without_io_uring, &rig);
    disk_rig_fini(&rig);
    if (code == 77) {
        print_message("seccomp is refused on this machine\n");
        skip();
    }
    assert_int_equal(code, 0);
}

static int open_unwritable(disk_rig_t *rig)
{
    if (chmod(rig->path, 0500) != 0 || (geteuid() == 0 && setuid(65534) != 0)) {
        return 77;
    }
    return disk_rig_open(rig, NULL) == WEFT_ERR_DENIED && strstr(rig->diag.text, rig->path) != NULL
               ? 0
               : 1;
}

static void a_folder_without_rights_is_an_error_with_its_name(void **state)
{
    (void)state;
    disk_rig_t rig;
    disk_rig_init(&rig, 4);
    assert_int_equal(in_child(open_unwritable, &rig), 0);
    assert_int_equal(chmod(rig.path, 0700), 0);
    disk_rig_fini(&rig);
}

/* ---- bytes are changed ------------------------------------------------------------------------ */

static uint8_t flip(int fd, uint64_t at, uint8_t bits)
{
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    const uint8_t flipped = byte ^ bits;
    assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
    return byte;
}

/* One bit of each of a thousand bytes of blocks.kv, each in turn: its block is dropped, no other. */
static void every_flipped_byte_of_a_slot_is_found(void **state)
{
    (void)state;
    test_random_t random = {test_seed(3)};
    disk_rig_t rig;
    open_with_blocks(&rig, BLOCKS, &kv_io_pread);
    disk_rig_settle(&rig);
    const int fd = disk_rig_file(&rig, "blocks.kv");
    for (uint32_t i = 0; i < 1000; i++) {
        /* Headers are one page of four; half of the flips go there. */
        const uint64_t slot = test_random_below(&random, BLOCKS) * (uint64_t)RIG_SLOT_BYTES;
        const uint64_t in_slot =
            test_random_below(&random, i % 2 == 0 ? 160 : (uint32_t)RIG_SLOT_BYTES);
        const uint32_t damaged = (uint32_t)kv_tier_disk.stats(rig.tier).damaged;
        uint32_t victim = BLOCKS;
        flip(fd, slot + in_slot, (uint8_t)(1u << test_random_below(&random, 8)));
        for (uint32_t block = 0; block < BLOCKS; block++) {
            const weft_status_t status = disk_rig_get(&rig, block);
            assert_true(status == WEFT_OK || status == WEFT_ERR_MALFORMED);
            victim = status == WEFT_OK ? victim : block;
        }
        assert_int_equal(kv_tier_disk.stats(rig.tier).damaged, damaged + 1);
        assert_true(victim < BLOCKS);
        disk_rig_store(&rig, victim);
    }
    close(fd);
    disk_rig_fini(&rig);
}

static void flips_between_two_lives_are_found_as_well(void **state)
{
    (void)state;
    test_random_t random = {test_seed(5)};
    disk_rig_t rig;
    open_with_blocks(&rig, BLOCKS, NULL);
    disk_rig_close(&rig);
    const int fd = disk_rig_file(&rig, "blocks.kv");
    for (uint32_t block = 0; block < BLOCKS; block += 2) {
        flip(fd, block * RIG_SLOT_BYTES + test_random_below(&random, RIG_SLOT_BYTES), 0x10);
    }
    close(fd);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        const weft_status_t status = disk_rig_get(&rig, block);
        assert_true(status == WEFT_OK || status == WEFT_ERR_MALFORMED);
    }
    assert_int_equal(kv_tier_disk.stats(rig.tier).damaged, BLOCKS / 2);
    assert_int_equal(disk_rig_blocks(&rig), BLOCKS / 2);
    disk_rig_close(&rig);
    assert_status(disk_rig_open(&rig, NULL), WEFT_OK); /* and the journal remembers */
    assert_int_equal(disk_rig_blocks(&rig), BLOCKS / 2);
    disk_rig_fini(&rig);
}

/* Slots in each other's place: whole, but not what the journal says. */
static void swapped_slots_are_found(void **state)
{
    (void)state;
    static uint8_t slots[2][RIG_SLOT_BYTES];
    disk_rig_t rig;
    open_with_blocks(&rig, BLOCKS, &kv_io_pread);
    disk_rig_settle(&rig);
    const int fd = disk_rig_file(&rig, "blocks.kv");
    assert_int_equal(pread(fd, slots, sizeof(slots), 0), sizeof(slots));
    assert_int_equal(pwrite(fd, slots[1], RIG_SLOT_BYTES, 0), RIG_SLOT_BYTES);
    assert_int_equal(pwrite(fd, slots[0], RIG_SLOT_BYTES, RIG_SLOT_BYTES), RIG_SLOT_BYTES);
    close(fd);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        const weft_status_t status = disk_rig_get(&rig, block);
        assert_true(status == WEFT_OK || status == WEFT_ERR_MALFORMED);
    }
    assert_int_equal(kv_tier_disk.stats(rig.tier).damaged, 2);
    disk_rig_fini(&rig);
}

/* The journal, a byte in turn: what is opened then serves what it serves rightly. */
static void flipped_bytes_of_the_journal_cost_blocks_at_most(void **state)
{
    (void)state;
    disk_rig_t rig;
    struct stat info;
    static uint8_t journal[8192];
    open_with_blocks(&rig, BLOCKS, NULL);
    disk_rig_close(&rig);
    int fd = disk_rig_file(&rig, "journal");
    assert_int_equal(fstat(fd, &info), 0);
    assert_in_range(info.st_size, 1000, sizeof(journal));
    const ssize_t size = pread(fd, journal, sizeof(journal), 0);
    close(fd);
    for (ssize_t at = 0; at < size; at += 7) {
        fd = disk_rig_file(&rig, "journal");
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pwrite(fd, journal, (size_t)size, 0), size);
        flip(fd, (uint64_t)at, 0x04);
        close(fd);
        const weft_status_t status = disk_rig_open(&rig, &kv_io_pread);
        if (at < KV_DISK_JOURNAL_HEADER_BYTES) {
            assert_status(status, WEFT_ERR_EXISTS);
            continue;
        }
        assert_status(status, WEFT_OK);
        assert_true(disk_rig_blocks(&rig) < BLOCKS); /* at least the one of this record */
        for (uint32_t block = 0; block < BLOCKS; block++) {
            assert_status(disk_rig_get(&rig, block),
                          disk_rig_has(&rig, block) ? WEFT_OK : WEFT_ERR_NOT_FOUND);
        }
        disk_rig_close(&rig);
    }
    disk_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_read_error_turns_the_tier_off),
        cmocka_unit_test(a_write_error_turns_the_tier_off),
        cmocka_unit_test(all_gets_in_flight_end_when_the_disk_fails),
        cmocka_unit_test(transient_errors_are_tried_again),
        cmocka_unit_test(a_file_cut_under_us_turns_the_tier_off),
        cmocka_unit_test(a_torn_write_is_found_when_it_is_read),
        cmocka_unit_test(two_reads_of_one_damaged_block_count_it_once),
        cmocka_unit_test(a_disk_that_is_full_at_open_is_an_error_with_figures),
        cmocka_unit_test(a_disk_that_fills_up_later_turns_the_tier_off),
        cmocka_unit_test(a_machine_that_refuses_io_uring_uses_pread),
        cmocka_unit_test(a_folder_without_rights_is_an_error_with_its_name),
        cmocka_unit_test(every_flipped_byte_of_a_slot_is_found),
        cmocka_unit_test(flips_between_two_lives_are_found_as_well),
        cmocka_unit_test(swapped_slots_are_found),
        cmocka_unit_test(flipped_bytes_of_the_journal_cost_blocks_at_most),
    };
    weft_log_set_level(WEFT_LOG_ERROR); /* the warnings are many, and as they should be */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
