#include "clocks.h"

namespace emu {

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
