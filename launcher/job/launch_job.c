/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_job.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "launcher/job/launch_job_priv.h"

weft_status_t job_add_timer(job_t *job, weft_loop_fn fn, void *user, weft_loop_timer_t **timer_out)
{
    return weft_loop_timer_create(job->loop, fn, user, timer_out);
}

/* ---- ending ---------------------------------------------------------------------------------- */

void job_fail(job_t *job, int exit_code)
{
    if (!job->has_failed) {
        job->has_failed = true;
        job->exit_code = exit_code;
    }
    job_end(job);
}

void job_end(job_t *job)
{
    const job_state_t before = job->state;
    if (before == JOB_KILLING || before == JOB_LEAVING) {
        return;
    }
    job->state = JOB_KILLING;
    job_input_stop(job);
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        job->ranks[i].is_due = false;
    }
    if (before == JOB_CONNECTING || !job_has_busy_ranks(job)) {
        job_leave(job);
        return;
    }
    job_signal_all(job, SIGTERM);
    job_signal_all(job, SIGCONT); /* one that is stopped hears of SIGTERM only then */
    weft_loop_timer_set(job->kill_timer, JOB_TERM_NS);
}

void job_kill(job_t *job)
{
    job->is_killed = true;
    job_signal_all(job, SIGKILL);
    weft_loop_timer_set(job->kill_timer, JOB_KILL_NS);
}

/* Each time it fires, what comes next: SIGKILL, then going without them, then agents' end. */
static void on_kill_timer(void *user)
{
    job_t *job = user;
    if (job->state == JOB_RUNNING) { /* all are to be started again */
        job_signal_all(job, SIGKILL);
    } else if (job->state == JOB_KILLING && !job->is_killed) {
        job_kill(job);
    } else if (job->state == JOB_KILLING) {
        job_leave(job);
    } else {
        for (uint32_t i = 0; i < job->seats->n; i++) {
            if (job->hosts[i].remote != NULL) {
                launch_remote_kill(job->hosts[i].remote);
            }
        }
    }
}

void job_leave(job_t *job)
{
    if (job->state == JOB_LEAVING) {
        return;
    }
    job->state = JOB_LEAVING;
    job_input_stop(job);
    weft_loop_timer_clear(job->timeout);
    weft_loop_timer_clear(job->connect_timer);
    for (uint32_t i = 0; i < job->seats->n; i++) {
        launch_remote_t *remote = job->hosts[i].remote;
        if (remote != NULL) {
            launch_remote_end(remote);
        }
        if (remote != NULL && !job->hosts[i].is_ready) {
            launch_remote_kill(remote); /* it waits for a host, not for us */
        }
    }
    launch_output_finish(job->output);
    weft_loop_timer_set(job->kill_timer, JOB_LEAVE_NS);
    job_leave_when_done(job);
}

void job_leave_when_done(job_t *job)
{
    bool are_all_gone = job->state == JOB_LEAVING;
    for (uint32_t i = 0; i < job->seats->n && are_all_gone; i++) {
        are_all_gone = job->hosts[i].remote == NULL || job->hosts[i].is_lost;
    }
    if (are_all_gone && launch_output_pending(job->output) == 0) {
        weft_loop_stop(job->loop);
    }
}

static void on_timeout(void *user)
{
    job_t *job = user;
    launch_output_say(job->output, "the job has not ended in %u s", job->config->timeout_s);
    job_fail(job, LAUNCH_EXIT_TIMEOUT);
}

/* ---- output ---------------------------------------------------------------------------------- */

void job_give_credit(job_t *job)
{
    for (uint32_t i = 0; i < job->seats->n && launch_output_has_room(job->output); i++) {
        job_host_t *host = &job->hosts[i];
        if (host->owed >= LAUNCH_WINDOW / 4 && !host->is_lost) {
            launch_frame_append_u32(launch_remote_out(host->remote), LAUNCH_FRAME_CREDIT,
                                    LAUNCH_ALL, host->owed);
            launch_remote_wake(host->remote);
            host->owed = 0;
        }
    }
}

static void on_written(void *user)
{
    job_give_credit(user);
    job_leave_when_done(user);
}

/* As a program that writes into a pipe nobody reads. */
static void on_broken(void *user, launch_stream_t stream, int error)
{
    job_t *job = user;
    if (stream == LAUNCH_STDOUT && error != EPIPE) {
        launch_output_say(job->output, "standard output: %s", strerror(error));
    }
    if (stream == LAUNCH_STDOUT) {
        job_fail(job, 128 + SIGPIPE);
    }
}

/* ---- life ------------------------------------------------------------------------------------ */

static weft_status_t add_host(launch_hosts_t *hosts, const char *name, uint32_t slots)
{
    launch_seats_t seats = {.slots = slots};
    snprintf(seats.name, sizeof(seats.name), "%s", name);
    return launch_hosts_add(hosts, &seats);
}

static weft_status_t count_cores(weft_diag_t *diag, uint32_t *n_out)
{
    launch_binding_t *binding = NULL;
    const weft_status_t status = launch_binding_create(NULL, diag, &binding);
    if (status == WEFT_OK) {
        *n_out = launch_binding_cores(binding);
        launch_binding_destroy(binding);
    }
    return status;
}

/* Hosts that are not in a list of the caller's: namespaces, or this machine. */
static weft_status_t make_seats(job_t *job, weft_diag_t *diag)
{
    const uint32_t n_fake = job->config->n_fake_hosts;
    weft_status_t status = WEFT_OK;
    if (n_fake == 0) {
        if (job->n_ranks == 0) {
            status = count_cores(diag, &job->n_ranks);
        }
        return status < 0 ? status : add_host(&job->fake_hosts, "localhost", job->n_ranks);
    }
    job->n_ranks = job->n_ranks == 0 ? n_fake : job->n_ranks;
    for (uint32_t i = 0; i < n_fake && status == WEFT_OK; i++) {
        char name[32];
        snprintf(name, sizeof(name), "fake-%u", i);
        status = add_host(&job->fake_hosts, name, (job->n_ranks + n_fake - 1) / n_fake);
    }
    return status < 0 ? status : launch_netns_create(n_fake, diag, &job->netns);
}

static weft_status_t choose_seats(job_t *job, weft_diag_t *diag)
{
    const launch_hosts_t *hosts = job->config->hosts;
    weft_status_t status = WEFT_OK;
    job->n_ranks = job->config->n_ranks;
    if (hosts->n > 0) {
        job->seats = hosts;
        job->n_ranks = job->n_ranks == 0 ? launch_map_slots(hosts) : job->n_ranks;
    } else {
        job->seats = &job->fake_hosts;
        status = make_seats(job, diag);
    }
    if (status == WEFT_OK && job->n_ranks > LAUNCH_MAX_RANKS) {
        status = weft_diag(diag, WEFT_ERR_INVALID, "%u ranks: at most %d", job->n_ranks,
                           LAUNCH_MAX_RANKS);
    }
    return status;
}

static weft_status_t add_timers(job_t *job)
{
    weft_status_t status = job_add_timer(job, on_timeout, job, &job->timeout);
    if (status == WEFT_OK) {
        status = job_add_timer(job, job_on_connect_timeout, job, &job->connect_timer);
    }
    return status < 0 ? status : job_add_timer(job, on_kill_timer, job, &job->kill_timer);
}

static weft_status_t open_output(job_t *job, weft_diag_t *diag)
{
    const launch_output_config_t config = {
        .n_ranks = job->n_ranks,
        .is_tagged = job->config->is_tagged,
        .folder = job->config->output_folder,
        .on_written = on_written,
        .on_broken = on_broken,
        .user = job,
    };
    return launch_output_create(job->loop, &config, diag, &job->output);
}

static weft_status_t open_job(job_t *job, weft_diag_t *diag)
{
    weft_status_t status = weft_loop_create(&job->loop);
    if (status == WEFT_OK) {
        status = add_timers(job);
    }
    if (status == WEFT_OK) {
        status = job_watch_signals(job);
    }
    if (status < 0) {
        return weft_diag(diag, status, "%s", weft_strerror(status));
    }
    status = choose_seats(job, diag);
    if (status == WEFT_OK) {
        status = job_make_ranks(job, diag);
    }
    if (status == WEFT_OK) {
        status = open_output(job, diag);
    }
    return status < 0 ? status : job_start_hosts(job, diag);
}

static void close_job(job_t *job)
{
    for (uint32_t i = 0; job->hosts != NULL && i < job->seats->n; i++) {
        launch_remote_destroy(job->hosts[i].remote);
    }
    launch_process_end_all();
    launch_output_destroy(job->output);
    weft_loop_destroy(job->loop);
    launch_netns_destroy(job->netns);
    launch_hosts_fini(&job->fake_hosts);
    weft_free(job->hosts);
    weft_free(job->ranks);
    if (job->signal_fd >= 0) {
        close(job->signal_fd);
    }
}

weft_status_t launch_job_run(const launch_job_config_t *config, weft_diag_t *diag,
                             int *exit_code_out)
{
    job_t job = {.config = config, .signal_fd = -1};
    launch_process_adopt();
    job.open_files = launch_process_raise_open_files();
    weft_status_t status = open_job(&job, diag);
    if (status == WEFT_OK) {
        weft_loop_timer_set(job.connect_timer, config->connect_timeout_s * WEFT_NS_PER_SECOND);
        if (config->timeout_s > 0) {
            weft_loop_timer_set(job.timeout, config->timeout_s * WEFT_NS_PER_SECOND);
        }
        status = weft_loop_run(job.loop);
    }
    *exit_code_out = job.exit_code;
    close_job(&job);
    return status;
}
