#include "cpu_features.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>

#include <cstdint>

namespace foveate {
namespace {

// XCR0 tells which register files the operating system saves on a context switch.
// Inline assembly, because the intrinsic would need -mxsave for the whole file.
std::uint64_t read_xcr0() {
    std::uint32_t eax = 0;
    std::uint32_t edx = 0;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(eax), "=d"(edx) : "c"(0));
    return (static_cast<std::uint64_t>(edx) << 32) | eax;
}

bool bit(std::uint32_t word, int index) { return ((word >> index) & 1U) != 0; }

}  // namespace

CpuFeatures cpu_features() {
    CpuFeatures found;
    std::uint32_t a = 0;
    std::uint32_t b = 0;
    std::uint32_t c = 0;
    std::uint32_t d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !bit(c, 27)) {  // no OSXSAVE: no wide registers
        return found;
    }
    const bool has_fma = bit(c, 12);
    const std::uint64_t saved = read_xcr0();
    const bool ymm = (saved & 0x6) == 0x6;
    const bool zmm = (saved & 0xe6) == 0xe6;
    found.fma = ymm && has_fma;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
        return found;
    }
    const std::uint32_t subleaves = a;
    found.avx2 = ymm && bit(b, 5);
    found.avx512f = zmm && bit(b, 16);
    found.avx512bw = zmm && bit(b, 30);
    found.avx512vl = zmm && bit(b, 31);
    found.avx512_vnni = zmm && bit(c, 11);
    found.avx512_vpopcntdq = zmm && bit(c, 14);
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
        found.avx512_bf16 = zmm && bit(a, 5);
    }
    return found;
}

}  // namespace foveate

#else

namespace foveate {

CpuFeatures cpu_features() {
    CpuFeatures found;
#if defined(__aarch64__)
    found.neon = true;
#endif
    return found;
}

}  // namespace foveate

#endif
