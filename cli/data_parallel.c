/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/data_parallel.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/clock.h"
#include "base/http_server.h"
#include "cli/child_words.h"
#include "cli/data_parallel_machines.h"
#include "cli/supervisor.h"
#include "services/api/start_guard.h"

#define WEFT_LOG_MODULE "data-parallel"
#include "base/log.h"

#define MAX_MORE     24 /* words that a rank gets besides those given here */
#define KILL_AFTER_S 10 /* from when ranks should have ended at the latest */

typedef struct rank {
    uint32_t number;
    int listen_fd;
    uint16_t port;
} rank_t;

typedef struct data_parallel {
    const data_parallel_config_t *config;
    engine_machine_t machine;
    weft_arena_t arena; /* words of command lines */
    uint32_t first;     /* rank of this machine */
    uint32_t n;         /* ranks of it */
    rank_t ranks[CHILDREN_MAX];
    data_parallel_peer_t *peers;        /* [data_parallel_size] */
    data_parallel_machines_t *machines; /* NULL: nothing is known of others */
    supervisor_t supervisor;
    weft_loop_timer_t *deadline; /* of a stop */
    weft_status_t status;        /* with why */
    weft_diag_t why;             /* it stops; "": it was told to */
    weft_diag_t loss;            /* of another machine; written before it is posted */
} data_parallel_t;

/* ---- what is asked --------------------------------------------------------------------------- */

bool data_parallel_is_asked(const data_parallel_config_t *config)
{
    const api_options_t *o = config->api;
    const bool is_one = weft_option_is_given(config->set, "data-parallel-rank");
    return o->listen_fd == 0 && (o->headless || (o->data_parallel_size > 1 && !is_one));
}

static weft_status_t check_ranks(const data_parallel_t *dp, weft_diag_t *diag)
{
    const api_options_t *o = dp->config->api;
    if (o->data_parallel_size <= 1) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--headless: with --data-parallel-size %u there is no other machine",
                         o->data_parallel_size);
    }
    if (dp->first + (uint64_t)dp->n > o->data_parallel_size || dp->n == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--data-parallel-start-rank %u and --data-parallel-size-local %u: with "
                         "--data-parallel-size %u ranks end at %u",
                         dp->first, o->data_parallel_size_local, o->data_parallel_size,
                         o->data_parallel_size - 1);
    }
    return dp->n <= CHILDREN_MAX
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID, "%u ranks on one machine: %d at most", dp->n,
                           CHILDREN_MAX);
}

static weft_status_t check_balance(const data_parallel_t *dp, weft_diag_t *diag)
{
    const api_options_t *o = dp->config->api;
    if (o->data_parallel_external_lb && o->data_parallel_hybrid_lb) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--data-parallel-external-lb and --data-parallel-hybrid-lb: one of them");
    }
    if (o->headless && (o->data_parallel_external_lb || o->data_parallel_hybrid_lb)) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--headless: its ranks get requests from the machine with rank 0, which "
                         "--data-parallel-external-lb and --data-parallel-hybrid-lb preclude");
    }
    if (o->headless && weft_option_is_given(dp->config->set, "data-parallel-rank")) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--headless: --data-parallel-start-rank says which ranks are here, not "
                         "--data-parallel-rank");
    }
    return WEFT_OK;
}

/* Port of a rank; 0: the system's choice. */
static uint64_t port_of(const data_parallel_t *dp, uint32_t rank)
{
    const api_options_t *o = dp->config->api;
    if (o->headless) {
        return (uint64_t)o->data_parallel_rpc_port + 1 + rank;
    }
    return o->port > 0 ? (uint64_t)o->port + rank - dp->first : 0;
}

static weft_status_t check_ports(const data_parallel_t *dp, weft_diag_t *diag)
{
    const uint32_t rpc_port = dp->config->api->data_parallel_rpc_port;
    const uint32_t last = dp->first + dp->n - 1;
    if (rpc_port == 0 || rpc_port > UINT16_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--data-parallel-rpc-port %u: none of 1 to 65535",
                         rpc_port);
    }
    return port_of(dp, last) <= UINT16_MAX
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_INVALID,
                           "rank %u would have port %" PRIu64 ": ports end at 65535", last,
                           port_of(dp, last));
}

static weft_status_t check(data_parallel_t *dp, weft_diag_t *diag)
{
    const api_options_t *o = dp->config->api;
    dp->first = o->data_parallel_start_rank;
    dp->n = o->data_parallel_size_local > 0     ? o->data_parallel_size_local
            : dp->first < o->data_parallel_size ? o->data_parallel_size - dp->first
                                                : 0;
    weft_status_t status = api_options_check(o, diag);
    if (status == WEFT_OK) {
        status = launch_options_check(dp->config->launch, diag);
    }
    if (status == WEFT_OK) {
        status = check_ranks(dp, diag);
    }
    if (status == WEFT_OK) {
        status = check_balance(dp, diag);
    }
    return status < 0 ? status : check_ports(dp, diag);
}

/* ---- where ranks listen ---------------------------------------------------------------------- */

/* All ports at first: one that is taken is said before any model loads. */
static weft_status_t listen_all(data_parallel_t *dp, weft_diag_t *diag)
{
    const char *host = dp->config->api->host;
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; i < dp->n && status == WEFT_OK; i++) {
        rank_t *rank = &dp->ranks[i];
        rank->number = dp->first + i;
        status = weft_http_listen(host, (uint16_t)port_of(dp, rank->number), diag, &rank->listen_fd,
                                  &rank->port);
    }
    return status;
}

/* This machine's ranks, as they reach each other. */
static void name_own_peers(data_parallel_t *dp)
{
    const char *host = dp->config->api->host;
    for (uint32_t i = 0; i < dp->n; i++) {
        data_parallel_peer_write(dp->config->api, dp->ranks[i].number,
                                 data_parallel_is_any_host(host) ? "127.0.0.1" : host,
                                 dp->ranks[i].port, &dp->peers[dp->ranks[i].number]);
    }
}

/* ---- other machines --------------------------------------------------------------------------- */

static void stop(data_parallel_t *dp, const char *why);

static void take_loss(void *user)
{
    data_parallel_t *dp = user;
    if (!dp->supervisor.is_stopping) {
        weft_log_error("%s: this machine's ranks are ended", dp->loss.text);
        dp->status = weft_diag(&dp->why, WEFT_ERR_PEER_GONE, "%s", dp->loss.text);
        stop(dp, dp->loss.text);
    }
}

/* On a thread of the group's. */
static void on_machine_lost(void *user, const char *why)
{
    data_parallel_t *dp = user;
    weft_diag(&dp->loss, WEFT_ERR_PEER_GONE, "%s", why);
    if (weft_loop_post(dp->supervisor.loop, take_loss, dp) < 0) {
        weft_log_error("%s", why);
    }
}

/* Whether the first port is to balance over ranks of other machines. */
static bool has_machines(const data_parallel_t *dp)
{
    const api_options_t *o = dp->config->api;
    return !o->data_parallel_external_lb && !o->data_parallel_hybrid_lb &&
           dp->n < o->data_parallel_size;
}

/* May take as long as the last machine needs to come; a signal ends it and the process. */
static weft_status_t meet(data_parallel_t *dp, weft_diag_t *diag)
{
    uint16_t ports[CHILDREN_MAX];
    start_guard_t *guard = NULL;
    const data_parallel_machines_config_t config = {
        .options = dp->config->api,
        .first = dp->first,
        .n = dp->n,
        .ports = ports,
        .secret_file = dp->config->launch->secret_file,
        .join_timeout_s = dp->config->launch->join_timeout,
        .lost_after_s = dp->config->launch->coll_timeout,
        .on_lost = on_machine_lost,
        .user = dp,
    };
    for (uint32_t i = 0; i < dp->n; i++) {
        ports[i] = dp->ranks[i].port;
    }
    weft_status_t status = start_guard_begin(dp->supervisor.signal_fd, &guard);
    if (status == WEFT_OK) {
        status = data_parallel_machines_join(&config, diag, dp->peers, &dp->machines);
    }
    start_guard_end(guard);
    return status;
}

/* ---- a rank's command line ------------------------------------------------------------------- */

/* One process has a folder at a time. */
static void add_disk_path(const data_parallel_t *dp, const rank_t *rank, child_words_t *words)
{
    const char *path = dp->config->engine->kv_disk_path;
    if (path[0] != '\0') {
        child_words_add_flag(words, "--kv-disk-path", "%s/rank-%u", path, rank->number);
    }
}

static void add_peers(const data_parallel_t *dp, child_words_t *words)
{
    child_words_add(words, "--data-parallel-peers");
    for (uint32_t i = 0; i < dp->config->api->data_parallel_size; i++) {
        if (dp->peers[i].text[0] != '\0') {
            child_words_add(words, dp->peers[i].text);
        }
    }
}

/* What was given here, then what makes it this rank: the last of two wins. */
static char **words_of(data_parallel_t *dp, const rank_t *rank, const char *name)
{
    const data_parallel_config_t *config = dp->config;
    const engine_share_t share =
        engine_share_of(&dp->machine, config->engine, dp->n, rank->number - dp->first);
    child_words_t words;
    child_words_init(&words, &dp->arena,
                     (uint32_t)config->n_words + config->api->data_parallel_size + MAX_MORE);
    child_words_add(&words, "weft");
    int given = 0;
    while (given < config->n_words && strcmp(config->words[given], "--") != 0) {
        child_words_add(&words, config->words[given++]);
    }
    child_words_add_flag(&words, "--data-parallel-rank", "%u", rank->number);
    child_words_add_flag(&words, "--listen-fd", "%d", rank->listen_fd);
    child_words_add_share(&words, name, config->set, config->engine, &share);
    add_disk_path(dp, rank, &words);
    add_peers(dp, &words);
    while (given < config->n_words) {
        child_words_add(&words, config->words[given++]);
    }
    return child_words_end(&words);
}

static weft_status_t start_ranks(data_parallel_t *dp, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    for (uint32_t i = 0; i < dp->n && status == WEFT_OK; i++) {
        rank_t *rank = &dp->ranks[i];
        char name[32];
        snprintf(name, sizeof(name), "rank-%u", rank->number);
        char **words = words_of(dp, rank, name);
        status = words == NULL
                     ? WEFT_ERR_NO_MEMORY
                     : children_start(&dp->supervisor.children, name, words, rank->listen_fd, diag);
        close(rank->listen_fd); /* the rank's now: nobody else keeps its port open */
        rank->listen_fd = -1;
    }
    return status;
}

/* ---- what happens ---------------------------------------------------------------------------- */

static void on_listening(void *user, child_t *child, const char *url)
{
    (void)user;
    (void)child;
    (void)url; /* it was told where */
}

static void on_up(void *user)
{
    const data_parallel_t *dp = user;
    weft_log_info("all ranks of this machine serve ranks=%u-%u of=%u", dp->first,
                  dp->first + dp->n - 1, dp->config->api->data_parallel_size);
}

/* Unless there is a reason already, which came first. */
static void note(data_parallel_t *dp, weft_status_t status, const char *why)
{
    if (dp->status == WEFT_OK) {
        dp->status = weft_diag(&dp->why, status, "%s", why);
    }
}

static void on_deadline(void *user)
{
    data_parallel_t *dp = user;
    weft_log_warn("ranks did not end in time: they are killed");
    note(dp, WEFT_ERR_TIMEOUT, "ranks did not end in time");
    children_signal(&dp->supervisor.children, SIGKILL);
}

/* A service is all of its machines: the others hear that this one goes. */
static void stop(data_parallel_t *dp, const char *why)
{
    supervisor_stop(&dp->supervisor);
    if (dp->machines != NULL) {
        data_parallel_machines_fail(dp->machines, why);
    }
    weft_loop_timer_set(dp->deadline, ((uint64_t)dp->config->api->shutdown_timeout + KILL_AFTER_S) *
                                          WEFT_NS_PER_SECOND);
    supervisor_end(&dp->supervisor);
}

/* Requests are spread over all ranks: without one of them the others are no service. */
static void on_death(void *user, child_t *child, const char *how)
{
    data_parallel_t *dp = user;
    weft_log_error("%s has ended by itself how=\"%s\": the others are ended", child->name, how);
    dp->status =
        weft_diag(&dp->why, WEFT_ERR_PEER_GONE, "data-parallel %s has ended: %s", child->name, how);
    stop(dp, dp->why.text);
}

static void on_signal(void *user, int number)
{
    weft_log_info("stopping signal=%d", number);
    stop(user, "it was told to stop");
}

static void on_kill(void *user)
{
    note(user, WEFT_ERR_CANCELLED, "ended by a second signal");
}

/* ---- starting and ending --------------------------------------------------------------------- */

static weft_status_t start(data_parallel_t *dp, weft_diag_t *diag)
{
    supervisor_t *supervisor = &dp->supervisor;
    const supervisor_config_t callbacks = {
        .on_listening = on_listening,
        .on_up = on_up,
        .on_death = on_death,
        .on_signal = on_signal,
        .on_kill = on_kill,
        .user = dp,
    };
    weft_status_t status = check(dp, diag);
    if (status == WEFT_OK) {
        status = engine_machine_look(dp->config->engine->device, diag, &dp->machine);
    }
    if (status == WEFT_OK) {
        dp->peers =
            weft_calloc(dp->config->api->data_parallel_size, sizeof(*dp->peers), "cli.peers");
        status = dp->peers == NULL ? WEFT_ERR_NO_MEMORY : supervisor_init(supervisor, &callbacks);
    }
    if (status == WEFT_OK) {
        status = weft_loop_timer_create(supervisor->loop, on_deadline, dp, &dp->deadline);
    }
    if (status == WEFT_OK) {
        status = listen_all(dp, diag);
    }
    if (status == WEFT_OK && has_machines(dp)) {
        status = meet(dp, diag);
    }
    if (status < 0) {
        return status;
    }
    name_own_peers(dp);    /* not as other machines reach them */
    launch_place_forget(); /* what LWS and others say is of machines, not of a copy's ranks */
    return start_ranks(dp, diag);
}

static void fini(data_parallel_t *dp)
{
    data_parallel_machines_leave(dp->machines);
    for (uint32_t i = 0; i < CHILDREN_MAX; i++) {
        if (dp->ranks[i].listen_fd > 0) {
            close(dp->ranks[i].listen_fd);
        }
    }
    weft_loop_timer_destroy(dp->deadline);
    supervisor_fini(&dp->supervisor);
    weft_free(dp->peers);
    weft_arena_free(&dp->arena);
}

weft_status_t data_parallel_run(const data_parallel_config_t *config, weft_diag_t *diag,
                                int *early_signal_out)
{
    *early_signal_out = 0;
    data_parallel_t *dp = weft_zalloc(sizeof(*dp), "cli.data_parallel");
    if (dp == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    dp->config = config;
    weft_status_t status = start(dp, diag);
    if (status == WEFT_OK) {
        status = supervisor_run(&dp->supervisor);
    }
    if (status == WEFT_OK && dp->status < 0) {
        status = weft_diag(diag, dp->status, "%s", dp->why.text);
    }
    *early_signal_out = dp->supervisor.early_signal;
    fini(dp);
    weft_free(dp);
    return status;
}
