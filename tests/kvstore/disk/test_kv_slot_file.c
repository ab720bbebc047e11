/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_slot_file.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvstore/disk/kv_disk_format.h"
#include "tests/support/check.h"
#include "tests/support/test_fork.h"

typedef struct rig {
    char path[64];
    kv_slot_file_t file;
    weft_diag_t diag;
} rig_t;

static void rig_init(rig_t *rig)
{
    *rig = (rig_t){.path = "/tmp/weft-kv-slots-XXXXXX"};
    assert_non_null(mkdtemp(rig->path));
    assert_status(kv_slot_file_open(rig->path, &rig->diag, &rig->file), WEFT_OK);
}

static void rig_fini(rig_t *rig)
{
    assert_int_equal(unlinkat(rig->file.dir_fd, "blocks.kv", 0), 0);
    kv_slot_file_close(&rig->file);
    assert_int_equal(rmdir(rig->path), 0);
}

static uint64_t size_of(const kv_slot_file_t *file)
{
    struct stat info;
    assert_int_equal(fstat(file->fd, &info), 0);
    return (uint64_t)info.st_size;
}

static void a_file_has_the_size_it_is_given(void **state)
{
    (void)state;
    const uint64_t sizes[] = {KV_DISK_PAGE_BYTES, 50 * KV_DISK_PAGE_BYTES, 3 * KV_DISK_PAGE_BYTES};
    rig_t rig;
    rig_init(&rig);
    for (size_t i = 0; i < 3; i++) {
        assert_status(kv_slot_file_check_space(&rig.file, rig.path, sizes[i], &rig.diag), WEFT_OK);
        assert_status(kv_slot_file_reserve(&rig.file, rig.path, sizes[i], &rig.diag), WEFT_OK);
        assert_int_equal(size_of(&rig.file), sizes[i]);
    }
    rig_fini(&rig);
}

static void opening_again_leaves_the_bytes(void **state)
{
    (void)state;
    static uint8_t pages[2][KV_DISK_PAGE_BYTES];
    rig_t rig;
    rig_init(&rig);
    kv_slot_file_close(&rig.file);
    char path[128];
    snprintf(path, sizeof(path), "%s/blocks.kv", rig.path);
    const int fd = open(path, O_RDWR);
    memset(pages[0], 0x5a, sizeof(pages[0]));
    assert_int_equal(write(fd, pages[0], sizeof(pages[0])), sizeof(pages[0]));
    assert_status(kv_slot_file_open(rig.path, &rig.diag, &rig.file), WEFT_OK);
    assert_status(kv_slot_file_reserve(&rig.file, rig.path, 8 * KV_DISK_PAGE_BYTES, &rig.diag),
                  WEFT_OK);
    assert_int_equal(pread(fd, pages[1], sizeof(pages[1]), 0), sizeof(pages[1]));
    assert_memory_equal(pages[0], pages[1], sizeof(pages[0]));
    close(fd);
    rig_fini(&rig);
}

static void another_process_cannot_have_the_folder(void **state)
{
    (void)state;
    int wait_status;
    rig_t rig;
    rig_init(&rig);
    fflush(NULL);
    const pid_t child = test_fork();
    assert_true(child >= 0);
    if (child == 0) {
        kv_slot_file_t file;
        const weft_status_t status = kv_slot_file_open(rig.path, &rig.diag, &file);
        _exit(status == WEFT_ERR_IN_USE && strstr(rig.diag.text, rig.path) != NULL ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &wait_status, 0), child);
    assert_true(WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0);
    rig_fini(&rig);
}

static void what_is_too_much_for_the_disk_is_known_without_trying(void **state)
{
    (void)state;
    struct statvfs fs;
    rig_t rig;
    rig_init(&rig);
    assert_int_equal(fstatvfs(rig.file.dir_fd, &fs), 0);
    const uint64_t bytes = 2 * (uint64_t)fs.f_blocks * fs.f_frsize;
    assert_status(kv_slot_file_check_space(&rig.file, rig.path, bytes, &rig.diag),
                  WEFT_ERR_TOO_LARGE);
    assert_non_null(strstr(rig.diag.text, "are free"));
    assert_int_equal(size_of(&rig.file), 0);
    rig_fini(&rig);
}

static void paths_that_are_no_folder_are_named(void **state)
{
    (void)state;
    rig_t rig;
    kv_slot_file_t file;
    char path[128];
    rig_init(&rig);
    snprintf(path, sizeof(path), "%s/blocks.kv", rig.path);
    assert_status(kv_slot_file_open(path, &rig.diag, &file), WEFT_ERR_IO);
    assert_non_null(strstr(rig.diag.text, path));
    snprintf(path, sizeof(path), "%s/blocks.kv/below", rig.path);
    assert_status(kv_slot_file_open(path, &rig.diag, &file), WEFT_ERR_IO);
    assert_non_null(strstr(rig.diag.text, "cannot make the folder"));
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_has_the_size_it_is_given),
        cmocka_unit_test(opening_again_leaves_the_bytes),
        cmocka_unit_test(another_process_cannot_have_the_folder),
        cmocka_unit_test(what_is_too_much_for_the_disk_is_known_without_trying),
        cmocka_unit_test(paths_that_are_no_folder_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
