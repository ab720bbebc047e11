/* SPDX-License-Identifier: Apache-2.0 */
/* Hosts that are lost. With restarts they are tried again, and what ran there is started again there. */
#include "launcher/job/launch_job_priv.h"

/* ---- trying again ---------------------------------------------------------------------------- */

static void stop_trying(job_host_t *host)
{
    host->is_returning = false;
    weft_loop_timer_clear(host->again);
    weft_loop_timer_clear(host->give_up);
}

static void try_later(job_host_t *host)
{
    host->tries++;
    weft_loop_timer_set(host->again, job_backoff_ns(host->tries));
}

static bool is_agent(void *user, pid_t pid)
{
    const job_t *job = user;
    for (uint32_t i = 0; i < job->seats->n; i++) {
        const launch_remote_t *remote = job->hosts[i].remote;
        if (remote != NULL && launch_remote_pid(remote) == pid) {
            return true;
        }
    }
    return false;
}

/* What an agent of this machine that was killed has left behind came to us; an ssh leaves nothing here. */
static void end_leftovers(job_host_t *host)
{
    if (host->is_here || host->job->netns != NULL) {
        (void)launch_process_end_others(is_agent, host->job);
    }
}

static void on_again(void *user)
{
    job_host_t *host = user;
    weft_diag_t diag = {0};
    if (host->job->state != JOB_RUNNING || !host->is_returning) {
        return;
    }
    launch_remote_destroy(host->remote);
    host->remote = NULL;
    end_leftovers(host);
    if (job_connect_host(host, &diag) < 0) {
        job_lose_host(host, diag.text);
    }
}

static void on_give_up(void *user)
{
    job_host_t *host = user;
    job_t *job = host->job;
    if (job->state == JOB_RUNNING && host->is_returning) {
        launch_output_say(job->output, "host %s cannot be reached again: tried for %u s",
                          host->name, job->config->connect_timeout_s);
        stop_trying(host);
        job_fail(job, 1);
    }
}

static weft_status_t start_trying(job_host_t *host)
{
    job_t *job = host->job;
    weft_status_t status = WEFT_OK;
    if (host->again == NULL) {
        status = job_add_timer(job, on_again, host, &host->again);
    }
    if (status == WEFT_OK && host->give_up == NULL) {
        status = job_add_timer(job, on_give_up, host, &host->give_up);
    }
    if (status < 0) {
        return status;
    }
    if (weft_clock_ns() - host->ready_ns >= JOB_STEADY_NS) {
        host->tries = 0;
    }
    host->losses++;
    host->is_returning = true;
    weft_loop_timer_set(host->give_up, job->config->connect_timeout_s * WEFT_NS_PER_SECOND);
    try_later(host);
    return WEFT_OK;
}

void job_take_host_back(job_host_t *host)
{
    stop_trying(host);
    host->is_lost = false;
    host->owed = 0;
    job_settle_ranks(host->job);
}

void job_cancel_returns(job_t *job)
{
    for (uint32_t i = 0; i < job->seats->n; i++) {
        job_host_t *host = &job->hosts[i];
        if (host->is_returning) {
            stop_trying(host);
            launch_remote_destroy(host->remote);
            host->remote = NULL;
        }
    }
}

/* ---- losing ---------------------------------------------------------------------------------- */

static bool is_on(const job_host_t *host, const job_rank_t *rank)
{
    return &host->job->hosts[rank->spot.host] == host;
}

/* Whether neither the host nor a rank on it has used up its restarts. */
static bool may_come_back(const job_host_t *host)
{
    const job_t *job = host->job;
    const uint32_t restarts = job->config->restarts;
    bool may = job->state == JOB_RUNNING && job->asked_signal == 0 && host->losses < restarts;
    for (uint32_t i = 0; i < job->n_ranks && may; i++) {
        const job_rank_t *rank = &job->ranks[i];
        may = !is_on(host, rank) || !job_rank_is_wanted(rank) || rank->restarts < restarts;
    }
    return may;
}

static void lose_ranks(job_host_t *host, bool come_back)
{
    job_t *job = host->job;
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        if (is_on(host, &job->ranks[i])) {
            job_lose_rank(&job->ranks[i], come_back);
        }
    }
    if (is_on(host, &job->ranks[0])) { /* what it had not taken is lost with it */
        job_input_stop(job);
        job->input.sent = 0;
    }
}

/* An agent that was ready is gone, and the ranks with it. */
static void lose_ready(job_host_t *host, const char *why)
{
    job_t *job = host->job;
    const bool comes_back = may_come_back(host) && start_trying(host) == WEFT_OK;
    host->is_lost = true;
    host->is_ready = false;
    if (comes_back) {
        launch_output_say(
            job->output, "host %s is lost: %s; it is tried again (%u of %u), its ranks start there",
            host->name, why, host->losses, job->config->restarts);
    }
    lose_ranks(host, comes_back);
    if (!comes_back && job->state == JOB_RUNNING) {
        launch_output_say(job->output, "host %s is lost: %s", host->name, why);
        job_fail(job, 1);
    }
}

static void lose_unready(job_host_t *host, const char *why)
{
    job_t *job = host->job;
    host->is_lost = true;
    if (job->state == JOB_CONNECTING) {
        launch_output_say(job->output, "host %s cannot be reached: %s", host->name, why);
        job_fail(job, 1);
    } else if (job->state == JOB_RUNNING && host->is_returning) {
        launch_output_say(job->output, "host %s cannot be reached yet: %s", host->name, why);
        try_later(host);
    }
}

void job_lose_host(job_host_t *host, const char *why)
{
    job_t *job = host->job;
    if (host->is_ready) {
        lose_ready(host, why);
    } else {
        lose_unready(host, why);
    }
    job_settle_ranks(job);
    job_leave_when_done(job);
}
