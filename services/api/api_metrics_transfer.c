/* SPDX-License-Identifier: Apache-2.0 */
/* GET /metrics: what moving KV blocks between workers counted since the last look. */
#include "services/api/api_metrics_priv.h"

static void add(api_metrics_t *metrics, int field, double now, double seen)
{
    weft_series_add(metrics->series[field], now - seen);
}

static void set(api_metrics_t *metrics, int field, double value)
{
    weft_series_set(metrics->series[field], value);
}

/* A peer keeps its place in the list. */
static void add_peer(api_metrics_t *metrics, const kv_transfer_stats_t *stats, uint32_t index)
{
    const kv_transfer_peer_stats_t *now = &stats->peers[index];
    const kv_transfer_peer_stats_t *seen = &metrics->transfer.peers[index];
    const char *peer = now->address;
    weft_series_add(api_metrics_labelled(metrics, METRIC_pull_bytes, &peer),
                    (double)(now->bytes - seen->bytes));
    weft_series_add(api_metrics_labelled(metrics, METRIC_pulls, &peer),
                    (double)(now->pulls - seen->pulls));
    weft_series_add(api_metrics_labelled(metrics, METRIC_pull_fallbacks, &peer),
                    (double)(now->failures - seen->failures));
    weft_series_add(api_metrics_labelled(metrics, METRIC_pull_seconds, &peer),
                    now->seconds - seen->seconds);
}

static void add_pulls(api_metrics_t *metrics, const kv_transfer_stats_t *now)
{
    const kv_transfer_stats_t *seen = &metrics->transfer;
    set(metrics, METRIC_pulls_open, (double)now->pulls_open);
    add(metrics, METRIC_nixl_failed, (double)now->pulls_failed, (double)seen->pulls_failed);
    add(metrics, METRIC_nixl_failed_notifications, (double)now->notifications_failed,
        (double)seen->notifications_failed);
    add(metrics, METRIC_pull_queue_seconds, now->queue_seconds, seen->queue_seconds);
    add(metrics, METRIC_pull_overlapped, (double)now->overlapped_bytes,
        (double)seen->overlapped_bytes);
    add(metrics, METRIC_pull_stale, (double)now->stale_reads, (double)seen->stale_reads);
    set(metrics, METRIC_pull_overlap,
        now->bytes_read == 0 ? 0 : (double)now->overlapped_bytes / (double)now->bytes_read);
    for (uint32_t i = 0; i < now->n_peers; i++) {
        add_peer(metrics, now, i);
    }
}

static void add_leases(api_metrics_t *metrics, const kv_transfer_stats_t *now)
{
    const kv_transfer_stats_t *seen = &metrics->transfer;
    set(metrics, METRIC_leases_open, (double)now->leases_open);
    set(metrics, METRIC_lease_blocks, (double)now->blocks_held);
    add(metrics, METRIC_leases_released, (double)now->leases_released,
        (double)seen->leases_released);
    add(metrics, METRIC_leases_expired, (double)now->leases_expired, (double)seen->leases_expired);
    add(metrics, METRIC_nixl_expired, (double)now->leases_expired, (double)seen->leases_expired);
    add(metrics, METRIC_nixl_late, (double)now->late_notifications,
        (double)seen->late_notifications);
    add(metrics, METRIC_side_requests, (double)now->requests, (double)seen->requests);
    add(metrics, METRIC_side_bad, (double)(now->bad_requests + now->bad_notifications),
        (double)(seen->bad_requests + seen->bad_notifications));
}

void api_metrics_add_transfer(api_metrics_t *metrics, const engine_t *engine)
{
    kv_transfer_t *transfer = engine_transfer(engine);
    kv_transfer_stats_t now;
    if (transfer == NULL) {
        return;
    }
    kv_transfer_stats(transfer, &now);
    add_pulls(metrics, &now);
    add_leases(metrics, &now);
    metrics->transfer = now;
}
