/* SPDX-License-Identifier: Apache-2.0 */
/* run: what the files of `weft run` share. */
#pragma once

#include "base/buffer.h"
#include "base/option.h"
#include "runtime/engine/engine.h"
#include "runtime/model/model_source.h"

typedef struct run_options {
#define OPTION WEFT_OPTION_FIELD
#include "cli/run_options.def"
#undef OPTION
} run_options_t;

typedef struct run_prompt {
    int32_t *ids; /* [n] */
    uint32_t n;
} run_prompt_t;

typedef enum run_prompt_kind {
    RUN_PROMPT_TEXT,
    RUN_PROMPT_FILE, /* a path, "-": standard input */
    RUN_PROMPT_IDS,  /* "1,2,3" */
} run_prompt_kind_t;

typedef struct run_prompt_spec {
    run_prompt_kind_t kind;
    const char *given; /* borrowed */
    const char *where; /* what faults of ids are told of: "--prompt-ids" */
    bool is_chat;      /* a user's message, by the model's template; not with ids */
} run_prompt_spec_t;

/* Read, rendered, tokenized; may be empty. Free ids with weft_free. */
weft_status_t run_prompt_make(const run_prompt_spec_t *spec, const model_source_t *source,
                              const text_tokenizer_t *tokenizer, weft_diag_t *diag,
                              run_prompt_t *prompt_out);

/* What came of it. */
typedef struct run_answer {
    const run_prompt_t *prompt;
    const int32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;
    const k_sampled_t *logprobs;        /* [n_tokens], NULL: not asked for */
    const k_sampled_t *prompt_logprobs; /* [prompt->n], NULL: not asked for */
    const weft_buffer_t *text;
    const char *finish_reason; /* "stop", "length", "abort", "error" */
    uint64_t load_ns;
    engine_timings_t timings;
} run_answer_t;

/* One JSON object and a line end to stdout. WEFT_ERR_IO: errno says why. */
weft_status_t run_report_json(const run_answer_t *answer);
