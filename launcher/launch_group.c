/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/launch_group.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "launcher/launch_group_priv.h"
#include "launcher/launch_message.h"

#define WEFT_LOG_MODULE "ranks"
#include "base/log.h"

#define LINGER_MS       1000 /* that a goodbye may take */
#define HANDSHAKE_MS    5000
#define CANCEL_POLL_NS  (50 * WEFT_NS_PER_MS)
#define LONGEST_WAIT_MS 1000

/* ---- for the thread -------------------------------------------------------------------------- */

bool launch_group_is_stopping(launch_group_t *group)
{
    pthread_mutex_lock(&group->lock);
    const bool is_so = group->is_stopping;
    pthread_mutex_unlock(&group->lock);
    return is_so;
}

launch_state_t launch_group_state(launch_group_t *group)
{
    pthread_mutex_lock(&group->lock);
    const launch_state_t state = group->state;
    pthread_mutex_unlock(&group->lock);
    return state;
}

void launch_group_set_joined(launch_group_t *group, uint64_t epoch)
{
    pthread_mutex_lock(&group->lock);
    if (group->state == LAUNCH_MEETING) { /* else it has come to nothing meanwhile */
        group->state = LAUNCH_JOINED;
        group->epoch = epoch;
        pthread_cond_broadcast(&group->changed);
    }
    pthread_mutex_unlock(&group->lock);
}

void launch_group_end(launch_group_t *group, weft_status_t status, const char *format, ...)
{
    char text[WEFT_DIAG_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    pthread_mutex_lock(&group->lock);
    if (group->state == LAUNCH_MEETING) {
        group->state = LAUNCH_ENDED;
        group->status = weft_diag(&group->diag, status, "%s", text);
        pthread_cond_broadcast(&group->changed);
    }
    pthread_mutex_unlock(&group->lock);
}

void launch_group_lose(launch_group_t *group, uint32_t rank, const char *why)
{
    pthread_mutex_lock(&group->lock);
    const bool is_news = group->state == LAUNCH_JOINED && !group->is_stopping;
    if (is_news) {
        group->state = LAUNCH_LOST;
        group->status =
            weft_diag(&group->diag, WEFT_ERR_PEER_GONE, "rank %u is lost: %s", rank, why);
        pthread_cond_broadcast(&group->changed);
    }
    pthread_mutex_unlock(&group->lock);
    if (is_news) {
        weft_log_error("rank %u of %u is lost: %s", rank, group->place.size, why);
        if (group->on_lost != NULL) {
            group->on_lost(group->user, rank, why);
        }
    }
}

bool launch_group_take_failure(launch_group_t *group, char why_out[LAUNCH_WHY_BYTES])
{
    pthread_mutex_lock(&group->lock);
    const bool is_wanted = group->wants_fail;
    if (is_wanted) {
        group->wants_fail = false;
        memcpy(why_out, group->why, LAUNCH_WHY_BYTES);
    }
    pthread_mutex_unlock(&group->lock);
    return is_wanted;
}

void launch_group_end_gather(launch_group_t *group, uint64_t sequence, weft_status_t status,
                             const char *reason, const void *all, size_t n)
{
    launch_gather_t *gather = &group->gather;
    pthread_mutex_lock(&group->lock);
    if (gather->is_wanted && gather->sequence == sequence) {
        if (status == WEFT_OK && n != group->place.size * gather->bytes) {
            status = WEFT_ERR_INVALID;
            reason = "ranks gave different numbers of bytes";
        }
        if (status == WEFT_OK && n > 0) {
            memcpy(gather->all, all, n);
        }
        gather->status = status < 0 ? weft_diag(&gather->diag, status, "%s", reason) : WEFT_OK;
        gather->is_wanted = false;
        pthread_cond_broadcast(&group->changed);
    }
    pthread_mutex_unlock(&group->lock);
}

weft_status_t launch_group_set_up_socket(launch_group_t *group, void *socket)
{
    const int linger = LINGER_MS;
    const int yes = 1;
    const int handshake = HANDSHAKE_MS;
    const int64_t largest = LAUNCH_MESSAGE_MAX;
    (void)group;
    return zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof(linger)) == 0 &&
                   zmq_setsockopt(socket, ZMQ_IPV6, &yes, sizeof(yes)) == 0 &&
                   zmq_setsockopt(socket, ZMQ_HANDSHAKE_IVL, &handshake, sizeof(handshake)) == 0 &&
                   zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &largest, sizeof(largest)) == 0
               ? WEFT_OK
               : WEFT_ERR_INTERNAL;
}

int launch_group_wait_ms(uint64_t until_ns)
{
    const uint64_t now = weft_clock_ns();
    const uint64_t ms = until_ns > now ? (until_ns - now) / WEFT_NS_PER_MS + 1 : 0;
    return ms > LONGEST_WAIT_MS ? LONGEST_WAIT_MS : (int)ms;
}

void launch_group_drain_wake(launch_group_t *group)
{
    uint64_t count;
    (void)!read(group->wake_fd, &count, sizeof(count));
}

static void *run(void *user)
{
    launch_group_t *group = user;
    if (group->place.rank == 0) {
        launch_leader_run(group);
    } else {
        launch_follower_run(group);
    }
    return NULL;
}

/* ---- for callers ----------------------------------------------------------------------------- */

static void wake(launch_group_t *group)
{
    const uint64_t one = 1;
    (void)!write(group->wake_fd, &one, sizeof(one));
}

/* False: until_ns has passed. With the lock. */
static bool wait_until(launch_group_t *group, uint64_t until_ns)
{
    const struct timespec at = {.tv_sec = (time_t)(until_ns / WEFT_NS_PER_SECOND),
                                .tv_nsec = (long)(until_ns % WEFT_NS_PER_SECOND)};
    return pthread_cond_timedwait(&group->changed, &group->lock, &at) != ETIMEDOUT;
}

static weft_status_t copy_facts(launch_group_t *group, const launch_group_config_t *config)
{
    group->facts = weft_calloc(config->n_facts + 1, sizeof(*group->facts), "launch.facts");
    if (group->facts == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i <= config->n_facts; i++) {
        const launch_fact_t version = {"weft's version", WEFT_VERSION};
        const launch_fact_t *fact = i == 0 ? &version : &config->facts[i - 1];
        group->facts[i] = (launch_fact_t){weft_strdup(fact->key, "launch.facts"),
                                          weft_strdup(fact->value, "launch.facts")};
        group->n_facts++;
        if (group->facts[i].key == NULL || group->facts[i].value == NULL) {
            return WEFT_ERR_NO_MEMORY;
        }
    }
    return WEFT_OK;
}

static weft_status_t fill(launch_group_t *group, const launch_group_config_t *config,
                          weft_diag_t *diag)
{
    char host[48] = "?";
    (void)gethostname(host, sizeof(host) - 1);
    snprintf(group->host, sizeof(group->host), "%s pid %d", host, (int)getpid());
    group->place = config->place;
    group->join_timeout_ns = config->join_timeout_s * WEFT_NS_PER_SECOND;
    group->join_deadline_ns = weft_clock_ns() + group->join_timeout_ns;
    group->lost_after_ns = config->lost_after_s * WEFT_NS_PER_SECOND;
    group->on_lost = config->on_lost;
    group->user = config->user;
    if (getrandom(&group->incarnation, sizeof(group->incarnation), 0) !=
        (ssize_t)sizeof(group->incarnation)) {
        return WEFT_ERR_INTERNAL;
    }
    group->incarnation |= 1; /* also the epoch, which is not 0 */
    if (config->n_facts >= LAUNCH_MAX_FACTS) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%u facts", config->n_facts);
    }
    weft_status_t status = copy_facts(group, config);
    if (status == WEFT_OK && config->secret_file[0] != '\0') {
        status = launch_secret_read(config->secret_file, diag, &group->secret);
        group->has_secret = status == WEFT_OK;
    }
    return status;
}

static weft_status_t start(launch_group_t *group, weft_diag_t *diag)
{
    group->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    group->context = zmq_ctx_new();
    if (group->wake_fd < 0 || group->context == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (pthread_create(&group->thread, NULL, run, group) != 0) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "ranks: no thread");
    }
    group->has_thread = true;
    pthread_setname_np(group->thread, "ranks");
    return WEFT_OK;
}

static weft_status_t wait_for_all(launch_group_t *group, const atomic_bool *is_cancelled,
                                  weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    pthread_mutex_lock(&group->lock);
    while (group->state == LAUNCH_MEETING && status == WEFT_OK) {
        if (is_cancelled != NULL && atomic_load_explicit(is_cancelled, memory_order_relaxed)) {
            status = weft_diag(diag, WEFT_ERR_CANCELLED, "cancelled while ranks were awaited");
        } else {
            (void)wait_until(group, weft_clock_ns() + CANCEL_POLL_NS);
        }
    }
    if (group->state == LAUNCH_ENDED || group->state == LAUNCH_LOST) {
        status = weft_diag(diag, group->status, "%s", group->diag.text);
    }
    pthread_mutex_unlock(&group->lock);
    return status;
}

static launch_group_t *create(void)
{
    launch_group_t *group = weft_zalloc(sizeof(*group), "launch.group");
    pthread_condattr_t monotonic;
    if (group == NULL) {
        return NULL;
    }
    group->wake_fd = -1;
    pthread_mutex_init(&group->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&group->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return group;
}

weft_status_t launch_group_join(const launch_group_config_t *config, weft_diag_t *diag,
                                launch_group_t **group_out)
{
    launch_group_t *group = create();
    if (group == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = fill(group, config, diag);
    if (status == WEFT_OK) {
        status = start(group, diag);
    }
    if (status == WEFT_OK) {
        status = wait_for_all(group, config->is_cancelled, diag);
    }
    if (status < 0) {
        launch_group_leave(group);
        return status;
    }
    *group_out = group;
    return WEFT_OK;
}

static void stop_thread(launch_group_t *group)
{
    pthread_mutex_lock(&group->lock);
    group->is_stopping = true;
    pthread_mutex_unlock(&group->lock);
    wake(group);
    pthread_join(group->thread, NULL);
}

void launch_group_leave(launch_group_t *group)
{
    if (group == NULL) {
        return;
    }
    if (group->has_thread) {
        stop_thread(group);
    }
    if (group->context != NULL) {
        zmq_ctx_term(group->context);
    }
    if (group->wake_fd >= 0) {
        close(group->wake_fd);
    }
    for (uint32_t i = 0; i < group->n_facts; i++) {
        weft_free((char *)group->facts[i].key);
        weft_free((char *)group->facts[i].value);
    }
    weft_free(group->facts);
    launch_secret_wipe(&group->secret);
    pthread_cond_destroy(&group->changed);
    pthread_mutex_destroy(&group->lock);
    weft_free(group);
}

weft_status_t launch_group_all_gather(void *user, const void *mine, size_t bytes, void *all_out,
                                      weft_diag_t *diag)
{
    launch_group_t *group = user;
    launch_gather_t *gather = &group->gather;
    const uint64_t deadline = weft_clock_ns() + group->join_timeout_ns;
    weft_status_t status = WEFT_OK;

    if (bytes > LAUNCH_MESSAGE_MAX / 2 / group->place.size) {
        return weft_diag(diag, WEFT_ERR_TOO_LARGE, "%zu bytes of each of %u ranks", bytes,
                         group->place.size);
    }
    pthread_mutex_lock(&group->lock);
    gather->sequence++;
    gather->is_wanted = true;
    gather->is_sent = false;
    gather->mine = mine;
    gather->bytes = bytes;
    gather->all = all_out;
    gather->status = WEFT_PENDING;
    wake(group);
    bool has_time = true;
    while (gather->is_wanted && group->state == LAUNCH_JOINED && has_time) {
        has_time = wait_until(group, deadline);
    }
    if (!gather->is_wanted) {
        status =
            gather->status < 0 ? weft_diag(diag, gather->status, "%s", gather->diag.text) : WEFT_OK;
    } else if (group->state != LAUNCH_JOINED) {
        status = weft_diag(diag, group->status, "%s", group->diag.text);
    } else {
        status = weft_diag(diag, WEFT_ERR_TIMEOUT, "other ranks did not come within %u s",
                           (unsigned)(group->join_timeout_ns / WEFT_NS_PER_SECOND));
    }
    gather->is_wanted = false;
    pthread_mutex_unlock(&group->lock);
    return status;
}

void launch_group_fail(launch_group_t *group, const char *why)
{
    pthread_mutex_lock(&group->lock);
    if (group->state == LAUNCH_JOINED) {
        group->state = LAUNCH_LOST;
        group->status =
            weft_diag(&group->diag, WEFT_ERR_PEER_GONE, "this rank has failed: %s", why);
        snprintf(group->why, sizeof(group->why), "%s", why);
        group->wants_fail = true;
        pthread_cond_broadcast(&group->changed);
    }
    pthread_mutex_unlock(&group->lock);
    wake(group);
}

uint32_t launch_group_rank(const launch_group_t *group)
{
    return group->place.rank;
}

uint32_t launch_group_size(const launch_group_t *group)
{
    return group->place.size;
}
