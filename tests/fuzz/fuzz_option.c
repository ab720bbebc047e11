/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_option: the first byte says what the rest is: a YAML file, extra arguments or words of argv. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/log.h"
#include "base/option.h"

#define VARIABLE "FUZZ_ARGUMENTS"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct config {
    uint32_t count;
    int64_t offset;
    double scale;
    uint64_t bytes;
    const char *name;
    bool is_on;
    weft_list_t list;
} config_t;

static config_t config;
static const weft_option_t rows[] = {
    {"count", WEFT_OPTION_U32, offsetof(config_t, count), "1", ""},
    {"offset", WEFT_OPTION_I64, offsetof(config_t, offset), "-1", ""},
    {"scale", WEFT_OPTION_F64, offsetof(config_t, scale), "0.5", ""},
    {"bytes", WEFT_OPTION_BYTES, offsetof(config_t, bytes), "1MiB", ""},
    {"name", WEFT_OPTION_STR, offsetof(config_t, name), "", ""},
    {"on", WEFT_OPTION_BOOL, offsetof(config_t, is_on), "true", ""},
    {"list", WEFT_OPTION_LIST, offsetof(config_t, list), "", ""},
};
static const weft_option_group_t groups[] = {{"All", rows, WEFT_ARRAY_LEN(rows), &config}};
static const weft_option_ignored_t ignored[] = {{"old", WEFT_OPTION_TAKES_ONE, "gone"},
                                                {"older", WEFT_OPTION_TAKES_NONE, "gone"},
                                                {"oldest", WEFT_OPTION_TAKES_LIST, "gone"}};
static const weft_option_spec_t spec = {.usage = "",
                                        .about = "",
                                        .groups = groups,
                                        .n_groups = 1,
                                        .ignored = ignored,
                                        .n_ignored = 3,
                                        .extra_arguments_variable = VARIABLE,
                                        .max_positional = 2,
                                        .has_config_file = true};

static void parse(int argc, char **argv)
{
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    const weft_status_t status = weft_option_set_parse(&spec, argc, argv, &diag, &set);
    if (status < 0 && status != WEFT_ERR_CANCELLED && diag.text[0] == '\0') {
        abort(); /* refused without a word */
    }
    if (status >= 0 &&
        (config.name == NULL || (config.list.count > 0) != (config.list.items != NULL))) {
        abort();
    }
    weft_option_set_destroy(set);
}

static void parse_file(const uint8_t *data, size_t size)
{
    char path[64];
    char command[] = "fuzz";
    char flag[] = "--config";
    char *argv[] = {command, flag, path};
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (fd >= 0 && write(fd, data, size) == (ssize_t)size) {
        parse(3, argv);
    }
    close(fd);
}

/* Lines become words. */
static void parse_words(char *text)
{
    char command[] = "fuzz";
    char *argv[64] = {command};
    int argc = 1;
    for (char *word = text; word != NULL && argc < 64;) {
        argv[argc++] = strsep(&word, "\n");
        if (strncmp(argv[argc - 1], "--config", 8) == 0 ||
            strncmp(argv[argc - 1], "--he", 4) == 0 || strncmp(argv[argc - 1], "-h", 2) == 0) {
            argc--; /* files of this machine, and the help again and again */
        }
    }
    parse(argc, argv);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weft_log_set_level(WEFT_LOG_ERROR);
    if (size == 0) {
        return 0;
    }
    char *text = calloc(1, size);
    memcpy(text, data + 1, size - 1);
    switch (data[0] % 3) {
    case 0:
        parse_file(data + 1, size - 1);
        break;
    case 1:
        if (strstr(text, "--") == NULL || strstr(text, "he") == NULL) {
            setenv(VARIABLE, text, 1);
            parse(0, NULL);
            unsetenv(VARIABLE);
        }
        break;
    default:
        parse_words(text);
        break;
    }
    free(text);
    return 0;
}
