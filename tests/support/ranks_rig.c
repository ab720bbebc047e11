/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/ranks_rig.h"
#include "tests/support/test_fork.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/engine/engine_follower.h"
#include "transport/coll/coll.h"

#define DEFAULT_TIMEOUT_MS 60000
#define FOLLOWER_ENDED_ILL 3

enum { MEET, LIVE, PURPOSES };

typedef struct hello {
    uint32_t rank;
    uint32_t purpose;
} hello_t;

/* ---- configurations -------------------------------------------------------------------------- */

ranks_rig_config_t ranks_rig_tensor(const char *model, uint32_t size)
{
    ranks_rig_config_t config = {.model = model, .size = size, .options = engine_rig_options()};
    config.options.threads = 1;
    config.options.max_model_len = 128;
    config.options.tensor_parallel_size = size;
    return config;
}

ranks_rig_config_t ranks_rig_replicas(uint32_t size)
{
    ranks_rig_config_t config = ranks_rig_tensor(ENGINE_RIG_MODEL, size);
    config.is_replicated = true;
    config.options.tensor_parallel_size = 1;
    return config;
}

/* ---- sockets --------------------------------------------------------------------------------- */

static bool send_all(int fd, const void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = send(fd, (const char *)data + done, bytes - done, MSG_NOSIGNAL);
        if (n <= 0) {
            return false;
        }
        done += (size_t)n;
    }
    return true;
}

static bool receive_all(int fd, void *data, size_t bytes)
{
    return recv(fd, data, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static void close_sockets(ranks_seat_t *seat)
{
    for (uint32_t i = 0; i < RANKS_RIG_MAX; i++) {
        if (seat->meet[i] >= 0) {
            close(seat->meet[i]);
        }
        if (seat->live[i] >= 0) {
            close(seat->live[i]);
        }
        seat->meet[i] = seat->live[i] = -1;
    }
}

/* Waits for fd, or until the form is cancelled: false. */
static bool wait_for(const ranks_seat_t *seat, int fd)
{
    struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = seat->cancel, .events = POLLIN}};
    (void)poll(fds, 2, -1);
    return fds[1].revents == 0;
}

static weft_status_t accept_all(ranks_seat_t *seat)
{
    for (uint32_t n = 0; n < PURPOSES * (seat->config->size - 1);) {
        hello_t hello;
        if (!wait_for(seat, seat->listener)) {
            return WEFT_ERR_CANCELLED;
        }
        const int fd = accept(seat->listener, NULL, NULL);
        if (fd < 0 || !receive_all(fd, &hello, sizeof(hello))) {
            return WEFT_ERR_IO;
        }
        *(hello.purpose == MEET ? &seat->meet[hello.rank] : &seat->live[hello.rank]) = fd;
        n++;
    }
    return WEFT_OK;
}

static int knock(const ranks_seat_t *seat, uint32_t purpose)
{
    const hello_t hello = {seat->rank, purpose};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&seat->address, seat->address_bytes) < 0 ||
        !send_all(fd, &hello, sizeof(hello))) {
        return -1;
    }
    return fd;
}

static weft_status_t connect_all(ranks_seat_t *seat)
{
    seat->meet[0] = knock(seat, MEET);
    seat->live[0] = knock(seat, LIVE);
    return seat->meet[0] >= 0 && seat->live[0] >= 0 ? WEFT_OK : WEFT_ERR_PEER_GONE;
}

static bool gather_here(const ranks_seat_t *seat, size_t bytes, char *all)
{
    const uint32_t size = seat->config->size;
    bool is_fine = true;
    for (uint32_t i = 1; i < size; i++) {
        is_fine = is_fine && receive_all(seat->meet[i], all + i * bytes, bytes);
    }
    for (uint32_t i = 1; i < size; i++) {
        is_fine = is_fine && send_all(seat->meet[i], all, size * bytes);
    }
    return is_fine;
}

static weft_status_t all_gather(void *user, const void *mine, size_t bytes, void *all_out,
                                weft_diag_t *diag)
{
    const ranks_seat_t *seat = user;
    bool is_fine;
    if (seat->rank == 0) {
        memcpy(all_out, mine, bytes);
        is_fine = gather_here(seat, bytes, all_out);
    } else {
        is_fine = send_all(seat->meet[0], mine, bytes) &&
                  receive_all(seat->meet[0], all_out, seat->config->size * bytes);
    }
    return is_fine ? WEFT_OK : weft_diag(diag, WEFT_ERR_PEER_GONE, "a rank went meanwhile");
}

/* ---- links ----------------------------------------------------------------------------------- */

static uint32_t tensor_size_of(const ranks_rig_config_t *config)
{
    return config->size / (config->stages > 0 ? config->stages : 1);
}

static void abort_groups(const ranks_seat_t *seat, uint32_t rank)
{
    const uint32_t tensor_size = tensor_size_of(seat->config);
    const bool is_of_stage = rank / tensor_size == seat->rank / tensor_size;
    coll_abort(seat->world, rank);
    if (seat->device != NULL) {
        coll_abort(seat->device, rank);
    }
    if (seat->tensor != NULL) {
        coll_abort(seat->tensor, is_of_stage ? rank % tensor_size : COLL_NO_RANK);
    }
}

static void shut_down(int fd)
{
    if (fd >= 0) {
        (void)shutdown(fd, SHUT_RDWR);
    }
}

static void *watch(void *arg)
{
    enum { WAKE = RANKS_RIG_MAX, FAIL, EVENTS };
    ranks_seat_t *seat = arg;
    struct pollfd fds[EVENTS];
    for (uint32_t i = 0; i < RANKS_RIG_MAX; i++) {
        fds[i] = (struct pollfd){.fd = seat->live[i], .events = POLLIN};
    }
    fds[WAKE] = (struct pollfd){.fd = seat->wake, .events = POLLIN};
    fds[FAIL] = (struct pollfd){.fd = seat->fail, .events = POLLIN};
    (void)poll(fds, EVENTS, -1);
    for (uint32_t i = 0; i < RANKS_RIG_MAX && fds[FAIL].revents != 0; i++) {
        shut_down(seat->live[i]);
        shut_down(seat->meet[i]);
    }
    for (uint32_t i = 0; i < RANKS_RIG_MAX && fds[WAKE].revents == 0; i++) {
        if (fds[i].revents != 0) {
            abort_groups(seat, i);
            break;
        }
    }
    return NULL;
}

static void count_up(int event)
{
    const uint64_t one = 1;
    assert_int_equal(write(event, &one, sizeof(one)), sizeof(one));
}

/* All ranks, where sums are made. */
static coll_t *all_ranks(const ranks_seat_t *seat)
{
    return seat->device != NULL ? seat->device : seat->world;
}

static coll_t *tensor_group(const ranks_seat_t *seat)
{
    const ranks_rig_config_t *config = seat->config;
    return config->is_replicated || config->stages > 1 ? seat->tensor : all_ranks(seat);
}

static weft_status_t split_stages(ranks_seat_t *seat, weft_diag_t *diag)
{
    const ranks_rig_config_t *config = seat->config;
    const uint32_t tensor_size = tensor_size_of(config);
    return config->stages <= 1 || tensor_size == 1
               ? WEFT_OK
               : coll_split(all_ranks(seat), seat->rank / tensor_size, diag, &seat->tensor);
}

/* A group in the hosts' memory, and one on the device where that is another. */
static weft_status_t create_groups(ranks_seat_t *seat, coll_config_t config, weft_diag_t *diag)
{
    if (config.device->ops->is_host) {
        return coll_create(&config, diag, &seat->world);
    }
    weft_status_t status = coll_create(&config, diag, &seat->device);
    if (status >= 0) {
        status = weft_device_open("cpu", 0, diag, &seat->host);
        config.device = seat->host;
    }
    return status < 0 ? status : coll_create(&config, diag, &seat->world);
}

static void part(void *user)
{
    ranks_seat_t *seat = user;
    if (seat->is_watching) {
        uint64_t count;
        count_up(seat->wake);
        pthread_join(seat->watcher, NULL);
        assert_int_equal(read(seat->wake, &count, sizeof(count)), sizeof(count));
        seat->is_watching = false;
    }
    coll_destroy(seat->tensor);
    coll_destroy(seat->device);
    coll_destroy(seat->world);
    weft_device_close(seat->host);
    seat->world = seat->device = seat->tensor = NULL;
    seat->host = NULL;
    close_sockets(seat);
}

static bool loses_again(ranks_seat_t *seat)
{
    const uint32_t nth = seat->n_forms++;
    return seat->rank == 0 && nth > 0 && nth <= seat->config->losses_again;
}

static weft_status_t form(void *user, weft_device_t *device, weft_diag_t *diag,
                          engine_links_t *links_out)
{
    ranks_seat_t *seat = user;
    const ranks_rig_config_t *config = seat->config;
    const uint32_t timeout_ms = config->timeout_ms > 0 ? config->timeout_ms : DEFAULT_TIMEOUT_MS;
    const coll_exchange_t exchange = {.user = seat, .all_gather = all_gather};
    const coll_config_t coll = {
        .backend = "auto",
        .rank = seat->rank,
        .size = config->size,
        .device = device,
        .timeout_ns = timeout_ms * UINT64_C(1000000),
        .is_deterministic = true,
        .exchange = exchange,
    };
    if (loses_again(seat)) {
        return weft_diag(diag, WEFT_ERR_PEER_GONE, "a rank went on the way");
    }
    weft_status_t status = seat->rank == 0 ? accept_all(seat) : connect_all(seat);
    if (status >= 0) {
        status = create_groups(seat, coll, diag);
    }
    if (status >= 0) {
        status = split_stages(seat, diag);
    }
    if (status >= 0) {
        seat->is_watching = pthread_create(&seat->watcher, NULL, watch, seat) == 0;
        status = seat->is_watching ? WEFT_OK : WEFT_ERR_NO_MEMORY;
    }
    if (status < 0) {
        part(seat);
        return diag->text[0] != '\0' ? status : weft_diag(diag, status, "the ranks did not meet");
    }
    *links_out = (engine_links_t){
        .world = seat->world,
        .stages = config->stages > 1 ? seat->device : NULL,
        .tensor = tensor_group(seat),
        .exchange = exchange,
    };
    return WEFT_OK;
}

static void cancel(void *user)
{
    count_up(((ranks_seat_t *)user)->cancel);
}

static uint32_t name_cause(void *user, uint32_t suspect)
{
    const ranks_seat_t *seat = user;
    return seat->config->cause > 0 ? seat->config->cause : suspect;
}

static void tell_of_failure(void *user, const char *why)
{
    (void)why;
    count_up(((ranks_seat_t *)user)->fail);
}

/* ---- processes ------------------------------------------------------------------------------- */

static void open_seat(ranks_seat_t *seat, const ranks_rig_config_t *config)
{
    *seat = (ranks_seat_t){.config = config,
                           .wake = -1,
                           .cancel = -1,
                           .fail = -1,
                           .address = {.sun_family = AF_UNIX},
                           .address_bytes = sizeof(sa_family_t)};
    struct sockaddr *address = (struct sockaddr *)&seat->address;
    memset(seat->meet, -1, sizeof(seat->meet));
    memset(seat->live, -1, sizeof(seat->live));
    /* Bound to nothing but a family, it gets an abstract name that nobody has. */
    seat->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(seat->listener, address, seat->address_bytes), 0);
    assert_int_equal(listen(seat->listener, PURPOSES * RANKS_RIG_MAX * 2), 0);
    seat->address_bytes = sizeof(seat->address);
    assert_int_equal(getsockname(seat->listener, address, &seat->address_bytes), 0);
}

static engine_ranks_t ranks_of(ranks_seat_t *seat, const engine_options_t *options,
                               model_shard_t shard)
{
    (void)options;
    return (engine_ranks_t){
        .shard = shard,
        .restarts = seat->config->restarts,
        .user = seat,
        .form = form,
        .part = part,
        .cancel = cancel,
        .find_cause = name_cause,
        .fail = tell_of_failure,
    };
}

static model_shard_t shard_of(const ranks_rig_config_t *config, uint32_t rank)
{
    const uint32_t stages = config->stages > 0 ? config->stages : 1;
    const uint32_t tensor_size = tensor_size_of(config);
    return config->is_replicated ? (model_shard_t){0}
                                 : (model_shard_t){.tensor_rank = rank % tensor_size,
                                                   .tensor_size = tensor_size,
                                                   .stage = rank / tensor_size,
                                                   .stages = stages};
}

static void open_events(ranks_seat_t *seat)
{
    seat->wake = eventfd(0, EFD_CLOEXEC);
    seat->cancel = eventfd(0, EFD_CLOEXEC);
    seat->fail = eventfd(0, EFD_CLOEXEC);
    assert_true(seat->wake >= 0 && seat->cancel >= 0 && seat->fail >= 0);
}

static const engine_options_t *options_of(const ranks_rig_config_t *config, bool is_spare)
{
    return is_spare && config->spare_options.device != NULL ? &config->spare_options
           : config->follower_options.device != NULL        ? &config->follower_options
                                                            : &config->options;
}

/* The whole life of a follower; it never returns to the test. */
static void be_follower(ranks_rig_t *rig, uint32_t rank, int gate)
{
    char path[512];
    char go;
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    const ranks_rig_config_t *config = &rig->config;
    const engine_options_t *options = options_of(config, gate >= 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (gate >= 0 && read(gate, &go, 1) != 1) {
        _exit(FOLLOWER_ENDED_ILL); /* a spare waits until it is needed, or killed */
    }
    rig->seat.rank = rank;
    open_events(&rig->seat);
    engine_rig_path(config->model, path, sizeof(path));
    weft_status_t status = model_source_open(path, &diag, &source);
    if (status >= 0) {
        const engine_ranks_t ranks = ranks_of(&rig->seat, options, shard_of(config, rank));
        status = engine_follow(options, source, &ranks, &diag);
    }
    if (status < 0) {
        fprintf(stderr, "rank %u: %s: %s\n", rank, weft_status_name(status), diag.text);
    }
    _exit(status < 0 ? FOLLOWER_ENDED_ILL : 0);
}

static pid_t fork_follower(ranks_rig_t *rig, uint32_t rank, int gate)
{
    fflush(NULL);
    const pid_t pid = test_fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        be_follower(rig, rank, gate);
    }
    return pid;
}

static void fork_followers(ranks_rig_t *rig)
{
    for (uint32_t rank = 1; rank < rig->config.size; rank++) {
        rig->pids[rank] = fork_follower(rig, rank, -1);
        if (rig->config.restarts > 0) {
            int gate[2];
            assert_int_equal(pipe(gate), 0);
            rig->spares[rank] = fork_follower(rig, rank, gate[0]);
            close(gate[0]);
            rig->spare_gates[rank] = gate[1];
        }
    }
}

void ranks_rig_fork(ranks_rig_t *rig, const ranks_rig_config_t *config)
{
    *rig = (ranks_rig_t){.config = *config};
    open_seat(&rig->seat, &rig->config);
    fork_followers(rig);
}

weft_status_t ranks_rig_lead(ranks_rig_t *rig, weft_diag_t *diag)
{
    char path[512];
    open_events(&rig->seat);
    rig->ranks = ranks_of(&rig->seat, &rig->config.options, shard_of(&rig->config, 0));
    engine_rig_path(rig->config.model, path, sizeof(path));
    weft_status_t status = model_source_open(path, diag, &rig->rig.source);
    if (status >= 0) {
        status = engine_create(&rig->config.options, rig->rig.source, NULL, &rig->ranks, diag,
                               &rig->rig.engine);
    }
    if (status >= 0) {
        status = engine_client_create(rig->rig.engine, &rig->rig.client);
    }
    return status;
}

weft_status_t ranks_rig_try(ranks_rig_t *rig, const ranks_rig_config_t *config, weft_diag_t *diag)
{
    ranks_rig_fork(rig, config);
    return ranks_rig_lead(rig, diag);
}

void ranks_rig_open(ranks_rig_t *rig, const ranks_rig_config_t *config)
{
    weft_diag_t diag = {0};
    if (ranks_rig_try(rig, config, &diag) < 0) {
        fail_msg("%s", diag.text);
    }
}

void ranks_rig_kill(ranks_rig_t *rig, uint32_t rank)
{
    assert_int_equal(kill(rig->pids[rank], SIGKILL), 0);
    assert_int_equal(waitpid(rig->pids[rank], NULL, 0), rig->pids[rank]);
    rig->pids[rank] = 0;
}

void ranks_rig_replace(ranks_rig_t *rig, uint32_t rank)
{
    assert_int_equal(write(rig->spare_gates[rank], "", 1), 1);
    rig->pids[rank] = rig->spares[rank];
    rig->spares[rank] = 0;
}

static void wait_at_gate(void *user, uint32_t tokens)
{
    (void)tokens;
    ranks_gate_t *gate = user;
    if (gate->steps_before > 0 && --gate->steps_before == 0) {
        assert_int_equal(sem_post(&gate->arrived), 0);
        while (sem_wait(&gate->go) != 0) {
        }
    }
}

engine_request_t *ranks_rig_kill_amid(ranks_rig_t *rig, const engine_submit_t *submit,
                                      uint32_t steps)
{
    ranks_gate_t *gate = &rig->gate;
    *gate = (ranks_gate_t){.steps_before = steps};
    assert_int_equal(sem_init(&gate->arrived, 0, 0), 0);
    assert_int_equal(sem_init(&gate->go, 0, 0), 0);
    engine_observe(rig->rig.engine, &(engine_observer_t){.user = gate, .on_step = wait_at_gate});
    engine_request_t *request = engine_rig_send(&rig->rig, submit);
    while (sem_wait(&gate->arrived) != 0) {
    }
    ranks_rig_kill(rig, 1);
    assert_int_equal(sem_post(&gate->go), 0);
    return request;
}

static void wait_for_followers(ranks_rig_t *rig, bool must_be_well)
{
    for (uint32_t rank = 1; rank < rig->config.size; rank++) {
        int status = 0;
        if (rig->spare_gates[rank] > 0) {
            close(rig->spare_gates[rank]);
        }
        if (rig->spares[rank] > 0) {
            kill(rig->spares[rank], SIGKILL);
            waitpid(rig->spares[rank], NULL, 0);
        }
        if (rig->pids[rank] > 0) {
            waitpid(rig->pids[rank], &status, 0);
            assert_true(!must_be_well || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
        }
    }
    close(rig->seat.wake);
    close(rig->seat.cancel);
    close(rig->seat.fail);
    close(rig->seat.listener);
}

void ranks_rig_close(ranks_rig_t *rig)
{
    engine_rig_close(&rig->rig);
    wait_for_followers(rig, true);
}

void ranks_rig_end(ranks_rig_t *rig)
{
    if (rig->rig.client != NULL) {
        engine_client_destroy(rig->rig.client);
    }
    engine_destroy(rig->rig.engine);
    model_source_close(rig->rig.source);
    close(rig->seat.listener); /* whoever knocks now hears it */
    rig->seat.listener = -1;
    wait_for_followers(rig, false);
}
