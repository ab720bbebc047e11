/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>

#include "base/alloc.h"
#include "base/compiler.h"
#include "cli/events.h"

#define MAX_LINES 100 /* then only counted */

struct events_check {
    kv_event_mirror_t *mirror;
    uint64_t sequence;
    uint64_t holes[KV_EVENT_HOLE_GAP + 1];
    uint64_t from_before; /* what does not fit only because the beginning is not known */
    bool is_partial;      /* joined late, without a replay */
    bool has_begun;
    uint64_t lines;
};

static const char *const texts[] = {
    [KV_EVENT_HOLE_PARENT] = "stored, but its parent is not present",
    [KV_EVENT_HOLE_ABSENT] = "removed, but not present",
    [KV_EVENT_HOLE_UNKNOWN] = "stored without tokens, but not present elsewhere",
    [KV_EVENT_HOLE_GAP] = "batches before it are missing",
};

static void report(void *user, kv_event_hole_t hole, const kv_event_hash_t *hash)
{
    events_check_t *check = user;
    if (check->is_partial && hole != KV_EVENT_HOLE_GAP) {
        check->from_before++;
        return;
    }
    check->holes[hole]++;
    if (++check->lines > MAX_LINES) {
        return;
    }
    fprintf(stderr, "weft events: hole: batch %" PRIu64, check->sequence);
    if (hash != NULL) {
        fputs(", block ", stderr);
        for (uint32_t i = 0; i < hash->n_bytes; i++) {
            fprintf(stderr, "%02x", hash->bytes[i]);
        }
    }
    fprintf(stderr, ": %s\n%s", texts[hole],
            check->lines == MAX_LINES ? "weft events: further ones are only counted\n" : "");
}

weft_status_t events_check_create(events_check_t **check_out)
{
    events_check_t *check = weft_zalloc(sizeof(*check), "events.check");
    if (check == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const kv_event_mirror_config_t config = {.on_hole = report, .user = check};
    const weft_status_t status = kv_event_mirror_create(&config, &check->mirror);
    if (status < 0) {
        weft_free(check);
        return status;
    }
    *check_out = check;
    return WEFT_OK;
}

void events_check_destroy(events_check_t *check)
{
    if (check != NULL) {
        kv_event_mirror_destroy(check->mirror);
        weft_free(check);
    }
}

weft_status_t events_check_news(events_check_t *check, const kv_event_news_t *news)
{
    const kv_event_batch_t *batch = news->batch;
    check->sequence = news->sequence;
    if (news->is_restart) {
        kv_event_mirror_restart(check->mirror);
        check->is_partial = false;
        check->has_begun = false;
    }
    if (!check->has_begun) {
        check->is_partial = news->missed > 0;
        check->has_begun = true;
    }
    for (uint32_t i = 0; i < batch->n_events; i++) {
        check->is_partial &= batch->events[i].kind != KV_EVENT_CLEARED;
    }
    return kv_event_mirror_apply_batch(check->mirror, news->sequence, batch);
}

uint64_t events_check_holes(const events_check_t *check)
{
    uint64_t holes = 0;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(check->holes); i++) {
        holes += check->holes[i];
    }
    return holes;
}

void events_check_print(const events_check_t *check)
{
    static const char *const media[] = {"GPU", "CPU", "STORAGE"};
    fprintf(stderr,
            "weft events: %" PRIu64 " blocks are present:", kv_event_mirror_blocks(check->mirror));
    for (size_t i = 0; i < WEFT_ARRAY_LEN(media); i++) {
        fprintf(stderr, " %s %" PRIu64, media[i],
                kv_event_mirror_present(check->mirror, kv_event_text(media[i])));
    }
    fprintf(stderr,
            "\nweft events: %" PRIu64 " holes: %" PRIu64 " without parent, %" PRIu64
            " removed while absent, %" PRIu64 " without tokens, %" PRIu64 " gaps\n",
            events_check_holes(check), check->holes[KV_EVENT_HOLE_PARENT],
            check->holes[KV_EVENT_HOLE_ABSENT], check->holes[KV_EVENT_HOLE_UNKNOWN],
            check->holes[KV_EVENT_HOLE_GAP]);
    if (check->from_before > 0) {
        fprintf(stderr,
                "weft events: %" PRIu64
                " events are about blocks from before the first batch seen; "
                "--replay would know them\n",
                check->from_before);
    }
}
