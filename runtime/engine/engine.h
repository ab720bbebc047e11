/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine: takes requests of token ids and answers with token ids, many at once.
 *
 * One engine thread owns scheduler, pool, index and executor. Other threads hand it requests and
 * read what it wrote into them:
 *
 *   engine_client_t  one for each thread that consumes answers; its fd becomes readable when some
 *                    of its requests have news; engine_client_next() returns them. Its requests may
 *                    be submitted, aborted and read by any thread
 *   engine_request_t a request and its growing answer. The engine appends tokens and publishes
 *                    their count with a release store; the consumer reads up to the count it
 *                    acquired. Sized at submit, so a slow reader holds up nobody
 *
 * Once a request is submitted no step allocates, locks, or makes a system call for each token.
 * Same request, same tokens, whatever else runs (design decision 7).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/diag.h"
#include "base/option.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "kvstore/kv_store.h"
#include "kvstore/transfer/kv_transfer.h"
#include "runtime/engine/engine_ranks.h"
#include "runtime/model/model.h"
#include "text/text.h"

typedef struct engine engine_t;
typedef struct engine_client engine_client_t;
typedef struct engine_request engine_request_t;

/* Rows in runtime/options.def: block size, limits, caching, kv dtype, device, isa, threads, seed. */
typedef struct engine_options {
#define OPTION WEFT_OPTION_FIELD
#include "runtime/options.def"
#undef OPTION
} engine_options_t;

extern const weft_option_t engine_option_rows[];
extern const size_t engine_option_count;

typedef enum engine_finish {
    ENGINE_FINISH_NONE,       /* still running */
    ENGINE_FINISH_STOP,       /* end token or stop token id */
    ENGINE_FINISH_LENGTH,     /* max_tokens or the context is full */
    ENGINE_FINISH_ABORT,      /* engine_abort, engine_abort_sample, or shutdown */
    ENGINE_FINISH_CONSTRAINT, /* what constrains it lets no token follow, or is beyond its limits */
    ENGINE_FINISH_ERROR,
    ENGINE_FINISH_LOST, /* a rank went, and the group with it: the same request may succeed later */
} engine_finish_t;

#define ENGINE_NO_SEED        UINT64_MAX
#define ENGINE_MAX_SAMPLES    128  /* of one request */
#define ENGINE_MAX_LOGIT_BIAS 1024 /* entries of one request */

typedef struct engine_sampling {
    float temperature; /* 0: greedy */
    float top_p;
    float min_p;
    int32_t top_k;
    float repetition_penalty;
    float frequency_penalty;
    float presence_penalty;
    uint64_t seed;       /* of sample 0, the next one has seed + 1. ENGINE_NO_SEED: drawn */
    uint32_t max_tokens; /* 0: only the prompt is computed (echo, prompt log-probabilities) */
    uint32_t min_tokens; /* end tokens and stop ids are not sampled before this many */
    bool ignore_eos;
    bool wants_logprobs;
    uint32_t n_top_logprobs; /* besides the chosen token's; ≤ K_MAX_LOGPROBS */
    bool wants_prompt_logprobs;
    uint32_t n_prompt_top_logprobs;
    const int32_t *stop_token_ids;
    uint32_t n_stop_token_ids;
    const k_bias_t *logit_bias;
    uint32_t n_logit_bias;
    const int32_t *allowed_token_ids; /* NULL: all */
    uint32_t n_allowed_token_ids;
    const int32_t *bad_words; /* token sequences, one after another */
    const uint32_t *bad_word_lengths;
    uint32_t n_bad_words;
} engine_sampling_t;

/* A LoRA adapter that requests may name. Counted; any thread. */
typedef struct engine_adapter engine_adapter_t;

/* Everything is copied by submit. */
typedef struct engine_submit {
    const char *id; /* for the log */
    const int32_t *prompt;
    uint32_t n_prompt;      /* ≥ 1 */
    uint32_t n;             /* samples that share the prompt's blocks, ≥ 1 */
    int64_t priority;       /* lower runs first */
    const char *cache_salt; /* NULL: shared with everybody */
    bool pin_prompt;        /* the prompt's full blocks stay on the device, up to kv-pin-quota */
    uint64_t arrival_ns;    /* weft_clock_ns() when the server got it; 0: now */
    engine_sampling_t sampling;
    bool wants_embedding;          /* with max_tokens 0, n 1; of engine_embeds() alone */
    engine_adapter_t *adapter;     /* NULL: the model alone */
    const text_grammar_t *grammar; /* NULL: unconstrained */
    /* The prompt's blocks come from another worker, or are for one (sample 0's). NULL: neither. */
    const kv_transfer_params_t *transfer;
    void *user; /* the consumer's own, given back by engine_request_user */
} engine_submit_t;

/* One sample's answer so far. */
typedef struct engine_answer {
    const int32_t *tokens;       /* [n_tokens] */
    const k_sampled_t *logprobs; /* [n_tokens] when asked for, else NULL */
    uint32_t n_tokens;
    engine_finish_t finish;
    int32_t stop_token; /* the stop_token_ids entry that ended it, else -1 (also for EOS) */
    const char *reason; /* of _CONSTRAINT and, if known, _ERROR or _LOST; NULL for any other */
} engine_answer_t;

typedef struct engine_timings {
    uint64_t arrival_ns;
    uint64_t scheduled_ns; /* 0 until then, so for each */
    uint64_t first_token_ns;
    uint64_t finished_ns;
    uint32_t cached_tokens; /* of the prompt, found in the prefix cache when first scheduled */
    uint32_t cached_tokens_from[KV_TIER_COUNT]; /* of them, by where they were found */
    uint32_t pulled_tokens;                     /* of them, those that another worker computed */
    uint32_t preemptions;
} engine_timings_t;

/*
 * What rank of size holds, by --tensor-parallel-size, --pipeline-parallel-size and
 * --enable-expert-parallel. WEFT_ERR_INVALID: they do not make up size; diag says what would.
 */
weft_status_t engine_shard(const engine_options_t *options, uint32_t rank, uint32_t size,
                           weft_diag_t *diag, model_shard_t *shard_out);

/*
 * What can be seen to be wrong in the options alone: asked by engine_create, and before that by who
 * would first start ranks. WEFT_ERR_INVALID, WEFT_ERR_UNSUPPORTED: diag names the option.
 */
weft_status_t engine_options_check(const engine_options_t *options, weft_diag_t *diag);

/* Tokens of a step: the option, or what suits the device. */
uint32_t engine_step_tokens(const engine_options_t *options, const weft_device_t *device);

/*
 * Loads nothing: source and tokenizer come opened and outlive the engine (tokenizer may be NULL:
 * no grammars). Memory that does not fit: diag says how much is needed and what to change.
 *
 * ranks: NULL for a model that is here as a whole; else this is rank 0 of several, each of which calls
 * engine_follow meanwhile. It returns when all are loaded; what ranks->user refers to outlives it.
 */
weft_status_t engine_create(const engine_options_t *options, const model_source_t *source,
                            const text_tokenizer_t *tokenizer, const engine_ranks_t *ranks,
                            weft_diag_t *diag, engine_t **engine_out);
void engine_destroy(engine_t *engine); /* aborts what runs; NULL is fine */

/* No new work from now on (WEFT_ERR_STOPPING); what runs goes on. */
void engine_drain(engine_t *engine);

const model_config_t *engine_model_config(const engine_t *engine);
bool engine_embeds(const engine_t *engine); /* requests get embeddings, and nothing else */
uint32_t engine_max_context(const engine_t *engine);

typedef enum engine_health {
    ENGINE_UP,
    ENGINE_FORMING, /* a rank was lost: the group forms again, what was submitted waits */
    ENGINE_LOST,    /* a rank was lost, and the group will not form again */
    ENGINE_FAILED,  /* the device, or a bug */
} engine_health_t;

engine_health_t engine_health(const engine_t *engine); /* any thread */
bool engine_is_healthy(const engine_t *engine);        /* ENGINE_UP */

/* Calls on_change on the engine thread whenever it is not up any more, or again. */
void engine_watch_health(engine_t *engine, void (*on_change)(void *user, engine_health_t health),
                         void *user);
text_grammar_factory_t *engine_grammar_factory(engine_t *engine); /* NULL without a tokenizer */

weft_status_t engine_client_create(engine_t *engine, engine_client_t **client_out);
void engine_client_destroy(
    engine_client_t *client); /* its requests must be released; NULL is fine */
int engine_client_fd(const engine_client_t *client); /* readable: call next until NULL */
engine_request_t *engine_client_next(engine_client_t *client);

/* Blocks until next would return something or timeout_ms passed (-1: for ever). For the CLI. */
engine_request_t *engine_client_wait(engine_client_t *client, int timeout_ms);

/*
 * A sample ends when the context is full, if max_tokens is more than that.
 * WEFT_ERR_QUEUE_FULL: max-num-seqs requests may run and max-num-queued-reqs wait, and do.
 * WEFT_ERR_TOO_LARGE: prompt + 1 token over the context. WEFT_ERR_STOPPING: draining.
 * WEFT_ERR_INVALID: diag says which field. WEFT_ERR_PEER_GONE: a rank was lost, so the group forms
 * again or is over. WEFT_ERR_DEVICE: the engine has failed.
 */
weft_status_t engine_submit(engine_t *engine, engine_client_t *client,
                            const engine_submit_t *submit, weft_diag_t *diag,
                            engine_request_t **request_out);

/* Its blocks are free within a step, wherever it is; news with ENGINE_FINISH_ABORT follows. */
void engine_abort(engine_request_t *request);

/* The same for one sample; its siblings go on. Allocates nothing, as engine_abort. */
void engine_abort_sample(engine_request_t *request, uint32_t sample);

/* Consumer's last call; aborts first if it still runs. The pointer is dead afterwards. */
void engine_request_release(engine_request_t *request);

void *engine_request_user(const engine_request_t *request);
uint32_t engine_request_samples(const engine_request_t *request);
engine_answer_t engine_request_answer(const engine_request_t *request, uint32_t sample);
engine_timings_t engine_request_timings(const engine_request_t *request);

/*
 * What the answer says of blocks that are kept for another worker, once sample 0 has ended. NULL:
 * nothing is kept. Lives as long as the request.
 */
const kv_transfer_params_t *engine_request_transfer(const engine_request_t *request);

/* [n_prompt], entry 0 empty (nothing precedes it); NULL until the prompt is computed. */
const k_sampled_t *engine_request_prompt_logprobs(const engine_request_t *request);

/*
 * [hidden] of the model, the normed last hidden state of the prompt's last token, not scaled. NULL
 * until its sample has finished with ENGINE_FINISH_LENGTH.
 */
const float *engine_request_embedding(const engine_request_t *request);

#define ENGINE_MAX_DRAFTS 16 /* tokens of one guess */

typedef enum engine_step_kind {
    ENGINE_STEP_DECODE, /* a token of each sequence, with what was guessed to follow */
    ENGINE_STEP_PROMPT, /* with tokens of prompts */
    ENGINE_STEP_KINDS,
} engine_step_kind_t;

/*
 * How long the device worked on steps, and how long it waited for them: from the last op of a step to
 * the first of the next one, the copies of results and inputs included (step_result_t). A gap counts,
 * with the kind of the step that ends it, if from the one step to the next there were requests all the
 * time, and never all of them waited for something else (a mask, blocks from a tier or a worker): time
 * without work is no gap. All 0 where the device has no clock of its own (CPUs), and with a draft
 * model, whose steps come in between. Of several ranks, rank 0's device.
 */
typedef struct engine_device_stats {
    uint64_t busy_ns;
    uint64_t gap_ns;
    uint64_t gaps; /* that gap_ns is the sum of */
} engine_device_stats_t;

/* Read from any thread. Whoever sees news of a request, or the end of a call, finds it counted. */
typedef struct engine_stats {
    uint32_t running; /* samples */
    uint32_t waiting;
    uint32_t total_blocks;
    uint32_t free_blocks;       /* cached ones included */
    uint32_t referenced_blocks; /* 0 when idle */
    uint64_t steps;
    /* Since start: */
    uint64_t prompt_tokens;     /* of samples scheduled for the first time */
    uint64_t generation_tokens; /* sampled */
    uint64_t prefix_queries;    /* prompt tokens looked up in the prefix cache */
    uint64_t prefix_hits;       /* of them, found */
    uint64_t pull_queries;      /* prompt tokens asked of other workers */
    uint64_t pull_hits;         /* of them, brought */
    uint64_t preemptions;
    uint32_t max_drafts;   /* of a guess; 0: none are made */
    uint64_t drafts;       /* rows whose following tokens were guessed */
    uint64_t draft_tokens; /* guessed */
    uint64_t
        accepted[ENGINE_MAX_DRAFTS]; /* of them, those that were right, by place in the guess */
    uint32_t ranks;                  /* that run the model */
    uint64_t rank_losses;            /* of ranks that went */
    uint64_t rank_timeouts;          /* of ranks that did not answer */
    uint64_t regroupings;            /* times the group formed again */
    engine_device_stats_t device[ENGINE_STEP_KINDS];
    kv_store_stats_t store;
    kv_publisher_stats_t events;
} engine_stats_t;

engine_stats_t engine_stats(const engine_t *engine);

/* For histograms. Called on the engine thread; must neither block nor call the engine. */
typedef struct engine_observer {
    void *user;
    void (*on_step)(void *user, uint32_t tokens); /* computed by a step; NULL is fine, so below */
    void (*on_read)(void *user, kv_tier_id_t tier, uint64_t ns);   /* of a block from a tier */
    void (*on_pulled)(void *user, const kv_pull_report_t *report); /* of another worker's blocks */
} engine_observer_t;

/* Set before the first submit. */
void engine_observe(engine_t *engine, const engine_observer_t *observer);

/*
 * Forgets every cached block of the device, and with_tiers of the tiers below. WEFT_ERR_IN_USE:
 * requests are running; with preempt they are put back instead, and computed again.
 */
weft_status_t engine_reset_prefix_cache(engine_t *engine, bool with_tiers, bool preempt);

/*
 * A request with these params will not be submitted: the worker that prefilled it need not keep its
 * blocks. Any thread; without --kv-transfer-config nothing happens.
 */
void engine_decline(engine_t *engine, const kv_transfer_params_t *params);

/* The worker that was to prefill the request will not: what has not come is computed here. */
void engine_give_up_pull(engine_request_t *request);

/* For its statistics and address; NULL: no --kv-transfer-config. Lives as long as the engine. */
kv_transfer_t *engine_transfer(const engine_t *engine);

/*
 * engine_adapters.c. Adapters of --lora-modules are there from the start. load reads files, on every
 * rank, and may take long. WEFT_ERR_UNSUPPORTED: the engine was made without --enable-lora;
 * WEFT_ERR_IN_USE: the name is taken; WEFT_ERR_QUEUE_FULL: ENGINE_MAX_ADAPTERS are there;
 * WEFT_ERR_PEER_GONE: a rank is lost; else as adapter_load, of the first rank that failed. What runs with
 * an adapter that is unloaded goes on with it.
 */
#define ENGINE_MAX_ADAPTERS 128
weft_status_t engine_load_adapter(engine_t *engine, const char *name, const char *path,
                                  weft_diag_t *diag);
weft_status_t engine_unload_adapter(engine_t *engine, const char *name); /* WEFT_ERR_NOT_FOUND */
bool engine_has_adapters(const engine_t *engine);                        /* --enable-lora */

/* The caller's until release; NULL: none of that name. */
engine_adapter_t *engine_find_adapter(engine_t *engine, const char *name);
void engine_release_adapter(engine_adapter_t *adapter); /* NULL is fine */
const char *engine_adapter_name(const engine_adapter_t *adapter);
const char *engine_adapter_path(const engine_adapter_t *adapter);
uint64_t engine_adapter_created(const engine_adapter_t *adapter); /* seconds since 1970 */
/* Samples of it that run, and that wait. */
void engine_adapter_count(const engine_adapter_t *adapter, uint32_t *running, uint32_t *waiting);

/* Adapters, oldest first, each acquired; returns how many of out [ENGINE_MAX_ADAPTERS] are. */
uint32_t engine_list_adapters(engine_t *engine, engine_adapter_t **out);

/* For GET /kv_event_sources; NULL: no events are published. Lives as long as the engine. */
const kv_publisher_t *engine_publisher(const engine_t *engine);
