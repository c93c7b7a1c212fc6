// setmaxnreg: warps give registers back to their block, and take them.
//
// How many a kernel has is nvcc's business. Here a launch has as many as its threads can have on an empty
// multiprocessor.
#include "collective.h"
#include "emulator/ptx.h"

namespace emu {

namespace {

constexpr unsigned ALL_REGISTERS = 65536, MOST_OF_A_THREAD = 255, REGISTER_UNIT = 8;

// What a warp holds, whose threads have so many each.
unsigned held(unsigned of_a_thread) {
    return (of_a_thread + REGISTER_UNIT - 1) / REGISTER_UNIT * REGISTER_UNIT * WARP;
}

// Gives warps what they wait for, as far as there is enough.
void serve(Block& block) {
    for (Warp& warp : block.warps) {
        const unsigned more = held(std::max(warp.registers, warp.registers_wanted)) - held(warp.registers);
        if (warp.registers_wanted <= warp.registers || more > block.free_registers) {
            continue;
        }
        block.free_registers -= more;
        warp.registers = warp.registers_wanted;
        for (Thread* lane : warp.lanes) {
            if (lane->wait == Wait::Registers) {
                wake(*lane);
            }
        }
    }
}

// All warps of a warpgroup must make the same changes.
void log_change(Warp& warp, const RegisterChange& change) {
    auto& log = warp.block->register_logs[warp.number / 4];
    if (log.size() == warp.register_changes) {
        log.push_back(change);
    }
    const RegisterChange& first = log[warp.register_changes++];
    if (first.count != change.count || first.increase != change.increase) {
        warp.block->machine->fail(Kind::Divergence, change.site,
                                  "setmaxnreg to %u of which warp %u's warpgroup has another, to %u", change.count,
                                  warp.number, first.count);
    }
}

void change_registers(Warp& warp, void** records, uint32_t) {
    const auto& change = *static_cast<const RegisterChange*>(records[0]);
    Block& block = *warp.block;
    for (unsigned lane = 1; lane < WARP; lane++) {
        if (static_cast<const RegisterChange*>(records[lane])->count != change.count) {
            block.machine->fail(Kind::Divergence, change.site,
                                "setmaxnreg of which lane %u has another count than lane 0", lane);
        }
    }
    log_change(warp, change);
    if (change.increase ? change.count < warp.registers : change.count > warp.registers) {
        block.machine->fail(Kind::Async, change.site, "setmaxnreg.%s from %u to %u registers",
                            change.increase ? "inc" : "dec", warp.registers, change.count);
    }
    warp.registers_wanted = change.count;
    if (!change.increase) {
        block.free_registers += held(warp.registers) - held(change.count);
        warp.registers = change.count;
    }
    serve(block);
}

}  // namespace

void start_registers(Block& block) {
    const unsigned most = ALL_REGISTERS / block.thread_count / REGISTER_UNIT * REGISTER_UNIT;
    block.free_registers = 0;
    block.register_logs.assign(block.warps.size() / 4 + 1, {});
    for (Warp& warp : block.warps) {
        warp.registers = warp.registers_wanted = std::min(MOST_OF_A_THREAD, most);
    }
}

void check_registers(Block& block) {
    for (const Warp& warp : block.warps) {
        const auto& log = block.register_logs[warp.number / 4];
        if (warp.register_changes < log.size()) {
            block.machine->fail(Kind::Divergence, log[warp.register_changes].site,
                                "a block ends without a setmaxnreg by warp %u, whose warpgroup has made it",
                                warp.number);
        }
    }
}

void set_max_registers(unsigned count, bool increase, Location here) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    check_warpgroup(self, "setmaxnreg", site);
    if (count < 24 || count > 256 || count % REGISTER_UNIT != 0) {
        self.machine->fail(Kind::Async, site, "setmaxnreg to %u registers: it is 24 to 256, in steps of 8", count);
    }
    RegisterChange change{count, increase, site};
    warp_collective(self, "setmaxnreg", FULL_MASK, &change, change_registers, here, site);
    if (self.warp->registers < self.warp->registers_wanted) {
        block_thread(self, Wait::Registers, "setmaxnreg.inc", here);
    }
    perhaps_yield(self, 4);
}

}  // namespace emu
