/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_target.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench/bench_fabric_end.h"
#include "cli/bench/bench_fabric_netns.h"

/* ---- starting it ----------------------------------------------------------------------------- */

/* In the child: never returns. Its errors go to the initiator, which prints them. */
static void run_child(const bench_fabric_options_t *options, int fd, pid_t parent)
{
    weft_diag_t diag = {0};
    const char *host = "";
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1); /* it died before that was set */
    }
    weft_status_t status = bench_fabric_pin(options, BENCH_FABRIC_TARGET, &diag);
    if (status >= 0 && options->netns) {
        status = bench_fabric_netns_enter(options, fd, &host, &diag);
    }
    if (status >= 0) {
        status = bench_fabric_target_serve(options, fd, host, &diag);
    } else {
        const uint64_t words[BENCH_FABRIC_WORDS] = {(uint64_t)(int64_t)status};
        bench_fabric_channel_send(fd, BENCH_FABRIC_FAILED, words, diag.text, strlen(diag.text));
    }
    _exit(status < 0);
}

static weft_status_t fork_target(const bench_fabric_options_t *options, weft_diag_t *diag,
                                 bench_fabric_target_t *target)
{
    int fds[2];
    const pid_t parent = getpid();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
        return weft_diag(diag, WEFT_ERR_IO, "socketpair: %s", strerror(errno));
    }
    fflush(stdout);
    target->child = fork();
    if (target->child == 0) {
        close(fds[0]);
        run_child(options, fds[1], parent);
    }
    close(fds[1]);
    target->fd = fds[0];
    if (target->child < 0) {
        target->child = 0;
        return weft_diag(diag, WEFT_ERR_IO, "fork: %s", strerror(errno));
    }
    const char *host = "";
    weft_status_t status = WEFT_OK;
    if (options->netns) {
        status = bench_fabric_netns_make(options, fds[0], target->child, &host, diag);
    }
    snprintf(target->host, sizeof(target->host), "%s", host);
    return status;
}

static weft_status_t connect_target(const bench_fabric_options_t *options, weft_diag_t *diag,
                                    bench_fabric_target_t *target)
{
    const weft_status_t status = bench_fabric_channel_connect(options->connect, diag, &target->fd);
    if (status >= 0) {
        bench_fabric_channel_host(target->fd, target->host, sizeof(target->host));
    }
    return status;
}

static weft_status_t say_hello(bench_fabric_target_t *target, uint64_t pool_bytes,
                               weft_diag_t *diag)
{
    const uint64_t hello[BENCH_FABRIC_WORDS] = {pool_bytes};
    bench_fabric_message_t *answer = &target->message;
    const weft_status_t status = bench_fabric_channel_ask(
        target->fd, BENCH_FABRIC_HELLO, hello, WEFT_VERSION, strlen(WEFT_VERSION), diag, answer);
    if (status < 0) {
        return status;
    }
    target->memory = (xfer_memory_t){
        .space = (xfer_space_t)answer->words[0],
        .addr = answer->words[1],
        .bytes = answer->words[2],
        .device = answer->words[3],
        .fd = -1,
    };
    target->guard_addr = answer->words[4];
    target->pid = (pid_t)answer->words[5];
    target->memfd = (int)(int64_t)answer->words[6];
    weft_buffer_append(&target->blob, answer->bytes.data, answer->bytes.length);
    return target->blob.is_failed ? WEFT_ERR_NO_MEMORY : WEFT_OK;
}

weft_status_t bench_fabric_target_start(const bench_fabric_options_t *options, uint64_t pool_bytes,
                                        weft_diag_t *diag, bench_fabric_target_t *target_out)
{
    bench_fabric_target_t target = {.fd = -1};
    weft_status_t status = options->connect[0] != '\0' ? connect_target(options, diag, &target)
                                                       : fork_target(options, diag, &target);
    if (status >= 0) {
        status = say_hello(&target, pool_bytes, diag);
    }
    if (status < 0) {
        bench_fabric_target_stop(&target);
        return status;
    }
    *target_out = target;
    return WEFT_OK;
}

void bench_fabric_target_stop(bench_fabric_target_t *target)
{
    if (target->fd > 0) {
        close(target->fd);
    }
    if (target->child > 0) {
        waitpid(target->child, NULL, 0); /* it ends when the socket does */
    }
    weft_buffer_free(&target->message.bytes);
    weft_buffer_free(&target->blob);
    *target = (bench_fabric_target_t){0};
}

/* ---- using it -------------------------------------------------------------------------------- */

weft_status_t bench_fabric_target_ask(bench_fabric_target_t *target,
                                      bench_fabric_message_type_t type, const uint64_t *words,
                                      weft_diag_t *diag, uint64_t *word_out)
{
    const weft_status_t status =
        bench_fabric_channel_ask(target->fd, type, words, NULL, 0, diag, &target->message);
    if (status >= 0 && word_out != NULL) {
        *word_out = target->message.words[0];
    }
    return status;
}

weft_status_t bench_fabric_target_introduce(bench_fabric_target_t *target, xfer_agent_t *agent,
                                            weft_diag_t *diag, xfer_peer_t **peer_out)
{
    weft_buffer_t blob = {0};
    weft_status_t status = xfer_export(agent, NULL, 0, true, &blob);
    if (status >= 0 && blob.is_failed) {
        status = WEFT_ERR_NO_MEMORY;
    }
    if (status >= 0) {
        status = bench_fabric_channel_ask(target->fd, BENCH_FABRIC_PEER, NULL, blob.data,
                                          blob.length, diag, &target->message);
    }
    weft_buffer_free(&blob);
    return status < 0 ? status
                      : xfer_import(agent, target->blob.data, target->blob.length, diag, peer_out);
}

weft_status_t bench_fabric_target_map(const bench_fabric_target_t *target, weft_device_t *device,
                                      weft_diag_t *diag, weft_mem_t *mem_out)
{
    char path[64];
    if (target->memfd < 0 || target->child == 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED,
                         "a floor takes a target on this host; memcpy one with --memory memfd");
    }
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)target->pid, target->memfd);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return weft_diag(diag, WEFT_ERR_IO, "%s: %s", path, strerror(errno));
    }
    const weft_status_t status = device->ops->import(device, fd, target->memory.bytes, mem_out);
    close(fd);
    return status;
}
