/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench/bench_kv_trace.h"

#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/bench/bench_random.h"

#define MAX_WAIT_MS 200
#define IDLE_TRIES  5000 /* of a millisecond: a step takes less */

typedef struct talk {
    int32_t *tokens; /* [context]: all that was said */
    uint32_t n_tokens;
    uint32_t turn;
    uint64_t due_ns; /* of that turn */
    engine_request_t *request;
    bench_random_t words;
    bench_random_t pauses;
} talk_t;

typedef struct player {
    const bench_kv_trace_t *trace;
    engine_t *engine;
    engine_client_t *client;
    talk_t *talks; /* [conversations] */
    int32_t *tokens;
    uint32_t n_running;
    uint32_t n_done; /* turns */
    bench_kv_replay_t *replay;
} player_t;

uint32_t bench_kv_trace_context(const bench_kv_trace_t *trace)
{
    return trace->system_len + trace->turns * (trace->input_len + trace->output_len);
}

size_t bench_kv_trace_outputs(const bench_kv_trace_t *trace)
{
    return (size_t)trace->conversations * trace->turns * trace->output_len;
}

uint64_t bench_kv_trace_blocks(const bench_kv_trace_t *trace, uint32_t block_tokens)
{
    const uint32_t shared = trace->system_len / block_tokens;
    const uint32_t each = (bench_kv_trace_context(trace) + block_tokens - 1) / block_tokens;
    return shared + (uint64_t)trace->conversations * (each - shared);
}

static double seconds(uint64_t ns)
{
    return (double)ns / (double)WEFT_NS_PER_SECOND;
}

/* ---- what is said, and when ------------------------------------------------------------------ */

static void say(const player_t *player, talk_t *talk, bench_random_t *random, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        talk->tokens[talk->n_tokens++] =
            (int32_t)(bench_random_next(random) % player->trace->vocab);
    }
}

static void make_due(const player_t *player, talk_t *talk, uint64_t now)
{
    const double mean = player->trace->think_time;
    talk->due_ns = now;
    if (mean > 0) {
        talk->due_ns += (uint64_t)(bench_random_exponential(&talk->pauses, 1 / mean) *
                                   (double)WEFT_NS_PER_SECOND);
    }
}

static void begin_talks(player_t *player, uint64_t now)
{
    const bench_kv_trace_t *trace = player->trace;
    bench_random_t seeds = {.state = trace->seed};
    for (uint32_t i = 0; i < trace->conversations; i++) {
        talk_t *talk = &player->talks[i];
        bench_random_t system = {.state = trace->seed};
        talk->tokens = player->tokens + (size_t)i * bench_kv_trace_context(trace);
        talk->words.state = bench_random_next(&seeds);
        talk->pauses.state = bench_random_next(&seeds);
        say(player, talk, &system, trace->system_len);
        make_due(player, talk, now);
    }
}

/* The one whose turn is due for longest, or due next; NULL: none waits. */
static talk_t *next_talk(const player_t *player)
{
    talk_t *next = NULL;
    for (uint32_t i = 0; i < player->trace->conversations; i++) {
        talk_t *talk = &player->talks[i];
        if (talk->request == NULL && talk->turn < player->trace->turns &&
            (next == NULL || talk->due_ns < next->due_ns)) {
            next = talk;
        }
    }
    return next;
}

/* ---- one turn -------------------------------------------------------------------------------- */

static weft_status_t start_turn(player_t *player, talk_t *talk, uint64_t now, weft_diag_t *diag)
{
    const bench_kv_trace_t *trace = player->trace;
    say(player, talk, &talk->words, trace->input_len);
    const engine_submit_t submit = {
        .id = "bench",
        .prompt = talk->tokens,
        .n_prompt = talk->n_tokens,
        .n = 1,
        .arrival_ns = trace->think_time > 0 ? talk->due_ns : now,
        .sampling = {.top_p = 1,
                     .repetition_penalty = 1,
                     .max_tokens = trace->output_len,
                     .ignore_eos = true},
        .user = talk,
    };
    player->n_running++;
    return engine_submit(player->engine, player->client, &submit, diag, &talk->request);
}

static weft_status_t count_turn(player_t *player, const talk_t *talk)
{
    bench_kv_replay_t *replay = player->replay;
    const engine_timings_t timings = engine_request_timings(talk->request);
    const uint32_t below =
        timings.cached_tokens_from[KV_TIER_host] + timings.cached_tokens_from[KV_TIER_disk];
    replay->prompt_tokens += talk->n_tokens;
    replay->preemptions += timings.preemptions;
    replay->cached_tokens[KV_TIER_device] += timings.cached_tokens - below;
    replay->cached_tokens[KV_TIER_host] += timings.cached_tokens_from[KV_TIER_host];
    replay->cached_tokens[KV_TIER_disk] += timings.cached_tokens_from[KV_TIER_disk];
    const weft_status_t status =
        bench_samples_add(&replay->ttft, seconds(timings.first_token_ns - timings.arrival_ns));
    return status < 0
               ? status
               : bench_samples_add(&replay->e2e, seconds(timings.finished_ns - timings.arrival_ns));
}

static weft_status_t end_turn(player_t *player, talk_t *talk, weft_diag_t *diag)
{
    const bench_kv_trace_t *trace = player->trace;
    const engine_answer_t answer = engine_request_answer(talk->request, 0);
    const size_t number = (size_t)(talk - player->talks) * trace->turns + talk->turn;
    if (answer.finish != ENGINE_FINISH_LENGTH || answer.n_tokens != trace->output_len) {
        return weft_diag(diag, WEFT_ERR_INTERNAL, "turn %u of conversation %u ended at token %u",
                         talk->turn, (uint32_t)(talk - player->talks), answer.n_tokens);
    }
    const weft_status_t status = count_turn(player, talk);
    memcpy(player->replay->outputs + number * trace->output_len, answer.tokens,
           trace->output_len * sizeof(int32_t));
    memcpy(talk->tokens + talk->n_tokens, answer.tokens, trace->output_len * sizeof(int32_t));
    talk->n_tokens += trace->output_len;
    talk->turn++;
    engine_request_release(talk->request);
    talk->request = NULL;
    player->n_running--;
    player->n_done++;
    make_due(player, talk, weft_clock_ns());
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* Starts what is due; the milliseconds until the next one is. */
static weft_status_t start_turns(player_t *player, weft_diag_t *diag, int *wait_ms_out)
{
    weft_status_t status = WEFT_OK;
    *wait_ms_out = MAX_WAIT_MS;
    while (status >= 0 && player->n_running < player->trace->concurrency) {
        const uint64_t now = weft_clock_ns();
        talk_t *talk = next_talk(player);
        if (talk == NULL) {
            break;
        }
        if (talk->due_ns > now) {
            const uint64_t ms = (talk->due_ns - now) / WEFT_NS_PER_MS + 1;
            *wait_ms_out = ms < MAX_WAIT_MS ? (int)ms : MAX_WAIT_MS;
            break;
        }
        status = start_turn(player, talk, now, diag);
    }
    return status;
}

static weft_status_t take_news(player_t *player, int wait_ms, weft_diag_t *diag)
{
    weft_status_t status = WEFT_OK;
    engine_request_t *request = engine_client_wait(player->client, wait_ms);
    for (; status >= 0 && request != NULL; request = engine_client_next(player->client)) {
        if (engine_request_answer(request, 0).finish != ENGINE_FINISH_NONE) {
            status = end_turn(player, engine_request_user(request), diag);
        }
    }
    return status;
}

static weft_status_t play(player_t *player, const char *label, bench_progress_t *progress,
                          weft_diag_t *diag)
{
    const uint32_t n_turns = player->trace->conversations * player->trace->turns;
    const uint64_t start = weft_clock_ns();
    weft_status_t status = WEFT_OK;
    begin_talks(player, start);
    while (status >= 0 && player->n_done < n_turns) {
        int wait_ms;
        status = start_turns(player, diag, &wait_ms);
        if (status >= 0) {
            status = take_news(player, wait_ms, diag);
        }
        bench_progress_show(progress, "%s: %u of %u turns, %.0f s", label, player->n_done, n_turns,
                            seconds(weft_clock_ns() - start));
    }
    player->replay->seconds += seconds(weft_clock_ns() - start);
    return status;
}

/* The engine's last word comes when it falls idle, a moment after the last answer. */
static void take_stats(player_t *player)
{
    engine_stats_t stats = engine_stats(player->engine);
    for (int i = 0; i < IDLE_TRIES && stats.referenced_blocks > 0; i++) {
        engine_client_wait(player->client, 1);
        stats = engine_stats(player->engine);
    }
    player->replay->store = stats.store;
}

static void player_fini(player_t *player)
{
    for (uint32_t i = 0; player->talks != NULL && i < player->trace->conversations; i++) {
        if (player->talks[i].request != NULL) {
            engine_request_release(player->talks[i].request);
        }
    }
    engine_client_destroy(player->client);
    weft_free(player->talks);
    weft_free(player->tokens);
}

weft_status_t bench_kv_trace_replay(const bench_kv_trace_t *trace, engine_t *engine,
                                    const char *label, bench_progress_t *progress,
                                    weft_diag_t *diag, bench_kv_replay_t *replay)
{
    const uint32_t n = trace->conversations;
    player_t player = {.trace = trace, .engine = engine, .replay = replay};
    player.talks = weft_calloc(n, sizeof(talk_t), "bench_kv.talks");
    player.tokens =
        weft_calloc((size_t)n * bench_kv_trace_context(trace), sizeof(int32_t), "bench_kv.tokens");
    weft_status_t status = player.talks == NULL || player.tokens == NULL
                               ? WEFT_ERR_NO_MEMORY
                               : engine_client_create(engine, &player.client);
    if (status >= 0) {
        status = play(&player, label, progress, diag);
    }
    if (status >= 0) {
        take_stats(&player);
    }
    player_fini(&player);
    return status;
}
