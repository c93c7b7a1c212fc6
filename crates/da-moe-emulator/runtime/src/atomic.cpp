// Atomics and fences. A release is a fence followed by an atomic, an acquire an atomic followed by a fence.
//
// An atomic on shared memory goes with a fence of any scope, one on global memory with __threadfence(). An atomic
// without fences moves a value and orders nothing.
#include "emulator/atomics.h"
#include "machine.h"

namespace emu {

namespace {

// What the location's releases have told so far goes to the thread; what the thread's last fence released is added.
void exchange_knowledge(Thread& self, Published& published, uintptr_t address, const Moment& fence,
                        Ref<Foreign>& heard) {
    const auto told = published.find(address);
    if (told != published.end()) {
        if (!heard) {
            heard = told->second;
        } else if (!(heard == told->second)) {
            heard.unique().join(*told->second, Agent::NO_BARRIERS);
        }
    }
    if (fence.clock == 0) {
        return;
    }
    Ref<Foreign>& all = published[address];
    if (!all) {
        all = Ref<Foreign>(new Foreign);
    }
    all.unique().join(fence.told(), self.agent.block);
}

// A fence makes known what atomics before it have told.
void learn(Thread& self, Ref<Foreign>& heard) {
    if (!heard) {
        return;
    }
    self.agent.known.join(*heard, self.agent.block);
    heard = {};
}

}  // namespace

void atomic_access(const void* target, size_t bytes, const void* return_address) {
    Thread& self = current();
    Machine& machine = *self.machine;
    const Site site = site_of(return_address);
    if (--self.budget == 0 || (machine.policy != Policy::RoundRobin && machine.random.one_in(8))) {
        poll(self, 8 * POLL_COST, site);
    }
    const auto address = reinterpret_cast<uintptr_t>(target);
    if (address % bytes != 0) {
        machine.fail(Kind::Misaligned, site,
                     "atomic access of %zu bytes at an address that is %zu bytes past alignment", bytes,
                     address % bytes);
    }
    const Access access{self.agent, AccessKind::Atomic, "atomic access", site, false};
    const uint32_t offset = self.block->shared.offset_of(address);
    if (offset < SHARED_ARENA) {
        access_shared(*self.block, offset, static_cast<uint32_t>(bytes), access);
        exchange_knowledge(self, self.block->published, address, self.fence_block, self.heard_shared);
    } else {
        access_global(machine, address, bytes, access);
        count_global(self, site, address, bytes, AccessKind::Atomic);
        exchange_knowledge(self, machine.published, address, self.fence_device, self.heard_global);
    }
}

void atomic_done(bool changed) {
    if (changed) {
        current().machine->progress();
    }
}

void fence(FenceScope scope) {
    Thread& self = current();
    learn(self, self.heard_shared);
    if (scope == FenceScope::Device) {
        learn(self, self.heard_global);
    }
    self.fence_block = self.agent.release();
    if (scope == FenceScope::Device) {
        self.fence_device = self.fence_block;
    }
}

void nanosleep() {
    poll(current(), POLL_COST, site_of(__builtin_return_address(0)));
}

void trap() {
    current().machine->fail(Kind::Launch, site_of(__builtin_return_address(0)), "__trap()");
}

}  // namespace emu
