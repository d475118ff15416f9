#include "isa.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu_features.hpp"

namespace foveate {
namespace {

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found;
#if defined(FOVEATE_X86)
    const CpuFeatures f = cpu_features();
    if (f.avx512f && f.avx512bw && f.avx512vl && f.avx512_vnni && f.avx512_vpopcntdq && f.avx2 &&
        f.fma) {
        found.push_back(&kAvx512);
    }
    if (f.avx2 && f.fma) {
        found.push_back(&kAvx2);
    }
#endif
    found.push_back(&kPortable);
    return found;
}

const Kernels* named(const std::string& name) {
    const std::vector<const Kernels*> sets = available();
    if (name.empty()) {
        return sets.front();
    }
    std::string list;
    for (const Kernels* set : sets) {
        if (name == set->name) {
            return set;
        }
        list += std::string(list.empty() ? "" : ", ") + set->name;
    }
    throw std::runtime_error("instruction set '" + name + "' is not available here; available are " +
                             list);
}

std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> current = [] {
        const char* wish = std::getenv("FOVEATE_ISA");
        return named(wish != nullptr ? wish : "");
    }();
    return current;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

void force_isa(const std::string& name) { chosen().store(named(name), std::memory_order_relaxed); }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Kernels* set : available()) {
        names.emplace_back(set->name);
    }
    return names;
}

}  // namespace foveate
