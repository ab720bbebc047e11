/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/signal_pair.h"
#include "launcher/job/launch_job_priv.h"

#define AGAIN_NS (2 * WEFT_NS_PER_SECOND) /* a second Ctrl-C within this is impatience */

static void reap(job_t *job)
{
    launch_news_t news;
    while ((news = launch_process_next(NULL, NULL)).kind != LAUNCH_NEWS_NONE) {
        for (uint32_t i = 0; i < job->seats->n; i++) {
            launch_remote_t *remote = job->hosts[i].remote;
            if (remote != NULL && launch_remote_pid(remote) == news.pid) {
                launch_remote_take_news(remote, &news);
            }
        }
    }
}

/* Ranks are in sessions that no terminal stops: they get the signal that cannot be ignored. */
static void suspend(job_t *job)
{
    job_signal_all(job, SIGSTOP);
    for (uint32_t i = 0; i < job->seats->n; i++) {
        if (!job->hosts[i].is_lost) {
            launch_remote_flush(job->hosts[i].remote);
        }
    }
    job->is_suspended = true;
    kill(getpid(), SIGSTOP);
}

static void resume(job_t *job)
{
    job->is_suspended = false;
    job_signal_all(job, SIGCONT);
    job_input_resume(job); /* it may have come to the foreground */
}

/* SIGHUP, SIGINT, SIGTERM */
static void pass_end_on(job_t *job, int number)
{
    const uint64_t now = weft_clock_ns();
    const uint64_t since = now - job->last_signal_ns;
    const bool is_again = job->last_signal == number;
    if (is_again && since < WEFT_SIGNAL_ECHO_NS) {
        return; /* the first once more */
    }
    job->last_signal = number;
    job->last_signal_ns = now;
    if (job->state == JOB_LEAVING) {
        weft_loop_stop(job->loop); /* nobody reads what is left to be written */
    } else if (number == SIGINT && ((is_again && since < AGAIN_NS) || job->state == JOB_KILLING)) {
        launch_output_say(job->output, "second Ctrl-C: all ranks are killed");
        job_fail(job, 128 + number);
        job_kill(job);
    } else if (job->state == JOB_CONNECTING) {
        job_fail(job, 128 + number);
    } else {
        job->asked_signal = number;
        job_signal_all(job, number);
        job_cancel_restarts(job);
    }
}

static void take_signal(job_t *job, int number)
{
    switch (number) {
    case SIGCHLD:
        reap(job);
        break;
    case SIGTSTP:
        suspend(job);
        break;
    case SIGCONT:
        resume(job);
        break;
    case SIGUSR1:
    case SIGUSR2:
        job_signal_all(job, number);
        break;
    default:
        pass_end_on(job, number);
        break;
    }
}

static void on_signal(void *user, uint32_t events)
{
    job_t *job = user;
    struct signalfd_siginfo info;
    (void)events;
    while (read(job->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        take_signal(job, (int)info.ssi_signo);
    }
}

weft_status_t job_watch_signals(job_t *job)
{
    static const int numbers[] = {SIGHUP,  SIGINT,  SIGTERM, SIGUSR1,
                                  SIGUSR2, SIGTSTP, SIGCONT, SIGCHLD};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(numbers); i++) {
        struct sigaction before;
        sigaction(numbers[i], NULL, &before);
        if (before.sa_handler != SIG_IGN || numbers[i] == SIGCHLD) { /* nohup stays in force */
            sigaddset(&set, numbers[i]);
        }
    }
    signal(SIGCHLD, SIG_DFL); /* ignored, it would leave nobody to be waited for */
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    job->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return job->signal_fd < 0 ? WEFT_ERR_NO_MEMORY
                              : weft_loop_watch(job->loop, job->signal_fd, WEFT_LOOP_READ,
                                                on_signal, job, &job->signal_watch);
}
