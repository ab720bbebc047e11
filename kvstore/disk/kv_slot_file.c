/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/disk/kv_slot_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kvstore/disk/kv_disk_format.h"

#define LOCK_WAIT_NS (3 * WEFT_NS_PER_SECOND)

static const char file_name[] = "blocks.kv";

static weft_status_t say(weft_diag_t *diag, const char *path, const char *what)
{
    const int cause = errno;
    const bool is_right = cause == EACCES || cause == EPERM || cause == EROFS;
    return weft_diag(diag, is_right ? WEFT_ERR_DENIED : WEFT_ERR_IO, "%s: %s: %s", path, what,
                     strerror(cause));
}

/* Every folder of path that is missing, from the root down. */
static int make_folders(const char *path)
{
    char part[PATH_MAX];
    const size_t length = strlen(path);
    if (length >= sizeof(part)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (size_t i = 1; i <= length; i++) {
        if (path[i] == '/' || path[i] == '\0') {
            memcpy(part, path, i);
            part[i] = '\0';
            if (mkdir(part, 0700) != 0 && errno != EEXIST) {
                return -1;
            }
        }
    }
    return 0;
}

/* Some file systems refuse O_DIRECT here already. */
static int open_file(int dir_fd, bool *is_direct)
{
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
    *is_direct = true;
    int fd = openat(dir_fd, file_name, flags | O_DIRECT, 0600);
    if (fd < 0 && errno == EINVAL) {
        *is_direct = false;
        fd = openat(dir_fd, file_name, flags, 0600);
    }
    return fd;
}

/*
 * What a killed process had given to io_uring may go on for moments after its end, and holds the
 * lock for as long: whoever has the lock has the file to itself, late writes included.
 */
static bool lock_file(int fd)
{
    const struct timespec pause = {.tv_nsec = (long)(5 * WEFT_NS_PER_MS)};
    const uint64_t deadline = weft_clock_ns() + LOCK_WAIT_NS;
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK || weft_clock_ns() > deadline) {
            return false;
        }
        nanosleep(&pause, NULL);
    }
    return true;
}

weft_status_t kv_slot_file_open(const char *path, weft_diag_t *diag, kv_slot_file_t *file_out)
{
    kv_slot_file_t file = {.dir_fd = -1, .fd = -1};
    if (make_folders(path) != 0) {
        return say(diag, path, "cannot make the folder");
    }
    file.dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file.dir_fd < 0) {
        return say(diag, path, "cannot open the folder");
    }
    weft_status_t status = WEFT_OK;
    file.fd = open_file(file.dir_fd, &file.is_direct);
    if (file.fd < 0) {
        status = say(diag, path, "cannot open blocks.kv");
    } else if (!lock_file(file.fd)) {
        status = errno != EWOULDBLOCK
                     ? say(diag, path, "cannot lock blocks.kv")
                     : weft_diag(diag, WEFT_ERR_IN_USE,
                                 "%s: another process has its blocks there; each needs a folder of "
                                 "its own",
                                 path);
    }
    if (status < 0) {
        kv_slot_file_close(&file);
        return status;
    }
    *file_out = file;
    return WEFT_OK;
}

void kv_slot_file_close(kv_slot_file_t *file)
{
    if (file->fd >= 0) {
        close(file->fd);
    }
    if (file->dir_fd >= 0) {
        close(file->dir_fd);
    }
    *file = (kv_slot_file_t){.dir_fd = -1, .fd = -1};
}

static uint64_t free_bytes(int fd)
{
    struct statvfs fs;
    return fstatvfs(fd, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : 0;
}

static weft_status_t say_full(weft_diag_t *diag, const char *path, uint64_t needed, int fd)
{
    return weft_diag(diag, WEFT_ERR_TOO_LARGE,
                     "%s: blocks.kv needs %llu bytes more, %llu are free on that disk", path,
                     (unsigned long long)needed, (unsigned long long)free_bytes(fd));
}

/* A file larger than the process's limit would raise SIGXFSZ, not only an error. */
static bool is_within_limit(uint64_t bytes)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
           bytes <= limit.rlim_cur;
}

/* False with errno. Where a file system cannot promise space, what is free must do. */
static bool take_space(int fd, uint64_t bytes)
{
    int result;
    do {
        result = fallocate(fd, 0, 0, (off_t)bytes);
    } while (result != 0 && errno == EINTR);
    return result == 0 || (errno == EOPNOTSUPP && ftruncate(fd, (off_t)bytes) == 0);
}

/* The first page as O_DIRECT gives it; a file system may accept the flag and refuse the read. */
static weft_status_t probe_direct(kv_slot_file_t *file, const char *path, weft_diag_t *diag)
{
    void *page = weft_alloc_aligned(KV_DISK_PAGE_BYTES, KV_DISK_PAGE_BYTES, "kv_slot_file.page");
    if (page == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    ssize_t n = pread(file->fd, page, KV_DISK_PAGE_BYTES, 0);
    if (n < 0 && errno == EINVAL && file->is_direct) {
        file->is_direct = false;
        n = fcntl(file->fd, F_SETFL, 0) == 0 ? pread(file->fd, page, KV_DISK_PAGE_BYTES, 0) : -1;
    }
    weft_free(page);
    return n == KV_DISK_PAGE_BYTES ? WEFT_OK : say(diag, path, "cannot read blocks.kv");
}

weft_status_t kv_slot_file_check_space(const kv_slot_file_t *file, const char *path, uint64_t bytes,
                                       weft_diag_t *diag)
{
    struct stat info;
    if (fstat(file->fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: blocks.kv is not a regular file", path);
    }
    if (!is_within_limit(bytes)) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE,
                         "%s: blocks.kv needs %llu bytes, more than this process's limit for a "
                         "file (ulimit -f)",
                         path, (unsigned long long)bytes);
    }
    const uint64_t has = (uint64_t)info.st_blocks * 512;
    const uint64_t needed = bytes > has ? bytes - has : 0;
    return needed > free_bytes(file->fd) ? say_full(diag, path, needed, file->fd) : WEFT_OK;
}

weft_status_t kv_slot_file_reserve(kv_slot_file_t *file, const char *path, uint64_t bytes,
                                   weft_diag_t *diag)
{
    struct stat info;
    if (fstat(file->fd, &info) != 0) {
        return say(diag, path, "cannot look at blocks.kv");
    }
    if (info.st_size > (off_t)bytes && ftruncate(file->fd, (off_t)bytes) != 0) {
        return say(diag, path, "cannot shorten blocks.kv");
    }
    if (!take_space(file->fd, bytes)) {
        const int cause = errno;
        if (info.st_size < (off_t)bytes) {
            (void)!ftruncate(file->fd, info.st_size); /* what was taken is given back */
        }
        errno = cause;
        return cause == ENOSPC ? say_full(diag, path, bytes - (uint64_t)info.st_size, file->fd)
                               : say(diag, path, "cannot take space for blocks.kv");
    }
    return probe_direct(file, path, diag);
}
