/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weft_shell: the binary as a shell meets it: words in, text and exit code out.
 */
#pragma once

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "tests/support/check.h"

#define WEFT             WEFT_BINARY_DIR "/weft "
#define WEFT_SHELL_BYTES ((size_t)1 << 20)

/* What the last command printed, terminated. */
static char output[WEFT_SHELL_BYTES];

/* Runs a command line; the exit code. */
static inline int shell(const char *command)
{
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    const size_t n = fread(output, 1, WEFT_SHELL_BYTES - 1, pipe);
    output[n] = '\0';
    const int status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Of a command that succeeds. */
static inline json_t *run_json(const char *command)
{
    json_error_t error;
    assert_int_equal(shell(command), 0);
    json_t *json = json_loads(output, JSON_ALLOW_NUL, &error);
    if (json == NULL) {
        print_error("%s\n%s: %s\n", command, output, error.text);
    }
    assert_non_null(json);
    return json;
}

typedef struct weft_shell_case {
    const char *words; /* behind weft; LLAMA in it stands for a model's path */
    const char *says;  /* part of the error */
} weft_shell_case_t;

/* Each of them is wrong input: exit code 2, and one line that says why. */
static inline void weft_shell_refuses(const weft_shell_case_t *cases, size_t n, const char *llama)
{
    for (size_t i = 0; i < n; i++) {
        char command[2048];
        const char *words = cases[i].words;
        const char *model = strstr(words, "LLAMA");
        const int before = model == NULL ? (int)strlen(words) : (int)(model - words);
        snprintf(command, sizeof(command), WEFT "%.*s%s%s 2>&1 >/dev/null", before, words,
                 model == NULL ? "" : llama, model == NULL ? "" : model + 5);
        const int code = shell(command);
        const char *end = strchr(output, '\n');
        if (code != 2 || strncmp(output, "weft: error: ", 13) != 0 || end == NULL ||
            end[1] != '\0' || strstr(output, cases[i].says) == NULL) {
            print_error("weft %s: exit code %d, says: %s\n", words, code, output);
            fail();
        }
    }
}
