#include "isa.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
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

double word_cost() {
    static std::mutex mutex;
    static std::map<const Kernels*, double> known;
    const std::lock_guard lock(mutex);
    const Kernels& k = kernels();
    const auto found = known.find(&k);
    if (found != known.end()) {
        return found->second;
    }
    // A window of 256 channels and 9 taps, 8 pixels, 32 filters: first-level cache, as in a net.
    constexpr int kPixels = 8;
    constexpr int kWords = 36;
    constexpr int kQuads = 16 * kWords;
    std::vector<std::uint64_t> data(kPixels * kWords + kSlack, 0x9e3779b97f4a7c15U);
    std::vector<std::uint64_t> words(kWords * kGroup, 0x5851f42d4c957f2dU);
    std::vector<std::int8_t> bytes(kQuads * 4 * kGroup, 3);
    std::vector<std::int32_t> out(kPixels * kGroup, 0);
    std::vector<std::int32_t> offsets;
    for (int t = 0; t < kQuads; ++t) {
        offsets.push_back(4 * t);
    }
    std::vector<std::int32_t> word_offsets;
    for (int t = 0; t < kWords; ++t) {
        word_offsets.push_back(t);
    }
    const std::uint64_t* pixels[kPixels];
    const std::uint8_t* narrow[kPixels];
    const std::int32_t* rows[kPixels];
    for (int p = 0; p < kPixels; ++p) {
        pixels[p] = data.data() + p;
        narrow[p] = reinterpret_cast<const std::uint8_t*>(data.data()) + p;
        rows[p] = out.data() + p * kGroup;
    }
    CountArgs args{pixels, kPixels, word_offsets.data(), kWords, words.data(), rows, -2, out.data()};
    using Clock = std::chrono::steady_clock;
    double best_bits = 1;
    double best_int8 = 1;
    for (int repeat = 0; repeat < 12; ++repeat) {
        const auto start = Clock::now();
        k.count_xor(args);
        const auto middle = Clock::now();
        k.dot8(narrow, kPixels, offsets.data(), kQuads, bytes.data(), kGroup, 1, out.data());
        const auto end = Clock::now();
        best_bits = std::min(best_bits, std::chrono::duration<double>(middle - start).count());
        best_int8 = std::min(best_int8, std::chrono::duration<double>(end - middle).count());
    }
    const double cost = (best_bits / kWords) / std::max(best_int8 / kQuads, 1e-12);
    return known[&k] = std::clamp(cost, 0.5, 64.0);
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Kernels* set : available()) {
        names.emplace_back(set->name);
    }
    return names;
}

}  // namespace foveate
