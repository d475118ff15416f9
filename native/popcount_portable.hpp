// The popcount kernels in plain C++; also the pattern that the wide ones follow.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "isa.hpp"

namespace foveate {

template <class Combine>
void count_portable(const CountArgs& args, Combine combine) {
    for (int p = 0; p < args.n_pix; ++p) {
        std::uint32_t sum[kGroup] = {};
        const std::uint64_t* w = args.weights;
        for (int t = 0; t < args.n; ++t, w += kGroup) {
            const std::uint64_t a = args.pixels[p][args.offsets[t]];
            for (int c = 0; c < kGroup; ++c) {
                sum[c] += static_cast<std::uint32_t>(std::popcount(combine(a, w[c])));
            }
        }
        for (int c = 0; c < kGroup; ++c) {
            args.out[p * kGroup + c] =
                static_cast<std::int32_t>(static_cast<std::uint32_t>(args.rows[p][c]) +
                                          sum[c] * static_cast<std::uint32_t>(args.factor));
        }
    }
}

inline void count_ones_portable(const std::uint64_t* const* pixels, int n_pix,
                                const std::int32_t* offsets, int n, std::int32_t factor,
                                std::int32_t* out) {
    for (int p = 0; p < n_pix; ++p) {
        std::uint32_t sum = 0;
        for (int t = 0; t < n; ++t) {
            sum += static_cast<std::uint32_t>(std::popcount(pixels[p][offsets[t]]));
        }
        out[p] = static_cast<std::int32_t>(static_cast<std::uint32_t>(out[p]) +
                                           sum * static_cast<std::uint32_t>(factor));
    }
}

}  // namespace foveate
