// AVX-512 with VPOPCNTDQ, VNNI, BW and VL.
#include <immintrin.h>

#include "steps_impl.hpp"
#include "unrolled.hpp"

namespace foveate {
namespace {

struct Xor {
    static __m512i of(__m512i a, __m512i w) { return _mm512_xor_si512(a, w); }
};
struct And {
    static __m512i of(__m512i a, __m512i w) { return _mm512_and_si512(a, w); }
};

// A register tile of P pixels x 4 vectors of 8 channels: no horizontal sum anywhere.
template <class Op, int P>
inline void count_tile(const CountArgs& args, int first) {
    __m512i sum[P][4];
    const std::uint64_t* at[P];
    unrolled<P>([&](auto p) FOVEATE_INLINED {
        unrolled<4>([&](auto v) FOVEATE_INLINED { sum[p][v] = _mm512_setzero_si512(); });
        at[p] = args.pixels[first + p];
    });
    const std::uint64_t* weights = args.weights;
    const std::int32_t* offsets = args.offsets;
    const int n = args.n;
    for (int t = 0; t < n; ++t) {
        const std::ptrdiff_t offset = offsets[t];
        __m512i w[4];
        unrolled<4>([&](auto v) FOVEATE_INLINED { w[v] = _mm512_loadu_si512(weights + 8 * v); });
        weights += kGroup;
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            const __m512i a = _mm512_set1_epi64(static_cast<long long>(at[p][offset]));
            unrolled<4>([&](auto v) FOVEATE_INLINED {
                sum[p][v] = _mm512_add_epi64(sum[p][v], _mm512_popcnt_epi64(Op::of(a, w[v])));
            });
        });
    }
    const __m512i by = _mm512_set1_epi32(args.factor);
    unrolled<P>([&](auto p) FOVEATE_INLINED {
        const std::int32_t* row = args.rows[first + p];
        std::int32_t* to = args.out + (first + p) * kGroup;
        unrolled<2>([&](auto half) FOVEATE_INLINED {
            const __m512i both = _mm512_inserti64x4(
                _mm512_castsi256_si512(_mm512_cvtepi64_epi32(sum[p][2 * half])),
                _mm512_cvtepi64_epi32(sum[p][2 * half + 1]), 1);
            _mm512_storeu_si512(to + 16 * half,
                                _mm512_add_epi32(_mm512_loadu_si512(row + 16 * half),
                                                 _mm512_mullo_epi32(both, by)));
        });
    });
}

template <class Op>
void count(const CountArgs& args) {
    int p = 0;
    for (; p + 4 <= args.n_pix; p += 4) {
        count_tile<Op, 4>(args, p);
    }
    for (; p < args.n_pix; ++p) {
        count_tile<Op, 1>(args, p);
    }
}

void count_ones(const std::uint64_t* const* pixels, int n_pix, const std::int32_t* offsets, int n,
                std::int32_t factor, std::int32_t* out) {
    for (int p = 0; p < n_pix; ++p) {
        std::uint32_t sum = 0;
        for (int t = 0; t < n; ++t) {
            sum += static_cast<std::uint32_t>(_mm_popcnt_u64(pixels[p][offsets[t]]));
        }
        out[p] = static_cast<std::int32_t>(static_cast<std::uint32_t>(out[p]) +
                                           sum * static_cast<std::uint32_t>(factor));
    }
}

inline void add_to(std::int32_t* to, __m512i x) {
    _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), x));
}

// vpdpbusd in place. gcc 12 copies and spills every accumulator around the intrinsic.
inline void dot4(__m512i& sum, __m512i a, __m512i w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
}

// P pixels x V vectors of 16 channels.
template <int P, int V>
inline void dot8_tile(const std::uint8_t* const* pixels, const std::int32_t* offsets, int n,
                      const std::int8_t* weights, std::int32_t factor, std::int32_t* out) {
    __m512i sum[P][V];
    unrolled<P>([&](auto p) FOVEATE_INLINED {
        unrolled<V>([&](auto v) FOVEATE_INLINED { sum[p][v] = _mm512_setzero_si512(); });
    });
    for (int t = 0; t < n; ++t) {
        const std::ptrdiff_t offset = offsets[t];
        __m512i w[V];
        unrolled<V>([&](auto v) FOVEATE_INLINED { w[v] = _mm512_loadu_si512(weights + 64 * v); });
        weights += 4 * kGroup;
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            std::int32_t quad;
            __builtin_memcpy(&quad, pixels[p] + offset, 4);
            const __m512i a = _mm512_set1_epi32(quad);
            unrolled<V>([&](auto v) FOVEATE_INLINED { dot4(sum[p][v], a, w[v]); });
        });
    }
    const __m512i by = _mm512_set1_epi32(factor);
    unrolled<P>([&](auto p) FOVEATE_INLINED {
        unrolled<V>([&](auto v) FOVEATE_INLINED {
            add_to(out + p * kGroup + 16 * v, _mm512_mullo_epi32(sum[p][v], by));
        });
    });
}

template <int P, int V>
inline int dot8_tiles(const std::uint8_t* const* pixels, int from, int n_pix,
                      const std::int32_t* offsets, int n, const std::int8_t* weights,
                      std::int32_t factor, std::int32_t* out) {
    for (; from + P <= n_pix; from += P) {
        dot8_tile<P, V>(pixels + from, offsets, n, weights, factor, out + from * kGroup);
    }
    return from;
}

void dot8(const std::uint8_t* const* pixels, int n_pix, const std::int32_t* offsets, int n,
          const std::int8_t* weights, int lanes, std::int32_t factor, std::int32_t* out) {
    int p = 0;
    if (lanes <= 16) {
        p = dot8_tiles<12, 1>(pixels, p, n_pix, offsets, n, weights, factor, out);
        p = dot8_tiles<4, 1>(pixels, p, n_pix, offsets, n, weights, factor, out);
        dot8_tiles<1, 1>(pixels, p, n_pix, offsets, n, weights, factor, out);
        return;
    }
    p = dot8_tiles<12, 2>(pixels, p, n_pix, offsets, n, weights, factor, out);
    p = dot8_tiles<4, 2>(pixels, p, n_pix, offsets, n, weights, factor, out);
    dot8_tiles<1, 2>(pixels, p, n_pix, offsets, n, weights, factor, out);
}

template <int P>
inline void dotf_tile(const float* const* pixels, const std::int32_t* offsets, int n,
                      const float* weights, float* out) {
    __m512 sum[P][2];
    unrolled<P>([&](auto p) FOVEATE_INLINED {
        sum[p][0] = sum[p][1] = _mm512_setzero_ps();
    });
    for (int t = 0; t < n; ++t) {
        const std::ptrdiff_t offset = offsets[t];
        const __m512 w0 = _mm512_loadu_ps(weights);
        const __m512 w1 = _mm512_loadu_ps(weights + 16);
        weights += kGroup;
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            const __m512 a = _mm512_set1_ps(pixels[p][offset]);
            sum[p][0] = _mm512_fmadd_ps(a, w0, sum[p][0]);
            sum[p][1] = _mm512_fmadd_ps(a, w1, sum[p][1]);
        });
    }
    unrolled<P>([&](auto p) FOVEATE_INLINED {
        _mm512_storeu_ps(out + p * kGroup, sum[p][0]);
        _mm512_storeu_ps(out + p * kGroup + 16, sum[p][1]);
    });
}

void dotf(const float* const* pixels, int n_pix, const std::int32_t* offsets, int n,
          const float* weights, float* out) {
    int p = 0;
    for (; p + 12 <= n_pix; p += 12) {
        dotf_tile<12>(pixels + p, offsets, n, weights, out + p * kGroup);
    }
    for (; p + 4 <= n_pix; p += 4) {
        dotf_tile<4>(pixels + p, offsets, n, weights, out + p * kGroup);
    }
    for (; p < n_pix; ++p) {
        dotf_tile<1>(pixels + p, offsets, n, weights, out + p * kGroup);
    }
}

}  // namespace

const Kernels kAvx512 = {"avx512", impl::start, count<Xor>, count<And>, count_ones, dot8, impl::sum_codes, dotf,
                         impl::depthwise8, impl::depthwisef, impl::max_of,
                         impl::max_of_codes, impl::add_rows, impl::quantize_narrow,
                         impl::run_steps};

}  // namespace foveate
