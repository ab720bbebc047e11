/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/model_sample.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "base/compiler.h"

#define WHOLE_BYTES  (1 << 20) /* a file's beginning that is read */
#define N_PLACES     64
#define PLACE_BYTES  4096
#define BUFFER_BYTES 65536

/* Up to n bytes from offset on. */
static int add_bytes(EVP_MD_CTX *digest, int fd, off_t offset, size_t n)
{
    static uint8_t buffer[BUFFER_BYTES]; /* a command's one thread */
    while (n > 0) {
        const size_t most = n < sizeof(buffer) ? n : sizeof(buffer);
        const ssize_t got = pread(fd, buffer, most, offset);
        if (got <= 0) {
            return got == 0;
        }
        if (!EVP_DigestUpdate(digest, buffer, (size_t)got)) {
            return 0;
        }
        offset += got;
        n -= (size_t)got;
    }
    return 1;
}

static int add_file(EVP_MD_CTX *digest, int folder, const char *path, const char *name)
{
    struct stat about;
    char text[300];
    const int fd = openat(folder, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about) != 0) {
        if (fd >= 0) {
            close(fd);
        }
        return 0;
    }
    const int length =
        snprintf(text, sizeof(text), "%.250s %lld\n", name, (long long)about.st_size);
    int is_added =
        EVP_DigestUpdate(digest, text, (size_t)length) && add_bytes(digest, fd, 0, WHOLE_BYTES);
    for (int i = 0; i < N_PLACES && is_added && about.st_size > WHOLE_BYTES; i++) {
        const off_t step = (about.st_size - WHOLE_BYTES) / N_PLACES;
        is_added = add_bytes(digest, fd, WHOLE_BYTES + step * i, PLACE_BYTES);
    }
    close(fd);
    return is_added;
}

static int is_of_model(const struct dirent *entry)
{
    static const char *const ends[] = {".json", ".safetensors", ".gguf", ".jinja", ".model"};
    const size_t length = strlen(entry->d_name);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(ends); i++) {
        const size_t n = strlen(ends[i]);
        if (length > n && strcmp(entry->d_name + length - n, ends[i]) == 0) {
            return 1;
        }
    }
    return 0;
}

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int add_folder(EVP_MD_CTX *digest, const char *path)
{
    struct dirent **entries = NULL;
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int n = fd >= 0 ? scandir(path, &entries, is_of_model, compare_names) : -1;
    int is_added = n >= 0;
    for (int i = 0; i < n; i++) {
        is_added = is_added && add_file(digest, fd, entries[i]->d_name, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    if (fd >= 0) {
        close(fd);
    }
    return is_added;
}

weft_status_t model_sample(const char *path, weft_diag_t *diag, char text_out[MODEL_SAMPLE_TEXT])
{
    struct stat about;
    uint8_t sum[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    if (digest == NULL || !EVP_DigestInit_ex(digest, EVP_sha256(), NULL)) {
        EVP_MD_CTX_free(digest);
        return WEFT_ERR_NO_MEMORY;
    }
    errno = 0;
    const int is_made = stat(path, &about) == 0 &&
                        (S_ISDIR(about.st_mode) ? add_folder(digest, path)
                                                : add_file(digest, AT_FDCWD, path, "model")) &&
                        EVP_DigestFinal_ex(digest, sum, NULL);
    EVP_MD_CTX_free(digest);
    if (!is_made) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: %s", path,
                         errno != 0 ? strerror(errno) : "cannot be read");
    }
    for (int i = 0; i < 32; i++) {
        snprintf(text_out + 2 * i, 3, "%02x", sum[i]);
    }
    return WEFT_OK;
}
