// Graphs: what was recorded, to be started again and again.
#include "driver.h"

using namespace driver;

EXPORT Result cuGraphInstantiateWithFlags(Handle* executable, Handle graph, unsigned long long) {
    return call("cuGraphInstantiate", Needs::Context, [&](Session& session) -> Result {
        const Graph* found = session->graphs.find(graph);
        if (!found) {
            return InvalidHandle;
        }
        session.note("%zu nodes", found->size());
        *executable = session->executables.add(*found);
        return Success;
    });
}

EXPORT Result cuGraphUpload(Handle executable, Handle stream) {
    return call("cuGraphUpload", Needs::Context, [&](Session& session) -> Result {
        Stream* found;
        const Result wrong = find_stream(session, stream, &found);
        return wrong ? wrong : session->executables.find(executable) ? Success : InvalidHandle;
    });
}

EXPORT Result cuGraphLaunch(Handle executable, Handle stream) {
    return call("cuGraphLaunch", Needs::Context, [&](Session& session) -> Result {
        const Graph* found = session->executables.find(executable);
        if (!found) {
            return InvalidHandle;
        }
        session->counts.replays++;
        session.note("%zu nodes", found->size());
        const Result wrong = start(session, stream, [nodes = *found](Driver& driver) {
            for (const Work& node : nodes) {
                driver.run(node);
            }
            return driver.fault;
        });
        return wrong || !Settings::get().launch_blocking ? wrong : session->tell();
    });
}

EXPORT Result cuGraphGetNodes(Handle graph, Handle* nodes, size_t* count) {
    return call("cuGraphGetNodes", Needs::Context, [&](Session& session) -> Result {
        const Graph* found = session->graphs.find(graph);
        if (!found) {
            return InvalidHandle;
        }
        if (nodes) {
            return NotSupported;  // how many there are is all that is told of them
        }
        *count = found->size();
        return Success;
    });
}

EXPORT Result cuGraphDestroy(Handle graph) {
    return call("cuGraphDestroy", Needs::Context, [&](Session& session) {
        return session->graphs.remove(graph) ? Success : InvalidHandle;
    });
}

EXPORT Result cuGraphExecDestroy(Handle executable) {
    return call("cuGraphExecDestroy", Needs::Context, [&](Session& session) {
        return session->executables.remove(executable) ? Success : InvalidHandle;
    });
}
