/* SPDX-License-Identifier: Apache-2.0 */
/* GET /metrics: what engine, store and process counted since the last look joins the series. */
#include <dirent.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "services/api/api_metrics_priv.h"

const api_metrics_tier_row_t api_metrics_tier_rows[TIER_ROWS] = {
#define ROW(field, member) {METRIC_##field, offsetof(kv_store_tier_stats_t, member)}
    ROW(tier_blocks, tier.blocks),
    ROW(tier_capacity, tier.capacity_blocks),
    ROW(tier_in_flight, tier.in_flight),
    ROW(tier_hits, hit_blocks),
    ROW(tier_misses, miss_blocks),
    ROW(tier_stored, tier.puts),
    ROW(tier_refused, tier.puts_refused),
    ROW(tier_read, tier.gets),
    ROW(tier_failed, tier.gets_failed),
    ROW(tier_damaged, tier.damaged),
    ROW(tier_evicted, tier.evictions),
    ROW(tier_read_bytes, tier.read_bytes),
    ROW(tier_written_bytes, tier.written_bytes),
    ROW(tier_peers, tier.peers),
    ROW(tier_lookups, tier.lookups),
    ROW(tier_lookups_late, tier.lookups_late),
    ROW(tier_lookups_declined, tier.lookups_declined),
    ROW(tier_stale, tier.stale),
#undef ROW
};

static void add(api_metrics_t *metrics, int field, double amount)
{
    weft_series_add(metrics->series[field], amount);
}

static uint32_t count_open_fds(void)
{
    DIR *folder = opendir("/proc/self/fd");
    uint32_t n = 0;

    if (folder == NULL) {
        return 0;
    }
    for (const struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        n += entry->d_name[0] != '.';
    }
    closedir(folder);
    return n > 0 ? n - 1 : 0; /* the folder itself */
}

static double resident_bytes(void)
{
    unsigned long total = 0;
    unsigned long resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");

    if (file == NULL) {
        return 0;
    }
    int n = fscanf(file, "%lu %lu", &total, &resident);
    fclose(file);
    return n == 2 ? (double)resident * (double)sysconf(_SC_PAGESIZE) : 0;
}

static double cpu_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec / 1e6 +
           (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec / 1e6;
}

static void set(api_metrics_t *metrics, int field, double value)
{
    weft_series_set(metrics->series[field], value);
}

static void set_process(api_metrics_t *metrics)
{
    double seconds = cpu_seconds();

    add(metrics, METRIC_cpu_seconds, seconds - metrics->cpu_seconds);
    metrics->cpu_seconds = seconds;
    set(metrics, METRIC_resident_memory, resident_bytes());
    set(metrics, METRIC_open_fds, count_open_fds());
    set(metrics, METRIC_heap_bytes, (double)weft_alloc_live_bytes());
}

static uint64_t tier_value(const kv_store_stats_t *stats, kv_tier_id_t tier, size_t row)
{
    uint64_t value;

    memcpy(&value, (const char *)&stats->tiers[tier] + api_metrics_tier_rows[row].offset,
           sizeof(value));
    return value;
}

static void add_offer_counts(api_metrics_t *metrics, const kv_store_offer_stats_t *now,
                             const kv_store_offer_stats_t *seen)
{
    set(metrics, METRIC_offer_blocks, (double)now->blocks);
    add(metrics, METRIC_offer_welcomed, (double)(now->welcomed - seen->welcomed));
    add(metrics, METRIC_offer_refused, (double)(now->refused - seen->refused));
    add(metrics, METRIC_offer_lookups, (double)(now->lookups - seen->lookups));
    add(metrics, METRIC_offer_found, (double)(now->found_blocks - seen->found_blocks));
    add(metrics, METRIC_offer_garbage, (double)(now->garbage - seen->garbage));
}

static void add_store_counts(api_metrics_t *metrics, const kv_store_stats_t *now)
{
    const kv_store_stats_t *seen = &metrics->stats.store;

    for (kv_tier_id_t tier = 0; tier < KV_TIER_COUNT; tier++) {
        for (size_t i = 0; i < TIER_ROWS; i++) {
            uint64_t value = tier_value(now, tier, i);
            if (api_metric_rows[api_metrics_tier_rows[i].field].kind == WEFT_METRIC_GAUGE) {
                weft_series_set(metrics->tiers[tier][i], (double)value);
            } else {
                weft_series_add(metrics->tiers[tier][i],
                                (double)(value - tier_value(seen, tier, i)));
            }
        }
    }
    set(metrics, METRIC_blocks_pinned, (double)now->pinned_blocks);
    add(metrics, METRIC_pins_refused, (double)(now->pins_refused - seen->pins_refused));
    add(metrics, METRIC_fetches, (double)(now->fetches - seen->fetches));
    add(metrics, METRIC_fetches_declined, (double)(now->fetches_declined - seen->fetches_declined));
    add_offer_counts(metrics, &now->offer, &seen->offer);
}

static void add_event_counts(api_metrics_t *metrics, const kv_publisher_stats_t *now)
{
    const kv_publisher_stats_t *seen = &metrics->stats.events;

    add(metrics, METRIC_event_batches, (double)(now->batches - seen->batches));
    add(metrics, METRIC_events, (double)(now->events - seen->events));
    add(metrics, METRIC_event_blocks, (double)(now->blocks - seen->blocks));
    add(metrics, METRIC_event_replays, (double)(now->replays - seen->replays));
    add(metrics, METRIC_event_stalls, (double)(now->stalls - seen->stalls));
}

static weft_series_t *accepted_at(api_metrics_t *metrics, uint32_t position)
{
    char text[16];

    if (metrics->accepted[position] == NULL) {
        snprintf(text, sizeof(text), "%u", position);
        metrics->accepted[position] =
            api_metrics_labelled(metrics, METRIC_accepted_by_position, (const char *[]){text});
    }
    return metrics->accepted[position];
}

static void add_draft_counts(api_metrics_t *metrics, const engine_stats_t *now)
{
    const engine_stats_t *seen = &metrics->stats;

    add(metrics, METRIC_drafts, (double)(now->drafts - seen->drafts));
    add(metrics, METRIC_draft_tokens, (double)(now->draft_tokens - seen->draft_tokens));
    for (uint32_t i = 0; i < now->max_drafts; i++) {
        const double right = (double)(now->accepted[i] - seen->accepted[i]);
        add(metrics, METRIC_accepted_tokens, right);
        weft_series_add(accepted_at(metrics, i), right);
    }
}

static double seconds_of(uint64_t ns)
{
    return (double)ns / (double)WEFT_NS_PER_SECOND;
}

static void add_device_counts(api_metrics_t *metrics, const engine_stats_t *now)
{
    for (uint32_t i = 0; i < ENGINE_STEP_KINDS; i++) {
        const engine_device_stats_t *device = &now->device[i];
        const engine_device_stats_t *seen = &metrics->stats.device[i];
        weft_series_add(metrics->device_busy[i], seconds_of(device->busy_ns - seen->busy_ns));
        weft_series_add(metrics->device_gap[i], seconds_of(device->gap_ns - seen->gap_ns));
        weft_series_add(metrics->device_gaps[i], (double)(device->gaps - seen->gaps));
    }
}

/* What the engine counted since the last look. */
static void add_engine_counts(api_metrics_t *metrics, const engine_stats_t *now)
{
    const engine_stats_t *seen = &metrics->stats;

    add(metrics, METRIC_prompt_tokens, (double)(now->prompt_tokens - seen->prompt_tokens));
    add(metrics, METRIC_generation_tokens,
        (double)(now->generation_tokens - seen->generation_tokens));
    add(metrics, METRIC_prefix_queries, (double)(now->prefix_queries - seen->prefix_queries));
    add(metrics, METRIC_prefix_hits, (double)(now->prefix_hits - seen->prefix_hits));
    add(metrics, METRIC_preemptions, (double)(now->preemptions - seen->preemptions));
    add(metrics, METRIC_steps, (double)(now->steps - seen->steps));
    add(metrics, METRIC_external_queries, (double)(now->pull_queries - seen->pull_queries));
    add(metrics, METRIC_external_hits, (double)(now->pull_hits - seen->pull_hits));
    weft_series_add(metrics->ranks_gone, (double)(now->rank_losses - seen->rank_losses));
    weft_series_add(metrics->ranks_timed_out, (double)(now->rank_timeouts - seen->rank_timeouts));
    add(metrics, METRIC_regroupings, (double)(now->regroupings - seen->regroupings));
    add_draft_counts(metrics, now);
    add_device_counts(metrics, now);
    add_store_counts(metrics, &now->store);
    add_event_counts(metrics, &now->events);
    metrics->stats = *now;
}

char *api_metrics_text(api_metrics_t *metrics, engine_t *engine, const api_metrics_gauges_t *gauges,
                       size_t *length_out)
{
    engine_stats_t stats = engine_stats(engine);
    double total = stats.total_blocks;

    add_engine_counts(metrics, &stats);
    api_metrics_add_transfer(metrics, engine);
    set(metrics, METRIC_running, stats.running);
    set(metrics, METRIC_waiting, stats.waiting);
    weft_series_set(metrics->waiting_for_capacity, stats.waiting);
    set(metrics, METRIC_kv_usage, total > 0 ? 1 - stats.free_blocks / total : 0);
    set(metrics, METRIC_blocks_free, stats.free_blocks);
    set(metrics, METRIC_blocks_referenced, stats.referenced_blocks);
    set(metrics, METRIC_group_ranks, stats.ranks);
    set(metrics, METRIC_group_up, engine_is_healthy(engine));
    set(metrics, METRIC_connections, gauges->connections);
    set(metrics, METRIC_calls, gauges->open_calls);
    set_process(metrics);
    char *text = weft_metrics_text(metrics->registry, length_out);
    return text != NULL && engine_has_adapters(engine)
               ? api_metrics_add_adapters(metrics, engine, text, length_out)
               : text;
}
