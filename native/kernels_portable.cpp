// Plain C++ for every processor: slow, and the numbers that the others must give.
#include <cmath>

#include "popcount_portable.hpp"
#include "steps_impl.hpp"

namespace foveate {
namespace {

void count_xor(const CountArgs& args) {
    count_portable(args, [](std::uint64_t a, std::uint64_t w) { return a ^ w; });
}

void count_and(const CountArgs& args) {
    count_portable(args, [](std::uint64_t a, std::uint64_t w) { return a & w; });
}

void dot8(const std::uint8_t* const* pixels, int n_pix, const std::int32_t* offsets, int n,
          const std::int8_t* weights, int, std::int32_t factor, std::int32_t* out) {
    for (int p = 0; p < n_pix; ++p) {
        std::int32_t sum[kGroup] = {};
        for (int t = 0; t < n; ++t) {
            const std::uint8_t* a = pixels[p] + offsets[t];
            const std::int8_t* w = weights + std::ptrdiff_t{t} * kGroup * 4;
            for (int c = 0; c < kGroup; ++c) {
                for (int i = 0; i < 4; ++i) {
                    sum[c] += a[i] * w[c * 4 + i];
                }
            }
        }
        impl::add_scaled(sum, factor, out + p * kGroup);
    }
}

void dotf(const float* const* pixels, int n_pix, const std::int32_t* offsets, int n,
          const float* weights, float* out) {
    for (int p = 0; p < n_pix; ++p) {
        float sum[kGroup] = {};
        for (int t = 0; t < n; ++t) {
            const float a = pixels[p][offsets[t]];
            const float* w = weights + std::ptrdiff_t{t} * kGroup;
            for (int c = 0; c < kGroup; ++c) {
                sum[c] = std::fma(a, w[c], sum[c]);
            }
        }
        for (int c = 0; c < kGroup; ++c) {
            out[p * kGroup + c] = sum[c];
        }
    }
}

}  // namespace

const Kernels kPortable = {"portable", impl::start, count_xor,  count_and, count_ones_portable, dot8,
                           impl::sum_codes, dotf,
                           impl::depthwise8, impl::depthwisef, impl::max_of,
                           impl::max_of_codes, impl::add_rows, impl::quantize_narrow,
                           impl::run_steps};

}  // namespace foveate
