/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_launch: `weft launch`, a program as the ranks of one job. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "cli/commands.h"
#include "cli/launch.h"
#include "cli/option_tables.h"
#include "launcher/job/launch_agent.h"
#include "launcher/job/launch_job.h"

#define MAX_SSH_WORDS 64

const weft_option_t launch_command_option_rows[] = {
#define OPTION(...) WEFT_OPTION_ROW(launch_command_options_t, __VA_ARGS__)
#include "cli/launch.def"
#undef OPTION
};
const size_t launch_command_option_count = WEFT_ARRAY_LEN(launch_command_option_rows);

static const weft_option_alias_t aliases[] = {
    {"n", "np"}, {"c", "np"}, {"H", "host"}, {"machinefile", "hostfile"}};

/* Keepalives: a host that lost its power ends the job instead of keeping it waiting. */
static char *const usual_ssh[] = {"ssh",
                                  "-x",
                                  "-T",
                                  "-o",
                                  "BatchMode=yes",
                                  "-o",
                                  "ConnectTimeout=20",
                                  "-o",
                                  "ServerAliveInterval=15"};

/* ---- where the program's own words begin ----------------------------------------------------- */

static bool takes_no_value(const char *name, size_t length)
{
    if (length > 3 && strncmp(name, "no-", 3) == 0) {
        name += 3;
        length -= 3;
    }
    for (size_t i = 0; i < launch_command_option_count; i++) {
        const weft_option_t *row = &launch_command_option_rows[i];
        if (row->type == WEFT_OPTION_BOOL && strlen(row->flag) == length &&
            strncmp(row->flag, name, length) == 0) {
            return true;
        }
    }
    return length == 4 && strncmp(name, "help", 4) == 0;
}

/* -np4 and -n4 bring their number along. */
static bool has_value_within(const char *word)
{
    return strchr(word, '=') != NULL ||
           (word[1] != '-' && word[1] != '\0' && word[2] >= '0' && word[2] <= '9');
}

/* The index of PROGRAM in argv; *n_own_out words before it are the launcher's. */
static int find_program(int argc, char **argv, int *n_own_out)
{
    int i = 1;
    while (i < argc && argv[i][0] == '-' && argv[i][1] != '\0') {
        if (strcmp(argv[i], "--") == 0) {
            *n_own_out = i;
            return i + 1;
        }
        const char *name = argv[i] + (argv[i][1] == '-' ? 2 : 1);
        i += has_value_within(argv[i]) || takes_no_value(name, strlen(name)) ? 1 : 2;
    }
    *n_own_out = i < argc ? i : argc;
    return *n_own_out;
}

/* ---- options to a job ------------------------------------------------------------------------ */

typedef struct launch {
    weft_arena_t arena;
    launch_hosts_t hosts;
    launch_job_config_t job;
} launch_t;

static weft_status_t read_hosts(const launch_command_options_t *o, launch_t *launch,
                                weft_diag_t *diag)
{
    const bool has_file = o->hostfile[0] != '\0';
    const bool has_list = o->host[0] != '\0';
    if (has_file + has_list + (o->fake_hosts > 0) > 1) {
        return weft_diag(diag, WEFT_ERR_INVALID,
                         "--hostfile, --host and --fake-hosts: one of them names the hosts");
    }
    if (has_file) {
        return launch_hosts_read(&launch->hosts, o->hostfile, diag);
    }
    if (!has_list) {
        return WEFT_OK;
    }
    const weft_status_t status = launch_hosts_parse_list(&launch->hosts, o->host, diag);
    if (status < 0) {
        weft_diag_prefix(diag, "--host %s", o->host);
    }
    return status;
}

/* NAME=VALUE, or NAME with its value here. */
static weft_status_t read_variable(launch_t *launch, const char *word, const char **entry_out,
                                   weft_diag_t *diag)
{
    const char *equals = strchr(word, '=');
    const char *value = equals != NULL ? equals + 1 : getenv(word);
    if (word[0] == '\0' || equals == word) {
        return weft_diag(diag, WEFT_ERR_INVALID, "-x \"%s\": no name of a variable", word);
    }
    if (value == NULL) {
        return weft_diag(diag, WEFT_ERR_INVALID, "-x %s: it is not set here", word);
    }
    *entry_out = equals != NULL ? word : weft_arena_printf(&launch->arena, "%s=%s", word, value);
    return *entry_out != NULL ? WEFT_OK : weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory");
}

static weft_status_t read_variables(const launch_command_options_t *o, launch_t *launch,
                                    weft_diag_t *diag)
{
    const char **entries =
        weft_arena_calloc(&launch->arena, (size_t)o->x.count + 1, sizeof(*entries));
    weft_status_t status =
        entries == NULL ? weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory") : WEFT_OK;
    for (uint32_t i = 0; i < o->x.count && status == WEFT_OK; i++) {
        status = read_variable(launch, o->x.items[i], &entries[i], diag);
    }
    launch->job.environment = (char *const *)entries;
    launch->job.n_environment = o->x.count;
    return status;
}

/* Parted at blanks; who needs more writes a script. */
static weft_status_t read_ssh(const launch_command_options_t *o, launch_t *launch,
                              weft_diag_t *diag)
{
    launch->job.ssh = usual_ssh;
    launch->job.n_ssh = WEFT_ARRAY_LEN(usual_ssh);
    if (o->ssh[0] == '\0') {
        return WEFT_OK;
    }
    char *rest = weft_arena_strdup(&launch->arena, o->ssh);
    char **words = weft_arena_calloc(&launch->arena, MAX_SSH_WORDS, sizeof(*words));
    if (rest == NULL || words == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory");
    }
    uint32_t n = 0;
    for (char *word; (word = strtok_r(rest, " \t", &rest)) != NULL;) {
        if (n == MAX_SSH_WORDS) {
            return weft_diag(diag, WEFT_ERR_INVALID, "--ssh: more than %d words", MAX_SSH_WORDS);
        }
        words[n++] = word;
    }
    if (n == 0) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--ssh: no command");
    }
    launch->job.ssh = words;
    launch->job.n_ssh = n;
    return WEFT_OK;
}

static weft_status_t fill_job(const launch_command_options_t *o, launch_t *launch,
                              weft_diag_t *diag)
{
    launch_job_config_t *job = &launch->job;
    job->hosts = &launch->hosts;
    job->n_ranks = o->np;
    job->n_fake_hosts = o->fake_hosts;
    job->may_oversubscribe = o->oversubscribe;
    job->is_tagged = o->tag_output;
    job->output_folder = o->output_dir;
    job->timeout_s = o->timeout;
    job->restarts = o->restarts;
    job->stopped_after_s = o->stopped_after;
    job->connect_timeout_s = o->connect_timeout;
    job->leader_host = o->leader_host;
    job->leader_port = (uint16_t)o->leader_port;
    job->remote_weft = o->remote_weft;
    if (o->leader_port > UINT16_MAX) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--leader-port %u: ports end at 65535",
                         o->leader_port);
    }
    if (strlen(o->leader_host) >= LAUNCH_NAME_BYTES) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--leader-host: no name is that long");
    }
    weft_status_t status = launch_map_by_parse(o->map_by, diag, &job->map_by);
    if (status == WEFT_OK) {
        status = launch_bind_to_parse(o->bind_to, diag, &job->bind_to);
    }
    if (status == WEFT_OK) {
        status = read_hosts(o, launch, diag);
    }
    if (status == WEFT_OK) {
        status = read_variables(o, launch, diag);
    }
    return status < 0 ? status : read_ssh(o, launch, diag);
}

static weft_status_t run(const launch_command_options_t *options, int argc, char **argv,
                         int *exit_code, weft_diag_t *diag)
{
    launch_t launch = {.job = {.argv = argv, .argc = (uint32_t)(argc > 0 ? argc : 0)}};
    weft_status_t status = WEFT_OK;
    if (argc <= 0) {
        status = weft_diag(diag, WEFT_ERR_INVALID,
                           "no program: weft launch [options] PROGRAM [arguments]");
    }
    if (status == WEFT_OK) {
        status = fill_job(options, &launch, diag);
    }
    if (status == WEFT_OK) {
        status = launch_job_run(&launch.job, diag, exit_code);
    }
    launch_hosts_fini(&launch.hosts);
    weft_arena_free(&launch.arena);
    return status;
}

static int run_agent(void)
{
    weft_diag_t diag = {0};
    const weft_status_t status = launch_agent_run(&diag);
    return status < 0 ? cli_fail(status, &diag) : CLI_EXIT_OK;
}

int cmd_launch(int argc, char **argv)
{
    launch_command_options_t options = {0};
    const weft_option_group_t group = CLI_OPTION_GROUP(launch_command, "Launch", &options);
    const weft_option_spec_t spec = {
        .usage = "weft launch [options] [--] PROGRAM [arguments]",
        .about = "Runs a program as the ranks of one job, here and on other hosts, and ends it as "
                 "one.",
        .groups = &group,
        .n_groups = 1,
        .flags = aliases,
        .n_flags = WEFT_ARRAY_LEN(aliases),
        .ignores_environment = true, /* which is the program's */
    };
    weft_diag_t diag = {0};
    weft_option_set_t *set = NULL;
    int n_own = argc;
    int exit_code = CLI_EXIT_OK;
    if (argc == 2 && strcmp(argv[1], "--agent") == 0) {
        return run_agent();
    }
    const int program = find_program(argc, argv, &n_own);
    weft_status_t status = weft_option_set_parse(&spec, n_own, argv, &diag, &set);
    if (status == WEFT_ERR_CANCELLED) {
        return CLI_EXIT_OK;
    }
    if (status == WEFT_OK) {
        status = run(&options, argc - program, argv + program, &exit_code, &diag);
    }
    weft_option_set_destroy(set);
    return status < 0 ? cli_fail(status, &diag) : exit_code;
}
