// What this processor can do, asked at run time so that one binary serves every machine.
#pragma once

namespace foveate {

struct CpuFeatures {
    bool avx2 = false;
    bool fma = false;
    bool avx512f = false;
    bool avx512bw = false;
    bool avx512vl = false;
    bool avx512_vnni = false;
    bool avx512_vpopcntdq = false;
    bool avx512_bf16 = false;
    bool neon = false;
};

// Reads CPUID and XGETBV on x86 (a feature counts only when the operating system saves its
// registers); on aarch64 NEON is part of the baseline.
CpuFeatures cpu_features();

}  // namespace foveate
