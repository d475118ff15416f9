// The Python face of the native engine.
#include <nanobind/nanobind.h>

#include "bindings.hpp"
#include "cpu_features.hpp"

namespace nb = nanobind;

NB_MODULE(_native, module) {
    module.doc() = "foveate's native engine";
    module.def(
        "cpu_features",
        [] {
            const foveate::CpuFeatures f = foveate::cpu_features();
            nb::dict out;
            out["avx2"] = f.avx2;
            out["fma"] = f.fma;
            out["avx512f"] = f.avx512f;
            out["avx512bw"] = f.avx512bw;
            out["avx512vl"] = f.avx512vl;
            out["avx512_vnni"] = f.avx512_vnni;
            out["avx512_vpopcntdq"] = f.avx512_vpopcntdq;
            out["avx512_bf16"] = f.avx512_bf16;
            out["neon"] = f.neon;
            return out;
        },
        "Instruction sets usable in this process, by name: feature -> bool.");
    foveate::bind_kernels(module);
    foveate::bind_model(module);
}
