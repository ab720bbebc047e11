/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static weft_status_t diag_errno(weft_diag_t *diag, const char *path, const char *what)
{
    const int error = errno;
    weft_status_t status = WEFT_ERR_IO;
    if (error == ENOENT || error == ENOTDIR) {
        status = WEFT_ERR_NOT_FOUND;
    } else if (error == ENOMEM) {
        status = WEFT_ERR_NO_MEMORY;
    } else if (error == EACCES || error == EPERM) {
        status = WEFT_ERR_DENIED;
    }
    return weft_diag(diag, status, "%s: %s: %s", path, what, strerror(error));
}

static uint64_t nanoseconds(const struct timespec *time)
{
    return (uint64_t)time->tv_sec * 1000000000 + (uint64_t)time->tv_nsec;
}

static weft_file_stamp_t stamp_of(const struct stat *info)
{
    return (weft_file_stamp_t){
        .device = (uint64_t)info->st_dev,
        .inode = (uint64_t)info->st_ino,
        .bytes = (uint64_t)info->st_size,
        .modified_ns = nanoseconds(&info->st_mtim),
        .changed_ns = nanoseconds(&info->st_ctim),
    };
}

static weft_status_t map_fd(int fd, const char *path, weft_diag_t *diag,
                            weft_mapped_file_t *file_out)
{
    struct stat info;
    if (fstat(fd, &info) != 0) {
        return diag_errno(diag, path, "cannot be examined");
    }
    if (!S_ISREG(info.st_mode)) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: is not a regular file", path);
    }
    if (info.st_size <= 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "%s: is empty", path);
    }
    if ((uintmax_t)info.st_size > SIZE_MAX) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%s: does not fit in the address space", path);
    }
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        return diag_errno(diag, path, "cannot be mapped");
    }
    file_out->data = data;
    file_out->length = (size_t)info.st_size;
    file_out->stamp = stamp_of(&info);
    return WEFT_OK;
}

weft_status_t weft_mapped_file_open(const char *path, weft_diag_t *diag,
                                    weft_mapped_file_t *file_out)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return diag_errno(diag, path, "cannot be opened");
    }
    const weft_status_t status = map_fd(fd, path, diag, file_out);
    close(fd);
    return status;
}

void weft_mapped_file_close(weft_mapped_file_t *file)
{
    if (file->data != NULL) {
        munmap((void *)(uintptr_t)file->data, file->length);
    }
    file->data = NULL;
    file->length = 0;
}
