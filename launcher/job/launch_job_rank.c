/* SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "launcher/job/launch_job_priv.h"

#define FIRST_DELAY_NS (200 * WEFT_NS_PER_MS) /* before the second restart in a row */
#define MAX_DOUBLINGS  5
#define VARIABLES      7
#define VARIABLE_BYTES (LAUNCH_NAME_BYTES + 64)

static job_host_t *host_of(const job_rank_t *rank)
{
    return &rank->job->hosts[rank->spot.host];
}

static bool is_busy(const job_rank_t *rank)
{
    return rank->is_alive || rank->open_streams > 0;
}

bool job_rank_is_wanted(const job_rank_t *rank)
{
    return rank->is_alive || rank->is_due;
}

bool job_has_busy_ranks(const job_t *job)
{
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        if (is_busy(&job->ranks[i]) || job->ranks[i].is_due) {
            return true;
        }
    }
    return false;
}

/* ---- starting -------------------------------------------------------------------------------- */

typedef struct variables {
    char texts[VARIABLES][VARIABLE_BYTES];
    uint32_t n;
} variables_t;

static void set_number(variables_t *variables, const char *name, uint32_t value)
{
    snprintf(variables->texts[variables->n++], VARIABLE_BYTES, "%s=%u", name, value);
}

static void fill_variables(const job_rank_t *rank, variables_t *variables)
{
    const job_t *job = rank->job;
    set_number(variables, "WEFT_RANK", rank->number);
    set_number(variables, "WEFT_SIZE", job->n_ranks);
    set_number(variables, "WEFT_LOCAL_RANK", rank->spot.local_rank);
    set_number(variables, "WEFT_LOCAL_SIZE", rank->spot.local_size);
    set_number(variables, "WEFT_EPOCH", job->epoch);
    if (job->config->restarts > 0) {
        set_number(variables, "WEFT_RESTARTS", job->config->restarts);
    }
    snprintf(variables->texts[variables->n++], VARIABLE_BYTES, "WEFT_LEADER=%s", job->leader);
}

static weft_status_t append_start(job_rank_t *rank, weft_buffer_t *out)
{
    const launch_job_config_t *config = rank->job->config;
    char folder[PATH_MAX] = "";
    variables_t variables = {.n = 0};
    fill_variables(rank, &variables);
    const uint32_t n = config->n_environment + variables.n;
    char **environment = weft_calloc(n, sizeof(*environment), "launch.job.environment");
    if (environment == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < config->n_environment; i++) {
        environment[i] = config->environment[i];
    }
    for (uint32_t i = 0; i < variables.n; i++) {
        environment[config->n_environment + i] = variables.texts[i];
    }
    const launch_start_t start = {
        .bind_to = (uint8_t)config->bind_to,
        .map_by = (uint8_t)config->map_by,
        .has_input = rank->number == 0 && !rank->job->input.has_ended,
        .local_rank = rank->spot.local_rank,
        .folder = getcwd(folder, sizeof(folder)) != NULL ? folder : "",
        .argv = (char **)config->argv,
        .environment = environment,
        .argc = config->argc,
        .n_environment = n,
    };
    const weft_status_t status = launch_start_append(out, rank->number, &start);
    weft_free(environment);
    return status;
}

static void start_rank(job_rank_t *rank)
{
    job_host_t *host = host_of(rank);
    rank->is_due = rank->is_timed = false;
    const weft_status_t status = append_start(rank, launch_remote_out(host->remote));
    if (status < 0) {
        launch_output_say(rank->job->output, "rank %u cannot be started: %s", rank->number,
                          status == WEFT_ERR_TOO_LARGE
                              ? "its arguments and environment are too large"
                              : weft_strerror(status));
        job_fail(rank->job, 1);
        return;
    }
    rank->is_alive = true;
    rank->open_streams = LAUNCH_STREAMS;
    rank->started_ns = weft_clock_ns();
    launch_remote_wake(host->remote);
}

void job_start_ranks(job_t *job)
{
    job->is_restarting_all = false;
    for (uint32_t i = 0; i < job->n_ranks && job->state == JOB_RUNNING; i++) {
        start_rank(&job->ranks[i]);
    }
    job_input_resume(job);
}

/* ---- ending and starting again --------------------------------------------------------------- */

static void describe(const job_rank_t *rank, launch_exit_t end, char *text, size_t size)
{
    const char *host = host_of(rank)->name;
    if (end.signal != 0) {
        snprintf(text, size, "rank %u on host %s was killed by signal %u (%s)", rank->number, host,
                 end.signal, strsignal((int)end.signal));
    } else {
        snprintf(text, size, "rank %u on host %s ended with exit code %u", rank->number, host,
                 end.code);
    }
}

static int exit_code_of(launch_exit_t end)
{
    return end.signal != 0 ? 128 + (int)end.signal : (int)end.code;
}

/* Whether it, or all with it, can be started: a host that is lost may be coming back. */
static bool are_hosts_there(const job_rank_t *rank)
{
    const job_t *job = rank->job;
    bool are_there = !host_of(rank)->is_lost;
    for (uint32_t i = 0; i < job->n_ranks && job->is_restarting_all; i++) {
        are_there &= !host_of(&job->ranks[i])->is_lost;
    }
    return are_there;
}

static void on_restart(void *user)
{
    job_rank_t *rank = user;
    job_t *job = rank->job;
    rank->is_timed = false;
    if (job->state != JOB_RUNNING || !rank->is_due || !are_hosts_there(rank)) {
        return;
    }
    job->epoch++;
    if (job->is_restarting_all) {
        job_start_ranks(job);
    } else {
        start_rank(rank);
    }
}

/* Delays grow while it ends again and again: that has a reason which starting it does not mend. */
uint64_t job_backoff_ns(uint32_t quick_ends)
{
    if (quick_ends <= 1) {
        return 0;
    }
    const uint32_t doublings = quick_ends - 2;
    return FIRST_DELAY_NS << (doublings < MAX_DOUBLINGS ? doublings : MAX_DOUBLINGS);
}

static void restart_all(job_t *job)
{
    job->is_restarting_all = true;
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        job->ranks[i].is_due = true;
        job->ranks[i].is_timed = false;
        weft_loop_timer_clear(job->ranks[i].restart);
    }
    job_signal_all(job, SIGTERM);
    job_signal_all(job, SIGCONT); /* one that is stopped hears of SIGTERM only then */
    weft_loop_timer_set(job->kill_timer, JOB_TERM_NS);
}

static void restart(job_rank_t *rank, const char *how)
{
    job_t *job = rank->job;
    const bool was_well = weft_clock_ns() - rank->started_ns >= JOB_STEADY_NS;
    rank->restarts++;
    rank->quick_ends = was_well ? 1 : rank->quick_ends + 1;
    launch_output_say(job->output, "%s; %s started again (%u of %u)", how,
                      rank->number == 0 ? "all ranks are" : "it is", rank->restarts,
                      job->config->restarts);
    if (rank->number == 0) {
        restart_all(job);
    } else {
        rank->is_due = true;
    }
}

/* Somebody asked for the end, and it ended of that. */
static bool is_as_asked(const job_t *job, launch_exit_t end)
{
    return job->asked_signal != 0 && exit_code_of(end) == 128 + job->asked_signal;
}

static void take_end(job_rank_t *rank, launch_exit_t end)
{
    job_t *job = rank->job;
    char how[2 * LAUNCH_NAME_BYTES];
    rank->is_alive = false;
    weft_loop_timer_clear(rank->stopped);
    if (exit_code_of(end) == 0 || job->state != JOB_RUNNING || job->is_restarting_all) {
        return;
    }
    describe(rank, end, how, sizeof(how));
    if (is_as_asked(job, end)) {
        if (!job->has_failed) {
            job->has_failed = true;
            job->exit_code = exit_code_of(end);
        }
    } else if (rank->restarts < job->config->restarts && job->asked_signal == 0) {
        restart(rank, how);
    } else {
        launch_output_say(job->output, "%s%s", how,
                          job->n_ranks > 1 ? "; the others are ended" : "");
        job_fail(job, exit_code_of(end));
    }
}

static void time_restart(job_rank_t *rank)
{
    if (rank->is_due && !rank->is_timed && are_hosts_there(rank)) {
        rank->is_timed = true;
        weft_loop_timer_set(rank->restart, job_backoff_ns(rank->quick_ends));
    }
}

static void time_restarts(job_t *job)
{
    bool is_any_busy = false;
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        job_rank_t *rank = &job->ranks[i];
        is_any_busy |= is_busy(rank);
        if (!job->is_restarting_all && !is_busy(rank)) {
            time_restart(rank);
        }
    }
    if (job->is_restarting_all && !is_any_busy) {
        weft_loop_timer_clear(job->kill_timer);
        time_restart(&job->ranks[0]); /* and all with it */
    }
}

void job_settle_ranks(job_t *job)
{
    if (job->state == JOB_RUNNING) {
        time_restarts(job);
    }
    if (!job_has_busy_ranks(job) && job->state != JOB_CONNECTING) {
        job_leave(job);
    }
}

void job_cancel_restarts(job_t *job)
{
    bool was_any_due = false;
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        job_rank_t *rank = &job->ranks[i];
        was_any_due |= rank->is_due;
        rank->is_due = rank->is_timed = false;
        weft_loop_timer_clear(rank->restart);
    }
    job->is_restarting_all = false;
    job_cancel_returns(job);
    if (was_any_due && !job->has_failed) { /* the job is not whole when it ends */
        job->has_failed = true;
        job->exit_code = 128 + job->asked_signal;
    }
    job_settle_ranks(job);
}

void job_lose_rank(job_rank_t *rank, bool comes_back)
{
    const bool was_wanted = job_rank_is_wanted(rank);
    rank->is_alive = false;
    rank->is_due = rank->is_timed = false;
    rank->open_streams = 0;
    weft_loop_timer_clear(rank->stopped);
    weft_loop_timer_clear(rank->restart);
    for (int s = 0; s < LAUNCH_STREAMS; s++) {
        launch_output_end(rank->job->output, rank->number, (launch_stream_t)s);
    }
    if (!comes_back || !was_wanted) {
        return;
    }
    rank->restarts++;
    rank->is_due = true;
    if (rank->number == 0) {
        restart_all(rank->job);
    }
}

/* ---- stopped ones ---------------------------------------------------------------------------- */

static void on_stopped_too_long(void *user)
{
    job_rank_t *rank = user;
    launch_output_say(rank->job->output, "rank %u on host %s has been stopped for %u s: killed",
                      rank->number, host_of(rank)->name, rank->job->config->stopped_after_s);
    job_signal_host(host_of(rank), rank->number, SIGKILL);
}

static void take_stop(job_rank_t *rank)
{
    const launch_job_config_t *config = rank->job->config;
    if (config->restarts > 0 && !rank->job->is_suspended && rank->is_alive) {
        weft_loop_timer_set(rank->stopped, config->stopped_after_s * WEFT_NS_PER_SECOND);
    }
}

/* ---- frames ---------------------------------------------------------------------------------- */

static weft_status_t take_output(job_rank_t *rank, launch_stream_t stream,
                                 const launch_frame_t *frame)
{
    job_host_t *host = host_of(rank);
    if (frame->length > LAUNCH_WINDOW - host->owed) { /* more than it had credit for */
        return WEFT_ERR_MALFORMED;
    }
    host->owed += frame->length;
    launch_output_take(rank->job->output, rank->number, stream, frame->payload, frame->length);
    job_give_credit(rank->job);
    return WEFT_OK;
}

static void end_stream(job_rank_t *rank, launch_stream_t stream)
{
    launch_output_end(rank->job->output, rank->number, stream);
    rank->open_streams -= rank->open_streams > 0;
    job_settle_ranks(rank->job);
}

static weft_status_t take_exit(job_rank_t *rank, const launch_frame_t *frame)
{
    launch_exit_t end;
    if (launch_exit_decode(frame, &end) < 0) {
        return WEFT_ERR_MALFORMED;
    }
    take_end(rank, end);
    job_settle_ranks(rank->job);
    return WEFT_OK;
}

static weft_status_t take_refusal(job_rank_t *rank, const launch_frame_t *frame)
{
    const char *why = launch_frame_text(frame);
    if (why == NULL) {
        return WEFT_ERR_MALFORMED;
    }
    if (rank->job->state == JOB_RUNNING) { /* and not said of another rank already */
        launch_output_say(rank->job->output, "rank %u on host %s cannot be started: %s",
                          rank->number, host_of(rank)->name, why);
    }
    return WEFT_OK;
}

static weft_status_t take_frame(job_rank_t *rank, const launch_frame_t *frame)
{
    uint32_t n = 0;
    switch (frame->kind) {
    case LAUNCH_FRAME_STARTED:
        return launch_frame_u32(frame, &n);
    case LAUNCH_FRAME_REFUSED:
        return take_refusal(rank, frame);
    case LAUNCH_FRAME_OUT:
        return take_output(rank, LAUNCH_STDOUT, frame);
    case LAUNCH_FRAME_ERR:
        return take_output(rank, LAUNCH_STDERR, frame);
    case LAUNCH_FRAME_OUT_END:
        end_stream(rank, LAUNCH_STDOUT);
        return WEFT_OK;
    case LAUNCH_FRAME_ERR_END:
        end_stream(rank, LAUNCH_STDERR);
        return WEFT_OK;
    case LAUNCH_FRAME_EXITED:
        return take_exit(rank, frame);
    case LAUNCH_FRAME_STOPPED:
        take_stop(rank);
        return WEFT_OK;
    case LAUNCH_FRAME_CONTINUED:
        weft_loop_timer_clear(rank->stopped);
        return WEFT_OK;
    case LAUNCH_FRAME_TAKEN:
        if (launch_frame_u32(frame, &n) < 0 || rank->number != 0) {
            return WEFT_ERR_MALFORMED;
        }
        job_input_taken(rank->job, n);
        return WEFT_OK;
    default:
        return WEFT_ERR_MALFORMED;
    }
}

void job_take_rank_frame(job_host_t *host, const launch_frame_t *frame)
{
    job_t *job = host->job;
    weft_status_t status = WEFT_ERR_MALFORMED;
    if (frame->rank < job->n_ranks && host_of(&job->ranks[frame->rank]) == host) {
        status = take_frame(&job->ranks[frame->rank], frame);
    }
    if (status < 0) {
        launch_output_say(job->output, "host %s: its agent speaks no sense", host->name);
        launch_remote_kill(host->remote);
    }
}

/* ---- making them ----------------------------------------------------------------------------- */

static weft_status_t make_rank(job_t *job, uint32_t number, const launch_spot_t *spot)
{
    job_rank_t *rank = &job->ranks[number];
    *rank = (job_rank_t){.job = job, .number = number, .spot = *spot};
    const weft_status_t status = job_add_timer(job, on_restart, rank, &rank->restart);
    return status < 0 ? status : job_add_timer(job, on_stopped_too_long, rank, &rank->stopped);
}

weft_status_t job_make_ranks(job_t *job, weft_diag_t *diag)
{
    const launch_job_config_t *config = job->config;
    launch_spot_t *spots = weft_calloc(job->n_ranks, sizeof(*spots), "launch.job.spots");
    job->ranks = weft_calloc(job->n_ranks, sizeof(*job->ranks), "launch.job.ranks");
    weft_status_t status = spots == NULL || job->ranks == NULL
                               ? weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory")
                               : launch_map_ranks(job->seats, job->n_ranks, config->map_by,
                                                  config->may_oversubscribe, diag, spots);
    for (uint32_t i = 0; i < job->n_ranks && status == WEFT_OK; i++) {
        status = make_rank(job, i, &spots[i]);
        if (status < 0) {
            weft_diag(diag, status, "%s", weft_strerror(status));
        }
    }
    weft_free(spots);
    return status;
}
