/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_priv: what the engine's files share. Who touches what:
 *
 *   engine      made by create; from then on its thread's, but for atomics and the mailbox
 *   client      its consumer's; the engine posts into `news`
 *   request     counted references: the owner's until release, the engine's until every sample is
 *               retired, one while it is noted as untold, one while it lies in `news`, one for each
 *               posted abort, one for each mask being made. The last one frees it
 *   commands    items of the engine's mailbox: what the engine thread should do between two steps
 */
#pragma once

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>

#include "kvstore/hash/kv_hash.h"
#include "kvstore/ranks/kv_member.h"
#include "runtime/draft/drafter.h"
#include "runtime/engine/constraint.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/engine_group.h"
#include "runtime/engine/mailbox.h"
#include "runtime/executor/executor.h"
#include "runtime/model/model.h"
#include "runtime/sched/sched.h"
#include "runtime/sched/step_pace.h"

typedef enum engine_command_kind {
    ENGINE_COMMAND_SUBMIT,
    ENGINE_COMMAND_ABORT,
    ENGINE_COMMAND_ABORT_SAMPLE,
    ENGINE_COMMAND_GIVE_UP_PULL,
    ENGINE_COMMAND_DECLINE,
    ENGINE_COMMAND_CALL,
} engine_command_kind_t;

typedef struct engine_command {
    mailbox_item_t item;
    engine_command_kind_t kind;
} engine_command_t;

/* A function run on the engine thread while its caller waits; what it needs lies around it. */
typedef struct engine_call {
    engine_command_t command;
    weft_status_t (*fn)(engine_t *engine, struct engine_call *call);
    weft_status_t status;
    bool is_done; /* guarded by call_lock */
} engine_call_t;

typedef struct engine_sample {
    sched_seq_t seq;
    engine_request_t *request;
    k_sampled_t *logprobs; /* [max_tokens] or NULL */
    uint32_t *mask;        /* [mask_words] or NULL: what the next token may be */
    constraint_t constraint;
    int32_t stop_token;
    const char *reason; /* why no token may follow, static or the constraint's */
    atomic_bool is_abort_posted;
    engine_command_t abort_command;
    int end; /* engine_finish_t: what finish will be when its client is told */
    /* released by the engine, acquired by engine_request_answer: tokens first, then the end */
    atomic_uint n_tokens;
    atomic_int finish;
} engine_sample_t;

struct engine_request {
    engine_t *engine;
    engine_client_t *client;
    void *user;
    const char *id;
    atomic_uint refs;
    atomic_bool is_released;
    atomic_bool is_abort_posted;
    atomic_bool is_listed; /* in the client's news */
    mailbox_item_t news;
    bool is_noted; /* among the engine's untold; engine thread, so for the next */
    engine_request_t *next_untold;
    engine_command_t submit_command;
    engine_command_t abort_command;

    const int32_t *stop_ids; /* end tokens unless ignored, then the request's own */
    uint32_t n_end_ids;
    uint32_t n_stop_ids;
    uint32_t min_tokens;
    const k_bias_t *bias;
    const uint32_t *allowed; /* [mask_words] or NULL */
    const int32_t *bad_words;
    const uint32_t *bad_word_lengths;
    uint32_t n_bad_words;
    weft_diag_t *diag; /* of the constraints, or NULL */
    uint32_t n_prompt;
    kv_extra_t *extra;         /* of every sample's hashes, or NULL */
    engine_adapter_t *adapter; /* NULL: none */
    bool has_transfer;
    kv_transfer_params_t transfer; /* as submitted */
    char *internal_id;             /* unlike any other's, with has_transfer */
    char transfer_reason[256];     /* why blocks could not be had */
    bool has_held;                 /* written before sample 0's finish is released, as held */
    kv_transfer_params_t held;
    atomic_bool is_give_up_posted;
    engine_command_t give_up_command;
    float *embedding;             /* [hidden] or NULL; written before the finish is released */
    k_sampled_t *prompt_logprobs; /* [n_prompt] or NULL */
    atomic_bool has_prompt_logprobs;

    uint64_t arrival_ns;
    atomic_uint_fast64_t scheduled_ns;
    atomic_uint_fast64_t first_token_ns;
    atomic_uint_fast64_t finished_ns;
    atomic_uint cached_tokens;
    atomic_uint cached_tokens_from[KV_TIER_COUNT];
    atomic_uint pulled_tokens;
    atomic_uint preemptions;

    uint32_t n_unfinished; /* samples; engine thread, so for the next */
    uint32_t n_unretired;
    uint32_t n_samples;
    engine_sample_t *samples; /* [n_samples] */
};

struct engine_client {
    engine_t *engine;
    atomic_uint refs; /* its owner's, and one for each request */
    mailbox_t news;
    mailbox_item_t *taken; /* from the mailbox, oldest first */
};

/* Who has a place of the table of adapters. */
typedef enum engine_place_state {
    ENGINE_PLACE_FREE,
    ENGINE_PLACE_TAKEN,
    ENGINE_PLACE_DROPPED, /* free, but other ranks are yet to hear of it */
} engine_place_state_t;

/* Over several ranks: engine_adapters_ranks.c. */
typedef struct engine_adapters_ranks {
    bool has_followers;      /* this is rank 0 of several */
    pthread_mutex_t loading; /* rank 0: one load at a time */
    pthread_mutex_t meeting; /* held while ranks tell each other how a load went; guards epoch */
    uint64_t epoch;          /* counts the times that the group was left */
    uint64_t last_serial;    /* rank 0, guarded by loading */
    atomic_bool has_dropped; /* rank 0: a place may be ENGINE_PLACE_DROPPED */
    bool has_reader;         /* others: the thread is there, and what follows its own */
    pthread_t reader;
    struct engine_adapter_read *reading;
} engine_adapters_ranks_t;

/* LoRA adapters: engine_adapters.c. */
typedef struct engine_adapters {
    adapter_table_t *table; /* NULL: without --enable-lora, then nothing else is */
    bool is_gguf;           /* the model's file */
    engine_adapters_ranks_t ranks;
    pthread_mutex_t lock; /* guards what follows */
    uint32_t n;
    engine_adapter_t *list[ENGINE_MAX_ADAPTERS];   /* [n], oldest first */
    engine_adapter_t *places[ENGINE_MAX_ADAPTERS]; /* of the table; NULL: not taken */
    engine_place_state_t states[ENGINE_MAX_ADAPTERS];
} engine_adapters_t;

/* Speculative decoding: engine_draft.c. */
typedef struct engine_draft {
    draft_config_t config;
    model_source_t *source; /* of the model that guesses, of the rank that leads; or NULL */
    drafter_t *drafter;     /* NULL: nothing is guessed, or this rank follows */
} engine_draft_t;

/* What the options and the model come to. */
typedef struct engine_plan {
    uint32_t max_context;
    uint32_t max_slots;
    uint32_t n_blocks;
    k_dtype_t kv_dtype;
    kv_layout_t layout;
    step_limits_t limits;
    model_limits_t model_limits;
    size_t host_bytes; /* of the tier there */
    uint32_t max_pinned_blocks;
    double pin_quota;
    bool admits_all; /* to the disk */
    bool embeds;
    uint32_t max_drafts;            /* of a guess; 0: none are made */
    draft_model_plan_t draft_model; /* n_blocks 0: none guesses here */
    uint32_t max_lora_rank;         /* 0: no adapters */
    size_t adapter_bytes;           /* and their table */
    bool keeps_packed;              /* matrices, in a file beside the model's */
    size_t budget_bytes;
    size_t needs_bytes; /* of the device, all that is planned */
} engine_plan_t;

/* A copy of the store's statistics, word by word: whole numbers, if not all of one moment. */
#define ENGINE_STORE_WORDS (sizeof(kv_store_stats_t) / sizeof(uint64_t))
static_assert(sizeof(kv_store_stats_t) % sizeof(uint64_t) == 0, "published in 64-bit words");

/* A step whose result has not come. */
typedef struct engine_launched {
    uint32_t tokens;
    uint32_t prompt_tokens; /* of them */
    uint64_t begun_ns;
} engine_launched_t;

typedef struct engine_device_counters {
    atomic_uint_fast64_t busy_ns;
    atomic_uint_fast64_t gap_ns;
    atomic_uint_fast64_t gaps;
} engine_device_counters_t;

/* Gauges and counters as the last step left them. */
typedef struct engine_gauges {
    atomic_uint running;
    atomic_uint waiting;
    atomic_uint free_blocks;
    atomic_uint held_blocks;
    atomic_uint_fast64_t steps;
    atomic_uint_fast64_t prompt_tokens;
    atomic_uint_fast64_t generation_tokens;
    atomic_uint_fast64_t prefix_queries;
    atomic_uint_fast64_t prefix_hits;
    atomic_uint_fast64_t pull_queries;
    atomic_uint_fast64_t pull_hits;
    atomic_uint_fast64_t preemptions;
    atomic_uint_fast64_t drafts;
    atomic_uint_fast64_t draft_tokens;
    atomic_uint_fast64_t accepted[STEP_MAX_DRAFTS];
    atomic_uint_fast64_t rank_losses;
    atomic_uint_fast64_t rank_timeouts;
    atomic_uint_fast64_t regroupings;
    engine_device_counters_t device[ENGINE_STEP_KINDS];
    atomic_uint_fast64_t store[ENGINE_STORE_WORDS];
} engine_gauges_t;

/* What ranks tell each other of KV blocks, where there are tiers or transfers; engine_kv.c. */
typedef struct engine_kv {
    kv_crew_t *crew;      /* NULL: nothing */
    kv_member_t *member;  /* of a follower: its part; else NULL */
    weft_buffer_t words;  /* that this rank says of itself when they meet */
    weft_buffer_t shared; /* what all said, from one meeting's end until it is taken */
    size_t *offsets;      /* [ranks + 1] in shared, or NULL */
    char *disk_path;      /* this rank's folder, or NULL */
} engine_kv_t;

/* The group forms again on a thread of its own, which alone touches engine->group meanwhile. */
typedef struct engine_regroup {
    pthread_t thread;
    bool is_running;
    atomic_bool is_done; /* released by the thread, acquired by the engine's: status and diag */
    weft_status_t status;
    weft_diag_t diag;
} engine_regroup_t;

struct engine {
    atomic_uint refs; /* its owner's, and one for each client */
    model_config_t model_config;
    engine_plan_t plan;
    uint32_t mask_words;
    uint32_t max_requests; /* running and queued */
    bool is_caching;
    uint64_t seed;

    weft_device_t *device;
    engine_group_t group; /* not formed: alone */
    k_stream_t *stream;
    model_t *model;
    engine_adapters_t adapters;
    engine_draft_t draft;
    kv_publisher_t *publisher; /* NULL: no events */
    kv_store_t *store;
    engine_kv_t kv;
    kv_transfer_config_t transfer_config; /* role 0: blocks stay here */
    kv_transfer_t *transfer; /* NULL: blocks stay here, or this rank follows and kv.member has it */
    sched_mover_t mover;     /* with it */
    bool fails_without_pull;
    kv_hasher_t *hasher;
    executor_t *executor;
    step_plan_t *step;
    sched_t *sched;
    text_grammar_factory_t *grammars;
    constraint_worker_t *worker;

    mailbox_t mailbox;
    engine_request_t *untold; /* of which their clients hear next, oldest first */
    engine_request_t *last_untold;
    pthread_t thread;
    bool is_thread_started;
    bool has_call_lock;
    pthread_mutex_t call_lock;
    pthread_cond_t call_done;
    bool is_closed;     /* guarded by call_lock: the thread takes no more calls */
    uint32_t depth;     /* steps in flight */
    uint32_t max_depth; /* that the executor takes */
    engine_launched_t launched[SCHED_MAX_IN_FLIGHT];
    step_pace_t pace;
    uint64_t n_launched;
    uint64_t n_collected;
    uint64_t collected_ns; /* when the last one's result came */

    atomic_bool is_draining;
    atomic_bool is_stopping;
    atomic_int health; /* engine_health_t */
    uint32_t n_ranks;  /* of the group, whether or not it is formed now; 0: made without one */
    uint32_t restarts_left;
    weft_diag_t loss; /* why the last rank was lost */
    engine_regroup_t regroup;
    atomic_uint n_requests; /* submitted, not finished */
    atomic_uint_fast64_t n_drawn_seeds;
    atomic_uint n_internal_ids;
    engine_gauges_t gauges;
    engine_observer_t observer;
    void (*on_health)(void *user, engine_health_t health); /* NULL: nobody watches */
    void *health_user;
    atomic_uint_fast64_t chaos; /* state of the disturber; 0: none */
};

/* Where a rank's part of the model is to be. */
typedef struct engine_place {
    const model_shard_t *shard; /* NULL: all of it */
    const weft_device_t *device;
    const k_ops_t *ops;
    uint32_t threads;            /* of the stream */
    uint32_t on_device;          /* ranks that have yet to take its memory, this one among them */
    uint32_t depth;              /* of the executor */
    const engine_draft_t *draft; /* borrowed: who guesses */
} engine_place_t;

/* engine_plan.c: sizes from options, model and memory; one clear line when they do not work out. */
weft_status_t engine_plan_init(engine_plan_t *plan, const engine_options_t *options,
                               const model_source_t *source, const engine_place_t *place,
                               weft_diag_t *diag);

/* What the ranks have agreed on; more than was planned when the others have more, if it fits. */
weft_status_t engine_plan_settle(engine_plan_t *plan, const model_source_t *source,
                                 const engine_place_t *place, uint32_t n_blocks,
                                 uint32_t max_context, weft_diag_t *diag);

/*
 * engine_rank.c: what every rank has, leading or following: device, links if there are other ranks,
 * stream, plan; then model, executor and the plan of a step.
 */
weft_status_t engine_open_rank(engine_t *engine, const engine_options_t *options,
                               const model_source_t *source, const engine_ranks_t *ranks,
                               weft_diag_t *diag);
weft_status_t engine_load_rank(engine_t *engine, const model_source_t *source,
                               const kv_pool_t *pool, weft_diag_t *diag);
/* The last step of both: all ranks are there. status: of what came before; alone that is all. */
weft_status_t engine_join_ranks(engine_t *engine, weft_status_t status, weft_diag_t *diag);
/* After a loss: the same meeting, with what is loaded kept. Blocks. */
weft_status_t engine_rejoin_ranks(engine_t *engine, weft_diag_t *diag);
/*
 * Memory that was counted as free may be refused all the same, by another limit or process: says which
 * options lower what is needed, where diag names none.
 */
void engine_explain_refusal(const engine_t *engine, weft_status_t status, weft_diag_t *diag);
/* Whose fault it was that the group failed, in one line. */
void engine_describe_loss(weft_status_t status, uint32_t rank, weft_diag_t *diag);

/* engine_remote.c: other workers whose cached blocks are shared. */
bool engine_has_peers(const engine_options_t *options);
/* No other process reads the blocks where they lie. */
bool engine_keeps_blocks(const engine_t *engine, const engine_options_t *options);
/* What the store is to know of them; its texts are those of options. */
weft_status_t engine_remote_check(const engine_options_t *options, weft_diag_t *diag);
weft_status_t engine_remote_config(const engine_t *engine, const engine_options_t *options,
                                   const model_source_t *source, kv_remote_config_t *config_out);

/*
 * engine_fingerprint.c: of what two processes must agree on for a block of one to be one of the
 * other: the model, how its KV blocks are laid out, named and, to the last bit, computed.
 */
#define ENGINE_FINGERPRINT_BYTES 32
weft_status_t engine_fingerprint(const engine_t *engine, const model_source_t *source,
                                 uint8_t fingerprint_out[ENGINE_FINGERPRINT_BYTES]);

/* The same of the model alone: blocks of one can be made into blocks of the other. */
weft_status_t engine_model_fingerprint(const engine_t *engine, const model_source_t *source,
                                       uint8_t fingerprint_out[ENGINE_FINGERPRINT_BYTES]);

/*
 * engine_kv.c: KV blocks over ranks; nothing where this is the only one, or has neither tiers nor
 * transfers.
 *
 * open    the crew, and the folder of a disk tier, before store or member
 * lead    the transfer is there: what this rank says of itself
 * follow  its part of the store and its transfer; then the same
 * share   when ranks meet, also again: what all say. Collective, on any thread
 * meet    takes what they said, on the engine's thread
 * poll    leader: reports of the others
 * flush   leader: orders to them
 * lose    a rank is lost; fails pulls, and what was held is not
 * save    leader: what goes to the disk at the end, while the others still follow
 */
weft_status_t engine_kv_open(engine_t *engine, const engine_options_t *options, weft_diag_t *diag);
weft_status_t engine_kv_lead(engine_t *engine, weft_diag_t *diag);
weft_status_t engine_kv_follow(engine_t *engine, const engine_options_t *options,
                               const model_source_t *source, kv_pool_t *pool, weft_diag_t *diag);
weft_status_t engine_kv_share(engine_t *engine, weft_status_t status, weft_diag_t *diag);
weft_status_t engine_kv_meet(engine_t *engine, weft_diag_t *diag);
void engine_kv_poll(engine_t *engine);
weft_status_t engine_kv_flush(engine_t *engine);
void engine_kv_lose(engine_t *engine);
void engine_kv_save(engine_t *engine);
/* Of a follower: before its pool. Of a leader: behind its store and its transfer. */
void engine_kv_close(engine_t *engine);

/* engine.c: vLLM's algorithms and its seed, for names and fingerprints. */
weft_status_t engine_create_hasher(engine_t *engine, const engine_options_t *options,
                                   weft_diag_t *diag);

/* engine_adapters.c: before the model is planned; once it is loaded. */
weft_status_t engine_adapters_check(const engine_options_t *options, weft_diag_t *diag);
/*
 * Bytes of the device: the table, those of --lora-modules as they are, and the others of --max-loras as
 * such that add to all but single experts. local, model->cut: of what this rank computes.
 */
weft_status_t engine_adapters_measure(const engine_options_t *options, const adapter_model_t *model,
                                      const model_config_t *local, weft_diag_t *diag,
                                      size_t *bytes_out);
weft_status_t engine_adapters_init(engine_t *engine, const engine_options_t *options,
                                   const model_source_t *source, weft_diag_t *diag);
void engine_adapters_fini(engine_t *engine);

/*
 * engine_adapters_ranks.c: the same adapters on every rank.
 *
 * share  when ranks meet, also again: all have those that rank 0 has. Collective, on any thread
 * part   before the group is left: no load is under way
 * flush  leader, before a step: tells the others of places that were given up
 * obey   others: an order
 */
weft_status_t engine_adapters_share(engine_t *engine, weft_status_t status, weft_diag_t *diag);
void engine_adapters_part(engine_t *engine);
weft_status_t engine_adapters_flush(engine_t *engine);
weft_status_t engine_adapters_obey(engine_t *engine, const void *bytes, size_t n,
                                   weft_diag_t *diag);
/* NULL is fine for each; acquire returns it, number is what sequences call it. */
engine_adapter_t *engine_adapter_acquire(engine_adapter_t *adapter);
uint32_t engine_adapter_number(const engine_adapter_t *adapter);
void engine_adapter_waits(engine_adapter_t *adapter, uint32_t samples);
void engine_adapter_runs(engine_adapter_t *adapter); /* one sample */
void engine_adapter_ends(engine_adapter_t *adapter, bool has_run);

/*
 * engine_draft.c: nothing without --speculative-config.
 *
 * check   the option alone
 * open    before the plan: the option, and the model that guesses, of the rank that leads
 * create  when the rank is loaded: the drafter. WEFT_ERR_UNSUPPORTED: another vocabulary
 * may     whether a request's tokens may be guessed
 */
weft_status_t engine_draft_check(const engine_options_t *options, weft_diag_t *diag);
weft_status_t engine_draft_open(engine_t *engine, const engine_options_t *options,
                                weft_diag_t *diag);
weft_status_t engine_draft_create(engine_t *engine, const text_tokenizer_t *tokenizer,
                                  weft_diag_t *diag);
void engine_draft_close(engine_t *engine);
bool engine_may_draft(const engine_t *engine, const engine_submit_t *submit,
                      const step_sampling_t *sampling, bool has_mask);
void engine_draft(void *user, const sched_draft_t *rows, uint32_t n); /* sched_events_t */

/* engine_transfer.c: nothing without --kv-transfer-config. */
weft_status_t engine_transfer_parse(engine_t *engine, const engine_options_t *options,
                                    weft_diag_t *diag);
weft_status_t engine_transfer_create(engine_t *engine, const model_source_t *source,
                                     weft_diag_t *diag);
/* A follower's, for its member. */
weft_status_t engine_transfer_follow(engine_t *engine, const model_source_t *source,
                                     kv_pool_t *pool, weft_diag_t *diag);
/* Before its submit; false: it is not to run, samples[0].reason says why. */
bool engine_transfer_begin(engine_t *engine, engine_request_t *request);
void engine_transfer_failed(sched_seq_t *seq, weft_status_t status, const char *reason);
void engine_transfer_open(engine_t *engine, sched_seq_t *seq);
void engine_transfer_hold(engine_t *engine, sched_seq_t *seq, const kv_block_id_t *blocks,
                          uint32_t n, uint32_t n_tokens);
void engine_do_decline(engine_t *engine, engine_command_t *command);

/*
 * engine_loss.c: what becomes of requests and group when a rank is lost. Engine thread.
 *
 * lose   a step, or the look at an idle group, has found it: the requests end with _LOST, or wait
 *        for the group, which begins to form
 * regain looks whether it has; true when it changed something
 * end    for the last time: a forming group is cancelled, another one told to stop
 */
void engine_set_health(engine_t *engine, engine_health_t health);
bool engine_has_lost_rank(const engine_t *engine);
void engine_lose_rank(engine_t *engine);
bool engine_regain_ranks(engine_t *engine);
void engine_end_ranks(engine_t *engine);

/* engine_thread.c */
weft_status_t engine_collect_all(engine_t *engine); /* steps in flight; an error: one has failed */
void engine_fail(engine_t *engine,
                 weft_status_t status); /* a step has; the engine stops, or regroups */
weft_status_t engine_thread_start(engine_t *engine);
void engine_thread_stop(engine_t *engine);
void engine_post(engine_t *engine, engine_command_t *command, engine_command_kind_t kind);
/* Runs call->fn between two steps. WEFT_ERR_STOPPING: the thread has ended. */
weft_status_t engine_call(engine_t *engine, engine_call_t *call);

/* engine_events.c: what the scheduler and the constraint worker report. */
sched_events_t engine_events(engine_t *engine);
void engine_on_mask_made(void *user, constraint_t *constraint);
/* For one that never reached the scheduler. */
void engine_sample_finish(engine_sample_t *sample, engine_finish_t reason);
void engine_sample_retire(engine_sample_t *sample);

/* engine_mask.c: whether sample->mask now holds what may come next. */
sched_mask_t engine_mask_make(engine_sample_t *sample);

/* engine_build.c */
weft_status_t engine_request_check(const engine_t *engine, const engine_submit_t *submit,
                                   weft_diag_t *diag);
weft_status_t engine_request_create(engine_t *engine, const engine_submit_t *submit,
                                    engine_request_t **request_out);

/* engine_request.c */
void engine_request_unref(engine_request_t *request);
void engine_request_free(engine_request_t *request);
bool engine_request_is_finished(const engine_request_t *request);

/*
 * engine_client.c: notes that a request has news; then its client is told of all that was noted. Gauges are
 * published in between: whoever sees an end finds it counted. Engine thread.
 */
void engine_client_note(engine_request_t *request);
void engine_client_tell(engine_t *engine);
void engine_client_unref(engine_client_t *client);
void engine_unref(engine_t *engine);

/*
 * For tests: from now on sequences are preempted and budgets changed at random, one or two steps
 * are in flight, and the scheduler is checked after each. 0 ends it.
 */
void engine_set_chaos(engine_t *engine, uint64_t seed);
