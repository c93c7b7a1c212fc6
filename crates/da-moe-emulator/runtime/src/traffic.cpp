#include "traffic.h"

#include <algorithm>

namespace emu {

namespace {

constexpr unsigned BANKS = 32;
constexpr uintptr_t BANK_BYTES = 4, SECTOR_BYTES = 32;
// Most that a lane moves with one instruction.
constexpr size_t LANE_BYTES = 16;

// Different values, few enough to be compared with each.
class Distinct {
public:
    void insert(uintptr_t value) {
        if (std::find(values, values + count, value) == values + count) {
            values[count++] = value;
        }
    }
    unsigned size() const {
        return count;
    }

private:
    uintptr_t values[2 * WARP];
    unsigned count = 0;
};

// The most different words that lanes [first, end) want of one bank; all of them may have the same word at once.
uint64_t words_of_a_bank(const WarpAccess& access, unsigned first, unsigned end) {
    uint64_t most = 0;
    uint32_t looked_at = 0;
    for (unsigned lane = first; lane < end; lane++) {
        if (!(access.lanes >> lane & 1)) {
            continue;
        }
        const uintptr_t last = (access.at[lane] + access.bytes - 1) / BANK_BYTES;
        for (uintptr_t word = access.at[lane] / BANK_BYTES; word <= last; word++) {
            const uintptr_t bank = word % BANKS;
            if (looked_at >> bank & 1) {
                continue;
            }
            looked_at |= 1u << bank;
            Distinct words;
            for (unsigned other = lane; other < end; other++) {
                if (access.lanes >> other & 1) {
                    const uintptr_t from = access.at[other] / BANK_BYTES;
                    const uintptr_t to = (access.at[other] + access.bytes - 1) / BANK_BYTES;
                    // A lane has at most one word of a bank: its bytes are less than those of all banks.
                    const uintptr_t here = from + (bank - from) % BANKS;
                    if (here <= to) {
                        words.insert(here);
                    }
                }
            }
            most = std::max<uint64_t>(most, words.size());
        }
    }
    return most;
}

uint64_t sectors(const WarpAccess& access) {
    Distinct found;
    for (uint32_t lanes = access.lanes; lanes != 0; lanes &= lanes - 1) {
        const uintptr_t at = access.at[__builtin_ctz(lanes)];
        found.insert(at / SECTOR_BYTES);
        found.insert((at + access.bytes - 1) / SECTOR_BYTES);
    }
    return found.size();
}

}  // namespace

void Traffic::add(Space space, Site site, const WarpAccess& access) {
    if (space == Space::Global) {
        totals.global_sectors += sectors(access);
        return;
    }
    // As many lanes at a time as together want one word of each bank.
    const unsigned phase = std::min<unsigned>(WARP, BANKS * BANK_BYTES / std::max<unsigned>(access.bytes, BANK_BYTES));
    SharedPlace& counts = places[site];
    counts.accesses++;
    for (unsigned first = 0; first < WARP; first += phase) {
        const uint64_t wavefronts = words_of_a_bank(access, first, first + phase);
        const uint64_t ideal = wavefronts != 0;
        counts.wavefronts += wavefronts;
        counts.ideal_wavefronts += ideal;
        totals.wavefronts += wavefronts;
        totals.ideal_wavefronts += ideal;
    }
}

bool Traffic::place(size_t rank, Site& site, SharedPlace& counts) const {
    if (rank >= places.size()) {
        return false;
    }
    using Entry = std::pair<Site, SharedPlace>;
    std::vector<Entry> sorted(places.begin(), places.end());
    std::sort(sorted.begin(), sorted.end(), [](const Entry& a, const Entry& b) {
        const auto lost = [](const Entry& e) { return e.second.wavefronts - e.second.ideal_wavefronts; };
        return lost(a) != lost(b) ? lost(a) > lost(b) : a.first < b.first;
    });
    site = sorted[rank].first;
    counts = sorted[rank].second;
    return true;
}

void WarpTraffic::add(Space space, Site site, unsigned lane, uintptr_t address, size_t bytes) {
    Place& place = places[uint64_t{site} << 1 | (space == Space::Global)];
    if (place.accesses.empty()) {
        place.space = space;
        place.site = site;
        open.push_back(&place);
    }
    // A structure is moved in pieces of a size that an instruction has.
    const size_t piece = std::min(bytes & -bytes, LANE_BYTES);
    for (size_t moved = 0; moved < bytes; moved += piece) {
        const uint32_t time = place.times[lane]++;
        if (time == place.accesses.size()) {
            place.accesses.push_back({{}, 0, static_cast<uint32_t>(piece)});
        }
        WarpAccess& access = place.accesses[time];
        access.at[lane] = address + moved;
        access.lanes |= 1u << lane;
    }
}

void WarpTraffic::close(Traffic& traffic) {
    for (Place* place : open) {
        for (const WarpAccess& access : place->accesses) {
            traffic.add(place->space, place->site, access);
        }
    }
    clear();
}

void WarpTraffic::clear() {
    for (Place* place : open) {
        place->accesses.clear();
        std::fill(std::begin(place->times), std::end(place->times), 0);
    }
    open.clear();
}

}  // namespace emu
