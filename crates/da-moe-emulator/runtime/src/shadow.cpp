#include "shadow.h"

namespace emu {

// ---- sets of accesses

namespace {

constexpr uint32_t LANES = 32;
// Agents in front of the first, so that the threads of a warp are one group.
constexpr uint32_t GROUP_OFFSET = (LANES - ENGINES % LANES) % LANES;

}  // namespace

void AccessSet::insert(const Agent& who, Site site) {
    const uint32_t group = (who.index + GROUP_OFFSET) / LANES;
    const uint32_t lane = 1u << (who.index + GROUP_OFFSET) % LANES;
    if (entries.empty()) {
        block = who.block;
        barriers = 0;
        single_block = true;
    }
    single_block = single_block && block == who.block;
    barriers = std::max(barriers, who.barriers);
    Entry* alike = nullptr;
    Entry* left = nullptr;
    for (Entry& entry : entries) {
        if (entry.group != group || entry.block != who.block) {
            continue;
        }
        if (entry.clock == who.clock && entry.site == site) {
            alike = &entry;
        } else if ((entry.lanes & lane) != 0) {
            entry.lanes &= ~lane;  // this agent's access before this one
            left = entry.lanes == 0 ? &entry : nullptr;
        }
    }
    if (alike) {
        alike->lanes |= lane;
        if (left) {
            *left = entries.back();
            entries.pop_back();
        }
    } else if (left) {
        *left = {who.block, group, who.clock, site, lane};
    } else {
        entries.push_back({who.block, group, who.clock, site, lane});
    }
}

bool AccessSet::unordered(const Agent& who, Epoch& by) const {
    if (all_before_barrier_of(who)) {
        return false;
    }
    for (const Entry& entry : entries) {
        for (uint32_t lanes = entry.lanes; lanes != 0; lanes &= lanes - 1) {
            const uint32_t agent = entry.group * LANES + static_cast<uint32_t>(__builtin_ctz(lanes)) - GROUP_OFFSET;
            if (!who.ordered(entry.block, agent, entry.clock)) {
                by = {entry.clock, entry.block, agent, entry.site};
                return true;
            }
        }
    }
    return false;
}

// ---- pools

void ShadowPool::reset() {
    used_sets = 0;
    used_splits = 0;
    free_sets.clear();
    free_splits.clear();
}

uint32_t ShadowPool::take_set() {
    if (!free_sets.empty()) {
        const uint32_t number = free_sets.back();
        free_sets.pop_back();
        return number;
    }
    if (used_sets == sets.size()) {
        sets.emplace_back();
    }
    sets[used_sets].clear();
    return static_cast<uint32_t>(++used_sets);
}

void ShadowPool::give_set(uint32_t number) {
    if (number != 0) {
        set(number).clear();
        free_sets.push_back(number);
    }
}

uint32_t ShadowPool::copy_set(uint32_t number) {
    if (number == 0) {
        return 0;
    }
    const uint32_t copy = take_set();
    set(copy) = set(number);
    return copy;
}

uint32_t ShadowPool::split(const Cell& cell) {
    uint32_t number;
    if (!free_splits.empty()) {
        number = free_splits.back();
        free_splits.pop_back();
    } else {
        if (used_splits == splits.size()) {
            splits.emplace_back();
        }
        number = static_cast<uint32_t>(++used_splits);
    }
    for (size_t i = 0; i < 4; i++) {
        Cell copy = cell;
        if (i > 0) {
            copy.readers = copy_set(cell.readers);
            copy.atomics = copy_set(cell.atomics);
        }
        bytes(number)[i] = copy;
    }
    return number;
}

void ShadowPool::join(uint32_t number) {
    for (Cell& cell : bytes(number)) {
        give_set(cell.readers);
        give_set(cell.atomics);
    }
    free_splits.push_back(number);
}

// ---- the check of one cell

namespace {

bool ordered(const Agent& who, const Epoch& earlier) {
    return earlier.clock == 0 || who.ordered(earlier.block, earlier.agent, earlier.clock);
}

bool conflicts(Conflict& conflict, AccessKind earlier, const Epoch& by) {
    conflict.earlier = earlier;
    conflict.by = by;
    return false;
}

bool read(ShadowPool& pool, Cell& cell, const Agent& who, Site site, Conflict& conflict) {
    if (!ordered(who, cell.write)) {
        return conflicts(conflict, AccessKind::Write, cell.write);
    }
    if (cell.atomics != 0) {
        if (Epoch by; pool.set(cell.atomics).unordered(who, by)) {
            return conflicts(conflict, AccessKind::Atomic, by);
        }
    }
    if (cell.readers != 0) {
        AccessSet& readers = pool.set(cell.readers);
        if (!readers.all_before_barrier_of(who)) {
            readers.insert(who, site);
            return true;
        }
        pool.give_set(cell.readers);
        cell.readers = 0;
    } else if (!ordered(who, cell.read)) {
        // Two readers that know nothing of each other: a later write has to come after both.
        cell.readers = pool.take_set();
        AccessSet& readers = pool.set(cell.readers);
        Agent first;
        first.block = cell.read.block;
        first.index = cell.read.agent;
        first.clock = cell.read.clock;
        // How many barriers the first had passed is forgotten; the second's count is right for its block's threads,
        // since no barrier of the whole block can lie between accesses that are unordered.
        first.barriers = first.index < ENGINES ? Agent::NO_BARRIERS : who.barriers;
        readers.insert(first, cell.read.site);
        readers.insert(who, site);
        return true;
    }
    cell.read = {who.clock, who.block, who.index, site};
    return true;
}

// The last reader, or set of readers, must be ordered before who writes.
bool after_readers(ShadowPool& pool, Cell& cell, const Agent& who, Conflict& conflict) {
    if (cell.readers != 0) {
        if (Epoch by; pool.set(cell.readers).unordered(who, by)) {
            return conflicts(conflict, AccessKind::Read, by);
        }
        pool.give_set(cell.readers);
        cell.readers = 0;
    } else if (!ordered(who, cell.read)) {
        return conflicts(conflict, AccessKind::Read, cell.read);
    }
    cell.read.clock = 0;
    return true;
}

bool write(ShadowPool& pool, Cell& cell, const Agent& who, Site site, Conflict& conflict) {
    if (!ordered(who, cell.write)) {
        return conflicts(conflict, AccessKind::Write, cell.write);
    }
    if (cell.atomics != 0) {
        if (Epoch by; pool.set(cell.atomics).unordered(who, by)) {
            return conflicts(conflict, AccessKind::Atomic, by);
        }
        pool.give_set(cell.atomics);
        cell.atomics = 0;
    }
    if (!after_readers(pool, cell, who, conflict)) {
        return false;
    }
    cell.write = {who.clock, who.block, who.index, site};
    return true;
}

// Atomics do not race with each other. Every one is remembered, so that a plain access has to come after all of them,
// whichever the schedule ran last.
bool atomic(ShadowPool& pool, Cell& cell, const Agent& who, Site site, Conflict& conflict) {
    if (!ordered(who, cell.write)) {
        return conflicts(conflict, AccessKind::Write, cell.write);
    }
    if (!after_readers(pool, cell, who, conflict)) {
        return false;
    }
    if (cell.atomics == 0) {
        cell.atomics = pool.take_set();
    }
    pool.set(cell.atomics).insert(who, site);
    return true;
}

bool check(ShadowPool& pool, Cell& cell, const Agent& who, AccessKind kind, Site site, Conflict& conflict) {
    switch (kind) {
        case AccessKind::Read:
            return read(pool, cell, who, site, conflict);
        case AccessKind::Write:
            return write(pool, cell, who, site, conflict);
        default:
            return atomic(pool, cell, who, site, conflict);
    }
}

}  // namespace

void Shadow::spread(uint32_t generation, uint32_t page) {
    constexpr uint32_t count = SHADOW_PAGE / 4;
    Cell cell;
    cell.generation = generation;
    cell.write = pages[page].write;
    const size_t first = size_t{page} * count;
    std::fill_n(cells.begin() + static_cast<long>(first), std::min<size_t>(count, cells.size() - first), cell);
    pages[page].generation = 0;
}

bool Shadow::write_page(ShadowPool& pool, uint32_t generation, uint32_t offset, const Agent& who, Site site,
                        Conflict& conflict) {
    Page& page = pages[offset / SHADOW_PAGE];
    if (page.generation != generation) {
        if (!access_cells(pool, generation, offset, SHADOW_PAGE, who, AccessKind::Write, site, conflict)) {
            return false;
        }
    } else if (!ordered(who, page.write)) {
        conflict.offset = offset;
        return conflicts(conflict, AccessKind::Write, page.write);
    }
    page = {generation, {who.clock, who.block, who.index, site}};
    return true;
}

bool Shadow::access(ShadowPool& pool, uint32_t generation, uint32_t offset, uint32_t bytes, const Agent& who,
                    AccessKind kind, Site site, Conflict& conflict) {
    if (pages.empty()) {
        return access_cells(pool, generation, offset, bytes, who, kind, site, conflict);
    }
    if (bytes < SHADOW_PAGE && offset % SHADOW_PAGE + bytes <= SHADOW_PAGE && !is_whole(generation, offset)) {
        return access_cells(pool, generation, offset, bytes, who, kind, site, conflict);
    }
    const uint32_t end = offset + bytes;
    while (offset < end) {
        const uint32_t next = std::min(end, (offset / SHADOW_PAGE + 1) * SHADOW_PAGE);
        const bool whole = kind == AccessKind::Write && next - offset == SHADOW_PAGE;
        if (!whole && is_whole(generation, offset)) {
            spread(generation, offset / SHADOW_PAGE);
        }
        if (!(whole ? write_page(pool, generation, offset, who, site, conflict)
                    : access_cells(pool, generation, offset, next - offset, who, kind, site, conflict))) {
            return false;
        }
        offset = next;
    }
    return true;
}

bool Shadow::access_cells(ShadowPool& pool, uint32_t generation, uint32_t offset, uint32_t bytes, const Agent& who,
                          AccessKind kind, Site site, Conflict& conflict) {
    if (bytes == 4 && offset % 4 == 0) {
        Cell& cell = cells[offset / 4];
        if (cell.generation == generation && cell.bytes == 0) {
            conflict.offset = offset;
            return check(pool, cell, who, kind, site, conflict);
        }
    }
    const uint32_t end = offset + bytes;
    while (offset < end) {
        Cell& cell = cells[offset / 4];
        if (cell.generation != generation) {
            cell = Cell{};
            cell.generation = generation;
        }
        const uint32_t first = offset % 4;
        const uint32_t last = std::min(4u, first + end - offset);
        const bool whole = last - first == 4;
        conflict.offset = offset;
        if (cell.bytes == 0 && whole) {
            if (!check(pool, cell, who, kind, site, conflict)) {
                return false;
            }
        } else {
            if (cell.bytes == 0) {
                const uint32_t number = pool.split(cell);
                cell.bytes = number;
                cell.readers = 0;
                cell.atomics = 0;
            }
            for (uint32_t i = first; i < last; i++) {
                conflict.offset = offset + i - first;
                if (!check(pool, pool.bytes(cell.bytes)[i], who, kind, site, conflict)) {
                    return false;
                }
            }
            if (whole && kind == AccessKind::Write) {
                // All four bytes have one writer and no readers again.
                pool.join(cell.bytes);
                cell = Cell{};
                cell.generation = generation;
                cell.write = {who.clock, who.block, who.index, site};
            }
        }
        offset += last - first;
    }
    return true;
}

Epoch Shadow::last_write(ShadowPool& pool, uint32_t generation, uint32_t offset) const {
    if (is_whole(generation, offset)) {
        return pages[offset / SHADOW_PAGE].write;
    }
    const Cell& cell = cells[offset / 4];
    if (cell.generation != generation) {
        return {};
    }
    return cell.bytes == 0 ? cell.write : pool.bytes(cell.bytes)[offset % 4].write;
}

bool Shadow::one_write(uint32_t generation, uint32_t offset, uint32_t bytes, Epoch& write) const {
    if (is_whole(generation, offset) && offset % SHADOW_PAGE + bytes <= SHADOW_PAGE) {
        write = pages[offset / SHADOW_PAGE].write;
        return true;
    }
    const Cell* cell = &cells[offset / 4];
    write = cell->write;
    for (const Cell* end = cell + bytes / 4; cell != end; cell++) {
        if (cell->generation != generation || (cell->bytes | cell->atomics) != 0 || !cell->write.same(write)) {
            return false;
        }
    }
    return true;
}

bool Shadow::unordered_atomics(ShadowPool& pool, uint32_t generation, uint32_t offset, const Agent& who,
                               Epoch& by) const {
    if (is_whole(generation, offset)) {
        return false;
    }
    const Cell* cell = &cells[offset / 4];
    if (cell->generation == generation && cell->bytes != 0) {
        cell = &pool.bytes(cell->bytes)[offset % 4];
    }
    return cell->generation == generation && cell->atomics != 0 && pool.set(cell->atomics).unordered(who, by);
}

}  // namespace emu
