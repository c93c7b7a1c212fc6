// Barriers of a block: __syncthreads and the sixteen named ones.
#include "machine.h"
#include "emulator/ptx.h"

namespace emu {

namespace {

// After a barrier of the whole block every thread knows every thread's accesses. That is each thread's own clock, so
// the threads' knowledge need not be joined one by one.
void join_whole_block(Block& block) {
    Ref<Clocks> merged(new Clocks(block.agents));
    Knowledge known{merged, {}};
    const Clocks* last_clocks = nullptr;
    for (Thread* thread : block.threads) {
        Agent& agent = thread->agent;
        if (&*agent.known.own != last_clocks) {
            last_clocks = &*agent.known.own;
            for (uint32_t i = 0; i < ENGINES; i++) {
                merged->at[i] = std::max(merged->at[i], last_clocks->at[i]);
            }
        }
        known.join({{}, agent.known.foreign});
        merged->at[agent.index] = agent.clock;
    }
    block.barriers_passed++;
    for (Thread* thread : block.threads) {
        Agent& agent = thread->agent;
        agent.known = known;
        agent.clock++;
        agent.barriers = block.barriers_passed;
    }
}

// A barrier of some of the threads: those that wait learn what all that arrived knew.
void gather(Thread& self, Barrier& barrier) {
    barrier.gathered.join(self.agent.release().told());
}

int vote_result(BarrierVote vote, unsigned true_votes, unsigned threads) {
    switch (vote) {
        case BarrierVote::Or:
            return true_votes > 0;
        case BarrierVote::And:
            return true_votes == threads;
        case BarrierVote::Count:
            return static_cast<int>(true_votes);
        default:
            return 0;
    }
}

void complete(Thread& self, unsigned id, int result, bool wait) {
    Block& block = *self.block;
    Barrier& barrier = block.barriers[id];
    self.machine->progress();
    if (barrier.whole_block) {
        join_whole_block(block);
        for (Warp& warp : block.warps) {
            warp.traffic.close(self.machine->traffic);
        }
    }
    for (Thread* thread : block.threads) {
        const bool waits = thread->wait == Wait::Barrier && thread->waits_barrier == id;
        if (!waits && !(thread == &self && wait)) {
            continue;
        }
        if (!barrier.whole_block) {
            thread->agent.known.join(barrier.gathered);
        }
        thread->barrier_result = result;
        if (waits) {
            wake(*thread);
        }
    }
    barrier = {};
}

const char* barrier_name(BarrierVote vote) {
    switch (vote) {
        case BarrierVote::Or:
            return "__syncthreads_or";
        case BarrierVote::And:
            return "__syncthreads_and";
        case BarrierVote::Count:
            return "__syncthreads_count";
        default:
            return "__syncthreads";
    }
}

}  // namespace

int block_barrier(BarrierVote vote, int predicate, Location here) {
    Thread& self = current();
    Block& block = *self.block;
    Machine& machine = *self.machine;
    const Site site = site_of(__builtin_return_address(0));
    Barrier& barrier = block.barriers[0];
    const char* name = barrier_name(vote);
    if (barrier.arrived > 0) {
        if (!barrier.whole_block) {
            machine.fail(Kind::Divergence, site, "%s while other threads use barrier 0 at %s:%d", name, barrier.at.file,
                         barrier.at.line);
        }
        // CUDA: in conditional code only if the whole block takes the same branch.
        if (barrier.at.line != here.line || !same_text(barrier.at.file, here.file)) {
            machine.fail(Kind::Divergence, site, "%s at line %d while %u threads of the block wait in one at %s:%d",
                         name, here.line, barrier.arrived, barrier.at.file, barrier.at.line);
        }
    }
    if (block.exited > 0) {
        machine.fail(Kind::Divergence, site, "%s after %u threads of the block have ended", name, block.exited);
    }
    for (unsigned i = 0; i < self.warp->collective_count; i++) {
        const Collective& open = self.warp->collectives[i];
        if (open.mask >> self.lane & 1) {
            machine.fail(Kind::Divergence, site, "%s while lanes 0x%x of the warp wait for this one in %s at %s:%d",
                         name, open.arrived, open.name, open.at.file, open.at.line);
        }
    }
    barrier.whole_block = true;
    barrier.at = here;
    barrier.expected = block.thread_count;
    barrier.true_votes += predicate != 0;
    self.waits_barrier = 0;
    if (++barrier.arrived < block.thread_count) {
        block_thread(self, Wait::Barrier, name, here);
        return self.barrier_result;
    }
    complete(self, 0, vote_result(vote, barrier.true_votes, block.thread_count), true);
    if (machine.policy != Policy::RoundRobin) {
        leave(self);  // the last to arrive is not always the first to go on
    }
    return self.barrier_result;
}

void named_barrier(unsigned id, unsigned threads, bool wait, Location here) {
    Thread& self = current();
    Block& block = *self.block;
    Machine& machine = *self.machine;
    const Site site = site_of(__builtin_return_address(0));
    if (id >= NAMED_BARRIERS || threads == 0 || threads % WARP != 0 || threads > block.thread_count) {
        machine.fail(Kind::Async, site,
                     "barrier %u of %u threads: numbers are 0 to 15, counts multiples of 32 up to the block", id,
                     threads);
    }
    Barrier& barrier = block.barriers[id];
    if (barrier.arrived > 0 && (barrier.expected != threads || barrier.whole_block)) {
        machine.fail(Kind::Async, site, "barrier %u used with %u threads and with %u at %s:%d", id, threads,
                     barrier.expected, barrier.at.file, barrier.at.line);
    }
    uint32_t& lanes = barrier.arrived_lanes[self.warp->number];
    if (lanes >> self.lane & 1) {
        machine.fail(Kind::Async, site, "a thread arrives at barrier %u again before the others have come", id);
    }
    lanes |= 1u << self.lane;
    barrier.at = here;
    barrier.expected = threads;
    self.waits_barrier = id;
    gather(self, barrier);
    if (++barrier.arrived < threads) {
        if (wait) {
            block_thread(self, Wait::Barrier, "bar.sync", here);
        }
        return;
    }
    complete(self, id, 0, wait);
    perhaps_yield(self, 2);
}

}  // namespace emu
