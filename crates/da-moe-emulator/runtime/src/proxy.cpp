// The order between the generic proxy, through which ordinary code writes shared memory, and the async proxy, through
// which the accelerator and wgmma read it.
//
// A barrier orders such a write before the read, but a fence has to make it seen: one of the writer, after the write
// and before what the reader learns of, or one of the reader itself, after it has learned of the write.
#include "machine.h"

namespace emu {

void fence_proxy_async() {
    Thread& self = current();
    self.proxy.clocks.push_back(self.agent.clock++);
    self.proxy.known = self.agent.known.own;
    self.warp->wgmma.fences_changed = true;
}

bool async_proxy_sees(const Block& block, const Epoch& write, const Agent& reader, const Clocks* fenced) {
    if (write.clock == 0 || (fenced && fenced->at[write.agent] >= write.clock)) {
        return true;
    }
    if (write.agent < ENGINES) {
        return false;  // a cp.async, whose thread does not know that it has come
    }
    const std::vector<uint32_t>& fences = block.threads[write.agent - ENGINES]->proxy.clocks;
    const auto after_write = std::lower_bound(fences.begin(), fences.end(), write.clock);
    return after_write != fences.end() && *after_write <= reader.known.own->at[write.agent];
}

}  // namespace emu
