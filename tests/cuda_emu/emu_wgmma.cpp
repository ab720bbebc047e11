/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simt_wgmma.h: products of 128 threads. An issue only notes the descriptors, keeps d and fills it
 * with NaN; the tiles are read and the products computed when the group waits for them.
 */
#include <algorithm>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_numbers.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

namespace emu
{
namespace
{

constexpr int group_rows = 64;
constexpr int max_n = 256;

struct Issue {
    emu_wgmma_t call;
    uint32_t a[4];
};

/* The values of one thread's d while products for it are on their way. */
struct Accumulator {
    float *d;
    int n;
    size_t pending;
    float values[max_n / 2];
};

struct Member {
    std::vector<Issue> issues; /* oldest first */
    std::vector<size_t> commits;
    size_t uncommitted = 0;
    bool is_fenced = false; /* since it waited: then it may have touched registers */
    std::vector<Accumulator> accumulators;
};

} // namespace

struct WarpGroups {
    struct Group {
        Member members[group_threads];
        std::vector<Thread *> waiting;
        int newest = 0;
    };
    std::vector<std::unique_ptr<Group>> groups;
};

namespace
{

WarpGroups::Group &my_group(void)
{
    Block &block = *now_block;
    if (static_cast<size_t>(now->linear / group_threads + 1) * group_threads >
        block.threads.size()) {
        fail(cudaErrorLaunchFailure, "wgmma by a thread that is in no whole group of 128");
    }
    if (block.groups == nullptr) {
        block.groups = std::make_shared<WarpGroups>();
        for (size_t i = 0; i < block.threads.size() / group_threads; i++) {
            block.groups->groups.push_back(std::make_unique<WarpGroups::Group>());
        }
    }
    return *block.groups->groups[static_cast<size_t>(now->linear / group_threads)];
}

Accumulator *find_accumulator(Member &member, const float *d)
{
    for (Accumulator &one : member.accumulators) {
        if (one.d == d) {
            return &one;
        }
    }
    return nullptr;
}

int depth_of(emu_wgmma_type_t type)
{
    return type == EMU_WGMMA_E4M3 ? 32 : 16;
}

/* ---- descriptors ---------------------------------------------------------------------------- */

struct Desc {
    uint32_t start;
    uint32_t leading;
    uint32_t stride;
};

Desc decode(uint64_t bits)
{
    Desc desc = {static_cast<uint32_t>(bits & 0x3fff) << 4,
                 static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4,
                 static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4};
    if (bits >> 62 != 1) {
        fail(cudaErrorLaunchFailure, "wgmma: a descriptor without 128-byte swizzle: %016llx",
             static_cast<unsigned long long>(bits));
    }
    if ((desc.start & 0x380) != 0) {
        fail(cudaErrorMisalignedAddress, "wgmma: a tile at shared offset %u, not at one of 1024",
             desc.start);
    }
    return desc;
}

uint32_t swizzle(uint32_t offset)
{
    return offset ^ (offset >> 3 & 0x70);
}

/* Offset of (row, k) for lines of K, of (k, column) for lines of N. */
uint32_t offset_k(const Desc &desc, int row, int byte)
{
    uint32_t r = static_cast<uint32_t>(row);
    return desc.start + r / 8 * desc.stride + r % 8 * 128 + static_cast<uint32_t>(byte);
}

uint32_t offset_mn(const Desc &desc, int column, int k)
{
    uint32_t c = static_cast<uint32_t>(column), line = static_cast<uint32_t>(k);
    return desc.start + c / 64 * desc.leading + line / 8 * desc.stride + line % 8 * 128 +
           c % 64 * 2;
}

/* f(unswizzled offset, bytes) for each line of the tile. */
template <class F> void for_each_line(const emu_wgmma_t &call, bool is_a, F f)
{
    Desc desc = decode(is_a ? call.a_desc : call.b_desc);
    if (!is_a && call.is_b_mn) {
        for (int panel = 0; panel < call.n; panel += 64) {
            for (int k = 0; k < depth_of(call.type); k++) {
                f(offset_mn(desc, panel, k), 2 * std::min(64, call.n - panel));
            }
        }
        return;
    }
    for (int row = 0; row < (is_a ? group_rows : call.n); row++) {
        f(offset_k(desc, row, 0), 32);
    }
}

/* 16-byte chunks stay whole under the swizzle; a line of 16 columns or more is made of them. */
template <class F> void for_each_chunk(const emu_wgmma_t &call, bool is_a, F f)
{
    for_each_line(call, is_a, [&](uint32_t offset, int bytes) {
        for (int i = 0; i < bytes; i += 16) {
            f(now_block->arena + swizzle(offset + static_cast<uint32_t>(i)), 16);
        }
    });
}

void begin_reads(const emu_wgmma_t &call)
{
    for (bool is_a : {true, false}) {
        if (is_a && call.a_registers != nullptr) {
            continue;
        }
        for_each_chunk(call, is_a, [](uint8_t *chunk, int bytes) {
            shared_offset(chunk, static_cast<size_t>(bytes), "simt_wgmma");
            shadow_check_async_read(chunk, static_cast<size_t>(bytes), "simt_wgmma");
            shadow_async_begin(chunk, static_cast<size_t>(bytes), Access::read, "simt_wgmma");
        });
    }
}

void end_reads(const Issue &issue, const Thread &issuer)
{
    for (bool is_a : {true, false}) {
        if (is_a && issue.call.a_registers != nullptr) {
            continue;
        }
        for_each_chunk(issue.call, is_a, [&issuer](uint8_t *chunk, int bytes) {
            shadow_async_end(chunk, static_cast<size_t>(bytes), Access::read, issuer, 0);
        });
    }
}

/* ---- the product ---------------------------------------------------------------------------- */

float element(emu_wgmma_type_t type, uint32_t offset)
{
    const uint8_t *at = now_block->arena + swizzle(offset);
    if (type == EMU_WGMMA_E4M3) {
        return number_table(NUMBER_E4M3)[*at];
    }
    uint16_t code;
    memcpy(&code, at, sizeof(code));
    return value_16(type == EMU_WGMMA_BF16 ? NUMBER_BF16 : NUMBER_F16, code);
}

float register_element(emu_wgmma_type_t type, const uint32_t *registers, int index)
{
    if (type == EMU_WGMMA_E4M3) {
        return number_table(NUMBER_E4M3)[registers[index / 4] >> 8 * (index % 4) & 0xff];
    }
    uint16_t code = static_cast<uint16_t>(registers[index / 2] >> 16 * (index % 2));
    return value_16(type == EMU_WGMMA_BF16 ? NUMBER_BF16 : NUMBER_F16, code);
}

struct Matrices {
    float a[group_rows][32];
    float b[32][max_n];
    float d[group_rows][max_n];
};

__attribute__((target_clones("default", "avx2"))) void multiply(Matrices &m, int depth, int n)
{
    for (int row = 0; row < group_rows; row++) {
        for (int k = 0; k < depth; k++) {
            float a = m.a[row][k];
            for (int column = 0; column < n; column++) {
                m.d[row][column] += a * m.b[k][column];
            }
        }
    }
}

/* Row and first column in the tile of d[index] of a member. */
int row_of(int member, int index)
{
    return member / 32 * 16 + member % 32 / 4 + index / 2 % 2 * 8;
}

int column_of(int member, int index)
{
    return index / 4 * 8 + 2 * (member % 4) + index % 2;
}

void gather_a(Matrices &m, const WarpGroups::Group &group, size_t which)
{
    const emu_wgmma_t &call = group.members[0].issues[which].call;
    int depth = depth_of(call.type), width = depth / 8;
    if (call.a_registers == nullptr) {
        Desc desc = decode(call.a_desc);
        for (int row = 0; row < group_rows; row++) {
            for (int k = 0; k < depth; k++) {
                m.a[row][k] = element(call.type, offset_k(desc, row, k * 32 / depth));
            }
        }
        return;
    }
    for (int member = 0; member < group_threads; member++) {
        const uint32_t *a = group.members[member].issues[which].a;
        int row = member / 32 * 16 + member % 32 / 4, t = member % 4;
        for (int r = 0; r < 4; r++) {
            for (int i = 0; i < width; i++) {
                m.a[row + r % 2 * 8][t * width + i + r / 2 * (depth / 2)] =
                    register_element(call.type, a, r * width + i);
            }
        }
    }
}

void gather_b(Matrices &m, const emu_wgmma_t &call)
{
    Desc desc = decode(call.b_desc);
    int depth = depth_of(call.type);
    for (int k = 0; k < depth; k++) {
        for (int column = 0; column < call.n; column++) {
            uint32_t offset =
                call.is_b_mn ? offset_mn(desc, column, k) : offset_k(desc, column, k * 32 / depth);
            m.b[k][column] = element(call.type, offset);
        }
    }
}

void check_alike(const WarpGroups::Group &group, size_t which)
{
    const emu_wgmma_t &first = group.members[0].issues[which].call;
    for (const Member &member : group.members) {
        const emu_wgmma_t &call = member.issues[which].call;
        if (call.type != first.type || call.n != first.n || call.is_b_mn != first.is_b_mn ||
            call.adds != first.adds || call.a_desc != first.a_desc || call.b_desc != first.b_desc ||
            (call.a_registers == nullptr) != (first.a_registers == nullptr)) {
            fail(cudaErrorLaunchFailure, "the threads of a group issue unlike wgmma");
        }
    }
}

void compute(WarpGroups::Group &group, size_t which)
{
    static Matrices m;
    check_alike(group, which);
    const emu_wgmma_t call = group.members[0].issues[which].call;
    for (int member = 0; member < group_threads; member++) {
        Member &one = group.members[member];
        const Accumulator *kept = find_accumulator(one, one.issues[which].call.d);
        for (int i = 0; i < call.n / 2; i++) {
            m.d[row_of(member, i)][column_of(member, i)] = call.adds ? kept->values[i] : 0.0f;
        }
    }
    gather_a(m, group, which);
    gather_b(m, call);
    multiply(m, depth_of(call.type), call.n);
    for (int member = 0; member < group_threads; member++) {
        Member &one = group.members[member];
        Accumulator *kept = find_accumulator(one, one.issues[which].call.d);
        for (int i = 0; i < call.n / 2; i++) {
            kept->values[i] = m.d[row_of(member, i)][column_of(member, i)];
        }
        kept->pending--;
    }
}

void give_back(Member &member)
{
    std::erase_if(member.accumulators, [](const Accumulator &one) {
        if (one.pending == 0) {
            memcpy(one.d, one.values, static_cast<size_t>(one.n) / 2 * sizeof(float));
        }
        return one.pending == 0;
    });
}

/* The last of the group has come: all but the newest commits end. */
void retire(WarpGroups::Group &group, const Thread &first)
{
    Member &leader = group.members[0];
    while (leader.commits.size() > static_cast<size_t>(group.newest)) {
        size_t count = leader.commits.front();
        for (const Member &member : group.members) {
            if (member.commits.size() != leader.commits.size() || member.commits.front() != count) {
                fail(cudaErrorLaunchFailure, "the threads of a group commit unlike wgmma");
            }
        }
        for (size_t i = 0; i < count; i++) {
            compute(group, i);
            end_reads(leader.issues[i], first);
        }
        for (Member &member : group.members) {
            member.commits.erase(member.commits.begin());
            member.issues.erase(member.issues.begin(),
                                member.issues.begin() + static_cast<ptrdiff_t>(count));
        }
    }
    for (Member &member : group.members) {
        give_back(member);
    }
}

} // namespace

void wgmma_block_ended(Block &block)
{
    if (block.groups == nullptr) {
        return;
    }
    for (const auto &group : block.groups->groups) {
        if (!group->members[0].issues.empty()) {
            note_fault(cudaErrorLaunchFailure,
                       "a block of " + block.grid->name + " ends while wgmma is on its way");
            return;
        }
    }
}

} // namespace emu

using namespace emu;

static uint64_t make_desc(const void *tile, uint32_t leading, uint32_t stride)
{
    uint32_t offset = shared_offset(tile, 16, "a wgmma descriptor");
    return (offset & 0x3ffff) >> 4 | static_cast<uint64_t>(leading >> 4) << 16 |
           static_cast<uint64_t>(stride >> 4) << 32 | UINT64_C(1) << 62;
}

uint64_t simt_wgmma_desc_k(const void *tile)
{
    return make_desc(tile, 16, 1024);
}

uint64_t simt_wgmma_desc_mn(const void *tile, uint32_t panel_bytes)
{
    return make_desc(tile, panel_bytes, 1024);
}

uint64_t simt_wgmma_desc_add(uint64_t desc, uint32_t bytes)
{
    return desc + (bytes >> 4);
}

void simt_wgmma_fence(void)
{
    my_group().members[now->linear % group_threads].is_fenced = true;
}

/* Of products for the same d and shape one behind the other only the first needs a fence, unless a is in registers. */
static void check_fence(const Member &member, const emu_wgmma_t &call)
{
    const bool is_ordered =
        call.a_registers == nullptr &&
        std::any_of(member.accumulators.begin(), member.accumulators.end(),
                    [&](const Accumulator &one) { return one.d == call.d && one.n == call.n; });
    if (!member.is_fenced && !is_ordered) {
        fail(cudaErrorLaunchFailure, "wgmma: no simt_wgmma_fence() since the thread waited last");
    }
}

void emu_wgmma(const emu_wgmma_t &call)
{
    Member &member = my_group().members[now->linear % group_threads];
    check_fence(member, call);
    Issue issue = {call, {}};
    if (call.a_registers != nullptr) {
        memcpy(issue.a, call.a_registers, sizeof(issue.a));
    }
    if (now->linear % group_threads == 0) {
        begin_reads(call);
    }
    Accumulator *kept = find_accumulator(member, call.d);
    size_t bytes = static_cast<size_t>(call.n) / 2 * sizeof(float);
    if (kept == nullptr) {
        member.accumulators.push_back({call.d, call.n, 0, {}});
        kept = &member.accumulators.back();
        memcpy(kept->values, call.d, bytes);
    }
    kept->pending++;
    memset(call.d, poison, bytes);
    member.issues.push_back(issue);
    member.uncommitted++;
}

void simt_wgmma_commit(void)
{
    Member &member = my_group().members[now->linear % group_threads];
    member.commits.push_back(member.uncommitted);
    member.uncommitted = 0;
}

void emu_wgmma_wait(int newest)
{
    WarpGroups::Group &group = my_group();
    now->waited_at = nullptr;
    if (!group.waiting.empty() && group.newest != newest) {
        fail(cudaErrorLaunchFailure, "simt_wgmma_wait<%d> meets <%d> of the same group", newest,
             group.newest);
    }
    group.newest = newest;
    group.members[now->linear % group_threads].is_fenced = false;
    if (group.waiting.size() + 1 < group_threads) {
        group.waiting.push_back(now);
        wait_here("simt_wgmma_wait");
        return;
    }
    size_t first = static_cast<size_t>(now->linear / group_threads * group_threads);
    retire(group, now_block->threads[first]);
    std::vector<Thread *> waiting = std::move(group.waiting);
    group.waiting.clear();
    for (Thread *thread : waiting) {
        make_ready(*thread);
    }
}
