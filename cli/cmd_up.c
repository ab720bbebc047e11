/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_up: `weft up`, a whole service on one machine with prefill and decode split. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/child_words.h"
#include "cli/commands.h"
#include "cli/option_tables.h"
#include "cli/serve_options.h"
#include "cli/serve_ranks.h"
#include "cli/supervisor.h"
#include "cli/up.h"
#include "kvstore/transfer/kv_transfer_params.h"
#include "services/front/front.h"

#define WEFT_LOG_MODULE "up"
#include "base/log.h"

#define MAX_OWN           40 /* words of a worker's command line that are ours */
#define MAX_WORKERS       32
#define CHECK_INTERVAL_MS 1000
#define DRAIN_POLL_NS     (10 * WEFT_NS_PER_MS)
#define STEADY_NS         (60 * WEFT_NS_PER_SECOND) /* a worker that served so long was well */

const weft_option_t up_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(up_options_t, __VA_ARGS__)
#include "cli/up.def"
#undef OPTION
};
const size_t up_option_count = WEFT_ARRAY_LEN(up_option_rows);

typedef struct up_worker {
    front_role_t role;
    uint64_t listening_ns; /* since when it listens */
    uint64_t restart_ns;   /* when it is to be started again; 0: not */
    uint32_t restarts;     /* in a row */
} up_worker_t;

typedef struct up {
    const up_options_t *options;
    const char *model;
    char **more; /* [n_more]: flags of every worker, behind "--" */
    int n_more;
    front_t *front;
    supervisor_t supervisor;
    serve_options_t worker_options;
    engine_machine_t machine;
    up_worker_t workers[MAX_WORKERS]; /* one for each child */
    weft_loop_timer_t *drain_timer;
    weft_loop_timer_t *restart_timer;
    uint64_t drain_until_ns;
    bool is_failed; /* it stops because it cannot go on */
    bool is_killed; /* by a second signal */
} up_t;

/* ---- a worker's command line ----------------------------------------------------------------- */

static uint32_t count_workers(const up_options_t *options)
{
    return options->prefill + options->decode;
}

/* That all workers have alike. */
static void add_common(const up_t *up, child_words_t *words)
{
    const up_options_t *o = up->options;
    child_words_add(words, "weft");
    child_words_add(words, "serve");
    child_words_add(words, up->model);
    child_words_add_flag(words, "--host", "127.0.0.1");
    child_words_add_flag(words, "--port", "0");
    if (o->threads > 0) {
        child_words_add_flag(words, "--threads", "%u", o->threads);
    }
    if (o->tensor_parallel_size > 1) {
        child_words_add_flag(words, "--tensor-parallel-size", "%u", o->tensor_parallel_size);
    }
    child_words_add_flag(words, "--log-level", "%s", o->log_level);
    child_words_add_flag(words, "--shutdown-timeout", "%u", o->shutdown_timeout);
    for (uint32_t i = 0; i < o->served_model_name.count; i++) {
        child_words_add(words, "--served-model-name");
        child_words_add(words, o->served_model_name.items[i]);
    }
}

static void add_role(const up_t *up, front_role_t role, child_words_t *words)
{
    child_words_add_flag(words, "--kv-transfer-config",
                         "{\"kv_connector\":\"WeftConnector\",\"kv_role\":\"%s\"}",
                         role == FRONT_PREFILL ? "kv_producer" : "kv_consumer");
    if (role == FRONT_DECODE && up->options->overlap) {
        child_words_add_flag(words, "--prefill-urls", "*");
    }
}

static void add_more(const up_t *up, child_words_t *words)
{
    for (int i = 0; i < up->n_more; i++) {
        child_words_add(words, up->more[i]);
    }
}

static uint32_t count_words(const up_t *up)
{
    return (uint32_t)up->n_more + 2 * up->options->served_model_name.count + MAX_OWN;
}

/* What stands behind "--" wins over what is ours, a share over both: it is made from them. */
static char **words_of(const up_t *up, uint32_t worker, const char *name, weft_arena_t *arena)
{
    const serve_options_t *options = &up->worker_options;
    const engine_share_t share =
        engine_share_of(&up->machine, &options->engine, count_workers(up->options), worker);
    child_words_t words;
    child_words_init(&words, arena, count_words(up));
    add_common(up, &words);
    add_role(up, up->workers[worker].role, &words);
    add_more(up, &words);
    child_words_add_share(&words, name, options->set, &options->engine, &share);
    return child_words_end(&words);
}

/* As every worker will read them. */
static weft_status_t parse_worker_options(up_t *up, weft_diag_t *diag)
{
    weft_arena_t arena = {0};
    child_words_t words;
    child_words_init(&words, &arena, count_words(up));
    add_common(up, &words);
    add_more(up, &words);
    char **list = child_words_end(&words);
    const weft_status_t status =
        list == NULL ? WEFT_ERR_NO_MEMORY
                     : serve_options_parse((int)words.n - 1, list + 1, diag, &up->worker_options);
    weft_arena_free(&arena);
    return status;
}

static weft_status_t start_workers(up_t *up, front_role_t role, uint32_t n, weft_diag_t *diag)
{
    static const char *const roles[] = {"prefill", "decode"};
    children_t *children = &up->supervisor.children;
    weft_arena_t arena = {0};
    char name[32];
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; i < n && status == WEFT_OK; i++) {
        snprintf(name, sizeof(name), "%s-%u", roles[role], i);
        up->workers[children->n].role = role;
        char **words = words_of(up, children->n, name, &arena);
        status =
            words == NULL ? WEFT_ERR_NO_MEMORY : children_start(children, name, words, -1, diag);
    }
    weft_arena_free(&arena);
    return status;
}

/* ---- what happens ---------------------------------------------------------------------------- */

static void say_listening(void *user)
{
    const up_t *up = user;
    const up_options_t *o = up->options;
    weft_buffer_t url = {0};
    char more[64];
    weft_buffer_printf(&url, "http://%s:%u", o->host, front_port(up->front));
    snprintf(more, sizeof(more), "prefill=%u decode=%u", o->prefill, o->decode);
    if (!url.is_failed) {
        weft_log_listening(WEFT_LOG_MODULE, url.data, more, o->port == 0);
    }
    weft_buffer_free(&url);
}

static up_worker_t *worker_of(up_t *up, const child_t *child)
{
    return &up->workers[child - up->supervisor.children.all];
}

static void on_listening(void *user, child_t *child, const char *url)
{
    up_t *up = user;
    up_worker_t *worker = worker_of(up, child);
    worker->listening_ns = weft_clock_ns();
    if (front_add_worker(up->front, worker->role, child->name, url) < 0) {
        weft_log_error("worker=%s is left out: no memory", child->name);
    }
}

/* A worker that is told to end takes no second leg: first the requests that both work for. */
static void on_drain_timer(void *user)
{
    up_t *up = user;
    if (front_open_calls(up->front) > 0 && weft_clock_ns() < up->drain_until_ns) {
        weft_loop_timer_set(up->drain_timer, DRAIN_POLL_NS);
    } else {
        front_stop(up->front);
        supervisor_end(&up->supervisor);
    }
}

static void stop(up_t *up)
{
    supervisor_stop(&up->supervisor);
    front_drain(up->front);
    up->drain_until_ns = weft_clock_ns() + up->options->shutdown_timeout * WEFT_NS_PER_SECOND;
    weft_loop_timer_set(up->drain_timer, 0);
}

/* When the next one is to be started again; 0: none is. */
static uint64_t next_restart_ns(const up_t *up, bool only_decode)
{
    uint64_t next = 0;
    for (uint32_t i = 0; i < up->supervisor.children.n; i++) {
        const up_worker_t *worker = &up->workers[i];
        const bool counts = !only_decode || worker->role == FRONT_DECODE;
        if (counts && worker->restart_ns != 0 && (next == 0 || worker->restart_ns < next)) {
            next = worker->restart_ns;
        }
    }
    return next;
}

static void set_restart_timer(up_t *up)
{
    const uint64_t now = weft_clock_ns();
    const uint64_t next = next_restart_ns(up, false);
    if (next != 0) {
        weft_loop_timer_set(up->restart_timer, next > now ? next - now : 0);
    }
}

/* One that dies again and again has a reason that starting it does not mend. */
static void plan_restart(up_t *up, const child_t *child)
{
    up_worker_t *worker = worker_of(up, child);
    const uint64_t now = weft_clock_ns();
    if (child->is_listening && now - worker->listening_ns >= STEADY_NS) {
        worker->restarts = 0;
    }
    if (worker->restarts >= up->options->max_restarts) {
        weft_log_error("worker is given up name=%s restarts=%u", child->name, worker->restarts);
        return;
    }
    const uint64_t seconds = UINT64_C(1) << (worker->restarts < 6 ? worker->restarts : 6);
    worker->restarts++;
    worker->restart_ns = now + seconds * WEFT_NS_PER_SECOND;
    weft_log_warn("worker will be started again name=%s seconds=%u restart=%u of %u", child->name,
                  (unsigned)seconds, worker->restarts, up->options->max_restarts);
    set_restart_timer(up);
}

static void fail(up_t *up)
{
    up->is_failed = true;
    stop(up);
}

static uint32_t alive(const up_t *up, front_role_t role)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < up->supervisor.children.n; i++) {
        n += up->workers[i].role == role && up->supervisor.children.all[i].pid > 0;
    }
    return n;
}

static bool has_decode_workers(const up_t *up)
{
    return alive(up, FRONT_DECODE) > 0 || next_restart_ns(up, true) != 0;
}

static void restart(up_t *up, uint32_t worker)
{
    child_t *child = &up->supervisor.children.all[worker];
    weft_arena_t arena = {0};
    weft_diag_t diag = {"no memory for a worker's command line"};
    char **words = words_of(up, worker, child->name, &arena);
    if (words == NULL || child_restart(child, words, -1, &diag) < 0) {
        weft_log_error("%s", diag.text);
        plan_restart(up, child);
    }
    weft_arena_free(&arena);
}

static void on_restart_timer(void *user)
{
    up_t *up = user;
    const uint64_t now = weft_clock_ns();
    if (up->supervisor.is_stopping) {
        return;
    }
    for (uint32_t i = 0; i < up->supervisor.children.n; i++) {
        up_worker_t *worker = &up->workers[i];
        if (worker->restart_ns == 0 || worker->restart_ns > now) {
            continue;
        }
        worker->restart_ns = 0;
        restart(up, i);
    }
    set_restart_timer(up);
    if (!has_decode_workers(up)) {
        fail(up);
    }
}

/* Before all serve, one that cannot start means that none can; later the others go on. */
static void on_death(void *user, child_t *child, const char *how)
{
    up_t *up = user;
    const uint32_t left = alive(up, FRONT_DECODE);
    weft_log_error("worker has died name=%s how=\"%s\" decode_workers_left=%u", child->name, how,
                   left);
    front_lose_worker(up->front, child->name);
    if (up->supervisor.is_up) {
        plan_restart(up, child);
    }
    if (!up->supervisor.is_up || !has_decode_workers(up)) {
        fail(up);
    }
}

static void on_signal(void *user, int number)
{
    up_t *up = user;
    weft_log_info("stopping signal=%d requests=%u", number, front_open_calls(up->front));
    stop(up);
}

static void on_kill(void *user)
{
    ((up_t *)user)->is_killed = true;
}

/* ---- starting and ending --------------------------------------------------------------------- */

static weft_status_t check(const up_options_t *o, weft_diag_t *diag)
{
    if (o->tensor_parallel_size < 1 || o->tensor_parallel_size > KV_TRANSFER_MAX_RANKS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--tensor-parallel-size %u: 1 to %d are possible",
                         o->tensor_parallel_size, KV_TRANSFER_MAX_RANKS);
    }
    if (o->decode < 1 || count_workers(o) > MAX_WORKERS || o->prefill > MAX_WORKERS) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--prefill %u --decode %u: at least one to decode, %d workers at most",
                         o->prefill, o->decode, MAX_WORKERS);
    }
    return o->port <= UINT16_MAX
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID, "--port %u: ports end at 65535", o->port);
}

/* What every worker would say of it, and more lines beside, once all are started. */
static weft_status_t check_workers(up_t *up, weft_diag_t *diag)
{
    const engine_options_t *engine = &up->worker_options.engine;
    weft_status_t status = parse_worker_options(up, diag);
    if (status == WEFT_OK) {
        status = engine_options_check(engine, diag);
    }
    if (status == WEFT_OK) {
        status = serve_ranks_check(up->model, engine, diag);
    }
    return status < 0 ? status : engine_machine_look(engine->device, diag, &up->machine);
}

/* Side channels of several workers on one machine cannot all have the port that is usual. */
static void set_environment(void)
{
    setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1", 1);
    setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "0", 1);
}

static weft_status_t start(up_t *up, weft_diag_t *diag)
{
    const up_options_t *o = up->options;
    supervisor_t *supervisor = &up->supervisor;
    const supervisor_config_t callbacks = {
        .is_private = true,
        .on_listening = on_listening,
        .on_up = say_listening,
        .on_death = on_death,
        .on_signal = on_signal,
        .on_kill = on_kill,
        .user = up,
    };
    const front_config_t config = {
        .host = o->host,
        .port = (uint16_t)o->port,
        .max_body_bytes = o->max_request_bytes,
        .max_connections = o->max_connections,
        .check_interval_ms = CHECK_INTERVAL_MS,
        .is_overlapped = o->overlap,
    };
    weft_status_t status = supervisor_init(supervisor, &callbacks);
    if (status == WEFT_OK) {
        status = weft_loop_timer_create(supervisor->loop, on_drain_timer, up, &up->drain_timer);
    }
    if (status == WEFT_OK) {
        status = weft_loop_timer_create(supervisor->loop, on_restart_timer, up, &up->restart_timer);
    }
    if (status == WEFT_OK) {
        status = front_create(supervisor->loop, &config, diag, &up->front);
    }
    set_environment();
    if (status == WEFT_OK) {
        status = start_workers(up, FRONT_PREFILL, o->prefill, diag);
    }
    return status < 0 ? status : start_workers(up, FRONT_DECODE, o->decode, diag);
}

static weft_status_t run(up_t *up, weft_diag_t *diag)
{
    weft_log_level_t level;
    weft_status_t status = check(up->options, diag);
    if (status < 0) {
        return status;
    }
    status = weft_log_level_parse(up->options->log_level, diag, &level);
    if (status < 0) {
        weft_diag_prefix(diag, "--log-level");
        return status;
    }
    weft_log_set_level(level);
    status = check_workers(up, diag);
    if (status < 0) {
        return status;
    }
    status = start(up, diag);
    if (status == WEFT_OK) {
        status = supervisor_run(&up->supervisor);
    }
    front_destroy(up->front);
    weft_loop_timer_destroy(up->drain_timer);
    weft_loop_timer_destroy(up->restart_timer);
    supervisor_fini(&up->supervisor);
    if (status == WEFT_OK && up->is_failed) {
        status = weft_diag(diag, WEFT_ERR_PEER_GONE, "workers have died; see above");
    }
    return status;
}

/* The words behind "--" are the workers'. */
static int split(int argc, char **argv, up_t *up)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--") == 0) {
            up->more = argv + i + 1;
            up->n_more = argc - i - 1;
            return i;
        }
    }
    return argc;
}

int cmd_up(int argc, char **argv)
{
    up_options_t options = {0};
    static const weft_option_alias_t ranks = {"tp", "tensor-parallel-size"};
    const weft_option_group_t group = CLI_OPTION_GROUP(up, "Up", &options);
    const weft_option_spec_t spec = {
        .usage = "weft up MODEL [--prefill P] [--decode D] [options] [-- flags of weft serve]",
        .about = "Serves a model on this machine with prompts computed by some workers and answers "
                 "by others.",
        .groups = &group,
        .n_groups = 1,
        .flags = &ranks,
        .n_flags = 1,
        .unknown_hint = " (flags of weft serve stand behind --)",
        .max_positional = 1,
    };
    up_t up = {.options = &options};
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    weft_status_t status = weft_option_set_parse(&spec, split(argc, argv, &up), argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status == WEFT_OK && weft_option_positional_count(set) == 0) {
        status = weft_diag(&diag, WEFT_ERR_INVALID,
                           "no model: weft up MODEL (a .gguf or "
                           ".safetensors file, or a folder)");
    }
    if (status == WEFT_OK) {
        up.model = weft_option_positional(set, 0);
        status = run(&up, &diag);
    }
    serve_options_fini(&up.worker_options);
    weft_option_set_destroy(set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK; /* --help of weft serve */
    }
    if (status < 0) {
        return cli_fail(status, &diag);
    }
    if (up.is_killed) {
        return CLI_EXIT_FAILED;
    }
    return up.supervisor.early_signal > 0 ? CLI_EXIT_SIGNALLED + up.supervisor.early_signal
                                          : CLI_EXIT_OK;
}
