/* SPDX-License-Identifier: Apache-2.0 */
#include "launcher/job/launch_netns.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buffer.h"
#include "base/clock.h"

#define MAX_SUBNETS  256
#define UP_WITHIN_NS (10 * WEFT_NS_PER_SECOND)

typedef struct fake_host {
    int fd;
    char address[32];
} fake_host_t;

struct launch_netns {
    uint32_t subnet;
    int home_fd;    /* where we are */
    int switch_fd;  /* where the bridge is */
    bool is_joined; /* device weft<subnet> is here */
    fake_host_t hosts[LAUNCH_MAX_FAKE_HOSTS];
    uint32_t n;
};

int launch_netns_fd(const launch_netns_t *netns, uint32_t host)
{
    return netns->hosts[host].fd;
}

const char *launch_netns_address(const launch_netns_t *netns, uint32_t host)
{
    return netns->hosts[host].address;
}

static void close_fd(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

/* ---- namespaces ------------------------------------------------------------------------------ */

static int open_own(void)
{
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

/* A new one, in which we are not. */
static weft_status_t make(const launch_netns_t *netns, int *fd_out, weft_diag_t *diag)
{
    if (unshare(CLONE_NEWNET) != 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "no network namespaces here: %s",
                         strerror(errno));
    }
    *fd_out = open_own();
    const int error = errno;
    if (setns(netns->home_fd, CLONE_NEWNET) != 0 || *fd_out < 0) {
        return weft_diag(diag, WEFT_ERR_IO, "a network namespace is lost: %s", strerror(error));
    }
    return WEFT_OK;
}

/* ---- ip -------------------------------------------------------------------------------------- */

/* In the child: `ip -batch` within a namespace; descriptors of namespaces stay open for it. */
static void become_ip(const launch_netns_t *netns, int netns_fd, int commands, int complaints)
{
    char *const argv[] = {"ip", "-batch", "-", NULL};
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    fcntl(netns->switch_fd, F_SETFD, 0);
    for (uint32_t i = 0; i < netns->n; i++) {
        fcntl(netns->hosts[i].fd, F_SETFD, 0);
    }
    if (setns(netns_fd, CLONE_NEWNET) == 0 && dup2(commands, STDIN_FILENO) >= 0 &&
        dup2(complaints, STDOUT_FILENO) >= 0 && dup2(complaints, STDERR_FILENO) >= 0) {
        execvp(argv[0], argv);
    }
    dprintf(STDERR_FILENO, "ip: %s\n", strerror(errno));
    _exit(127);
}

static void read_complaints(int fd, char *text, size_t size)
{
    size_t length = 0;
    ssize_t n;
    while ((n = read(fd, text + length, size - 1 - length)) > 0) {
        length += (size_t)n;
    }
    text[length] = '\0';
    text[strcspn(text, "\n")] = '\0';
}

/* Runs commands in the namespace; diag says what ip says first. Few enough for a pipe to hold. */
static weft_status_t run_ip(const launch_netns_t *netns, int netns_fd,
                            const weft_buffer_t *commands, weft_diag_t *diag)
{
    int in[2];
    int out[2];
    char said[256] = "";
    int how = -1;
    if (commands->is_failed || pipe2(in, O_CLOEXEC) != 0) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "ip cannot be run");
    }
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "ip cannot be run");
    }
    const pid_t pid = fork();
    if (pid == 0) {
        become_ip(netns, netns_fd, in[0], out[1]);
    }
    close(in[0]);
    close(out[1]);
    const ssize_t written = write(in[1], commands->data, commands->length);
    close(in[1]);
    read_complaints(out[0], said, sizeof(said));
    close(out[0]);
    if (pid > 0) {
        waitpid(pid, &how, 0);
    }
    return how == 0 && written == (ssize_t)commands->length
               ? WEFT_OK
               : weft_diag(diag, WEFT_ERR_UNSUPPORTED, "the network of fake hosts: %s",
                           said[0] != '\0' ? said : "ip failed");
}

static weft_status_t make_bridge(const launch_netns_t *netns, weft_diag_t *diag)
{
    weft_buffer_t commands = {0};
    weft_buffer_puts(&commands, "link add bridge0 type bridge\nlink set bridge0 up\n");
    const weft_status_t status = run_ip(netns, netns->switch_fd, &commands, diag);
    weft_buffer_free(&commands);
    return status;
}

static weft_status_t join_bridge(const launch_netns_t *netns, const char *port, weft_diag_t *diag)
{
    weft_buffer_t commands = {0};
    weft_buffer_printf(&commands, "link set %s master bridge0\nlink set %s up\n", port, port);
    const weft_status_t status = run_ip(netns, netns->switch_fd, &commands, diag);
    weft_buffer_free(&commands);
    return status;
}

/* The device here takes the number: making it fails where another launch has it. */
static weft_status_t join_home(launch_netns_t *netns, weft_diag_t *diag)
{
    weft_status_t status = WEFT_ERR_IN_USE;
    for (uint32_t subnet = 0; subnet < MAX_SUBNETS && status < 0; subnet++) {
        weft_buffer_t commands = {0};
        weft_buffer_printf(&commands,
                           "link add weft%u type veth peer name home netns /proc/self/fd/%d\n"
                           "address add 10.214.%u.254/24 dev weft%u\n"
                           "link set weft%u up\n",
                           subnet, netns->switch_fd, subnet, subnet, subnet);
        status = run_ip(netns, netns->home_fd, &commands, diag);
        weft_buffer_free(&commands);
        netns->subnet = subnet;
        if (status < 0 && strstr(diag->text, "File exists") == NULL) {
            return status;
        }
    }
    netns->is_joined = status == WEFT_OK;
    return status < 0 ? status : join_bridge(netns, "home", diag);
}

static weft_status_t join_host(launch_netns_t *netns, uint32_t host, weft_diag_t *diag)
{
    fake_host_t *fake = &netns->hosts[host];
    weft_buffer_t commands = {0};
    char port[32];
    snprintf(fake->address, sizeof(fake->address), "10.214.%u.%u", netns->subnet, host + 1);
    snprintf(port, sizeof(port), "port%u", host);
    weft_buffer_printf(&commands,
                       "link set lo up\n"
                       "link add eth0 type veth peer name %s netns /proc/self/fd/%d\n"
                       "address add %s/24 dev eth0\n"
                       "link set eth0 up\n",
                       port, netns->switch_fd, fake->address);
    weft_status_t status = run_ip(netns, fake->fd, &commands, diag);
    weft_buffer_free(&commands);
    return status < 0 ? status : join_bridge(netns, port, diag);
}

/* A socket belongs to the namespace that it was made in. */
static int open_socket(const launch_netns_t *netns, uint32_t host)
{
    if (setns(netns->hosts[host].fd, CLONE_NEWNET) != 0) {
        return -1;
    }
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (setns(netns->home_fd, CLONE_NEWNET) != 0) {
        close_fd(fd);
        return -1;
    }
    return fd;
}

/* Some time after a device was set up the system says that it is, and ranks would leave it out until then. */
static weft_status_t wait_until_up(const launch_netns_t *netns, uint32_t host, weft_diag_t *diag)
{
    const uint64_t end_ns = weft_clock_ns() + UP_WITHIN_NS;
    struct ifreq request = {.ifr_name = "eth0"};
    const int fd = open_socket(netns, host);
    bool is_up = false;
    while (fd >= 0 && !is_up && weft_clock_ns() < end_ns &&
           ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        is_up = (request.ifr_flags & IFF_RUNNING) != 0;
        (void)poll(NULL, 0, is_up ? 0 : 1);
    }
    close_fd(fd);
    return is_up ? WEFT_OK
                 : weft_diag(diag, WEFT_ERR_IO, "the network of fake hosts: host %u has no link",
                             host);
}

/* The kernel would do it too, but some time after we are gone. */
static void part_home(const launch_netns_t *netns)
{
    weft_buffer_t commands = {0};
    weft_diag_t ignored;
    weft_buffer_printf(&commands, "link delete weft%u\n", netns->subnet);
    (void)run_ip(netns, netns->home_fd, &commands, &ignored);
    weft_buffer_free(&commands);
}

void launch_netns_destroy(launch_netns_t *netns)
{
    if (netns == NULL) {
        return;
    }
    if (netns->is_joined) {
        part_home(netns);
    }
    for (uint32_t i = 0; i < netns->n; i++) {
        close_fd(netns->hosts[i].fd);
    }
    close_fd(netns->switch_fd);
    close_fd(netns->home_fd);
    weft_free(netns);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static weft_status_t build(launch_netns_t *netns, uint32_t n, weft_diag_t *diag)
{
    netns->home_fd = open_own();
    if (netns->home_fd < 0) {
        return weft_diag(diag, WEFT_ERR_UNSUPPORTED, "no network namespaces here: %s",
                         strerror(errno));
    }
    weft_status_t status = make(netns, &netns->switch_fd, diag);
    if (status == WEFT_OK) {
        status = make_bridge(netns, diag);
    }
    if (status == WEFT_OK) {
        status = join_home(netns, diag);
    }
    for (uint32_t i = 0; i < n && status == WEFT_OK; i++) {
        netns->hosts[i].fd = -1;
        netns->n = i + 1;
        status = make(netns, &netns->hosts[i].fd, diag);
        if (status == WEFT_OK) {
            status = join_host(netns, i, diag);
        }
    }
    for (uint32_t i = 0; i < n && status == WEFT_OK; i++) {
        status = wait_until_up(netns, i, diag);
    }
    return status;
}

weft_status_t launch_netns_create(uint32_t n, weft_diag_t *diag, launch_netns_t **netns_out)
{
    if (n > LAUNCH_MAX_FAKE_HOSTS) {
        return weft_diag(diag, WEFT_ERR_INVALID, "--fake-hosts %u: at most %d", n,
                         LAUNCH_MAX_FAKE_HOSTS);
    }
    if (geteuid() != 0) {
        return weft_diag(diag, WEFT_ERR_DENIED,
                         "--fake-hosts makes network namespaces, which takes root");
    }
    launch_netns_t *netns = weft_zalloc(sizeof(*netns), "launch.netns");
    if (netns == NULL) {
        return weft_diag(diag, WEFT_ERR_NO_MEMORY, "out of memory");
    }
    netns->home_fd = netns->switch_fd = -1;
    const weft_status_t status = build(netns, n, diag);
    if (status < 0) {
        launch_netns_destroy(netns);
        return status;
    }
    *netns_out = netns;
    return WEFT_OK;
}
