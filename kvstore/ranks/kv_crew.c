/* SPDX-License-Identifier: Apache-2.0 */
#define WEFT_LOG_MODULE "kv-ranks"
#include "kvstore/ranks/kv_crew.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "transport/xfer/xfer.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "orders are sent as they lie in memory");
static_assert(sizeof(kv_order_head_t) == 64, "on the wire");
static_assert(sizeof(kv_report_t) == 168, "on the wire");

struct kv_crew {
    kv_crew_config_t config;
    xfer_agent_t *agent;
    xfer_peer_t *leader; /* of the others, once they have met */
    uint64_t epoch;      /* 0: they have not met, or have parted */
    weft_buffer_t orders;
    weft_buffer_t unsent; /* reports, whole */
    atomic_uint_fast64_t n_reports;
};

static void on_event(void *user)
{
    const kv_crew_t *crew = user;
    if (crew->config.wake != NULL) {
        crew->config.wake(crew->config.user);
    }
}

weft_status_t kv_crew_create(const kv_crew_config_t *config, weft_diag_t *diag,
                             kv_crew_t **crew_out)
{
    kv_crew_t *crew = weft_zalloc(sizeof(*crew), "kv_crew");
    if (crew == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    crew->config = *config;
    const xfer_agent_config_t agent = {.has_thread = true, .on_event = on_event, .user = crew};
    const weft_status_t status = xfer_agent_create(&agent, diag, &crew->agent);
    if (status < 0) {
        kv_crew_destroy(crew);
        return status;
    }
    *crew_out = crew;
    return WEFT_OK;
}

void kv_crew_destroy(kv_crew_t *crew)
{
    if (crew != NULL) {
        xfer_agent_destroy(crew->agent);
        weft_buffer_free(&crew->orders);
        weft_buffer_free(&crew->unsent);
        weft_free(crew);
    }
}

uint32_t kv_crew_others(const kv_crew_t *crew)
{
    return crew->config.size - 1;
}

bool kv_crew_leads(const kv_crew_t *crew)
{
    return crew->config.rank == 0;
}

/* ---- meeting --------------------------------------------------------------------------------- */

weft_status_t kv_crew_export(kv_crew_t *crew, weft_buffer_t *out)
{
    return xfer_export(crew->agent, NULL, 0, true, out);
}

static void forget_leader(kv_crew_t *crew)
{
    if (crew->leader != NULL) {
        xfer_forget(crew->agent, crew->leader);
        crew->leader = NULL;
    }
}

weft_status_t kv_crew_meet(kv_crew_t *crew, uint64_t epoch, const void *blob, size_t bytes,
                           weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    weft_buffer_clear(&crew->orders);
    weft_buffer_clear(&crew->unsent);
    forget_leader(crew);
    if (!kv_crew_leads(crew)) {
        status = xfer_import(crew->agent, blob, bytes, diag, &crew->leader);
    }
    if (status >= 0) {
        crew->epoch = epoch;
    }
    return status;
}

void kv_crew_part(kv_crew_t *crew)
{
    crew->epoch = 0;
    weft_buffer_clear(&crew->orders);
    weft_buffer_clear(&crew->unsent);
}

bool kv_crew_has_met(const kv_crew_t *crew)
{
    return crew->epoch != 0;
}

/* ---- orders ---------------------------------------------------------------------------------- */

void kv_crew_order(kv_crew_t *crew, const kv_order_head_t *head, const void *items)
{
    static const char padding[8];
    const size_t rest = kv_order_length(head) - sizeof(*head) - head->bytes;
    assert(kv_crew_leads(crew));
    if (!kv_crew_has_met(crew)) {
        return;
    }
    weft_buffer_append(&crew->orders, head, sizeof(*head));
    weft_buffer_append(&crew->orders, items, head->bytes);
    weft_buffer_append(&crew->orders, padding, rest);
}

weft_status_t kv_crew_orders(const kv_crew_t *crew, const char **bytes_out, size_t *n_out)
{
    if (crew->orders.is_failed) {
        return WEFT_ERR_NO_MEMORY;
    }
    *bytes_out = crew->orders.length > 0 ? crew->orders.data : NULL;
    *n_out = crew->orders.length;
    return WEFT_OK;
}

void kv_crew_sent(kv_crew_t *crew, size_t n)
{
    if (n == crew->orders.length) {
        weft_buffer_clear(&crew->orders); /* keeps its memory: the next step allocates none */
    } else {
        weft_buffer_drop_front(&crew->orders, n);
    }
}

/* ---- reports --------------------------------------------------------------------------------- */

void kv_crew_report(kv_crew_t *crew, const kv_report_t *report)
{
    kv_report_t signed_by_us = *report;
    if (!kv_crew_has_met(crew)) {
        return;
    }
    signed_by_us.rank = crew->config.rank;
    signed_by_us.epoch = crew->epoch;
    atomic_fetch_add_explicit(&crew->n_reports, 1, memory_order_release);
    weft_buffer_append(&crew->unsent, &signed_by_us, sizeof(signed_by_us));
    (void)kv_crew_flush(crew);
}

void kv_crew_see_reports(const kv_crew_t *crew)
{
    (void)atomic_load_explicit(&crew->n_reports, memory_order_acquire);
}

/* What cannot be sent to a leader that is gone matters to nobody: the group hears of that. */
weft_status_t kv_crew_flush(kv_crew_t *crew)
{
    size_t sent = 0;
    weft_status_t status = WEFT_OK;
    while (sent < crew->unsent.length && status != WEFT_ERR_QUEUE_FULL) {
        status = xfer_notify(crew->leader, crew->unsent.data + sent, sizeof(kv_report_t));
        if (status < 0 && status != WEFT_ERR_QUEUE_FULL) {
            weft_log_debug("a report does not reach rank 0: %s", weft_strerror(status));
        }
        sent += status == WEFT_ERR_QUEUE_FULL ? 0 : sizeof(kv_report_t);
    }
    if (crew->unsent.is_failed) {
        return WEFT_ERR_NO_MEMORY;
    }
    if (sent == crew->unsent.length) {
        weft_buffer_clear(&crew->unsent);
    } else {
        weft_buffer_drop_front(&crew->unsent, sent);
    }
    return WEFT_OK;
}

bool kv_crew_has_unsent(const kv_crew_t *crew)
{
    return crew->unsent.length > 0;
}

static bool is_of_this_meeting(const kv_crew_t *crew, const kv_report_t *report)
{
    return report->epoch == crew->epoch && kv_crew_has_met(crew) && report->rank > 0 &&
           report->rank < crew->config.size;
}

bool kv_crew_next_report(kv_crew_t *crew, kv_report_t *report_out)
{
    xfer_notification_t *notification;
    bool is_found = false;
    while (!is_found && (notification = xfer_next_notification(crew->agent)) != NULL) {
        if (notification->bytes == sizeof(*report_out)) {
            memcpy(report_out, notification->data, sizeof(*report_out));
            report_out->reason[sizeof(report_out->reason) - 1] = '\0';
            is_found = is_of_this_meeting(crew, report_out);
        }
        xfer_notification_free(notification);
    }
    return is_found;
}
