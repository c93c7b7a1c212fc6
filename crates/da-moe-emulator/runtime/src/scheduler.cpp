// Which thread runs next. A warp runs its lanes in turn until none can go on; then the policy picks another warp.
#include "fibre.h"
#include "machine.h"

namespace emu {

namespace {

// The next lane of the warp that can run. Random policies rotate the choice, so that no order of lanes can be relied
// on.
int pick_lane(Warp& warp, int after) {
    if (warp.ready == 0) {
        return -1;
    }
    Machine& machine = *warp.block->machine;
    if (machine.policy == Policy::RoundRobin) {
        const uint32_t higher = after < 31 ? warp.ready & (~0u << (after + 1)) : 0;
        return __builtin_ctz(higher != 0 ? higher : warp.ready);
    }
    const unsigned turn = machine.random.below(WARP);
    const uint32_t turned = warp.ready >> turn | (turn != 0 ? warp.ready << (WARP - turn) : 0);
    return static_cast<int>((static_cast<unsigned>(__builtin_ctz(turned)) + turn) % WARP);
}

void resume(Thread& self) {
    self.machine->running = &self;
    self.slice = self.machine->random_slice();
    self.budget = self.slice;
}

}  // namespace

unsigned Machine::random_slice() {
    return policy == Policy::RoundRobin ? 4096 : 256 + random.below(4096);
}

void enqueue(Warp& warp) {
    if (!warp.queued) {
        warp.queued = true;
        warp.block->machine->ready.push_back(&warp);
    }
}

void wake(Thread& thread) {
    thread.wait = Wait::Nothing;
    thread.warp->ready |= 1u << thread.lane;
    enqueue(*thread.warp);
}

void leave(Thread& self) {
    Machine& machine = *self.machine;
    Warp& warp = *self.warp;
    // Now and then the warp gives way although lanes of it could go on.
    const bool give_way = machine.policy != Policy::RoundRobin && machine.random.one_in(8);
    const int lane = give_way || machine.failed ? -1 : pick_lane(warp, static_cast<int>(self.lane));
    if (lane < 0) {
        machine.running = nullptr;
        emulator_switch(&self.stack_pointer, machine.scheduler_stack);
    } else if (warp.lanes[lane] != &self) {
        emulator_switch(&self.stack_pointer, warp.lanes[lane]->stack_pointer);
    }
    resume(self);
}

void block_thread(Thread& self, Wait wait, const char* name, Location at) {
    self.wait = wait;
    self.waits_in = name;
    self.waits_at = at;
    self.warp->ready &= ~(1u << self.lane);
    leave(self);
}

void yield(Thread& self) {
    self.warp->ready &= ~(1u << self.lane);
    self.warp->yielded |= 1u << self.lane;
    leave(self);
}

void poll(Thread& self, unsigned accesses, Site site) {
    Machine& machine = *self.machine;
    constexpr uint64_t patience = 16 << 20;
    machine.idle += accesses;
    if (machine.idle > patience) {
        machine.fail(Kind::Livelock, site,
                     "%llu memory accesses without a write, a barrier passed or a thread that ended",
                     static_cast<unsigned long long>(machine.idle));
    }
    if (machine.policy == Policy::Priorities) {
        self.warp->priority = machine.random.next() >> 24;  // or the warps it waits for might never run
    }
    yield(self);
}

void perhaps_yield(Thread& self, unsigned one_in) {
    if (self.machine->policy != Policy::RoundRobin && self.machine->random.one_in(one_in)) {
        yield(self);
    }
}

void Machine::run_warp(Warp& warp) {
    int lane = -1;
    while (warp.ready != 0 && !failed) {
        lane = pick_lane(warp, lane);
        emulator_switch(&scheduler_stack, warp.lanes[lane]->stack_pointer);
        if (policy != Policy::RoundRobin && random.one_in(4)) {
            break;
        }
    }
    warp.ready |= warp.yielded;
    warp.yielded = 0;
    if (warp.ready != 0) {
        enqueue(warp);
    }
}

Warp* Machine::pick_warp() {
    size_t chosen = 0;
    if (policy == Policy::Random) {
        chosen = random.below(static_cast<unsigned>(ready.size()));
    } else if (policy == Policy::Priorities) {
        // Strict priorities find bugs of ordering that fair schedules hide; a change now and then finds the rest.
        for (size_t i = 1; i < ready.size(); i++) {
            if (ready[i]->priority > ready[chosen]->priority) {
                chosen = i;
            }
        }
        if (random.one_in(64)) {
            ready[chosen]->priority = random.next() >> 20;
        }
    }
    Warp* warp = ready[chosen];
    ready.erase(ready.begin() + static_cast<long>(chosen));
    warp->queued = false;
    return warp;
}

// Completions of asynchronous copies are scheduled like threads.
bool Machine::run_engine() {
    unsigned pending = 0;
    for (unsigned i = 0; i < slots_used; i++) {
        const Block& block = *slots[i];
        pending += static_cast<unsigned>(block.tma.size() + block.copy_arrivals.size() + block.stores.size());
    }
    const unsigned rarity = policy == Policy::Random ? 4 : 16;
    const bool due = ready.empty() || (policy != Policy::RoundRobin && random.one_in(rarity));
    if (pending == 0 || !due) {
        return false;
    }
    size_t chosen = policy == Policy::RoundRobin ? 0 : random.below(pending);
    for (unsigned i = 0; i < slots_used; i++) {
        Block& block = *slots[i];
        const size_t loads = block.tma.size(), arrivals = block.copy_arrivals.size(), stores = block.stores.size();
        if (chosen < loads) {
            run_tma(block, chosen);
            break;
        }
        chosen -= loads;
        if (chosen < arrivals) {
            run_copy_arrival(block, chosen);
            break;
        }
        chosen -= arrivals;
        if (chosen < stores) {
            run_store(block, chosen);
            break;
        }
        chosen -= stores;
    }
    return true;
}

}  // namespace emu
