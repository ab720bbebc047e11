/* SPDX-License-Identifier: Apache-2.0 */
/* simt_async.h: copies that are carried out when their thread waits for them, not before. */
#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_machine.h"
#include "tests/cuda_emu/emu_shadow.h"
#include "tests/cuda_emu/emu_shared.h"

namespace emu
{

static void carry_out(const Copy &copy)
{
    uint8_t *target = static_cast<uint8_t *>(copy.shared);
    shadow_async_end(target, copy.bytes, Access::write, *now, 0);
    if (copy.valid > 0) {
        shadow_access(copy.global, copy.valid, Access::read, "simt_cp_async");
        memcpy(target, copy.global, copy.valid);
    }
    memset(target + copy.valid, 0, copy.bytes - copy.valid);
}

void async_thread_ended(Thread &thread)
{
    if (!thread.copies.empty()) {
        fail(cudaErrorLaunchFailure, "ends with %zu cp.async copies that nobody waited for",
             thread.copies.size());
    }
    if (thread.uncommitted_stores > 0 || !thread.stores.empty()) {
        fail(cudaErrorLaunchFailure, "ends with bulk stores that it did not wait for");
    }
}

/* Also what is in no group yet: for simt_cp_async_arrive. */
void async_finish_all(void)
{
    for (const Copy &copy : now->copies) {
        carry_out(copy);
    }
    now->copies.clear();
    now->groups.clear();
    now->uncommitted = 0;
}

} // namespace emu

using namespace emu;

void emu_cp_async(void *shared, const void *global, uint32_t bytes, uint32_t valid)
{
    shared_offset(shared, bytes, "simt_cp_async");
    if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 ||
        (valid > 0 && reinterpret_cast<uintptr_t>(global) % bytes != 0)) {
        fail(cudaErrorMisalignedAddress, "simt_cp_async<%u>(%p, %p): not aligned", bytes, shared,
             global);
    }
    if (valid > bytes) {
        fail(cudaErrorLaunchFailure, "simt_cp_async_zfill<%u>: %u valid bytes", bytes, valid);
    }
    shadow_async_begin(shared, bytes, Access::write, "simt_cp_async");
    memset(shared, poison, bytes);
    now->copies.push_back({shared, global, bytes, valid});
    now->uncommitted++;
}

void simt_cp_async_commit(void)
{
    now->groups.push_back(now->uncommitted);
    now->uncommitted = 0;
}

void emu_cp_async_wait(int newest)
{
    while (now->groups.size() > static_cast<size_t>(newest)) {
        size_t count = now->groups.front();
        now->groups.erase(now->groups.begin());
        for (size_t i = 0; i < count; i++) {
            carry_out(now->copies[i]);
        }
        now->copies.erase(now->copies.begin(), now->copies.begin() + static_cast<ptrdiff_t>(count));
    }
}
