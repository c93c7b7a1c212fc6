// Failures: recorded where they happen, put into words when the launch has ended.
#include "fibre.h"
#include "machine.h"

namespace emu {

namespace {

uint3 block_index(const Machine& machine, uint32_t block) {
    const dim3& grid = machine.grid_dim;
    return {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
}

const char* policy_name(Policy policy) {
    switch (policy) {
        case Policy::RoundRobin:
            return "RoundRobin";
        case Policy::Random:
            return "Random";
        default:
            return "Priorities";
    }
}

}  // namespace

Name name_of(const Block& block) {
    return Name("block (%u,%u,%u)", block.index.x, block.index.y, block.index.z);
}

Name name_of(const Machine& machine, uint32_t block, uint32_t agent) {
    const uint3 index = block_index(machine, block);
    const Text<48> in_block("block (%u,%u,%u)", index.x, index.y, index.z);
    if (agent < TMA_AGENTS) {
        return Name("%s the TMA engine", in_block.text);
    }
    if (agent >= STORE_READERS && agent < ENGINES) {
        return Name("%s a store of the TMA engine", in_block.text);
    }
    if (agent >= FIRST_COPY_AGENT && agent < STORE_READERS) {
        return Name("%s the copies that an mbarrier waits for", in_block.text);
    }
    if (agent < ENGINES) {
        return Name("%s wgmma of warp %u", in_block.text, agent - TMA_AGENTS);
    }
    const unsigned thread = agent - ENGINES;
    return Name("%s thread %u (warp %u lane %u)", in_block.text, thread, thread / WARP, thread % WARP);
}

void Machine::add_note(const char* text, Site site) {
    Note& note = failure.notes[failure.note_count++];
    snprintf(note.text, sizeof note.text, "%s", text);
    note.site = site;
}

void Machine::record(Kind kind, const char* by, Site site, const char* format, va_list arguments) {
    if (failed) {
        return;
    }
    failed = true;
    failure.kind = kind;
    vsnprintf(failure.summary, sizeof failure.summary, format, arguments);
    add_note(Text<200>("by %s", by), site);
}

void Machine::abandon() {
    if (!running) {
        throw Abandoned{};
    }
    running->warp->ready = 0;
    leave(*running);  // to the scheduler, which does not come back
    __builtin_unreachable();
}

void Machine::fail(Kind kind, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (running) {
        record(kind, name_of(*this, running->agent.block, running->agent.index), site, format, arguments);
    } else {
        record(kind, "an asynchronous engine", site, format, arguments);
    }
    va_end(arguments);
    abandon();
}

void Machine::fail_by(uint32_t block, uint32_t agent, Kind kind, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record(kind, name_of(*this, block, agent), site, format, arguments);
    va_end(arguments);
    abandon();
}

void Machine::fail_race(const Agent& who, const char* access, Site site, const Conflict& conflict, const char* place) {
    const char* earlier = conflict.earlier == AccessKind::Read    ? "read"
                          : conflict.earlier == AccessKind::Write ? "write"
                                                                  : "atomic access";
    if (!failed) {
        add_note(Text<200>("%s by %s", access, name_of(*this, who.block, who.index).text), site);
        add_note(Text<200>("%s by %s", earlier, name_of(*this, conflict.by.block, conflict.by.agent).text),
                 conflict.by.site);
        failed = true;
        failure.kind = Kind::Race;
        snprintf(failure.summary, sizeof failure.summary, "%s of %s is not ordered after the %s by %s", access, place,
                 earlier, who.block == conflict.by.block ? "another thread of the block" : "another block");
    }
    fail(Kind::Race, site, "%s", place);
}

std::string Machine::failure_text() const {
    std::string text = failure.summary;
    for (unsigned i = 0; i < failure.note_count; i++) {
        const Note& note = failure.notes[i];
        text += "\n  ";
        text += note.text;
        if (note.site != 0) {
            text += ", at " + describe_site(note.site);
        }
    }
    char launch[300];
    snprintf(launch, sizeof launch,
             "\n  in kernel `%s`, grid (%u,%u,%u), block (%u,%u,%u), %u bytes dynamic shared memory", kernel->name,
             grid_dim.x, grid_dim.y, grid_dim.z, block_dim.x, block_dim.y, block_dim.z, dynamic_bytes);
    text += launch;
    if (cluster_size > 1) {
        text += ", clusters of " + std::to_string(cluster_size) + " blocks";
    }
    snprintf(launch, sizeof launch, "\n  under schedule seed %llu, policy %s, %u blocks resident",
             static_cast<unsigned long long>(seed), policy_name(policy), resident);
    text += launch;
    if (failure.kind == Kind::Deadlock || failure.kind == Kind::Livelock) {
        // A kernel must not rely on more blocks than fit.
        snprintf(launch, sizeof launch, ", %u of %u blocks started", blocks_started,
                 grid_dim.x * grid_dim.y * grid_dim.z);
        text += launch;
    }
    return text;
}

namespace {

std::string place(Location at) {
    return std::string(at.file) + ":" + std::to_string(at.line);
}

// What a thread waits for, and how far that is.
std::string waiting(const Thread& thread) {
    std::string text = std::string(thread.waits_in) + " at " + place(thread.waits_at);
    char detail[200] = "";
    if (thread.wait == Wait::Barrier) {
        const Barrier& barrier = thread.block->barriers[thread.waits_barrier];
        snprintf(detail, sizeof detail, ": %u of %u threads arrived", barrier.arrived, barrier.expected);
    } else if (thread.wait == Wait::Collective) {
        for (unsigned i = 0; i < thread.warp->collective_count; i++) {
            const Collective& open = thread.warp->collectives[i];
            if (open.mask >> thread.lane & 1) {
                snprintf(detail, sizeof detail, ": lanes 0x%x of mask 0x%x arrived", open.arrived, open.mask);
            }
        }
    } else if (thread.wait == Wait::Mbarrier) {
        return text + describe_mbarrier(*thread.block, thread.waits_mbarrier, thread.waits_parity);
    } else if (thread.wait == Wait::Cluster) {
        const Cluster& cluster = *thread.block->cluster;
        snprintf(detail, sizeof detail, ": %u threads of the cluster arrived, %u did not", cluster.arrived,
                 cluster.missing);
    } else if (thread.wait == Wait::Registers) {
        snprintf(detail, sizeof detail,
                 " from %u to %u registers: the block's warps have given %u that nobody has taken",
                 thread.warp->registers, thread.warp->registers_wanted, thread.block->free_registers);
    }
    return text + detail;
}

// "0-31,64": sorted numbers as ranges.
std::string ranges(const std::vector<unsigned>& numbers) {
    std::string text;
    for (size_t i = 0; i < numbers.size();) {
        size_t last = i;
        while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) {
            last++;
        }
        text += (i > 0 ? "," : "") + std::to_string(numbers[i]);
        if (last > i) {
            text += "-" + std::to_string(numbers[last]);
        }
        i = last + 1;
    }
    return text;
}

}  // namespace

std::string Machine::deadlock_text() const {
    std::string text = "no thread can go on";
    for (unsigned slot = 0; slot < slots_used; slot++) {
        const Block& block = *slots[slot];
        if (has_ended(*block.cluster)) {
            continue;
        }
        std::map<std::string, std::vector<unsigned>> groups;
        for (const Thread* thread : block.threads) {
            groups[thread->wait == Wait::Exited ? "" : waiting(*thread)].push_back(thread->number);
        }
        for (const auto& group : groups) {
            text += std::string("\n  ") + name_of(block).text;
            text += (group.second.size() == 1 ? " thread " : " threads ") + ranges(group.second);
            text += group.first.empty()
                        ? std::string(group.second.size() == 1 ? " has ended" : " have ended")
                        : std::string(group.second.size() == 1 ? " waits" : " wait") + " in " + group.first;
        }
    }
    const std::string rest = failure_text();
    return text + rest.substr(rest.find('\n'));
}

}  // namespace emu
