/* SPDX-License-Identifier: Apache-2.0 */
/* `weft model inspect`, the shipped binary. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>
#include <jansson.h>

#define TINY WEFT_TEST_VECTORS "/tiny-models/"

/* The exit code; what it printed in output. */
static int run(const char *arguments, char *output, size_t size)
{
    char command[2048];
    snprintf(command, sizeof(command), "'" WEFT_BINARY_DIR "/weft' model %s 2>&1", arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    const size_t length = fread(output, 1, size - 1, pipe);
    output[length] = '\0';
    const int status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static json_int_t number(const json_t *root, const char *outer, const char *name)
{
    const json_t *object = outer == NULL ? root : json_object_get(root, outer);
    const json_t *value = json_object_get(object, name);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

static void json_says_what_the_model_is_and_needs(void **state)
{
    (void)state;
    char output[16384];
    json_error_t error;
    assert_int_equal(
        run("inspect --json --max-model-len 100 '" TINY "qwen3'", output, sizeof(output)), 0);
    json_t *root = json_loads(output, 0, &error);
    assert_non_null(root);
    assert_string_equal(json_string_value(json_object_get(root, "family")), "qwen3");
    assert_string_equal(json_string_value(json_object_get(root, "format")), "safetensors");
    assert_non_null(json_string_value(json_object_get(root, "tokenizer")));
    assert_int_equal(number(root, NULL, "layers"), 3);
    assert_int_equal(number(root, NULL, "tensors"), 35);
    /* Embedding, last norm; per layer q, k, v, o, their norms, two norms, three matrices. */
    const json_int_t layer = 2 * 128 * 64 + 2 * 64 * 64 + 2 * 32 + 2 * 64 + 3 * 128 * 64;
    const json_int_t parameters = 320 * 64 + 64 + 3 * layer;
    assert_int_equal(number(root, NULL, "parameters"), parameters);
    assert_int_equal(number(root, "memory", "mapped_bytes"), 2 * parameters);
    assert_int_equal(number(root, "memory", "max_model_len"), 100);
    const json_t *kv = json_object_get(json_object_get(root, "memory"), "kv_cache");
    assert_int_equal(number(kv, "f16", "token_bytes"), 3 * 2 * 32 * 2 * 2);
    assert_int_equal(number(kv, "f32", "sequence_bytes"), 3 * 2 * 32 * 2 * 4 * 100);
    json_decref(root);
}

static void people_read_types_and_memory(void **state)
{
    (void)state;
    char output[16384];
    assert_int_equal(run("inspect '" TINY "llama-gguf-q8_0/model.gguf'", output, sizeof(output)),
                     0);
    assert_non_null(strstr(output, "architecture     llama (gguf, family llama)"));
    assert_non_null(strstr(output, "\n  q8_0 "));
    assert_non_null(strstr(output, "ends at          2 <eos>\n"));
    assert_non_null(strstr(output, "chat template    none\n"));
    assert_non_null(strstr(output, "KV cache f16"));
}

static void parsers_are_guessed_from_the_chat_template(void **state)
{
    (void)state;
    char command[512];
    char output[16384];
    char folder[] = "/tmp/weft-inspect-XXXXXX";
    assert_non_null(mkdtemp(folder));
    snprintf(command, sizeof(command),
             "ln -s '" TINY "'llama/*.json '" TINY "'llama/model.safetensors %s &&"
             " echo '{{ tools }}<tool_call>{\"name\": ...}</tool_call>' > %s/chat_template.jinja",
             folder, folder);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof(command), "inspect %s", folder);
    assert_int_equal(run(command, output, sizeof(output)), 0);
    assert_non_null(strstr(output, "tool parser hermes, reasoning parser none\n"));
    snprintf(command, sizeof(command), "rm -r %s", folder);
    assert_int_equal(system(command), 0);
}

static void wrong_use_is_told_in_one_line(void **state)
{
    (void)state;
    char output[16384];
    assert_int_equal(run("inspect", output, sizeof(output)), 2);
    assert_string_equal(output, "weft: error: name one model: weft model inspect PATH\n");
    assert_int_equal(run("inspect /nowhere/at/all", output, sizeof(output)), 2);
    assert_string_equal(output, "weft: error: /nowhere/at/all: No such file or directory\n");
    assert_int_equal(run("inspect --max-model-len 257 '" TINY "llama'", output, sizeof(output)), 2);
    assert_string_equal(output, "weft: error: --max-model-len 257: the model allows 256\n");
    assert_int_equal(run("explode", output, sizeof(output)), 2);
    assert_int_equal(run("--help", output, sizeof(output)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_says_what_the_model_is_and_needs),
        cmocka_unit_test(people_read_types_and_memory),
        cmocka_unit_test(parsers_are_guessed_from_the_chat_template),
        cmocka_unit_test(wrong_use_is_told_in_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
