/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <unistd.h>

#include "launcher/job/launch_job_priv.h"

static job_host_t *reader(const job_t *job)
{
    return &job->hosts[job->ranks[0].spot.host];
}

void job_input_stop(job_t *job)
{
    weft_loop_unwatch(job->input.watch);
    job->input.watch = NULL;
}

static void end_input(job_t *job)
{
    job->input.has_ended = true;
    job_input_stop(job);
    launch_frame_append(launch_remote_out(reader(job)->remote), LAUNCH_FRAME_INPUT_END, 0, "", 0);
    launch_remote_wake(reader(job)->remote);
}

/* A terminal stops a process of the background that reads from it. */
static bool may_read(void)
{
    return isatty(STDIN_FILENO) == 0 || tcgetpgrp(STDIN_FILENO) == getpgrp();
}

static void read_some(job_t *job)
{
    char bytes[4096];
    const uint32_t room = LAUNCH_WINDOW - job->input.sent;
    if (room == 0 || !may_read()) {
        job_input_stop(job);
        return;
    }
    const ssize_t n = read(STDIN_FILENO, bytes, room < sizeof(bytes) ? room : sizeof(bytes));
    if (n > 0) {
        job->input.sent += (uint32_t)n;
        launch_frame_append(launch_remote_out(reader(job)->remote), LAUNCH_FRAME_INPUT, 0, bytes,
                            (size_t)n);
        launch_remote_wake(reader(job)->remote);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        end_input(job);
    }
}

static void on_input(void *user, uint32_t events)
{
    (void)events;
    read_some(user);
}

static void on_post(void *user)
{
    job_t *job = user;
    job->input.is_posted = false;
    if (job->state == JOB_RUNNING && !job->input.has_ended && !reader(job)->is_lost) {
        read_some(job);
        job_input_resume(job);
    }
}

void job_input_resume(job_t *job)
{
    job_input_t *input = &job->input;
    if (input->has_ended || input->watch != NULL || input->sent == LAUNCH_WINDOW ||
        job->state != JOB_RUNNING || reader(job)->is_lost || !may_read()) {
        return;
    }
    if (!input->is_plain && weft_loop_watch(job->loop, STDIN_FILENO, WEFT_LOOP_READ, on_input, job,
                                            &input->watch) == WEFT_OK) {
        return;
    }
    input->is_plain = true; /* epoll takes no regular files */
    if (!input->is_posted) {
        input->is_posted = weft_loop_post(job->loop, on_post, job) == WEFT_OK;
    }
}

void job_input_taken(job_t *job, uint32_t n)
{
    job->input.sent -= n < job->input.sent ? n : job->input.sent;
    job_input_resume(job);
}
