/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "api"
#include "services/api/start_guard.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "base/log.h"

#define EXIT_SIGNALLED 128 /* and the signal, as shells say it */

struct start_guard {
    int signal_fd;
    int end_fd; /* readable: start_guard_end was called */
    pthread_t thread;
};

static void *watch(void *user)
{
    const start_guard_t *guard = user;
    struct pollfd fds[] = {{.fd = guard->end_fd, .events = POLLIN},
                           {.fd = guard->signal_fd, .events = POLLIN}};
    struct signalfd_siginfo info;

    while (poll(fds, WEFT_ARRAY_LEN(fds), -1) < 0 && errno == EINTR) {
    }
    if (fds[0].revents == 0 && read(guard->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        weft_log_info("stopped while starting signal=%u", info.ssi_signo);
        _exit(EXIT_SIGNALLED + (int)info.ssi_signo);
    }
    return NULL;
}

weft_status_t start_guard_begin(int signal_fd, start_guard_t **guard_out)
{
    start_guard_t *guard = weft_zalloc(sizeof(*guard), "api.start_guard");

    if (guard == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    guard->signal_fd = signal_fd;
    guard->end_fd = eventfd(0, EFD_CLOEXEC);
    if (guard->end_fd < 0 || pthread_create(&guard->thread, NULL, watch, guard) != 0) {
        if (guard->end_fd >= 0) {
            close(guard->end_fd);
        }
        weft_free(guard);
        return WEFT_ERR_NO_MEMORY;
    }
    *guard_out = guard;
    return WEFT_OK;
}

void start_guard_end(start_guard_t *guard)
{
    if (guard == NULL) {
        return;
    }
    eventfd_write(guard->end_fd, 1);
    pthread_join(guard->thread, NULL);
    close(guard->end_fd);
    weft_free(guard);
}
