/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/supervisor.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"

#define WEFT_LOG_MODULE "supervisor"
#include "base/log.h"

static void on_listening(void *user, child_t *child, const char *url)
{
    supervisor_t *supervisor = user;
    const supervisor_config_t *config = &supervisor->config;
    config->on_listening(config->user, child, url);
    if (!supervisor->is_up && ++supervisor->n_listening == supervisor->children.n) {
        supervisor->is_up = true;
        config->on_up(config->user);
    }
}

static void leave_when_all_have_ended(supervisor_t *supervisor)
{
    if (supervisor->is_stopping && children_alive(&supervisor->children) == 0) {
        weft_loop_stop(supervisor->loop);
    }
}

static void reap(supervisor_t *supervisor)
{
    const supervisor_config_t *config = &supervisor->config;
    char how[96];
    child_t *child;
    while ((child = children_reap(&supervisor->children, how, sizeof(how))) != NULL) {
        if (supervisor->is_stopping) {
            weft_log_info("%s has ended how=\"%s\"", child->name, how);
        } else {
            config->on_death(config->user, child, how);
        }
    }
    leave_when_all_have_ended(supervisor);
}

static void take_first(supervisor_t *supervisor, int number)
{
    const supervisor_config_t *config = &supervisor->config;
    if (!supervisor->is_stopping) {
        supervisor->early_signal = supervisor->is_up ? 0 : number;
        config->on_signal(config->user, number);
    }
}

static void take_signal(supervisor_t *supervisor, int number, uint64_t now_ns)
{
    const supervisor_config_t *config = &supervisor->config;
    switch (weft_signal_take(&supervisor->signals, number, now_ns)) {
    case WEFT_SIGNAL_FIRST:
        take_first(supervisor, number);
        break;
    case WEFT_SIGNAL_ECHO:
        break;
    case WEFT_SIGNAL_SECOND:
        weft_log_warn("second signal: all processes are killed");
        config->on_kill(config->user);
        children_signal(&supervisor->children, SIGKILL);
        break;
    }
}

static void on_signal(void *user, uint32_t events)
{
    supervisor_t *supervisor = user;
    const uint64_t now =
        weft_clock_ns(); /* of all that are there, however long the first one takes */
    struct signalfd_siginfo info;
    (void)events;
    while (read(supervisor->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGCHLD) {
            reap(supervisor);
        } else {
            take_signal(supervisor, (int)info.ssi_signo, now);
        }
    }
}

weft_status_t supervisor_init(supervisor_t *supervisor, const supervisor_config_t *config)
{
    sigset_t set;
    *supervisor = (supervisor_t){.config = *config, .signal_fd = -1};
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    const weft_status_t status = weft_loop_create(&supervisor->loop);
    if (status < 0) {
        return status;
    }
    supervisor->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    supervisor->children = (children_t){.loop = supervisor->loop,
                                        .is_private = config->is_private,
                                        .on_listening = on_listening,
                                        .user = supervisor};
    return supervisor->signal_fd < 0 ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

void supervisor_fini(supervisor_t *supervisor)
{
    if (supervisor->loop == NULL) {
        return;
    }
    children_fini(&supervisor->children);
    weft_loop_unwatch(supervisor->signal_watch);
    if (supervisor->signal_fd >= 0) {
        close(supervisor->signal_fd);
    }
    weft_loop_destroy(supervisor->loop);
    supervisor->loop = NULL;
}

weft_status_t supervisor_run(supervisor_t *supervisor)
{
    const weft_status_t status =
        weft_loop_watch(supervisor->loop, supervisor->signal_fd, WEFT_LOOP_READ, on_signal,
                        supervisor, &supervisor->signal_watch);
    return status < 0 ? status : weft_loop_run(supervisor->loop);
}

void supervisor_stop(supervisor_t *supervisor)
{
    supervisor->is_stopping = true;
}

void supervisor_end(supervisor_t *supervisor)
{
    children_signal(&supervisor->children, SIGTERM);
    children_signal(&supervisor->children, SIGCONT); /* one that is stopped hears nothing else */
    leave_when_all_have_ended(supervisor);
}
