/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/serve_signals.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/signal_pair.h"

#define WEFT_LOG_MODULE "ranks"
#include "base/log.h"

#define EXIT_SIGNALLED 128
#define MORE_SECONDS   10  /* than rank 0 has to drain */
#define TELL_MS        200 /* for the others to hear why */

struct serve_signals {
    const engine_ranks_t *ranks;
    uint64_t patience_ns;
    int signal_fd;
    int end_fd;
    pthread_t thread;
    bool has_thread;
};

static void end_process(const serve_signals_t *signals, int number)
{
    weft_log_warn("ending without rank 0 signal=%d", number);
    signals->ranks->fail(signals->ranks->user, "it was told to end");
    (void)poll(NULL, 0, TELL_MS);
    _exit(EXIT_SIGNALLED + number);
}

static int timeout_ms(uint64_t until_ns)
{
    const uint64_t now = weft_clock_ns();
    return until_ns == 0 ? -1 : until_ns > now ? (int)((until_ns - now) / WEFT_NS_PER_MS) + 1 : 0;
}

static void take(const serve_signals_t *signals, weft_signal_pair_t *pair, int number,
                 uint64_t now_ns, uint64_t *until_ns)
{
    switch (weft_signal_take(pair, number, now_ns)) {
    case WEFT_SIGNAL_FIRST:
        weft_log_info("this rank ends when rank 0 does signal=%d", number);
        *until_ns = now_ns + signals->patience_ns;
        break;
    case WEFT_SIGNAL_ECHO:
        break;
    case WEFT_SIGNAL_SECOND:
        end_process(signals, number);
        break;
    }
}

static void *watch(void *user)
{
    const serve_signals_t *signals = user;
    weft_signal_pair_t pair = {0};
    uint64_t until_ns = 0;
    for (;;) {
        struct pollfd fds[] = {{.fd = signals->signal_fd, .events = POLLIN},
                               {.fd = signals->end_fd, .events = POLLIN}};
        struct signalfd_siginfo info;
        const int n = poll(fds, 2, timeout_ms(until_ns));
        if (fds[1].revents != 0 || (n < 0 && errno != EINTR)) {
            return NULL;
        }
        if (n == 0) {
            end_process(signals, pair.number);
        }
        const uint64_t now = weft_clock_ns(); /* of all that are there */
        while (read(signals->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
            take(signals, &pair, (int)info.ssi_signo, now, &until_ns);
        }
    }
}

weft_status_t serve_signals_begin(const engine_ranks_t *ranks, uint32_t shutdown_timeout_s,
                                  serve_signals_t **signals_out)
{
    sigset_t set;
    serve_signals_t *signals = weft_zalloc(sizeof(*signals), "serve_signals");
    if (signals == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signals->ranks = ranks;
    signals->patience_ns = ((uint64_t)shutdown_timeout_s + MORE_SECONDS) * WEFT_NS_PER_SECOND;
    signals->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    signals->end_fd = eventfd(0, EFD_CLOEXEC);
    signals->has_thread = signals->signal_fd >= 0 && signals->end_fd >= 0 &&
                          pthread_create(&signals->thread, NULL, watch, signals) == 0;
    if (!signals->has_thread) {
        serve_signals_end(signals);
        return WEFT_ERR_NO_MEMORY;
    }
    *signals_out = signals;
    return WEFT_OK;
}

void serve_signals_end(serve_signals_t *signals)
{
    const uint64_t one = 1;
    if (signals == NULL) {
        return;
    }
    if (signals->has_thread) {
        (void)!write(signals->end_fd, &one, sizeof(one));
        pthread_join(signals->thread, NULL);
    }
    if (signals->signal_fd >= 0) {
        close(signals->signal_fd);
    }
    if (signals->end_fd >= 0) {
        close(signals->end_fd);
    }
    weft_free(signals);
}
