#include "clocks.h"

#include <cstring>

namespace emu {

namespace {

template <bool LATER>
inline __attribute__((always_inline)) void choose(uint32_t* mine, const uint32_t* others, size_t count) {
    typedef uint32_t EightClocks __attribute__((vector_size(32)));
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        EightClocks a, b;
        memcpy(&a, mine + i, sizeof a);
        memcpy(&b, others + i, sizeof b);
        a = LATER ? (a > b ? a : b) : (a > b ? b : a);
        memcpy(mine + i, &a, sizeof a);
    }
    for (; i < count; i++) {
        mine[i] = LATER ? std::max(mine[i], others[i]) : std::min(mine[i], others[i]);
    }
}

// Threads join at every wait, each as many clocks as the block has agents.
__attribute__((target_clones("avx2", "default"))) void latest(uint32_t* mine, const uint32_t* others, size_t count) {
    choose<true>(mine, others, count);
}
__attribute__((target_clones("avx2", "default"))) void earliest(uint32_t* mine, const uint32_t* others, size_t count) {
    choose<false>(mine, others, count);
}

}  // namespace

void Clocks::join(const Clocks& other) {
    latest(at.data(), other.at.data(), at.size());
}

void Clocks::meet(const Clocks& other) {
    earliest(at.data(), other.at.data(), at.size());
}

const Clocks* Foreign::find(uint32_t block) const {
    for (const auto& entry : blocks) {
        if (entry.first == block) {
            return &*entry.second;
        }
    }
    return nullptr;
}

void Foreign::join(uint32_t block, const Ref<Clocks>& clocks) {
    for (auto& entry : blocks) {
        if (entry.first == block) {
            if (!(entry.second == clocks)) {
                entry.second.unique().join(*clocks);
            }
            return;
        }
    }
    blocks.emplace_back(block, clocks);
}

void Foreign::join(const Foreign& other, uint32_t except) {
    for (const auto& entry : other.blocks) {
        if (entry.first != except) {
            join(entry.first, entry.second);
        }
    }
}

void Foreign::join(const Knowledge& known, uint32_t block) {
    if (known.foreign) {
        join(*known.foreign, block);
    }
    join(block, known.own);
}

void Knowledge::join(const Foreign& told, uint32_t block) {
    for (const auto& entry : told.blocks) {
        if (entry.first == block) {
            join({entry.second, {}});
        }
    }
    if (!foreign) {
        foreign = Ref<Foreign>(new Foreign);
    }
    foreign.unique().join(told, block);
}

void Knowledge::join(const Knowledge& other) {
    if (other.own && !(own == other.own)) {
        if (own) {
            own.unique().join(*other.own);
        } else {
            own = other.own;
        }
    }
    if (other.foreign && !(foreign == other.foreign)) {
        if (foreign) {
            foreign.unique().join(*other.foreign, Agent::NO_BARRIERS);
        } else {
            foreign = other.foreign;
        }
    }
}

Ref<Clocks> Moment::clocks() const {
    Ref<Clocks> result = known.own;
    result.unique().at[agent] = clock;
    return result;
}

bool Agent::ordered_foreign(uint32_t other_block, uint32_t other, uint32_t at) const {
    if (!known.foreign) {
        return false;
    }
    const Clocks* clocks = known.foreign->find(other_block);
    return clocks && clocks->at[other] >= at;
}

}  // namespace emu
