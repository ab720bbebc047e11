/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_run: `weft run`, one prompt through an engine of its own, the answer to the terminal. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/option_tables.h"
#include "cli/run.h"
#include "cli/serve_ranks.h"

#define POLL_MS 50 /* how late a Ctrl-C may be noticed */

const weft_option_t run_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(run_options_t, __VA_ARGS__)
#include "cli/run_options.def"
#undef OPTION
};
const size_t run_option_count = WEFT_ARRAY_LEN(run_option_rows);

/* As of weft serve. */
static const weft_option_alias_t aliases[] = {{"tp", "tensor-parallel-size"},
                                              {"pp", "pipeline-parallel-size"},
                                              {"ep", "enable-expert-parallel"}};

typedef struct run {
    run_options_t options;
    engine_options_t engine_options;
    launch_options_t launch_options;
    char *const *words; /* [n_words] of the command line */
    int n_words;
    weft_option_set_t *set;
    serve_ranks_t *ranks; /* NULL: the model is here as a whole */
    model_source_t *source;
    text_tokenizer_t *tokenizer;
    engine_t *engine;
    engine_client_t *client;
    engine_request_t *request;
    text_stream_t *stream;
    run_prompt_t prompt;
    weft_buffer_t text;
    uint32_t n_tokens; /* pushed into stream */
    bool is_stopped;   /* by a stop string */
    bool was_well;     /* the other ranks heard that it ends */
    bool was_cut;      /* an interrupt came before the answer's end */
    int write_error;   /* errno of standard output's failure */
    uint64_t load_ns;
} run_t;

static volatile sig_atomic_t is_answering;
static volatile sig_atomic_t is_interrupted;

/* While the model loads there is nothing to end well; ranks that were started end with us. */
static void on_interrupt(int signal_number)
{
    is_interrupted = 1;
    if (!is_answering) {
        _exit(CLI_EXIT_SIGNALLED + signal_number);
    }
}

/* Ctrl-C ends the answer, a second one the process; a closed pipe is an error of write. */
static void catch_signals(void)
{
    struct sigaction interrupt = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGINT, &interrupt, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

/* ---- before ---------------------------------------------------------------------------------- */

static weft_status_t parse_options(run_t *run, int argc, char **argv, weft_diag_t *diag)
{
    const weft_option_group_t groups[] = {
        CLI_OPTION_GROUP(run, "Prompt and answer", &run->options),
        CLI_OPTION_GROUP(engine, "Engine", &run->engine_options),
        CLI_OPTION_GROUP(launch, "Ranks", &run->launch_options),
    };
    const weft_option_spec_t spec = {
        .usage = "weft run --model PATH (--prompt TEXT | --prompt-file F | --prompt-ids 1,2,3)",
        .about = "Continues one prompt, or answers it with --chat, and prints what comes.",
        .groups = groups,
        .n_groups = WEFT_ARRAY_LEN(groups),
        .flags = aliases,
        .n_flags = WEFT_ARRAY_LEN(aliases),
        .max_positional = 1,
        .has_config_file = true,
    };
    const weft_status_t status = weft_option_set_parse(&spec, argc, argv, diag, &run->set);
    if (status >= 0 && run->options.model[0] == '\0' &&
        weft_option_positional_count(run->set) == 1) {
        run->options.model = weft_option_positional(run->set, 0);
    }
    return status;
}

static weft_status_t check_options(const run_t *run, weft_diag_t *diag)
{
    const run_options_t *options = &run->options;
    const bool wants_logprobs = weft_option_is_given(run->set, "logprobs") ||
                                weft_option_is_given(run->set, "prompt-logprobs");
    if (options->model[0] == '\0') {
        return weft_diag(diag, WEFT_ERR_INVALID, "no model: give --model PATH");
    }
    if (wants_logprobs && !options->json) {
        return weft_diag(diag, WEFT_ERR_INVALID, "log-probabilities are printed by --json only");
    }
    if (options->logprobs > K_MAX_LOGPROBS || options->prompt_logprobs > K_MAX_LOGPROBS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "at most %d log-probabilities a token",
                         K_MAX_LOGPROBS);
    }
    if (options->top_k < 0 || options->top_k > INT32_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--top-k: 0 or more");
    }
    for (uint32_t i = 0; i < options->stop.count; i++) {
        if (options->stop.items[i][0] == '\0') {
            return weft_diag(diag, WEFT_ERR_INVALID, "--stop: an empty text would stop nothing");
        }
    }
    const weft_status_t status = engine_options_check(&run->engine_options, diag);
    return status < 0 ? status : launch_options_check(&run->launch_options, diag);
}

/* An empty text is given too. */
static weft_status_t find_prompt(const run_t *run, weft_diag_t *diag, run_prompt_spec_t *spec_out)
{
    const run_options_t *options = &run->options;
    const struct {
        const char *flag;
        const char *value;
    } kinds[] = {
        [RUN_PROMPT_TEXT] = {"prompt", options->prompt},
        [RUN_PROMPT_FILE] = {"prompt-file", options->prompt_file},
        [RUN_PROMPT_IDS] = {"prompt-ids", options->prompt_ids},
    };
    int n_given = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(kinds); i++) {
        if (weft_option_is_given(run->set, kinds[i].flag)) {
            *spec_out = (run_prompt_spec_t){.kind = (run_prompt_kind_t)i,
                                            .given = kinds[i].value,
                                            .where = "--prompt-ids",
                                            .is_chat = options->chat};
            n_given++;
        }
    }
    if (n_given != 1) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "give one of --prompt, --prompt-file and --prompt-ids");
    }
    if (options->chat && spec_out->kind == RUN_PROMPT_IDS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--chat takes a text, not --prompt-ids");
    }
    return WEFT_OK;
}

static weft_status_t make_prompt(run_t *run, weft_diag_t *diag)
{
    run_prompt_spec_t spec;
    weft_status_t status = find_prompt(run, diag, &spec);
    if (status >= 0) {
        status = run_prompt_make(&spec, run->source, run->tokenizer, diag, &run->prompt);
    }
    if (status >= 0 && run->prompt.n == 0) {
        status =
            weft_diag(diag, WEFT_ERR_INVALID, "the prompt is empty: at least one token is needed");
    }
    return status;
}

/* The others are this command again, where nobody else starts them; they read no prompt. */
static weft_status_t find_ranks(run_t *run, weft_diag_t *diag)
{
    const engine_options_t *engine = &run->engine_options;
    const serve_ranks_config_t config = {
        .launch = &run->launch_options,
        .engine = engine,
        .model = run->options.model,
        .words = run->words,
        .n_words = run->n_words,
    };
    run->engine_options.max_num_seqs = 1;
    return engine->tensor_parallel_size > 1 || engine->pipeline_parallel_size > 1 ||
                   launch_options_name_ranks(&run->launch_options)
               ? serve_ranks_create(&config, diag, &run->ranks)
               : WEFT_OK;
}

static bool is_follower(const run_t *run)
{
    return run->ranks != NULL && !serve_ranks_is_leader(run->ranks);
}

static weft_status_t load(run_t *run, weft_diag_t *diag)
{
    const uint64_t start = weft_clock_ns();
    const engine_ranks_t *ranks = run->ranks == NULL ? NULL : serve_ranks_for_engine(run->ranks);
    weft_status_t status = model_source_open(run->options.model, diag, &run->source);
    if (status >= 0) {
        status = model_source_tokenizer(run->source, diag, &run->tokenizer);
    }
    if (status >= 0) {
        status = make_prompt(run, diag);
    }
    if (status >= 0) {
        status = engine_create(&run->engine_options, run->source, run->tokenizer, ranks, diag,
                               &run->engine);
    }
    if (status >= 0) {
        status = engine_client_create(run->engine, &run->client);
    }
    run->load_ns = weft_clock_ns() - start;
    return status;
}

/* ---- the answer ------------------------------------------------------------------------------ */

static engine_sampling_t sampling_of(const run_t *run)
{
    const run_options_t *options = &run->options;
    const weft_option_set_t *set = run->set;
    return (engine_sampling_t){
        .temperature = (float)options->temperature,
        .top_p = (float)options->top_p,
        .min_p = (float)options->min_p,
        .top_k = (int32_t)options->top_k,
        .repetition_penalty = 1.0f,
        .seed = weft_option_is_given(set, "seed") ? run->engine_options.seed : ENGINE_NO_SEED,
        .max_tokens = options->max_tokens,
        .ignore_eos = options->ignore_eos,
        .wants_logprobs = weft_option_is_given(set, "logprobs"),
        .n_top_logprobs = options->logprobs,
        .wants_prompt_logprobs = weft_option_is_given(set, "prompt-logprobs"),
        .n_prompt_top_logprobs = options->prompt_logprobs,
    };
}

static weft_status_t make_stream(run_t *run, weft_diag_t *diag)
{
    text_stops_t *stops = NULL;
    weft_status_t status =
        text_stops_create(run->options.stop.items, run->options.stop.count, diag, &stops);
    const text_stream_config_t config = {.skip_special = true, .stops = stops};

    if (status == WEFT_OK) {
        status = text_stream_create(run->tokenizer, &config, &run->stream);
    }
    text_stops_destroy(stops);
    return status;
}

static weft_status_t submit(run_t *run, weft_diag_t *diag)
{
    const engine_submit_t request = {
        .id = "run",
        .prompt = run->prompt.ids,
        .n_prompt = run->prompt.n,
        .n = 1,
        .sampling = sampling_of(run),
    };
    const weft_status_t status = make_stream(run, diag);
    return status < 0 ? status
                      : engine_submit(run->engine, run->client, &request, diag, &run->request);
}

/* Keeps a piece of the answer and shows it. */
static weft_status_t take_text(run_t *run, const char *text, size_t length)
{
    weft_buffer_append(&run->text, text, length);
    if (run->text.is_failed) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (run->options.json || length == 0) {
        return WEFT_OK;
    }
    if (fwrite(text, 1, length, stdout) != length || fflush(stdout) != 0) {
        run->write_error = errno;
        return WEFT_ERR_IO;
    }
    return WEFT_OK;
}

static weft_status_t take_tokens(run_t *run, const engine_answer_t *answer)
{
    while (run->n_tokens < answer->n_tokens && !run->is_stopped) {
        const char *text;
        size_t length;
        int32_t stop;
        weft_status_t status =
            text_stream_push(run->stream, answer->tokens[run->n_tokens], &text, &length, &stop);
        if (status >= 0) {
            status = take_text(run, text, length);
        }
        if (status < 0) {
            return status;
        }
        run->n_tokens++;
        run->is_stopped = stop >= 0;
    }
    return WEFT_OK;
}

/* Until the engine has finished with the request. */
static weft_status_t stream_answer(run_t *run)
{
    weft_status_t status = WEFT_OK;
    bool is_aborted = false;
    engine_answer_t answer;
    is_answering = 1;
    do {
        engine_client_wait(run->client, POLL_MS);
        answer = engine_request_answer(run->request, 0);
        if (status >= 0) {
            status = take_tokens(run, &answer);
        }
        if (!is_aborted && (is_interrupted || run->is_stopped || status < 0)) {
            engine_abort(run->request);
            is_aborted = true;
        }
    } while (answer.finish == ENGINE_FINISH_NONE);

    if (status >= 0 && !run->is_stopped) {
        const char *text;
        size_t length;
        status = text_stream_finish(run->stream, &text, &length);
        status = status < 0 ? status : take_text(run, text, length);
    }
    return status;
}

static const char *finish_reason(const run_t *run, engine_finish_t finish)
{
    if (run->is_stopped) {
        return "stop";
    }
    switch (finish) {
    case ENGINE_FINISH_STOP:
        return "stop";
    case ENGINE_FINISH_LENGTH:
        return "length";
    case ENGINE_FINISH_NONE:
    case ENGINE_FINISH_ABORT:
        return "abort";
    case ENGINE_FINISH_CONSTRAINT:
    case ENGINE_FINISH_ERROR:
    case ENGINE_FINISH_LOST:
        break;
    }
    return "error";
}

static weft_status_t end_line(void)
{
    return putchar('\n') == EOF || fflush(stdout) != 0 ? WEFT_ERR_IO : WEFT_OK;
}

static weft_status_t report_json(const run_t *run, engine_finish_t finish)
{
    const engine_answer_t answer = engine_request_answer(run->request, 0);
    const bool wants_logprobs = weft_option_is_given(run->set, "logprobs");
    const bool wants_prompt = weft_option_is_given(run->set, "prompt-logprobs");
    const run_answer_t result = {
        .prompt = &run->prompt,
        .tokens = answer.tokens,
        .n_tokens = run->n_tokens,
        .logprobs = wants_logprobs ? answer.logprobs : NULL,
        .prompt_logprobs = wants_prompt ? engine_request_prompt_logprobs(run->request) : NULL,
        .text = &run->text,
        .finish_reason = finish_reason(run, finish),
        .load_ns = run->load_ns,
        .timings = engine_request_timings(run->request),
    };
    return run_report_json(&result);
}

static void close_run(run_t *run)
{
    if (run->request != NULL) {
        engine_request_release(run->request);
    }
    text_stream_destroy(run->stream);
    engine_client_destroy(run->client);
    engine_destroy(run->engine);
    serve_ranks_destroy(run->ranks, run->was_well);
    weft_free(run->prompt.ids);
    text_tokenizer_destroy(run->tokenizer);
    model_source_close(run->source);
    weft_buffer_free(&run->text);
    weft_option_set_destroy(run->set);
}

static weft_status_t run_all(run_t *run, weft_diag_t *diag)
{
    weft_status_t status = check_options(run, diag);
    if (status >= 0) {
        status = find_ranks(run, diag);
    }
    if (status >= 0 && is_follower(run)) {
        status = serve_ranks_follow(run->ranks, diag);
        run->was_well = status >= 0;
        return status;
    }
    if (status >= 0) {
        status = load(run, diag);
    }
    if (status >= 0) {
        status = submit(run, diag);
    }
    if (status < 0) {
        return status;
    }
    status = stream_answer(run);
    const engine_finish_t finish = engine_request_answer(run->request, 0).finish;
    run->was_well = finish != ENGINE_FINISH_LOST;
    run->was_cut = is_interrupted && finish == ENGINE_FINISH_ABORT && !run->is_stopped;
    if (status >= 0) {
        status = run->options.json ? report_json(run, finish) : end_line();
        run->write_error = errno;
    }
    if (status == WEFT_ERR_IO) {
        return weft_diag(diag, status, "standard output: %s", strerror(run->write_error));
    }
    if (status >= 0 && finish == ENGINE_FINISH_LOST) {
        return weft_diag(diag, WEFT_ERR_PEER_GONE, "%s",
                         engine_request_answer(run->request, 0).reason);
    }
    if (status >= 0 && finish == ENGINE_FINISH_ERROR) {
        return weft_diag(diag, WEFT_ERR_INTERNAL, "the engine failed");
    }
    return status;
}

int cmd_run(int argc, char **argv)
{
    run_t run = {.words = argv, .n_words = argc};
    weft_diag_t diag = {0};
    weft_log_set_level(WEFT_LOG_WARN);
    catch_signals();

    weft_status_t status = parse_options(&run, argc, argv, &diag);
    if (status >= 0) {
        status = run_all(&run, &diag);
    }
    /* A reader that went away (`weft run … | head`) has what it wanted. */
    const bool is_done = status >= 0 || status == WEFT_ERR_CANCELLED ||
                         (status == WEFT_ERR_IO && run.write_error == EPIPE);
    const bool was_cut = run.was_cut;
    close_run(&run);
    if (!is_done) {
        return cli_fail(status, &diag);
    }
    return was_cut ? CLI_EXIT_SIGNALLED + SIGINT : CLI_EXIT_OK;
}
