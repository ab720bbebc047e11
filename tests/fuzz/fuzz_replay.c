/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_replay: main for a fuzz target without libFuzzer: feeds it every file that is named, and
 * every file of a folder that is named.
 */
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An exact heap block, so that a sanitizer sees a read past its end. */
static bool replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat info;
    if (file == NULL || fstat(fileno(file), &info) < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        if (file != NULL) {
            fclose(file);
        }
        return false;
    }
    const size_t size = (size_t)info.st_size;
    uint8_t *data = malloc(size);
    const bool is_read = data != NULL && fread(data, 1, size, file) == size;
    fclose(file);
    if (is_read) {
        LLVMFuzzerTestOneInput(data, size);
    } else {
        fprintf(stderr, "%s: cannot be read\n", path);
    }
    free(data);
    return is_read;
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* Number of inputs, or -1 when one could not be read. Sorted: a failure names the same file anywhere. */
static int replay_folder(const char *folder)
{
    struct dirent **entries = NULL;
    int n_done = 0;
    const int n = scandir(folder, &entries, is_visible, alphasort);
    for (int i = 0; i < n; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/%s", folder, entries[i]->d_name);
        n_done = n_done >= 0 && replay_file(path) ? n_done + 1 : -1;
        free(entries[i]);
    }
    free(entries);
    return n < 0 ? -1 : n_done;
}

int main(int argc, char **argv)
{
    int n_inputs = 0;
    for (int i = 1; i < argc; i++) {
        struct stat info;
        const bool is_folder = stat(argv[i], &info) == 0 && S_ISDIR(info.st_mode);
        const int n = is_folder ? replay_folder(argv[i]) : (replay_file(argv[i]) ? 1 : -1);
        if (n < 0) {
            fprintf(stderr, "%s: cannot be replayed\n", argv[i]);
            return 1;
        }
        n_inputs += n;
    }
    if (n_inputs == 0) {
        fprintf(stderr, "no inputs: name files or folders\n");
        return 1;
    }
    printf("%d inputs replayed\n", n_inputs);
    return 0;
}
