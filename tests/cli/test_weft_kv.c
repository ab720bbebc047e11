/* SPDX-License-Identifier: Apache-2.0 */
/* `weft kv`, the shipped binary. */
#include <string.h>
#include <sys/wait.h>

#include "base/buffer.h"
#include "tests/support/vectors.h"

#define WEFT "'" WEFT_BINARY_DIR "/weft' "

static char output[1 << 16];

/* Runs a shell command line without a hash seed; the exit code, and what it printed in output. */
static int run(const char *command)
{
    assert_int_equal(unsetenv("PYTHONHASHSEED"), 0);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    const size_t length = fread(output, 1, sizeof(output) - 1, pipe);
    output[length] = '\0';
    const int status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static const char *text_in(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* The command line that should give the case's chain. */
static char *command_of(const json_t *vector)
{
    weft_buffer_t line = {0};
    const char *seed = text_in(vector, "pythonhashseed");
    const char *salt = text_in(vector, "cache_salt");
    const json_t *lora = json_object_get(vector, "lora");
    const json_t *tokens = json_object_get(vector, "tokens");
    if (seed != NULL) {
        weft_buffer_printf(&line, "PYTHONHASHSEED='%s' ", seed);
    }
    weft_buffer_printf(&line, WEFT "kv hash --json --algo %s --block-size %d",
                       text_in(vector, "algo"),
                       (int)json_integer_value(json_object_get(vector, "block_size")));
    if (salt != NULL) {
        weft_buffer_printf(&line, " --salt '%s'", salt);
    }
    if (json_is_array(lora)) {
        weft_buffer_printf(&line, " --lora '%s=%s'", json_string_value(json_array_get(lora, 0)),
                           json_string_value(json_array_get(lora, 1)));
    }
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        weft_buffer_printf(&line, "%s%d", i == 0 ? " --tokens " : ",",
                           (int)json_integer_value(json_array_get(tokens, i)));
    }
    weft_buffer_puts(&line, " 2>&1");
    return weft_buffer_take(&line, NULL);
}

static void check_case(const json_t *vector)
{
    char *command = command_of(vector);
    assert_non_null(command);
    assert_int_equal(run(command), 0);
    weft_free(command);
    json_t *printed = json_loads(output, 0, NULL);
    assert_non_null(printed);
    assert_string_equal(text_in(printed, "none_hash"), text_in(vector, "none_hash"));
    assert_int_equal(json_integer_value(json_object_get(printed, "unhashed_tail_tokens")),
                     json_integer_value(json_object_get(vector, "unhashed_tail_tokens")));
    const json_t *blocks = json_object_get(printed, "blocks");
    const json_t *expected = json_object_get(vector, "blocks");
    assert_int_equal(json_array_size(blocks), json_array_size(expected));
    for (size_t i = 0; i < json_array_size(blocks); i++) {
        const json_t *block = json_array_get(blocks, i);
        assert_string_equal(text_in(block, "hash"), text_in(json_array_get(expected, i), "hash"));
        assert_string_equal(text_in(block, "event_u64"),
                            text_in(json_array_get(expected, i), "event_u64"));
    }
    json_decref(printed);
}

static void hash_prints_vllms_chains(void **state)
{
    (void)state;
    json_t *file = read_json_vector("block_hash/block_hash.json");
    const json_t *cases = json_object_get(file, "cases");
    size_t checked = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *vector = json_array_get(cases, i);
        if (json_is_null(json_object_get(vector, "mm"))) {
            check_case(vector);
            checked++;
        }
    }
    assert_int_equal(checked, 66);
    json_decref(file);
}

static void files_give_what_flags_give(void **state)
{
    (void)state;
    assert_int_equal(run(WEFT "kv hash --block-size 2 --tokens 1,2,3,4,5"), 0);
    static const char by_flag[] =
        "algorithm  sha256_cbor, PYTHONHASHSEED unset\n"
        "none hash  9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0\n"
        "block 0    d448b117d4cbfc4c3f313a1e0494645014cb9c9b678618457bf09471121a0304 "
        "8930801274431603460\n"
        "block 1    9ddf6cae9c4b53339646052ea592dabccb20f38eb4bb35a61b5caad749f40286 "
        "1971638578516853382\n"
        "unhashed   1 of 5 tokens\n";
    assert_string_equal(output, by_flag);
    assert_int_equal(
        run("printf '1, 2\\n3 4\\n5\\n' | " WEFT "kv hash --block-size 2 --tokens-file -"), 0);
    assert_string_equal(output, by_flag);
}

static void wrong_use_is_told_in_one_line(void **state)
{
    (void)state;
    static const struct {
        const char *arguments;
        const char *text;
    } cases[] = {
        {"hash", "give one of --tokens and --tokens-file"},
        {"hash --tokens 1 --tokens-file x", "give one of --tokens and --tokens-file"},
        {"hash --tokens 1,x", "--tokens: \"x\" is no token id from 0 to 2147483647"},
        {"hash --tokens=-1", "--tokens: \"-1\" is no token id from 0 to 2147483647"},
        {"hash --tokens 2147483648",
         "--tokens: \"2147483648\" is no token id from 0 to 2147483647"},
        {"hash --tokens-file /nowhere", "/nowhere: No such file or directory"},
        {"hash --tokens 1 --block-size 0", "--block-size 0: 1 to 4096 are possible"},
        {"hash --tokens 1 --block-size 5000", "--block-size 5000: 1 to 4096 are possible"},
        {"hash --tokens 1 --algo builtin", "unknown hash algorithm 'builtin', there are: sha256 "
                                           "sha256_cbor xxhash xxhash_cbor"},
        {"hash --tokens 1 --lora adapter", "--lora \"adapter\": not NAME=PATH"},
        {"hash --tokens 1 --lora =/path", "--lora \"=/path\": not NAME=PATH"},
        {"hash --tokens 1 --lora name=", "--lora \"name=\": not NAME=PATH"},
        {"hash --tokens 1 --salt ''", "--salt is empty"},
        {"hash --tokens 1 --salt \"$(printf '\\377')\"", "--salt and --lora must be UTF-8"},
        {"hash --tokens 1 --salt $(printf %013000d 1)", "--salt and --lora are longer than 12288 "
                                                        "bytes"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char command[512];
        char line[512];
        snprintf(command, sizeof(command), WEFT "kv %s 2>&1", cases[i].arguments);
        snprintf(line, sizeof(line), "weft: error: %s\n", cases[i].text);
        assert_int_equal(run(command), 2);
        assert_string_equal(output, line);
    }
    assert_int_equal(run("PYTHONHASHSEED=$(printf %013000d 1) " WEFT "kv hash --tokens 1 2>&1"), 2);
    assert_string_equal(output, "weft: error: PYTHONHASHSEED is longer than 12288 bytes\n");
    assert_int_equal(run(WEFT "kv explode 2>&1"), 2);
    assert_non_null(strstr(output, "no command \"kv explode\""));
    assert_int_equal(run(WEFT "kv 2>&1"), 2);
    assert_int_equal(run(WEFT "kv --help"), 0);
    assert_non_null(strstr(output, "hash "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hash_prints_vllms_chains),
        cmocka_unit_test(files_give_what_flags_give),
        cmocka_unit_test(wrong_use_is_told_in_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
