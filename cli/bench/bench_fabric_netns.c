/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_fabric_netns.h"

#include <errno.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench/bench_fabric_channel.h"

#define INITIATOR_HOST "10.99.0.1"
#define TARGET_HOST    "10.99.0.2"
#define ANSWER_MS      10000

extern char **environ;

/* `ip` with words parted by blanks. */
static weft_status_t ip(weft_diag_t *diag, const char *words)
{
    char line[256];
    char *argv[32] = {"ip"};
    char *rest = line;
    size_t n = 1;
    pid_t child;
    int result = -1;
    snprintf(line, sizeof(line), "%s", words);
    while (n < 31 && (argv[n] = strtok_r(rest, " ", &rest)) != NULL) {
        n++;
    }
    const int failed = posix_spawnp(&child, "ip", NULL, NULL, argv, environ);
    if (failed != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "--netns: ip: %s", strerror(failed));
    }
    while (waitpid(child, &result, 0) < 0 && errno == EINTR) {
    }
    return result == 0 ? WEFT_OK : weft_diag(diag, WEFT_ERR_IO, "--netns: ip %s: failed", words);
}

static weft_status_t leave_host(weft_diag_t *diag)
{
    return unshare(CLONE_NEWNET) == 0
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_DENIED, "--netns: %s", strerror(errno));
}

static weft_status_t dress_link(weft_diag_t *diag, const char *host)
{
    char words[128];
    snprintf(words, sizeof(words), "addr add %s/24 dev weft0", host);
    weft_status_t status = ip(diag, words);
    if (status >= 0) {
        status = ip(diag, "link set weft0 up");
    }
    return status < 0 ? status : ip(diag, "link set lo up");
}

/* Three words each way: it has left the host, the link is there, it has dressed its end. */
weft_status_t bench_fabric_netns_enter(int fd, const char **host_out, weft_diag_t *diag)
{
    bench_fabric_message_t message = {0};
    weft_status_t status = leave_host(diag);
    if (status >= 0) {
        status = bench_fabric_channel_send(fd, BENCH_FABRIC_DONE, NULL, NULL, 0);
    }
    if (status >= 0) {
        status = bench_fabric_channel_receive(fd, ANSWER_MS, &message);
    }
    if (status >= 0) {
        status = dress_link(diag, TARGET_HOST);
    }
    weft_buffer_free(&message.bytes);
    *host_out = TARGET_HOST;
    return status < 0 ? status : bench_fabric_channel_send(fd, BENCH_FABRIC_DONE, NULL, NULL, 0);
}

/* Whether the target says it got so far. */
static weft_status_t meet(int fd, weft_diag_t *diag)
{
    bench_fabric_message_t message = {0};
    weft_status_t status = bench_fabric_channel_receive(fd, ANSWER_MS, &message);
    if (status < 0) {
        status = weft_diag(diag, status, "--netns: the target: %s", weft_strerror(status));
    } else if (message.type != BENCH_FABRIC_DONE) {
        status = weft_diag(diag, WEFT_ERR_IO, "%.*s", (int)message.bytes.length,
                           message.bytes.length > 0 ? message.bytes.data : "");
    }
    weft_buffer_free(&message.bytes);
    return status;
}

weft_status_t bench_fabric_netns_make(int fd, pid_t target, const char **host_out,
                                      weft_diag_t *diag)
{
    char words[128];
    weft_status_t status = meet(fd, diag);
    if (status >= 0) {
        status = leave_host(diag);
    }
    if (status >= 0) {
        snprintf(words, sizeof(words), "link add weft0 type veth peer name weft0 netns %d",
                 (int)target);
        status = ip(diag, words);
    }
    if (status >= 0) {
        status = dress_link(diag, INITIATOR_HOST);
    }
    if (status >= 0) {
        status = bench_fabric_channel_send(fd, BENCH_FABRIC_DONE, NULL, NULL, 0);
    }
    *host_out = INITIATOR_HOST;
    return status < 0 ? status : meet(fd, diag);
}
