/* SPDX-License-Identifier: Apache-2.0 */
/* LoRA adapters that come and go while several ranks run: all have them, or none. */
#include <fcntl.h>
#include <unistd.h>

#include "runtime/engine/engine_priv.h"
#include "tests/support/adapter_folder.h"
#include "tests/support/ranks_rig.h"
#include "tests/support/scratch_folder.h"

enum { PROMPT = 20, ANSWER = 12, ADAPTER_RANK = 4 };

typedef struct adapter_rig {
    ranks_rig_t ranks;
    char folder[64]; /* of an adapter */
} adapter_rig_t;

static ranks_rig_config_t config_of(uint32_t size, uint32_t stages)
{
    ranks_rig_config_t config = {
        .model = ENGINE_RIG_MODEL, .size = size, .stages = stages, .options = engine_rig_options()};
    config.options.threads = 1;
    config.options.max_model_len = 128;
    config.options.tensor_parallel_size = size / stages;
    config.options.pipeline_parallel_size = stages;
    config.options.enable_lora = true;
    config.options.max_lora_rank = 8;
    return config;
}

static void write_adapter(char *folder, size_t size, uint64_t seed)
{
    char path[512];
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    engine_rig_path(ENGINE_RIG_MODEL, path, sizeof(path));
    assert_status(model_source_open(path, &diag, &source), WEFT_OK);
    scratch_folder_make(folder, size);
    adapter_folder_write(folder, model_source_config(source), "", ADAPTER_RANK, 0.3f, seed);
    model_source_close(source);
}

static void open_rig(adapter_rig_t *rig, const ranks_rig_config_t *config)
{
    write_adapter(rig->folder, sizeof(rig->folder), 7);
    ranks_rig_open(&rig->ranks, config);
}

static void close_rig(adapter_rig_t *rig)
{
    ranks_rig_close(&rig->ranks);
    scratch_folder_remove(rig->folder);
}

static engine_t *engine_of(const adapter_rig_t *rig)
{
    return rig->ranks.rig.engine;
}

static void load(const adapter_rig_t *rig, const char *name, const char *path)
{
    weft_diag_t diag = {0};
    if (engine_load_adapter(engine_of(rig), name, path, &diag) < 0) {
        fail_msg("%s", diag.text);
    }
}

/* name NULL: of the model itself */
static engine_request_t *ask(adapter_rig_t *rig, const char *name, uint32_t n)
{
    engine_submit_t submit = engine_rig_submit(engine_rig_prompt, PROMPT, n);
    engine_adapter_t *adapter = name == NULL ? NULL : engine_find_adapter(engine_of(rig), name);
    assert_true(name == NULL || adapter != NULL);
    submit.adapter = adapter;
    submit.sampling.wants_logprobs = true;
    engine_request_t *request = engine_rig_send(&rig->ranks.rig, &submit);
    engine_release_adapter(adapter);
    return request;
}

typedef struct answer {
    int32_t tokens[ANSWER];
    float logprobs[ANSWER];
} answer_t;

static answer_t answer_of(adapter_rig_t *rig, const char *name)
{
    answer_t answer = {0};
    engine_request_t *request = ask(rig, name, ANSWER);
    engine_rig_wait(&rig->ranks.rig, request);
    const engine_answer_t got = engine_request_answer(request, 0);
    assert_int_equal(got.finish, ENGINE_FINISH_LENGTH);
    for (uint32_t i = 0; i < ANSWER; i++) {
        answer.tokens[i] = got.tokens[i];
        answer.logprobs[i] = got.logprobs[i].chosen.logprob;
    }
    engine_request_release(request);
    return answer;
}

/* What ranks that have read the folder when they started answer. */
static answer_t expected_of(const ranks_rig_config_t *plain, const char *folder)
{
    static adapter_rig_t rig;
    char module[128];
    const char *modules[] = {module};
    ranks_rig_config_t config = *plain;
    snprintf(module, sizeof(module), "a=%s", folder);
    config.options.lora_modules = (weft_list_t){modules, 1};
    ranks_rig_open(&rig.ranks, &config);
    const answer_t answer = answer_of(&rig, "a");
    ranks_rig_close(&rig.ranks);
    return answer;
}

static void assert_answers(adapter_rig_t *rig, const char *name, const answer_t *expected)
{
    const answer_t answer = answer_of(rig, name);
    assert_memory_equal(&answer, expected, sizeof(answer));
}

/* ---- loading --------------------------------------------------------------------------------- */

static void check_loading(uint32_t size, uint32_t stages)
{
    static adapter_rig_t rig;
    const ranks_rig_config_t config = config_of(size, stages);
    char other[64];
    open_rig(&rig, &config);
    const answer_t plain = answer_of(&rig, NULL);
    engine_request_t *running = ask(&rig, NULL, 80);
    load(&rig, "a", rig.folder);
    engine_rig_wait(&rig.ranks.rig, running); /* steps went on, before it and behind */
    assert_int_equal(engine_request_answer(running, 0).finish, ENGINE_FINISH_LENGTH);
    engine_request_release(running);
    write_adapter(other, sizeof(other), 8);
    load(&rig, "b", other);
    const answer_t a = answer_of(&rig, "a");
    const answer_t b = answer_of(&rig, "b");
    assert_answers(&rig, NULL, &plain);
    assert_memory_not_equal(&a, &plain, sizeof(a));
    assert_memory_not_equal(&a, &b, sizeof(a));
    char folder[64];
    memcpy(folder, rig.folder, sizeof(folder));
    ranks_rig_close(&rig.ranks);
    const answer_t expected = expected_of(&config, folder);
    assert_memory_equal(&a, &expected, sizeof(a));
    scratch_folder_remove(folder);
    scratch_folder_remove(other);
}

static void tensor_ranks_load_what_they_would_have_started_with(void **state)
{
    (void)state;
    check_loading(2, 1);
}

static void stages_of_ranks_load_what_they_would_have_started_with(void **state)
{
    (void)state;
    check_loading(4, 2);
}

/* ---- failing --------------------------------------------------------------------------------- */

/* The name of a folder that only the process that has it open knows. */
static int open_folder(const char *folder, char *path, size_t size)
{
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    snprintf(path, size, "/proc/self/fd/%d", fd);
    return fd;
}

static void what_one_rank_cannot_read_none_has(void **state)
{
    (void)state;
    static adapter_rig_t rig;
    const ranks_rig_config_t config = config_of(3, 1);
    char path[64];
    weft_diag_t diag = {0};
    ranks_rig_config_t three = config;
    three.options.tensor_parallel_size = 1;
    three.is_replicated = true;
    open_rig(&rig, &three);
    const int fd = open_folder(rig.folder, path, sizeof(path));
    assert_status(engine_load_adapter(engine_of(&rig), "a", path, &diag), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "rank 1: /proc/self/fd/"));
    assert_null(engine_find_adapter(engine_of(&rig), "a"));
    close(fd);
    load(&rig, "a", rig.folder); /* and they go on */
    const answer_t a = answer_of(&rig, "a");
    const answer_t plain = answer_of(&rig, NULL);
    assert_memory_not_equal(&a, &plain, sizeof(a));
    close_rig(&rig);
}

static void what_rank_0_refuses_is_refused_by_its_reason(void **state)
{
    (void)state;
    static adapter_rig_t rig;
    const ranks_rig_config_t config = config_of(2, 1);
    weft_diag_t diag = {0};
    open_rig(&rig, &config);
    assert_status(engine_load_adapter(engine_of(&rig), "a", "/nowhere", &diag), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "/nowhere"));
    load(&rig, "a", rig.folder);
    assert_status(engine_load_adapter(engine_of(&rig), "a", rig.folder, &diag), WEFT_ERR_IN_USE);
    close_rig(&rig);
}

static void ranks_without_adapters_refuse_to_load_any(void **state)
{
    (void)state;
    static adapter_rig_t rig;
    ranks_rig_config_t config = config_of(2, 1);
    weft_diag_t diag = {0};
    config.options.enable_lora = false;
    open_rig(&rig, &config);
    assert_status(engine_load_adapter(engine_of(&rig), "a", rig.folder, &diag),
                  WEFT_ERR_UNSUPPORTED);
    close_rig(&rig);
}

/* ---- unloading ------------------------------------------------------------------------------- */

/* More than there are places: a rank that kept one could not put the next adapter there. */
static void places_are_given_back_on_every_rank(void **state)
{
    (void)state;
    static adapter_rig_t rig;
    const ranks_rig_config_t config = config_of(2, 1);
    open_rig(&rig, &config);
    load(&rig, "a", rig.folder);
    const answer_t a = answer_of(&rig, "a");
    for (uint32_t i = 0; i < ENGINE_MAX_ADAPTERS + 10; i++) {
        load(&rig, "b", rig.folder);
        assert_status(engine_unload_adapter(engine_of(&rig), "b"), WEFT_OK);
    }
    assert_status(engine_unload_adapter(engine_of(&rig), "a"), WEFT_OK);
    load(&rig, "a", rig.folder);
    assert_answers(&rig, "a", &a);
    close_rig(&rig);
}

static void what_runs_outlives_an_unload_on_every_rank(void **state)
{
    (void)state;
    static adapter_rig_t rig;
    const ranks_rig_config_t config = config_of(2, 1);
    char other[64];
    open_rig(&rig, &config);
    write_adapter(other, sizeof(other), 8);
    load(&rig, "a", rig.folder);
    engine_request_t *alone = ask(&rig, "a", 80);
    engine_rig_wait(&rig.ranks.rig, alone);
    engine_request_t *request = ask(&rig, "a", 80);
    assert_status(engine_unload_adapter(engine_of(&rig), "a"), WEFT_OK);
    load(&rig, "a", other);
    engine_rig_wait(&rig.ranks.rig, request);
    const engine_answer_t expected = engine_request_answer(alone, 0);
    const engine_answer_t got = engine_request_answer(request, 0);
    assert_int_equal(got.n_tokens, 80);
    assert_memory_equal(got.tokens, expected.tokens, 80 * sizeof(int32_t));
    engine_request_release(alone);
    engine_request_release(request);
    scratch_folder_remove(other);
    close_rig(&rig);
}

/* ---- after a loss ---------------------------------------------------------------------------- */

static void wait_for_health(adapter_rig_t *rig, engine_health_t health)
{
    while (engine_health(engine_of(rig)) != health) {
        (void)engine_client_wait(rig->ranks.rig.client, 1);
    }
}

static void lose_and_regain(adapter_rig_t *rig)
{
    ranks_rig_kill(&rig->ranks, 1);
    wait_for_health(rig, ENGINE_FORMING);
    ranks_rig_replace(&rig->ranks, 1);
    wait_for_health(rig, ENGINE_UP);
}

/* Those of the command line it reads itself: one is gone by then, and its place another's. */
static void a_new_rank_gets_what_the_others_have(void **state)
{
    (void)state;
    static adapter_rig_t rig;
    char module[128];
    char other[64];
    const char *modules[] = {module};
    ranks_rig_config_t config = config_of(3, 1);
    config.options.tensor_parallel_size = 1;
    config.is_replicated = true;
    config.restarts = 1;
    write_adapter(other, sizeof(other), 8);
    snprintf(module, sizeof(module), "gone=%s", other);
    config.options.lora_modules = (weft_list_t){modules, 1};
    open_rig(&rig, &config);
    assert_status(engine_unload_adapter(engine_of(&rig), "gone"), WEFT_OK);
    load(&rig, "a", rig.folder);
    load(&rig, "b", other);
    const answer_t a = answer_of(&rig, "a");
    const answer_t b = answer_of(&rig, "b");
    lose_and_regain(&rig);
    assert_answers(&rig, "a", &a);
    assert_answers(&rig, "b", &b);
    load(&rig, "gone", other);
    assert_answers(&rig, "gone", &b);
    scratch_folder_remove(other);
    close_rig(&rig);
}

static void nothing_is_loaded_while_the_group_forms(void **state)
{
    (void)state;
    static adapter_rig_t rig;
    ranks_rig_config_t config = config_of(2, 1);
    weft_diag_t diag = {0};
    config.restarts = 1;
    open_rig(&rig, &config);
    ranks_rig_kill(&rig.ranks, 1);
    wait_for_health(&rig, ENGINE_FORMING);
    assert_status(engine_load_adapter(engine_of(&rig), "a", rig.folder, &diag), WEFT_ERR_PEER_GONE);
    ranks_rig_replace(&rig.ranks, 1);
    wait_for_health(&rig, ENGINE_UP);
    load(&rig, "a", rig.folder);
    close_rig(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensor_ranks_load_what_they_would_have_started_with),
        cmocka_unit_test(stages_of_ranks_load_what_they_would_have_started_with),
        cmocka_unit_test(what_one_rank_cannot_read_none_has),
        cmocka_unit_test(what_rank_0_refuses_is_refused_by_its_reason),
        cmocka_unit_test(ranks_without_adapters_refuse_to_load_any),
        cmocka_unit_test(places_are_given_back_on_every_rank),
        cmocka_unit_test(what_runs_outlives_an_unload_on_every_rank),
        cmocka_unit_test(a_new_rank_gets_what_the_others_have),
        cmocka_unit_test(nothing_is_loaded_while_the_group_forms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
