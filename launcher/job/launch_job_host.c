/* SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "launcher/job/launch_job_priv.h"
#include "launcher/launch_place.h"

/* ---- signals --------------------------------------------------------------------------------- */

void job_signal_host(job_host_t *host, uint32_t rank, int number)
{
    if (host->remote != NULL && host->is_ready && !host->is_lost) {
        launch_frame_append_u32(launch_remote_out(host->remote), LAUNCH_FRAME_SIGNAL, rank,
                                (uint32_t)number);
        launch_remote_wake(host->remote);
    }
}

void job_signal_all(job_t *job, int number)
{
    for (uint32_t i = 0; i < job->seats->n; i++) {
        job_signal_host(&job->hosts[i], LAUNCH_ALL, number);
    }
}

/* ---- where the leader is --------------------------------------------------------------------- */

static const char *without_user(const char *name)
{
    const char *at = strrchr(name, '@');
    return at != NULL ? at + 1 : name;
}

/* Our address, as the first host that is elsewhere sees it. */
static const char *find_seen(const job_t *job)
{
    for (uint32_t i = 0; i < job->seats->n; i++) {
        if (job->hosts[i].seen[0] != '\0') {
            return job->hosts[i].seen;
        }
    }
    return NULL;
}

static bool is_all_here(const job_t *job)
{
    for (uint32_t i = 0; i < job->seats->n; i++) {
        if (!job->hosts[i].is_here) {
            return false;
        }
    }
    return true;
}

/* Told, or the one that its host keeps; that may have none. */
static uint16_t find_leader_port(const job_t *job, const job_host_t *host)
{
    const uint16_t port = job->config->leader_port != 0 ? job->config->leader_port : host->port;
    return port != 0 ? port : LAUNCH_DEFAULT_PORT;
}

static void find_leader(job_t *job)
{
    const uint32_t number = job->ranks[0].spot.host;
    const job_host_t *host = &job->hosts[number];
    const uint16_t port = find_leader_port(job, host);
    char own[LAUNCH_NAME_BYTES] = "localhost";
    const char *name = job->config->leader_host;
    if (name[0] != '\0') {
        /* told */
    } else if (job->netns != NULL) {
        name = launch_netns_address(job->netns, number);
    } else if (is_all_here(job)) {
        name = "127.0.0.1";
    } else if (!host->is_here) {
        name = host->own[0] != '\0' ? host->own : without_user(host->name);
    } else if ((name = find_seen(job)) == NULL) {
        gethostname(own, sizeof(own) - 1);
        name = own;
    }
    snprintf(job->leader, sizeof(job->leader), strchr(name, ':') != NULL ? "[%s]:%u" : "%s:%u",
             name, port);
}

/* ---- what agents say ------------------------------------------------------------------------- */

static void on_lost(void *user, const char *why)
{
    job_lose_host(user, why);
}

static void on_line(void *user, const char *line)
{
    const job_host_t *host = user;
    launch_output_say(host->job->output, "host %s: %s", host->name, line);
}

static void start_when_all_are_ready(job_t *job)
{
    for (uint32_t i = 0; i < job->seats->n; i++) {
        if (!job->hosts[i].is_ready) {
            return;
        }
    }
    weft_loop_timer_clear(job->connect_timer);
    job->state = JOB_RUNNING;
    find_leader(job);
    job_start_ranks(job);
}

static void take_ready(job_host_t *host, const launch_frame_t *frame)
{
    launch_ready_t ready;
    job_t *job = host->job;
    if (host->is_ready || launch_ready_decode(frame, &ready) < 0) {
        launch_output_say(job->output, "host %s: its agent speaks no sense", host->name);
        launch_remote_kill(host->remote);
        return;
    }
    host->is_ready = true;
    host->ready_ns = weft_clock_ns();
    host->port = ready.port;
    if (!host->is_here) {
        snprintf(host->own, sizeof(host->own), "%s", ready.own);
        snprintf(host->seen, sizeof(host->seen), "%s", ready.launcher);
    }
    if (strcmp(ready.version, WEFT_VERSION) != 0) {
        launch_output_say(job->output, "host %s has weft %s, here is %s", host->name, ready.version,
                          WEFT_VERSION);
    }
    if (job->state == JOB_CONNECTING) {
        start_when_all_are_ready(job);
    } else if (host->is_returning) {
        job_take_host_back(host);
    }
}

static void on_frame(void *user, const launch_frame_t *frame)
{
    job_host_t *host = user;
    if (frame->kind == LAUNCH_FRAME_READY) {
        take_ready(host, frame);
    } else if (frame->kind == LAUNCH_FRAME_NOTE) {
        const char *text = launch_frame_text(frame);
        on_line(host, text != NULL ? text : "");
    } else {
        job_take_rank_frame(host, frame);
    }
}

void job_on_connect_timeout(void *user)
{
    job_t *job = user;
    for (uint32_t i = 0; i < job->seats->n; i++) {
        if (!job->hosts[i].is_ready) {
            launch_output_say(job->output, "host %s cannot be reached: no answer in %u s",
                              job->hosts[i].name, job->config->connect_timeout_s);
        }
    }
    job_fail(job, 1);
}

/* ---- starting them --------------------------------------------------------------------------- */

/* This very program, also when its file was replaced meanwhile. */
static const char *own_path(char *path, size_t size)
{
    const ssize_t n = readlink("/proc/self/exe", path, size - 1);
    if (n > 0) {
        path[n] = '\0';
    }
    return n > 0 && access(path, X_OK) == 0 ? path : "/proc/self/exe";
}

/* In a word of a remote shell, whichever it is. */
static void append_quoted(weft_buffer_t *command, const char *text)
{
    weft_buffer_puts(command, "'");
    for (; *text != '\0'; text++) {
        if (*text == '\'') {
            weft_buffer_puts(command, "'\\''");
        } else {
            weft_buffer_append(command, text, 1);
        }
    }
    weft_buffer_puts(command, "'");
}

/* exec '/usr/bin/weft' launch --agent */
static char *make_command(const job_t *job)
{
    char path[PATH_MAX];
    weft_buffer_t command = {0};
    const char *weft = job->config->remote_weft;
    weft_buffer_puts(&command, "exec ");
    append_quoted(&command, weft[0] != '\0' ? weft : own_path(path, sizeof(path)));
    weft_buffer_puts(&command, " launch --agent");
    return weft_buffer_take(&command, NULL);
}

static weft_status_t start_here(job_host_t *host, launch_remote_config_t *config, weft_diag_t *diag)
{
    char path[PATH_MAX];
    char *const argv[] = {"weft", "launch", "--agent", NULL};
    config->argv = argv;
    config->file = own_path(path, sizeof(path));
    return launch_remote_create(host->job->loop, config, diag, &host->remote);
}

static weft_status_t start_there(job_host_t *host, launch_remote_config_t *config,
                                 weft_diag_t *diag)
{
    const launch_job_config_t *job = host->job->config;
    char *command = make_command(host->job);
    char **argv = weft_calloc((size_t)job->n_ssh + 3, sizeof(*argv), "launch.ssh");
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    if (command != NULL && argv != NULL) {
        memcpy(argv, job->ssh, job->n_ssh * sizeof(*argv));
        argv[job->n_ssh] = (char *)host->name;
        argv[job->n_ssh + 1] = command;
        config->argv = argv;
        config->death_signal = SIGKILL; /* also one that waits for a connection */
        status = launch_remote_create(host->job->loop, config, diag, &host->remote);
    }
    weft_free(argv);
    weft_free(command);
    return status;
}

weft_status_t job_connect_host(job_host_t *host, weft_diag_t *diag)
{
    const job_t *job = host->job;
    const bool is_fake = job->netns != NULL;
    const uint32_t number = (uint32_t)(host - job->hosts);
    launch_remote_config_t config = {
        .name = host->name,
        .netns_fd = is_fake ? launch_netns_fd(job->netns, number) : -1,
        .open_files = job->open_files,
        .on_frame = on_frame,
        .on_line = on_line,
        .on_lost = on_lost,
        .user = host,
    };
    const weft_status_t status = is_fake || host->is_here ? start_here(host, &config, diag)
                                                          : start_there(host, &config, diag);
    if (status < 0) {
        weft_diag_prefix(diag, "host %s", host->name);
    }
    return status;
}

static bool has_ranks(const job_t *job, uint32_t host)
{
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        if (job->ranks[i].spot.host == host) {
            return true;
        }
    }
    return false;
}

weft_status_t job_start_hosts(job_t *job, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    job->hosts = weft_calloc(job->seats->n, sizeof(*job->hosts), "launch.job.hosts");
    if (job->hosts == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory");
    }
    for (uint32_t i = 0; i < job->seats->n && status == WEFT_OK; i++) {
        job_host_t *host = &job->hosts[i];
        host->job = job;
        host->name = job->seats->all[i].name;
        if (!has_ranks(job, i)) {
            host->is_here = host->is_ready = host->is_lost = true;
            continue;
        }
        host->is_here = job->netns == NULL && launch_hosts_is_here(host->name);
        status = job_connect_host(host, diag);
    }
    return status;
}
