/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Malformed model files, each wrong in one way (vectors/hostile): in the library, and by the shipped
 * binary, in a child of 500 MB of address space and 2 seconds of processor time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/alloc.h"
#include "base/mapped_file.h"
#include "runtime/files/gguf.h"
#include "runtime/files/safetensors.h"
#include "runtime/model/model_source.h"
#include "tests/support/sanitizer.h"
#include "tests/support/test_fork.h"
#include "text/text.h"

#define HOSTILE WEFT_TEST_VECTORS "/hostile"
#define TINY    WEFT_TEST_VECTORS "/tiny-models/llama"

#define MAX_BYTES   (500 * 1000 * 1000)
#define MAX_SECONDS 2
#define MAX_VOCAB   320 /* embedding rows of the model that the tokenizers would belong to */

static json_t *load_index(void)
{
    json_error_t error;
    json_t *root = json_load_file(HOSTILE "/index.json", 0, &error);
    if (root == NULL) {
        fail_msg("index.json: %s", error.text);
    }
    return root;
}

static const char *field(const json_t *row, const char *name)
{
    return json_string_value(json_object_get(row, name));
}

/* ---- in the library ------------------------------------------------------------------------ */

static weft_status_t parse_container(const char *format, const weft_mapped_file_t *file,
                                     const char *path, weft_diag_t *diag)
{
    weft_status_t status;
    if (strcmp(format, "gguf") == 0) {
        gguf_t *gguf = NULL;
        status = gguf_parse(file->data, file->length, file->length, path, diag, &gguf);
        gguf_destroy(gguf);
        return status;
    }
    safetensors_t *tensors = NULL;
    status = safetensors_parse(file->data, file->length, file->length, path, diag, &tensors);
    safetensors_destroy(tensors);
    return status;
}

static weft_status_t open_model(const char *path, weft_diag_t *diag)
{
    model_source_t *source = NULL;
    const weft_status_t status = model_source_open(path, diag, &source);
    model_source_close(source);
    return status;
}

static weft_status_t read_json_file(const char *format, const weft_mapped_file_t *file,
                                    weft_diag_t *diag)
{
    if (strcmp(format, "config") == 0) {
        model_config_t config;
        return model_config_from_json(file->data, file->length, NULL, 0, diag, &config);
    }
    text_tokenizer_t *tokenizer = NULL;
    const weft_status_t status =
        text_tokenizer_from_json(file->data, file->length, NULL, 0, MAX_VOCAB, diag, &tokenizer);
    text_tokenizer_destroy(tokenizer);
    return status;
}

/* What the library says to one row. A container that is refused is refused as a model too. */
static weft_status_t load(const json_t *row, const char *path, weft_diag_t *diag)
{
    const char *format = field(row, "format");
    weft_mapped_file_t file = {0};
    if (strcmp(format, "safetensors-folder") == 0) {
        return open_model(path, diag);
    }
    weft_status_t status = weft_mapped_file_open(path, diag, &file);
    if (status != WEFT_OK) {
        return status;
    }
    const bool is_container = strcmp(format, "gguf") == 0 || strcmp(format, "safetensors") == 0;
    status = is_container ? parse_container(format, &file, path, diag)
                          : read_json_file(format, &file, diag);
    weft_mapped_file_close(&file);
    if (is_container && strcmp(field(row, "expect"), "reject") == 0) {
        status = open_model(path, diag);
    }
    return status;
}

static void every_file_gets_what_the_index_expects(void **state)
{
    (void)state;
    size_t i;
    json_t *row;
    json_t *index = load_index();
    const json_t *rows = json_object_get(index, "files");
    assert_true(json_array_size(rows) > 60);
    json_array_foreach(rows, i, row)
    {
        char path[1024];
        weft_diag_t diag = {0};
        const size_t before = weft_alloc_live_bytes();
        snprintf(path, sizeof(path), HOSTILE "/%s", field(row, "path"));
        const weft_status_t status = load(row, path, &diag);
        const char *expect = field(row, "expect");
        if (strcmp(expect, "accept") == 0 && status != WEFT_OK) {
            fail_msg("%s: %s", path, diag.text);
        }
        if (strcmp(expect, "reject") == 0 && (status == WEFT_OK || diag.text[0] == '\0')) {
            fail_msg("%s: %s: not refused, or without a line", path, field(row, "what"));
        }
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
    json_decref(index);
}

/* ---- by the shipped binary ----------------------------------------------------------------- */

static void limit(int resource, rlim_t value)
{
    const struct rlimit both = {value, value};
    setrlimit(resource, &both);
}

/* Runs `weft model inspect path`; the exit code (128 and more: a signal), stderr in errors. */
static int run_inspect(const char *path, char *errors, size_t size)
{
    int pipe_fds[2];
    assert_int_equal(pipe(pipe_fds), 0);
    const pid_t child = test_fork();
    assert_true(child >= 0);
    if (child == 0) {
#if !TEST_IS_SANITIZED
        limit(RLIMIT_AS, MAX_BYTES);
        limit(RLIMIT_CPU, MAX_SECONDS);
#endif
        limit(RLIMIT_CORE, 0);
        dup2(pipe_fds[1], STDERR_FILENO);
        dup2(pipe_fds[1], STDOUT_FILENO);
        execl(WEFT_BINARY_DIR "/weft", "weft", "model", "inspect", path, (char *)NULL);
        _exit(127);
    }
    close(pipe_fds[1]);
    size_t length = 0;
    ssize_t n;
    while ((n = read(pipe_fds[0], errors + length, size - 1 - length)) > 0) {
        length += (size_t)n;
    }
    errors[length] = '\0';
    close(pipe_fds[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* name: the file that the line has to name. */
static void assert_inspect_refuses(const char *path, const char *name)
{
    char errors[16384];
    const int code = run_inspect(path, errors, sizeof(errors));
    const char *end = strchr(errors, '\n');
    if (code != 2 || strncmp(errors, "weft: error: ", 13) != 0 || end == NULL || end[1] != '\0' ||
        strstr(errors, name) == NULL) {
        fail_msg("%s: exit code %d, said: %s", path, code, errors);
    }
}

static bool has_format(const json_t *row, const char *format)
{
    return strcmp(field(row, "format"), format) == 0;
}

static void inspect_refuses_files_with_one_line_and_exit_code_2(void **state)
{
    (void)state;
    size_t i;
    size_t n_run = 0;
    json_t *row;
    json_t *index = load_index();
    json_array_foreach(json_object_get(index, "files"), i, row)
    {
        char path[1024];
        if (strcmp(field(row, "expect"), "reject") != 0 || has_format(row, "config") ||
            has_format(row, "tokenizer")) {
            continue;
        }
        snprintf(path, sizeof(path), HOSTILE "/%s", field(row, "path"));
        assert_inspect_refuses(path, path);
        n_run++;
    }
    assert_true(n_run > 35);
    json_decref(index);
}

static void link_into(const char *folder, const char *name, const char *target)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
    assert_int_equal(symlink(target, path), 0);
}

static void inspect_one_json(const json_t *row, const char *folder)
{
    char target[1024];
    char errors[16384];
    const bool is_config = has_format(row, "config");
    const char *name = is_config ? "config.json" : "tokenizer.json";
    snprintf(target, sizeof(target), HOSTILE "/%s", field(row, "path"));
    link_into(folder, "config.json", is_config ? target : TINY "/config.json");
    link_into(folder, "tokenizer.json", is_config ? TINY "/tokenizer.json" : target);
    if (strcmp(field(row, "expect"), "reject") == 0) {
        assert_inspect_refuses(folder, name);
    } else if (strcmp(field(row, "expect"), "accept") == 0) {
        assert_int_equal(run_inspect(folder, errors, sizeof(errors)), 0);
    } else {
        assert_true(run_inspect(folder, errors, sizeof(errors)) <= 2);
    }
}

static void inspect_refuses_checkpoints_with_a_bad_config_or_tokenizer(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
    size_t i;
    json_t *row;
    json_t *index = load_index();
    char folder[] = "/tmp/weft-hostile-XXXXXX";
    assert_non_null(mkdtemp(folder));
    link_into(folder, "model.safetensors", TINY "/model.safetensors");
    json_array_foreach(json_object_get(index, "files"), i, row)
    {
        if (has_format(row, "config") || has_format(row, "tokenizer")) {
            inspect_one_json(row, folder);
        }
    }
    for (i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        char path[1024];
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(folder), 0);
    json_decref(index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_file_gets_what_the_index_expects),
        cmocka_unit_test(inspect_refuses_files_with_one_line_and_exit_code_2),
        cmocka_unit_test(inspect_refuses_checkpoints_with_a_bad_config_or_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
