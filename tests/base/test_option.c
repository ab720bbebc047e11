/* SPDX-License-Identifier: Apache-2.0 */
#include "base/option.h"

#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/support/check.h"
#include "tests/support/random.h"

/* The table under test, made as a folder makes its own. */
#define ROWS(OPTION)                                                                               \
    OPTION(block_size, U32, "block-size", "16", "Tokens in a block.")                              \
    OPTION(seed, U64, "seed", "0", "Seed.")                                                        \
    OPTION(length, AUTO, "max-length", "auto", "Length.")                                          \
    OPTION(priority, I64, "priority", "-3", "Priority | of it.")                                   \
    OPTION(scale, F64, "scale", "0.5", "Scale.")                                                   \
    OPTION(memory, BYTES, "cache-memory", "1MiB", "Memory.")                                       \
    OPTION(host, STR, "host", "", "Address.")                                                      \
    OPTION(has_cache, BOOL, "enable-caching", "true", "Keep blocks.")                              \
    OPTION(names, LIST, "served-model-name", "", "Names.")

typedef struct config {
    ROWS(WEFT_OPTION_FIELD)
} config_t;

#define ROW(...) WEFT_OPTION_ROW(config_t, __VA_ARGS__)
static const weft_option_t rows[] = {ROWS(ROW)};

static const weft_option_t other_rows[] = {
    {"workers", WEFT_OPTION_U32, 0, "1", "Another command's."},
};

static config_t config;
static const weft_option_group_t groups[] = {{"Engine", rows, WEFT_ARRAY_LEN(rows), &config}};
static const weft_option_group_t of_others[] = {{"Other", other_rows, 1, NULL}};
static const weft_option_alias_t variables[] = {{"VLLM_HOST_IP", "host"}};
static const weft_option_alias_t flags[] = {
    {"b", "block-size"},
    {"caching", "enable-caching"},
    {"g", "gpu-memory-utilization"},
};
static const weft_option_ignored_t ignored[] = {
    {"gpu-memory-utilization", WEFT_OPTION_TAKES_ONE, "no GPU here"},
    {"enforce-eager", WEFT_OPTION_TAKES_NONE, "no graphs here"},
    {"lora-modules", WEFT_OPTION_TAKES_LIST, "no adapters here"},
};

static const weft_option_spec_t spec = {
    .usage = "weft try MODEL [options]",
    .about = "Tries things.",
    .groups = groups,
    .n_groups = 1,
    .variables = variables,
    .n_variables = 1,
    .flags = flags,
    .n_flags = 3,
    .ignored = ignored,
    .n_ignored = 3,
    .extra_arguments_variable = "VLLM_ADDITIONAL_ARGS",
    .max_positional = 2,
    .has_config_file = true,
};

static weft_diag_t diag;
static weft_option_set_t *set;
static char yaml_path[64];

static int start_clean(void **state)
{
    (void)state;
    memset(&config, 0xee, sizeof(config)); /* every field must be set */
    memset(&diag, 0, sizeof(diag));
    clearenv();
    return 0;
}

static int destroy_set(void **state)
{
    (void)state;
    weft_option_set_destroy(set);
    set = NULL;
    return 0;
}

/* Parses "try" and the words up to NULL. */
static weft_status_t parse(const char *first, ...)
{
    char *argv[32] = {"try"};
    int argc = 1;
    va_list args;
    va_start(args, first);
    for (const char *word = first; word != NULL; word = va_arg(args, const char *)) {
        argv[argc++] = (char *)(uintptr_t)word; /* parse() does not write to them */
    }
    va_end(args);
    weft_option_set_destroy(set);
    set = NULL;
    return weft_option_set_parse(&spec, argc, argv, &diag, &set);
}

static void check_diag(const char *expected)
{
    assert_string_equal(diag.text, expected);
}

static void write_yaml(const char *text, size_t length)
{
    strcpy(yaml_path, "/tmp/weft-option-XXXXXX");
    const int fd = mkstemp(yaml_path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, length), length);
    close(fd);
}

/* Parses with --config of a file that holds text. */
static weft_status_t parse_yaml(const char *text)
{
    write_yaml(text, strlen(text));
    const weft_status_t status = parse("--config", yaml_path, NULL);
    unlink(yaml_path);
    return status;
}

/* The diag must be the path of the file, then expected. */
static void check_yaml_diag(const char *expected)
{
    assert_true(strncmp(diag.text, yaml_path, strlen(yaml_path)) == 0);
    assert_string_equal(diag.text + strlen(yaml_path), expected);
}

static void defaults_fill_every_field(void **state)
{
    (void)state;
    assert_status(parse(NULL), WEFT_OK);
    assert_int_equal(config.block_size, 16);
    assert_int_equal(config.seed, 0);
    assert_int_equal(config.priority, -3);
    assert_true(config.scale == 0.5);
    assert_int_equal(config.memory, 1 << 20);
    assert_string_equal(config.host, "");
    assert_true(config.has_cache);
    assert_int_equal(config.names.count, 0);
    assert_false(weft_option_is_given(set, "seed"));
    assert_int_equal(weft_option_positional_count(set), 0);
    assert_null(weft_option_positional(set, 0));
}

static void flags_take_their_value_in_every_spelling(void **state)
{
    (void)state;
    assert_status(parse("m.gguf", "--block-size", "32", "--seed=7", "--priority", "-5", "--scale",
                        "1e-3", "--cache_memory", "2G", "--host=", "--no-enable-caching",
                        "--served-model-name", "a", "b", "--served_model_name=--c", NULL),
                  WEFT_OK);
    assert_int_equal(config.block_size, 32);
    assert_int_equal(config.seed, 7);
    assert_int_equal(config.priority, -5);
    assert_true(config.scale == 1e-3);
    assert_int_equal(config.memory, UINT64_C(2) << 30);
    assert_string_equal(config.host, "");
    assert_false(config.has_cache);
    assert_int_equal(config.names.count, 3);
    assert_string_equal(config.names.items[0], "a");
    assert_string_equal(config.names.items[2], "--c");
    assert_string_equal(weft_option_positional(set, 0), "m.gguf");
    assert_true(weft_option_is_given(set, "seed"));
    assert_true(weft_option_is_given(set, "enable_caching"));

    assert_status(parse("-b", "64", "--no-caching", "--", "--x", "-", NULL), WEFT_OK);
    assert_int_equal(config.block_size, 64);
    assert_false(config.has_cache);
    assert_string_equal(weft_option_positional(set, 0), "--x");
    assert_string_equal(weft_option_positional(set, 1), "-");

    assert_status(parse("--enable-caching=off", "--enable-caching", "--b=8", "-5", NULL), WEFT_OK);
    assert_true(config.has_cache);
    assert_int_equal(config.block_size, 8);
    assert_string_equal(weft_option_positional(set, 0), "-5");
}

static void sources_win_in_their_order(void **state)
{
    (void)state;
    static const char yaml[] =
        "block-size: 1\nseed: 1\nscale: 1\npriority: 1\nserved-model-name: [y, z]\n";
    write_yaml(yaml, strlen(yaml));
    setenv("WEFT_CONFIG", yaml_path, 1);
    setenv("WEFT_SEED", "2", 1);
    setenv("WEFT_SCALE", "2", 1);
    setenv("WEFT_PRIORITY", "2", 1);
    setenv("WEFT_SERVED_MODEL_NAME", "e 'f g'", 1);
    setenv("VLLM_ADDITIONAL_ARGS", "--scale 3 --priority=\"3\"", 1);
    assert_status(parse("--priority", "4", NULL), WEFT_OK);
    assert_int_equal(config.block_size, 1);
    assert_int_equal(config.seed, 2);
    assert_true(config.scale == 3);
    assert_int_equal(config.priority, 4);
    assert_int_equal(config.names.count, 2); /* of the environment alone */
    assert_string_equal(config.names.items[1], "f g");
    unlink(yaml_path);
}

static void numbers_know_their_range_and_units(void **state)
{
    (void)state;
    const struct {
        const char *flag;
        const char *diag; /* NULL: fine */
    } cases[] = {
        {"--max-length=auto", NULL},
        {"--max-length=AUTO", NULL},
        {"--max-length=-1", NULL},
        {"--max-length=8k", NULL},
        {"--max-length=-2", "--max-length: \"-2\" is below 0"},
        {"--max-length=much", "--max-length: \"much\" is not a whole number"},
        {"--block-size=4294967295", NULL},
        {"--block-size=4k", NULL},
        {"--block-size=4294967296", "--block-size: \"4294967296\" is over 4294967295"},
        {"--block-size=4t", "--block-size: \"4t\" is over 4294967295"},
        {"--block-size=-1", "--block-size: \"-1\" is below 0"},
        {"--block-size=abc", "--block-size: \"abc\" is not a whole number"},
        {"--block-size=", "--block-size: \"\" is not a whole number"},
        {"--block-size=1.5", "--block-size: \"1.5\" is not a whole number"},
        {"--block-size=0x10", "--block-size: \"0x10\" is not a whole number"},
        {"--block-size=16MiB", "--block-size: \"16MiB\" is not a whole number"},
        {"--seed=18446744073709551615", NULL},
        {"--seed=18446744073709551616",
         "--seed: \"18446744073709551616\" is over 18446744073709551615"},
        {"--priority=-9223372036854775807", NULL},
        {"--priority=9223372036854775808",
         "--priority: \"9223372036854775808\" is over 9223372036854775807"},
        {"--scale=-2.5e10", NULL},
        {"--scale=nan", "--scale: \"nan\" is not a number"},
        {"--scale=1e999", "--scale: \"1e999\" is not a number"},
        {"--scale= 1", "--scale: \" 1\" is not a number"},
        {"--scale=1x", "--scale: \"1x\" is not a number"},
        {"--cache-memory=1.5GiB", NULL},
        {"--cache-memory=16777216T", "--cache-memory: \"16777216T\" is over 18446744073709551615"},
        {"--cache-memory=4 MiB",
         "--cache-memory: \"4 MiB\" is not a size such as 4096, 64MiB or 2G"},
        {"--cache-memory=.5G", "--cache-memory: \".5G\" is not a size such as 4096, 64MiB or 2G"},
        {"--enable-caching=maybe", "--enable-caching: \"maybe\" is neither true nor false"},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(cases); i++) {
        assert_status(parse(cases[i].flag, NULL),
                      cases[i].diag == NULL ? WEFT_OK : WEFT_ERR_INVALID);
        if (cases[i].diag != NULL) {
            check_diag(cases[i].diag);
        }
    }
    assert_status(parse("--cache-memory", "1kB", "--block-size", "1.5K", NULL), WEFT_OK);
    assert_int_equal(config.memory, 1000);
    assert_int_equal(config.block_size, 1536);
}

static void random_numbers_read_back(void **state)
{
    (void)state;
    test_random_t random = {test_seed(1)};
    for (uint32_t i = 0; i < test_rounds(4000); i++) {
        const uint64_t seed = test_random_u64(&random) >> test_random_below(&random, 64);
        const int64_t priority = (int64_t)(test_random_u64(&random) >> 1);
        char words[2][64];
        snprintf(words[0], sizeof(words[0]), "--seed=%llu", (unsigned long long)seed);
        snprintf(words[1], sizeof(words[1]), "--priority=-%lld", (long long)priority);
        assert_status(parse(words[0], words[1], NULL), WEFT_OK);
        assert_true(config.seed == seed);
        assert_true(config.priority == -priority);
    }
}

static void unknown_flags_get_the_nearest_one_named(void **state)
{
    (void)state;
    assert_status(parse("--blok-size", "3", NULL), WEFT_ERR_INVALID);
    check_diag("--blok-size is unknown; did you mean --block-size?");
    assert_status(parse("--quantum-foam=3", NULL), WEFT_ERR_INVALID);
    check_diag("--quantum-foam is unknown; --help lists what there is");
    assert_status(parse("--no-seed", NULL), WEFT_ERR_INVALID);
    assert_status(parse("-seed", "3", NULL), WEFT_ERR_INVALID);
    check_diag("-seed is unknown; did you mean --seed?");
}

static void missing_and_surplus_words_are_named(void **state)
{
    (void)state;
    assert_status(parse("--seed", NULL), WEFT_ERR_INVALID);
    check_diag("--seed needs a value");
    assert_status(parse("--seed", "--host", "x", NULL), WEFT_ERR_INVALID);
    check_diag("--seed needs a value");
    assert_status(parse("--served-model-name", NULL), WEFT_ERR_INVALID);
    assert_status(parse("--config", NULL), WEFT_ERR_INVALID);
    assert_status(parse("a", "b", "c", NULL), WEFT_ERR_INVALID);
    check_diag("\"c\" is one argument too many");
    assert_status(parse("--no-enable-caching=1", NULL), WEFT_ERR_INVALID);
    check_diag("--no-enable-caching takes no value");
}

static void ignored_flags_are_taken_with_their_value(void **state)
{
    (void)state;
    weft_log_set_level(WEFT_LOG_ERROR);
    assert_status(parse("--gpu-memory-utilization", "0.9", "m", "--enforce-eager",
                        "--no_enforce_eager", "--gpu_memory_utilization.x=1", NULL),
                  WEFT_OK);
    assert_int_equal(weft_option_positional_count(set), 1);
    assert_status(parse("--gpu-memory-utilization", NULL), WEFT_ERR_INVALID);
    assert_status(parse("--no-gpu-memory-utilization", NULL), WEFT_ERR_INVALID);
    assert_status(parse_yaml("gpu-memory-utilization: {a: [1, {b: c}]}\nseed: 4\n"), WEFT_OK);
    assert_int_equal(config.seed, 4);
    weft_log_set_level(WEFT_LOG_INFO);
}

static void ignored_lists_end_at_a_flag(void **state)
{
    (void)state;
    weft_log_set_level(WEFT_LOG_ERROR);
    assert_status(parse("m", "--lora-modules", "a=b", "c=d", "--seed", "4", NULL), WEFT_OK);
    assert_int_equal(config.seed, 4);
    assert_int_equal(weft_option_positional_count(set), 1);
    assert_status(parse("--lora-modules", "a=b", "c=d", "--", "m", NULL), WEFT_OK);
    assert_int_equal(weft_option_positional_count(set), 1);
    assert_string_equal(weft_option_positional(set, 0), "m");
    assert_status(parse("--lora-modules=a=b", "m", NULL), WEFT_OK);
    assert_int_equal(weft_option_positional_count(set), 1);
    assert_status(parse("--lora-modules", NULL), WEFT_ERR_INVALID);
    check_diag("--lora-modules needs a value");
    assert_status(parse("--lora-modules", "--seed", "4", NULL), WEFT_ERR_INVALID);
    assert_status(parse("--no-lora-modules", NULL), WEFT_ERR_INVALID);
    weft_log_set_level(WEFT_LOG_INFO);
}

static void ignored_flags_have_short_names(void **state)
{
    (void)state;
    weft_log_set_level(WEFT_LOG_ERROR);
    assert_status(parse("-g", "0.9", "-g.x=1", "-g3", "m", NULL), WEFT_OK);
    assert_int_equal(weft_option_positional_count(set), 1);
    assert_status(parse("-g", NULL), WEFT_ERR_INVALID);
    check_diag("-g needs a value");
    weft_log_set_level(WEFT_LOG_INFO);
}

static void numbers_may_follow_a_letter_at_once(void **state)
{
    (void)state;
    assert_status(parse("-b32", NULL), WEFT_OK);
    assert_int_equal(config.block_size, 32);
    assert_status(parse("-x3", NULL), WEFT_ERR_INVALID);
    check_diag("-x is unknown; --help lists what there is");
}

static void variables_are_checked_like_flags(void **state)
{
    (void)state;
    setenv("WEFT_BLOCK_SIZE", "many", 1);
    assert_status(parse(NULL), WEFT_ERR_INVALID);
    check_diag("WEFT_BLOCK_SIZE: \"many\" is not a whole number");
    setenv("WEFT_BLOCK_SIZE", "", 1);
    assert_status(parse(NULL), WEFT_OK);
    assert_int_equal(config.block_size, 16);
    setenv("WEFT_BLOC_SIZE", "4", 1);
    assert_status(parse(NULL), WEFT_ERR_INVALID);
    check_diag("WEFT_BLOC_SIZE is unknown; did you mean --block-size?");
    unsetenv("WEFT_BLOC_SIZE");
    setenv("WEFT_SERVED_MODEL_NAME", "'open", 1);
    assert_status(parse(NULL), WEFT_ERR_INVALID);
    check_diag("WEFT_SERVED_MODEL_NAME: a quote or backslash has no end");
}

static void variables_of_others_are_left_alone(void **state)
{
    (void)state;
    setenv("WEFT_TEST_SEED", "4", 1);
    setenv("WEFT_CARGO_TARGET_DIR", "/x", 1);
    setenv("WEFT_CACHE_DIR", "/x", 1);
    weft_option_register(of_others, 1);
    setenv("WEFT_WORKERS", "not a number, but not ours either", 1);
    setenv("WEFT_SERVICE_HOST", "10.0.0.1", 1);
    setenv("WEFT_PORT", "tcp://10.0.0.1:80", 1);
    setenv("WEFT_PORT_80_TCP_ADDR", "10.0.0.1", 1);
    setenv("WEFTED", "4", 1);
    assert_status(parse(NULL), WEFT_OK);
    weft_option_register(NULL, 0);
    assert_status(parse(NULL), WEFT_ERR_INVALID);
    check_diag("WEFT_WORKERS is unknown; --help lists what there is");
}

static void alias_variables_stand_behind_our_own(void **state)
{
    (void)state;
    setenv("VLLM_HOST_IP", "1.2.3.4", 1);
    assert_status(parse(NULL), WEFT_OK);
    assert_string_equal(config.host, "1.2.3.4");
    setenv("WEFT_HOST", "::1", 1);
    assert_status(parse(NULL), WEFT_OK);
    assert_string_equal(config.host, "::1");
    setenv("VLLM_HOST_IP", "", 1);
    unsetenv("WEFT_HOST");
    assert_status(parse(NULL), WEFT_OK);
    assert_string_equal(config.host, "");
}

static void extra_arguments_are_split_as_a_shell_would(void **state)
{
    (void)state;
    setenv("VLLM_ADDITIONAL_ARGS",
           "  --host 'a b'\\ c\"d\\\"e\\n\"\t--served-model-name x  'y'\n--seed=3 ", 1);
    assert_status(parse("m", NULL), WEFT_OK);
    assert_string_equal(config.host, "a b cd\"e\\n");
    assert_int_equal(config.names.count, 2);
    assert_int_equal(config.seed, 3);
    setenv("VLLM_ADDITIONAL_ARGS", "--seed 'x", 1);
    assert_status(parse(NULL), WEFT_ERR_INVALID);
    check_diag("VLLM_ADDITIONAL_ARGS: a quote or backslash has no end");
    setenv("VLLM_ADDITIONAL_ARGS", "stray", 1);
    assert_status(parse(NULL), WEFT_ERR_INVALID);
    check_diag("VLLM_ADDITIONAL_ARGS: \"stray\" is one argument too many");
}

static void a_yaml_file_gives_values_lists_and_nulls(void **state)
{
    (void)state;
    assert_status(parse_yaml("# weft\nblock_size: 8\nhost: \"::\"\nenable-caching: no\nscale: ~\n"
                             "served-model-name:\n  - a\n  - \"b c\"\nseed:\n"),
                  WEFT_OK);
    assert_int_equal(config.block_size, 8);
    assert_string_equal(config.host, "::");
    assert_false(config.has_cache);
    assert_true(config.scale == 0.5);
    assert_int_equal(config.names.count, 2);
    assert_string_equal(config.names.items[1], "b c");
    assert_status(parse_yaml("served-model-name: one two\n"), WEFT_OK);
    assert_int_equal(config.names.count, 1);
    assert_status(parse_yaml(""), WEFT_OK);
    assert_status(parse_yaml("---\n"), WEFT_OK);
}

static void faults_of_a_yaml_file_are_named_with_their_line(void **state)
{
    (void)state;
    const struct {
        const char *yaml;
        const char *diag;
    } cases[] = {
        {"seed: 1\n\nblok-size: 2\n", ": line 3: blok-size is unknown; did you mean --block-size?"},
        {"seed: 1\nblock-size: many\n", ": line 2: block-size: \"many\" is not a whole number"},
        {"seed: [1, 2]\n", ": line 1: seed: takes one value"},
        {"served-model-name:\n  - [a]\n",
         ": line 2: served-model-name: takes a value or a list of values"},
        {"- seed\n", ": line 1: must be a list of `flag: value`"},
        {"[a]: b\n", ": line 1: a key must be an option's name"},
        {"seed: \"1\\0\"\n", ": line 1: seed: holds a zero byte"},
        {"seed: *x\n", ": line 1: seed: takes one value"},
    };
    for (size_t i = 0; i < WEFT_ARRAY_LEN(cases); i++) {
        assert_status(parse_yaml(cases[i].yaml), WEFT_ERR_INVALID);
        check_yaml_diag(cases[i].diag);
    }
    assert_status(parse_yaml("seed: 'open\n"), WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, ": line "));
    assert_status(parse_yaml("seed: \xff\xfe\n"), WEFT_ERR_MALFORMED);
}

static void files_that_cannot_be_read_are_named(void **state)
{
    (void)state;
    assert_status(parse("--config", "/nowhere.yaml", NULL), WEFT_ERR_NOT_FOUND);
    check_diag("/nowhere.yaml: No such file or directory");
    assert_status(parse("--config", "/tmp", NULL), WEFT_ERR_INVALID);
    check_diag("/tmp: not a file of at most 1 MiB");
    assert_status(parse("--config", "/dev/zero", NULL), WEFT_ERR_INVALID);
}

static void broken_yaml_never_crashes(void **state)
{
    (void)state;
    static const char good[] =
        "block-size: 8\nhost: \"::\"\nserved-model-name:\n  - a\n  - {b: c}\n"
        "seed: &x 3\npriority: *x\n? [q]\n: |\n  text\n...\n---\n";
    test_random_t random = {test_seed(weft_alloc_live_bytes() + 3)};
    weft_log_set_level(WEFT_LOG_ERROR);
    for (uint32_t i = 0; i < test_rounds(20000); i++) {
        char text[sizeof(good)];
        memcpy(text, good, sizeof(good));
        const uint32_t n = 1 + test_random_below(&random, 4);
        for (uint32_t k = 0; k < n; k++) {
            text[test_random_below(&random, sizeof(good) - 1)] =
                test_random_below(&random, 3) == 0
                    ? (char)test_random_u64(&random)
                    : "[]{}:-?*&|>'\"\n #%"[test_random_below(&random, 17)];
        }
        write_yaml(text, test_random_below(&random, sizeof(good)));
        if (parse("--config", yaml_path, NULL) < 0) {
            assert_true(diag.text[0] != '\0');
        }
        unlink(yaml_path);
    }
    weft_log_set_level(WEFT_LOG_INFO);
}

static char *print(void (*fn)(const weft_option_spec_t *, FILE *))
{
    char *text = NULL;
    size_t length = 0;
    FILE *file = open_memstream(&text, &length);
    fn(&spec, file);
    fclose(file);
    return text;
}

static void help_shows_every_option_with_its_default(void **state)
{
    (void)state;
    char *text = print(weft_option_print_help);
    assert_non_null(strstr(text, "usage: weft try MODEL [options]\n\nTries things.\n\nEngine:\n"
                                 "  -b, --block-size N              Tokens in a block. [16]\n"));
    assert_non_null(strstr(text, "\n  --[no-]enable-caching           Keep blocks. [true]\n"));
    assert_non_null(strstr(text, "\n  --host TEXT                     Address.\n"));
    for (const char *line = text; *line != '\0'; line += strcspn(line, "\n") + 1) {
        assert_true(strcspn(line, "\n") <= 96);
    }
    free(text);
    FILE *out = freopen("/dev/null", "w", stdout);
    const weft_status_t status = parse("--seed", "1", "--help=markdown", "--nonsense", NULL);
    const weft_status_t status_short = parse("-h", NULL);
    out = freopen("/dev/stderr", "w", stdout);
    assert_non_null(out);
    assert_status(status, WEFT_ERR_CANCELLED);
    assert_status(status_short, WEFT_ERR_CANCELLED);
}

static void markdown_has_a_row_for_each(void **state)
{
    (void)state;
    char *text = print(weft_option_print_markdown);
    assert_non_null(strstr(text, "| `--block-size N` | `16` | Tokens in a block. |\n"));
    assert_non_null(strstr(text, "| `--priority N` | `-3` | Priority \\| of it. |\n"));
    assert_non_null(strstr(text, "| `-b` | `--block-size` |\n"));
    assert_non_null(strstr(text, "| `VLLM_HOST_IP` | `--host` |\n"));
    assert_non_null(strstr(text, "| `--enforce-eager` | no graphs here |\n"));
    free(text);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    setenv("WEFT_SERVED_MODEL_NAME", "a 'b c' d", 1);
    setenv("VLLM_ADDITIONAL_ARGS", "--host x", 1);
    static const char yaml[] = "served-model-name: [x]\nhost: y\n";
    write_yaml(yaml, strlen(yaml));
    const size_t before = weft_alloc_live_bytes();
    uint64_t n = 1;
    for (;; n++) {
        weft_alloc_fail_nth(n);
        const weft_status_t status = parse("m", "--config", yaml_path, "--seed=1", NULL);
        const uint64_t done = weft_alloc_fail_nth(0);
        destroy_set(NULL);
        assert_int_equal(weft_alloc_live_bytes(), before);
        if (done < n) {
            assert_status(status, WEFT_OK);
            break;
        }
        assert_status(status, WEFT_ERR_NO_MEMORY);
    }
    assert_true(n > 3);
    unlink(yaml_path);
}

#define OPTION_TEST(test) cmocka_unit_test_setup_teardown(test, start_clean, destroy_set)

int main(void)
{
    const struct CMUnitTest tests[] = {
        OPTION_TEST(defaults_fill_every_field),
        OPTION_TEST(flags_take_their_value_in_every_spelling),
        OPTION_TEST(sources_win_in_their_order),
        OPTION_TEST(numbers_know_their_range_and_units),
        OPTION_TEST(random_numbers_read_back),
        OPTION_TEST(unknown_flags_get_the_nearest_one_named),
        OPTION_TEST(missing_and_surplus_words_are_named),
        OPTION_TEST(ignored_flags_are_taken_with_their_value),
        OPTION_TEST(ignored_lists_end_at_a_flag),
        OPTION_TEST(ignored_flags_have_short_names),
        OPTION_TEST(numbers_may_follow_a_letter_at_once),
        OPTION_TEST(variables_are_checked_like_flags),
        OPTION_TEST(variables_of_others_are_left_alone),
        OPTION_TEST(alias_variables_stand_behind_our_own),
        OPTION_TEST(extra_arguments_are_split_as_a_shell_would),
        OPTION_TEST(a_yaml_file_gives_values_lists_and_nulls),
        OPTION_TEST(faults_of_a_yaml_file_are_named_with_their_line),
        OPTION_TEST(files_that_cannot_be_read_are_named),
        OPTION_TEST(broken_yaml_never_crashes),
        OPTION_TEST(help_shows_every_option_with_its_default),
        OPTION_TEST(markdown_has_a_row_for_each),
        OPTION_TEST(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
