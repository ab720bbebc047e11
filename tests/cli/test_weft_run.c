/* SPDX-License-Identifier: Apache-2.0 */
/* `weft run` and `weft bench model` as a shell meets them: words in, text and exit code out. */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/model_rig.h"
#include "tests/support/test_fork.h"
#include "tests/support/weft_shell.h"

#define EXACT     " --cpu-isa ref --kv-cache-dtype f32 --threads 1 "
#define SEQUENCES 4
#define ANSWER    16

static void write_ids(const json_t *ids, char *text, size_t size)
{
    size_t length = 0;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        length += (size_t)snprintf(text + length, size - length, i == 0 ? "%d" : ",%d",
                                   (int)json_integer_value(json_array_get(ids, i)));
    }
}

/* ---- the answer ------------------------------------------------------------------------------ */

static void check_logprobs(const json_t *entries, const json_t *ids, size_t first, size_t n_top)
{
    assert_int_equal(json_array_size(entries), json_array_size(ids));
    for (size_t i = first; i < json_array_size(entries); i++) {
        const json_t *entry = json_array_get(entries, i);
        assert_int_equal(json_integer_value(json_object_get(entry, "token_id")),
                         json_integer_value(json_array_get(ids, i)));
        assert_int_equal(json_array_size(json_object_get(entry, "top")), n_top);
        assert_true(json_number_value(json_object_get(entry, "logprob")) <= 0.0);
    }
}

static double sum_logprobs(const json_t *entries)
{
    double sum = 0;
    for (size_t i = 1; i < json_array_size(entries); i++) {
        sum += json_number_value(json_object_get(json_array_get(entries, i), "logprob"));
    }
    return sum;
}

static void run_answers_as_the_reference_does(void **state)
{
    (void)state;
    json_t *golden = load_golden("qwen3-gguf-f32");
    const double range = json_number_value(json_object_get(golden, "logit_range"));
    for (size_t i = 0; i < SEQUENCES; i++) {
        char ids[1024];
        char command[4096];
        const json_t *sequence = json_array_get(json_object_get(golden, "sequences"), i);
        const json_t *prompt = json_object_get(sequence, "tokens");
        write_ids(prompt, ids, sizeof(ids));
        snprintf(command, sizeof(command),
                 WEFT "run --model %s" EXACT "--prompt-ids %s --max-tokens %d --ignore-eos "
                      "--logprobs 3 --prompt-logprobs 1 --json",
                 tiny_model_path("qwen3-gguf-f32"), ids, ANSWER);
        json_t *answer = run_json(command);
        assert_true(json_equal(json_object_get(answer, "prompt_token_ids"), prompt));
        assert_true(
            json_equal(json_object_get(answer, "token_ids"), json_object_get(sequence, "greedy")));
        assert_string_equal(json_string_value(json_object_get(answer, "finish_reason")), "length");
        assert_true(json_is_string(json_object_get(answer, "text")));
        assert_true(json_is_object(json_object_get(answer, "timings")));
        check_logprobs(json_object_get(answer, "logprobs"), json_object_get(sequence, "greedy"), 0,
                       3);

        const json_t *prompt_logprobs = json_object_get(answer, "prompt_logprobs");
        assert_true(json_is_null(json_array_get(prompt_logprobs, 0)));
        check_logprobs(prompt_logprobs, prompt, 1, 1);
        const double expected = json_number_value(json_object_get(sequence, "logprob_sum"));
        assert_true(fabs(sum_logprobs(prompt_logprobs) - expected) <=
                    1e-5 * range * (double)json_array_size(prompt));
        json_decref(answer);
    }
    json_decref(golden);
}

static void text_prompts_come_from_flag_file_and_stdin(void **state)
{
    (void)state;
    char command[4096];
    char path[] = "/tmp/weft-test-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, "hello", 5) == 5);
    close(fd);

    const char *model = tiny_model_path("llama");
    snprintf(command, sizeof(command), WEFT "run %s --prompt hello --max-tokens 4 --json", model);
    json_t *by_flag = run_json(command);
    snprintf(command, sizeof(command), WEFT "run --model %s --prompt-file %s --max-tokens 4 --json",
             model, path);
    json_t *by_file = run_json(command);
    snprintf(command, sizeof(command),
             "printf hello | " WEFT "run --model %s --prompt-file - --max-tokens 4 --json", model);
    json_t *by_stdin = run_json(command);

    assert_true(json_array_size(json_object_get(by_flag, "prompt_token_ids")) > 0);
    static const char *const fields[] = {"prompt_token_ids", "token_ids", "text"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields); i++) {
        const json_t *expected = json_object_get(by_flag, fields[i]);
        assert_true(json_equal(json_object_get(by_file, fields[i]), expected));
        assert_true(json_equal(json_object_get(by_stdin, fields[i]), expected));
    }

    snprintf(command, sizeof(command), WEFT "run %s --prompt hello --max-tokens 4", model);
    assert_int_equal(shell(command), 0);
    const char *text = json_string_value(json_object_get(by_flag, "text"));
    assert_true(strncmp(output, text, strlen(text)) == 0);
    assert_string_equal(output + strlen(text), "\n");

    json_decref(by_flag);
    json_decref(by_file);
    json_decref(by_stdin);
    unlink(path);
}

static void an_empty_text_is_no_tokens_or_the_one_that_begins_a_text(void **state)
{
    (void)state;
    char command[4096];
    char folder[] = "/tmp/weft-test-XXXXXX";
    const char *plain = tiny_model_path("llama");
    snprintf(command, sizeof(command), WEFT "tokenize --model %s ''", plain);
    assert_int_equal(shell(command), 0);
    assert_string_equal(output, "\n");
    snprintf(command, sizeof(command), WEFT "detokenize --model %s ''", plain);
    assert_int_equal(shell(command), 0);
    assert_string_equal(output, "\n");

    assert_non_null(mkdtemp(folder)); /* the same model with a tokenizer that adds <bos> */
    snprintf(command, sizeof(command),
             "cp %s/config.json %s/model.safetensors %s/tokenizer.json %s && "
             "echo '{\"bos_token\":\"<bos>\",\"add_bos_token\":true}' "
             ">%s/tokenizer_config.json",
             plain, plain, plain, folder, folder);
    assert_int_equal(shell(command), 0);
    snprintf(command, sizeof(command), WEFT "tokenize --model %s ''", folder);
    assert_int_equal(shell(command), 0);
    assert_string_equal(output, "1\n");
    snprintf(command, sizeof(command), WEFT "run --model %s --prompt '' --max-tokens 2 --json",
             folder);
    json_t *answer = run_json(command);
    assert_int_equal(json_array_size(json_object_get(answer, "prompt_token_ids")), 1);
    json_decref(answer);
    snprintf(command, sizeof(command), "rm -r %s", folder);
    assert_int_equal(shell(command), 0);
}

static void a_seed_repeats_a_sampled_answer(void **state)
{
    (void)state;
    char command[4096];
    json_t *answers[3];
    for (int i = 0; i < 3; i++) {
        snprintf(command, sizeof(command),
                 WEFT "run %s --prompt hello --max-tokens 24 --temperature 2 --ignore-eos "
                      "--seed %d --json",
                 tiny_model_path("llama"), i / 2);
        answers[i] = run_json(command);
    }
    const json_t *first = json_object_get(answers[0], "token_ids");
    assert_true(json_equal(first, json_object_get(answers[1], "token_ids")));
    assert_false(json_equal(first, json_object_get(answers[2], "token_ids")));
    for (int i = 0; i < 3; i++) {
        json_decref(answers[i]);
    }
}

/* ---- how it ends ----------------------------------------------------------------------------- */

static void bad_words_get_one_line_and_exit_code_2(void **state)
{
    (void)state;
    static const weft_shell_case_t cases[] = {
        {"run --prompt x", "--model"},
        {"run --model /nonexistent --prompt x", "/nonexistent"},
        {"run --model LLAMA", "--prompt"},
        {"run --model LLAMA --prompt x --prompt-ids 1", "one of"},
        {"run --model LLAMA --prompt '' --prompt-file ''", "one of"},
        {"run --model LLAMA --prompt ''", "the prompt is empty"},
        {"run --model LLAMA --prompt-ids ''", "the prompt is empty"},
        {"run --model LLAMA --prompt-ids 1,", "token id"},
        {"version extra", "\"extra\""},
        {"run --model LLAMA --prompt-ids 1,320", "320"},
        {"run --model LLAMA --prompt-ids 1,x", "x"},
        {"run --model LLAMA --prompt-ids -1", "-1"},
        {"run --model LLAMA --chat --prompt-ids 1", "--chat"},
        {"detokenize --model LLAMA abc", "IDS: \"abc\""},
        {"detokenize --model LLAMA --chat 1,2", "--chat is unknown"},
        {"up LLAMA --max-model-len 100",
         "--max-model-len is unknown; --help lists what there is (flags of "
         "weft serve stand behind --)"},
        {"run --model LLAMA --chat --prompt x", "no chat template"},
        {"run --model LLAMA --prompt-file /nonexistent", "/nonexistent"},
        {"run --model LLAMA --prompt-file /dev/null", "empty"},
        {"run --model LLAMA --prompt x --logprobs 1", "--json"},
        {"run --model LLAMA --prompt x --logprobs 21 --json", "20"},
        {"run --model LLAMA --prompt x --top-k -1", "--top-k"},
        {"run --model LLAMA --prompt x --top-p 2", "top_p"},
        {"run --model LLAMA --prompt x --stop a ''", "--stop"},
        {"run --model LLAMA --prompt x --no-such-flag", "no-such-flag"},
        {"run --model LLAMA --prompt x --rank 1", "--rank without --world-size"},
        {"run --model LLAMA --prompt x --rank 0 --world-size 2 --leader 127.0.0.1:1",
         "--tensor-parallel-size 1"},
        {"run --model LLAMA --prompt x --coll-backend nope", "--coll-backend"},
        {"run --model LLAMA --prompt x --cpu-isa sse9", "sse9"},
        {"run --model LLAMA --prompt x --kv-cache-dtype q9", "q9"},
        {"bench model", "--model"},
        {"bench model --model LLAMA -p 0 -n 0", "nothing"},
        {"bench model --model LLAMA -r 0", "--repetitions"},
        {"bench model --model LLAMA -p 100000", "context"},
        {"bench model --model LLAMA --block-size 0", "--block-size"},
        {"bench model --model LLAMA --block-size 12", "12"},
        {"bench model --model LLAMA --kv-cache-dtype q8_0", "--kv-cache-dtype"},
    };
    weft_shell_refuses(cases, WEFT_ARRAY_LEN(cases), tiny_model_path("llama"));
}

static void an_unknown_benchmark_gets_the_list(void **state)
{
    (void)state;
    assert_int_equal(shell(WEFT "bench nothing 2>&1 >/dev/null"), 2);
    assert_non_null(strstr(output, "weft: error: no benchmark \"nothing\""));
    assert_non_null(strstr(output, "  model "));
}

static void a_reader_that_leaves_is_no_failure(void **state)
{
    (void)state;
    char command[2048];
    snprintf(command, sizeof(command),
             "exec 3>&1; (" WEFT "run %s --prompt hello --max-tokens 100 --ignore-eos 2>&3; "
             "echo \"code $?\" >&3) | head -c 0",
             tiny_model_path("llama"));
    assert_int_equal(shell(command), 0);
    assert_string_equal(output, "code 0\n");
}

static void a_full_disk_is_a_failure(void **state)
{
    (void)state;
    char command[2048];
    snprintf(command, sizeof(command), WEFT "run %s --prompt hello --max-tokens 4 2>&1 >/dev/full",
             tiny_model_path("llama"));
    assert_int_equal(shell(command), 1);
    assert_non_null(strstr(output, "No space left"));
}

/* weft with its standard output in *out; the pid. */
static pid_t start(char *const argv[], FILE **out)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    const pid_t pid = test_fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(argv[0], argv);
        _exit(127);
    }
    close(ends[1]);
    *out = fdopen(ends[0], "r");
    assert_non_null(*out);
    return pid;
}

/* 8000 tokens of a real model take far longer than the signal. */
static void an_interrupt_ends_the_answer_and_is_the_exit_code(void **state)
{
    (void)state;
    char *path = getenv("WEFT_TEST_MODEL");
    if (path == NULL || path[0] == '\0') {
        print_message("WEFT_TEST_MODEL is not set: no model that is slow enough\n");
        skip();
    }
    char *const argv[] = {
        WEFT_BINARY_DIR "/weft", "run",          "--model", path,           "--prompt",
        "Once upon a time",      "--max-tokens", "8000",    "--ignore-eos", NULL};
    FILE *out;
    int status;
    const pid_t pid = start(argv, &out);
    assert_true(fgetc(out) != EOF); /* the first token is out */
    assert_int_equal(kill(pid, SIGINT), 0);
    const size_t n = fread(output, 1, WEFT_SHELL_BYTES, out);
    fclose(out);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 128 + SIGINT);
    assert_true(n > 0 && n < 8000);
    assert_int_equal(output[n - 1], '\n');
}

/* It reads its prompt from a pipe that nobody writes to: there is no answer yet, nor will there be. */
static void an_interrupt_before_the_answer_ends_it_at_once(void **state)
{
    (void)state;
    char path[512];
    char fifo[] = "/tmp/weft-test-XXXXXX";
    assert_non_null(mkdtemp(fifo));
    snprintf(path, sizeof(path), "%s/prompt", fifo);
    assert_int_equal(mkfifo(path, 0600), 0);
    char *const argv[] = {
        WEFT_BINARY_DIR "/weft", "run", "--model", (char *)tiny_model_path("llama"),
        "--prompt-file",         path,  NULL};
    FILE *out;
    int status;
    const pid_t pid = start(argv, &out);
    const int writer = open(path, O_WRONLY); /* once it has opened the other end */
    assert_true(writer >= 0);
    assert_int_equal(kill(pid, SIGINT), 0);
    assert_int_equal(fread(output, 1, WEFT_SHELL_BYTES, out), 0);
    fclose(out);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 128 + SIGINT);
    close(writer);
    unlink(path);
    rmdir(fifo);
}

/* ---- bench model ----------------------------------------------------------------------------- */

static void bench_model_prints_rates(void **state)
{
    (void)state;
    char command[2048];
    snprintf(command, sizeof(command), WEFT "bench model --model %s -p 100 -n 20 -t 2 -r 3 --json",
             tiny_model_path("llama"));
    json_t *json = run_json(command);
    static const char *const kinds[] = {"prefill", "decode"};
    static const int tokens[] = {100, 20};
    for (int i = 0; i < 2; i++) {
        const json_t *kind = json_object_get(json, kinds[i]);
        const json_t *tok_s = json_object_get(kind, "tok_s");
        const double median = json_number_value(json_object_get(tok_s, "median"));
        assert_int_equal(json_integer_value(json_object_get(kind, "tokens")), tokens[i]);
        assert_true(json_number_value(json_object_get(tok_s, "min")) > 0.0);
        assert_true(json_number_value(json_object_get(tok_s, "min")) <= median);
        assert_true(json_number_value(json_object_get(tok_s, "max")) >= median);
    }
    assert_int_equal(json_integer_value(json_object_get(json, "threads")), 2);
    json_decref(json);

    snprintf(command, sizeof(command), WEFT "bench model %s -p 8 -n 0 -r 1",
             tiny_model_path("llama"));
    assert_int_equal(shell(command), 0);
    assert_non_null(strstr(output, "prefill"));
    assert_null(strstr(output, "decode"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run_answers_as_the_reference_does),
        cmocka_unit_test(text_prompts_come_from_flag_file_and_stdin),
        cmocka_unit_test(an_empty_text_is_no_tokens_or_the_one_that_begins_a_text),
        cmocka_unit_test(a_seed_repeats_a_sampled_answer),
        cmocka_unit_test(bad_words_get_one_line_and_exit_code_2),
        cmocka_unit_test(an_unknown_benchmark_gets_the_list),
        cmocka_unit_test(a_reader_that_leaves_is_no_failure),
        cmocka_unit_test(a_full_disk_is_a_failure),
        cmocka_unit_test(an_interrupt_ends_the_answer_and_is_the_exit_code),
        cmocka_unit_test(an_interrupt_before_the_answer_ends_it_at_once),
        cmocka_unit_test(bench_model_prints_rates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
