/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "launcher/job/launch_agent_priv.h"

#define READ_BYTES ((size_t)64 << 10)
/* What outlived its rank in another session may hold its pipes; nobody waits longer for it. */
#define LINGER_NS (1 * WEFT_NS_PER_SECOND)

#define EXIT_NOT_FOUND 127 /* as a shell says it */
#define EXIT_DENIED    126

agent_rank_t *agent_find(const agent_t *agent, uint32_t number)
{
    for (uint32_t i = 0; i < agent->n_ranks; i++) {
        if (agent->ranks[i]->number == number) {
            return agent->ranks[i];
        }
    }
    return NULL;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

/* ---- output ---------------------------------------------------------------------------------- */

static void pause_stream(agent_stream_t *stream)
{
    weft_loop_unwatch(stream->watch);
    stream->watch = NULL;
}

static void end_stream(agent_stream_t *stream)
{
    agent_t *agent = stream->rank->agent;
    if (stream->fd < 0) {
        return;
    }
    pause_stream(stream);
    close_fd(&stream->fd);
    launch_frame_append(
        &agent->out, stream->stream == LAUNCH_STDOUT ? LAUNCH_FRAME_OUT_END : LAUNCH_FRAME_ERR_END,
        stream->rank->number, "", 0);
    agent_wake(agent);
}

static void on_output(void *user, uint32_t events)
{
    static char bytes[READ_BYTES]; /* of the one loop */
    agent_stream_t *stream = user;
    agent_t *agent = stream->rank->agent;
    (void)events;
    if (agent->credit == 0) {
        pause_stream(stream);
        return;
    }
    const ssize_t n =
        read(stream->fd, bytes, agent->credit < READ_BYTES ? agent->credit : READ_BYTES);
    if (n > 0) {
        agent->credit -= (uint64_t)n;
        launch_frame_append(&agent->out,
                            stream->stream == LAUNCH_STDOUT ? LAUNCH_FRAME_OUT : LAUNCH_FRAME_ERR,
                            stream->rank->number, bytes, (size_t)n);
        agent_wake(agent);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        end_stream(stream);
    }
}

static weft_status_t watch_stream(agent_stream_t *stream)
{
    return stream->fd < 0 || stream->watch != NULL
               ? WEFT_OK
               : weft_loop_watch(stream->rank->agent->loop, stream->fd, WEFT_LOOP_READ, on_output,
                                 stream, &stream->watch);
}

void agent_resume_output(agent_t *agent)
{
    for (uint32_t i = 0; i < agent->n_ranks; i++) {
        for (int s = 0; s < LAUNCH_STREAMS; s++) {
            agent_stream_t *stream = &agent->ranks[i]->streams[s];
            if (watch_stream(stream) < 0) {
                end_stream(stream);
            }
        }
    }
}

static void on_linger(void *user)
{
    agent_rank_t *rank = user;
    for (int s = 0; s < LAUNCH_STREAMS; s++) {
        agent_stream_t *stream = &rank->streams[s];
        if (stream->fd >= 0 && stream->watch == NULL) { /* its last words wait for credit */
            weft_loop_timer_set(rank->linger, LINGER_NS);
        } else {
            end_stream(stream);
        }
    }
}

/* ---- input ----------------------------------------------------------------------------------- */

static void close_input(agent_rank_t *rank)
{
    weft_loop_unwatch(rank->input_watch);
    rank->input_watch = NULL;
    close_fd(&rank->input_fd);
}

/* What it has taken, or will never take. */
static void drop_input(agent_rank_t *rank, size_t n)
{
    agent_t *agent = rank->agent;
    weft_buffer_drop_front(&rank->input, n);
    launch_frame_append_u32(&agent->out, LAUNCH_FRAME_TAKEN, rank->number, (uint32_t)n);
    agent_wake(agent);
}

static void on_input_writable(void *user, uint32_t events)
{
    agent_rank_t *rank = user;
    (void)events;
    const ssize_t n = write(rank->input_fd, rank->input.data, rank->input.length);
    if (n > 0) {
        drop_input(rank, (size_t)n);
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) { /* it reads no more */
        drop_input(rank, rank->input.length);
        close_input(rank);
    }
    if (rank->input.length == 0) {
        weft_loop_unwatch(rank->input_watch);
        rank->input_watch = NULL;
        if (rank->has_input_ended) {
            close_input(rank);
        }
    }
}

void agent_rank_take_input(agent_rank_t *rank, const char *bytes, size_t n)
{
    if (n == 0) {
        return;
    }
    weft_buffer_append(&rank->input, bytes, n);
    if (rank->input.is_failed) {
        weft_buffer_clear(&rank->input);
        close_input(rank);
    } else if (rank->input_fd < 0) {
        drop_input(rank, n);
    } else if (rank->input_watch == NULL &&
               weft_loop_watch(rank->agent->loop, rank->input_fd, WEFT_LOOP_WRITE,
                               on_input_writable, rank, &rank->input_watch) < 0) {
        close_input(rank);
    }
}

void agent_rank_end_input(agent_rank_t *rank)
{
    rank->has_input_ended = true;
    if (rank->input.length == 0) {
        close_input(rank);
    }
}

/* ---- starting -------------------------------------------------------------------------------- */

static bool is_overridden(const char *entry, const launch_start_t *start)
{
    const size_t length = strcspn(entry, "=") + 1;
    for (uint32_t i = 0; i < start->n_environment; i++) {
        if (strncmp(entry, start->environment[i], length) == 0) {
            return true;
        }
    }
    return false;
}

/* Ours, with what the launcher adds; free it with weft_free, its texts are borrowed. NULL: no memory. */
static char **make_environment(const launch_start_t *start)
{
    size_t n = 0;
    while (environ[n] != NULL) {
        n++;
    }
    char **all = weft_calloc(n + start->n_environment + 1, sizeof(*all), "launch.environment");
    if (all == NULL) {
        return NULL;
    }
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        if (!is_overridden(environ[i], start)) {
            all[used++] = environ[i];
        }
    }
    for (uint32_t i = 0; i < start->n_environment; i++) {
        all[used++] = start->environment[i];
    }
    return all;
}

static weft_status_t choose_cpus(agent_t *agent, const launch_start_t *start,
                                 launch_cpus_t *cpus_out, weft_diag_t *diag)
{
    if (start->bind_to >= LAUNCH_BIND_COUNT || start->map_by >= LAUNCH_BY_COUNT) {
        return weft_diag(diag, WEFT_ERR_MALFORMED, "an unknown way of binding");
    }
    if (start->bind_to == LAUNCH_BIND_NONE) {
        return WEFT_OK;
    }
    weft_status_t status = WEFT_OK;
    if (agent->binding == NULL) {
        status = launch_binding_create(NULL, diag, &agent->binding);
    }
    return status < 0
               ? status
               : launch_binding_choose(agent->binding, (launch_bind_to_t)start->bind_to,
                                       (launch_map_by_t)start->map_by, start->local_rank, cpus_out);
}

/* The three pipes of a rank: its ends, and ours. */
typedef struct pipes {
    int theirs[3];
    int ours[3];
} pipes_t;

static void close_pipes(int *fds)
{
    for (int i = 0; i < 3; i++) {
        close_fd(&fds[i]);
    }
}

static weft_status_t open_pipes(bool has_input, pipes_t *pipes, weft_diag_t *diag)
{
    *pipes = (pipes_t){{-1, -1, -1}, {-1, -1, -1}};
    for (int i = has_input ? 0 : 1; i < 3; i++) {
        int fds[2];
        if (pipe2(fds, O_CLOEXEC) != 0) {
            return weft_diag(diag, WEFT_ERR_NO_MEMORY, "its pipes cannot be made: %s",
                             strerror(errno));
        }
        pipes->theirs[i] = fds[i == 0 ? 0 : 1];
        pipes->ours[i] = fds[i == 0 ? 1 : 0];
        fcntl(pipes->ours[i], F_SETFL, O_NONBLOCK);
    }
    return WEFT_OK;
}

/* Once: a rank that finds no file would be a riddle. */
static void note_folder(agent_t *agent, const launch_start_t *start)
{
    weft_diag_t note = {0};
    char here[PATH_MAX];
    if (start->folder[0] == '\0' || agent->has_noted_folder || access(start->folder, X_OK) == 0) {
        return;
    }
    agent->has_noted_folder = true;
    const int error = errno;
    weft_diag(&note, WEFT_OK, "%s: %s; ranks run in %s", start->folder, strerror(error),
              getcwd(here, sizeof(here)) != NULL ? here : "its own folder");
    launch_frame_append(&agent->out, LAUNCH_FRAME_NOTE, LAUNCH_ALL, note.text,
                        strlen(note.text) + 1);
}

static weft_status_t spawn(agent_rank_t *rank, const launch_start_t *start, const pipes_t *pipes,
                           weft_diag_t *diag)
{
    agent_t *agent = rank->agent;
    launch_cpus_t cpus;
    weft_status_t status = choose_cpus(agent, start, &cpus, diag);
    char **environment = make_environment(start);
    if (status == WEFT_OK && environment == NULL) {
        status = weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory");
    }
    if (status == WEFT_OK) {
        const launch_program_t program = {
            .argv = start->argv,
            .environment = environment,
            .folder = start->folder,
            .fds = {pipes->theirs[0], pipes->theirs[1], pipes->theirs[2]},
            .netns_fd = -1,
            .death_signal = SIGKILL, /* an agent that ends well has killed it before */
            .cpus = start->bind_to == LAUNCH_BIND_NONE ? NULL : &cpus,
            .open_files = &agent->open_files,
        };
        status = launch_process_start(&program, diag, &rank->pid);
    }
    weft_free(environment);
    return status;
}

static weft_status_t start_rank(agent_rank_t *rank, const launch_start_t *start, weft_diag_t *diag)
{
    pipes_t pipes;
    note_folder(rank->agent, start);
    weft_status_t status = open_pipes(start->has_input != 0, &pipes, diag);
    if (status == WEFT_OK) {
        status = spawn(rank, start, &pipes, diag);
    }
    close_pipes(pipes.theirs);
    if (status < 0) {
        close_pipes(pipes.ours);
        return status;
    }
    rank->input_fd = pipes.ours[0];
    for (int s = 0; s < LAUNCH_STREAMS; s++) {
        rank->streams[s].fd = pipes.ours[s + 1];
    }
    return WEFT_OK;
}

static agent_rank_t *add_rank(agent_t *agent, uint32_t number)
{
    agent_rank_t **ranks =
        weft_realloc(agent->ranks, (agent->n_ranks + 1) * sizeof(*ranks), "launch.agent.ranks");
    agent_rank_t *rank = weft_zalloc(sizeof(*rank), "launch.agent.rank");
    agent->ranks = ranks != NULL ? ranks : agent->ranks;
    if (ranks == NULL || rank == NULL ||
        weft_loop_timer_create(agent->loop, on_linger, rank, &rank->linger) < 0) {
        weft_free(rank);
        return NULL;
    }
    rank->agent = agent;
    rank->number = number;
    rank->input_fd = -1;
    for (int s = 0; s < LAUNCH_STREAMS; s++) {
        rank->streams[s] = (agent_stream_t){.rank = rank, .stream = (launch_stream_t)s, .fd = -1};
    }
    agent->ranks[agent->n_ranks++] = rank;
    return rank;
}

static void refuse(agent_t *agent, uint32_t number, weft_status_t status, const char *why)
{
    const uint32_t code = status == WEFT_ERR_NOT_FOUND ? EXIT_NOT_FOUND
                          : status == WEFT_ERR_DENIED  ? EXIT_DENIED
                                                       : 1;
    launch_frame_append(&agent->out, LAUNCH_FRAME_REFUSED, number, why, strlen(why) + 1);
    launch_frame_append(&agent->out, LAUNCH_FRAME_OUT_END, number, "", 0);
    launch_frame_append(&agent->out, LAUNCH_FRAME_ERR_END, number, "", 0);
    launch_exit_append(&agent->out, number, (launch_exit_t){.code = code});
    agent_wake(agent);
}

void agent_start_rank(agent_t *agent, uint32_t number, const launch_start_t *start)
{
    weft_diag_t diag = {0};
    agent_rank_t *rank = agent_find(agent, number);
    rank = rank != NULL ? rank : add_rank(agent, number);
    weft_status_t status = WEFT_OK;
    if (rank == NULL) {
        status = weft_diag(&diag, WEFT_ERR_NO_MEMORY, "out of memory");
    } else if (rank->pid > 0) {
        status = weft_diag(&diag, WEFT_ERR_EXISTS, "it runs already");
    } else {
        weft_loop_timer_clear(rank->linger);
        end_stream(&rank->streams[LAUNCH_STDOUT]);
        end_stream(&rank->streams[LAUNCH_STDERR]);
        close_input(rank);
        weft_buffer_clear(&rank->input);
        rank->has_input_ended = false;
        status = start_rank(rank, start, &diag);
    }
    if (status < 0) {
        refuse(agent, number, status, diag.text);
        return;
    }
    launch_frame_append_u32(&agent->out, LAUNCH_FRAME_STARTED, number, (uint32_t)rank->pid);
    agent_wake(agent);
    for (int s = 0; s < LAUNCH_STREAMS; s++) {
        if (watch_stream(&rank->streams[s]) < 0) {
            end_stream(&rank->streams[s]);
        }
    }
}

void agent_rank_destroy(agent_rank_t *rank)
{
    weft_loop_timer_destroy(rank->linger);
    close_input(rank);
    for (int s = 0; s < LAUNCH_STREAMS; s++) {
        pause_stream(&rank->streams[s]);
        close_fd(&rank->streams[s].fd);
    }
    weft_buffer_free(&rank->input);
    weft_free(rank);
}

/* ---- what becomes of them -------------------------------------------------------------------- */

static void tell_end(agent_rank_t *rank, const launch_news_t *news)
{
    agent_t *agent = rank->agent;
    rank->pid = 0;
    if (rank->input.length > 0) {
        drop_input(rank, rank->input.length);
    }
    close_input(rank);
    weft_loop_timer_set(rank->linger, LINGER_NS);
    launch_exit_append(&agent->out, rank->number, (launch_exit_t){news->code, news->signal});
}

static agent_rank_t *find_process(const agent_t *agent, pid_t pid)
{
    for (uint32_t i = 0; i < agent->n_ranks; i++) {
        if (agent->ranks[i]->pid == pid) {
            return agent->ranks[i];
        }
    }
    return NULL;
}

/* A rank leads its group; what one has left behind may lead one that still works for it. */
static bool is_rank(void *user, pid_t pid)
{
    return find_process(user, pid) != NULL;
}

void agent_reap(agent_t *agent)
{
    launch_news_t news;
    while ((news = launch_process_next(is_rank, agent)).kind != LAUNCH_NEWS_NONE) {
        agent_rank_t *rank = find_process(agent, news.pid);
        if (rank == NULL) { /* left behind by a rank, and now ended */
            continue;
        }
        if (news.kind == LAUNCH_NEWS_EXITED) {
            tell_end(rank, &news);
        } else {
            launch_frame_append(&agent->out,
                                news.kind == LAUNCH_NEWS_STOPPED ? LAUNCH_FRAME_STOPPED
                                                                 : LAUNCH_FRAME_CONTINUED,
                                rank->number, "", 0);
        }
        agent_wake(agent);
    }
}
