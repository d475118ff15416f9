// AVX2 with FMA.
#include <immintrin.h>

#include "steps_impl.hpp"
#include "unrolled.hpp"

namespace foveate {
namespace {

struct Xor {
    static __m256i of(__m256i a, __m256i w) { return _mm256_xor_si256(a, w); }
};
struct And {
    static __m256i of(__m256i a, __m256i w) { return _mm256_and_si256(a, w); }
};

// Ones of every byte, by looking both nibbles up.
inline __m256i ones_of_bytes(__m256i x) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2,
                                           1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(0x0f);
    const __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
    const __m256i second =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
    return _mm256_add_epi8(first, second);
}

constexpr int kRun = 31;  // words whose byte counts fit a byte: 8 * 31 < 256

// P pixels x V vectors of 4 channels.
template <class Op, int P, int V>
inline void count_tile(const CountArgs& args, int first, int channel) {
    __m256i sum[P][V];
    const __m256i zero = _mm256_setzero_si256();
    const std::uint64_t* at[P];
    unrolled<P>([&](auto p) FOVEATE_INLINED {
        unrolled<V>([&](auto v) FOVEATE_INLINED { sum[p][v] = zero; });
        at[p] = args.pixels[first + p];
    });
    const int n = args.n;
    for (int start = 0; start < n; start += kRun) {
        const int stop = start + kRun < n ? start + kRun : n;
        __m256i part[P][V];
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            unrolled<V>([&](auto v) FOVEATE_INLINED { part[p][v] = zero; });
        });
        for (int t = start; t < stop; ++t) {
            const std::ptrdiff_t offset = args.offsets[t];
            const std::uint64_t* w = args.weights + std::ptrdiff_t{t} * kGroup + channel;
            unrolled<P>([&](auto p) FOVEATE_INLINED {
                const __m256i a = _mm256_set1_epi64x(static_cast<long long>(at[p][offset]));
                unrolled<V>([&](auto v) FOVEATE_INLINED {
                    const __m256i x =
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 4 * v));
                    part[p][v] = _mm256_add_epi8(part[p][v], ones_of_bytes(Op::of(a, x)));
                });
            });
        }
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            unrolled<V>([&](auto v) FOVEATE_INLINED {
                sum[p][v] = _mm256_add_epi64(sum[p][v], _mm256_sad_epu8(part[p][v], zero));
            });
        });
    }
    const __m128i by = _mm_set1_epi32(args.factor);
    const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    unrolled<P>([&](auto p) FOVEATE_INLINED {
        unrolled<V>([&](auto v) FOVEATE_INLINED {
            const __m128i four =
                _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(sum[p][v], even));
            const __m128i from = _mm_loadu_si128(
                reinterpret_cast<const __m128i*>(args.rows[first + p] + channel + 4 * v));
            _mm_storeu_si128(
                reinterpret_cast<__m128i*>(args.out + (first + p) * kGroup + channel + 4 * v),
                _mm_add_epi32(from, _mm_mullo_epi32(four, by)));
        });
    });
}

template <class Op>
void count(const CountArgs& args) {
    for (int c = 0; c < kGroup; c += 8) {
        int p = 0;
        for (; p + 2 <= args.n_pix; p += 2) {
            count_tile<Op, 2, 2>(args, p, c);
        }
        for (; p < args.n_pix; ++p) {
            count_tile<Op, 1, 2>(args, p, c);
        }
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

// vpmaddubsw saturates at 16 bits: widen to 16 bits and multiply-add there, which is exact.
template <int P>
inline void dot8_tile(const std::uint8_t* const* pixels, const std::int32_t* offsets, int n,
                      const std::int8_t* weights, int lanes, std::int32_t factor, std::int32_t* out) {
    const __m256i by = _mm256_set1_epi32(factor);
    // 8 channels at a time: two registers of 4 channels x 2 partial sums.
    for (int c = 0; c < lanes; c += 8) {
        __m256i sum[P][2];
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            sum[p][0] = sum[p][1] = _mm256_setzero_si256();
        });
        for (int t = 0; t < n; ++t) {
            const std::int8_t* w = weights + (std::ptrdiff_t{t} * kGroup + c) * 4;
            const __m256i w0 = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
            const __m256i w1 = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16)));
            unrolled<P>([&](auto p) FOVEATE_INLINED {
                std::int32_t quad;
                __builtin_memcpy(&quad, pixels[p] + offsets[t], 4);
                const __m256i a = _mm256_cvtepu8_epi16(_mm_set1_epi32(quad));
                sum[p][0] = _mm256_add_epi32(sum[p][0], _mm256_madd_epi16(a, w0));
                sum[p][1] = _mm256_add_epi32(sum[p][1], _mm256_madd_epi16(a, w1));
            });
        }
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            const __m256i added = _mm256_hadd_epi32(sum[p][0], sum[p][1]);
            const __m256i sorted = _mm256_permute4x64_epi64(added, 0xd8);
            __m256i* to = reinterpret_cast<__m256i*>(out + p * kGroup + c);
            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to),
                                                     _mm256_mullo_epi32(sorted, by)));
        });
    }
}

void dot8(const std::uint8_t* const* pixels, int n_pix, const std::int32_t* offsets, int n,
          const std::int8_t* weights, int lanes, std::int32_t factor, std::int32_t* out) {
    int p = 0;
    for (; p + 4 <= n_pix; p += 4) {
        dot8_tile<4>(pixels + p, offsets, n, weights, lanes, factor, out + p * kGroup);
    }
    for (; p < n_pix; ++p) {
        dot8_tile<1>(pixels + p, offsets, n, weights, lanes, factor, out + p * kGroup);
    }
}

template <int P>
inline void dotf_tile(const float* const* pixels, const std::int32_t* offsets, int n,
                      const float* weights, float* out) {
    for (int half = 0; half < kGroup; half += 16) {
        __m256 sum[P][2];
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            sum[p][0] = sum[p][1] = _mm256_setzero_ps();
        });
        for (int t = 0; t < n; ++t) {
            const float* w = weights + std::ptrdiff_t{t} * kGroup + half;
            const __m256 w0 = _mm256_loadu_ps(w);
            const __m256 w1 = _mm256_loadu_ps(w + 8);
            unrolled<P>([&](auto p) FOVEATE_INLINED {
                const __m256 a = _mm256_set1_ps(pixels[p][offsets[t]]);
                sum[p][0] = _mm256_fmadd_ps(a, w0, sum[p][0]);
                sum[p][1] = _mm256_fmadd_ps(a, w1, sum[p][1]);
            });
        }
        unrolled<P>([&](auto p) FOVEATE_INLINED {
            _mm256_storeu_ps(out + p * kGroup + half, sum[p][0]);
            _mm256_storeu_ps(out + p * kGroup + half + 8, sum[p][1]);
        });
    }
}

void dotf(const float* const* pixels, int n_pix, const std::int32_t* offsets, int n,
          const float* weights, float* out) {
    int p = 0;
    for (; p + 6 <= n_pix; p += 6) {
        dotf_tile<6>(pixels + p, offsets, n, weights, out + p * kGroup);
    }
    for (; p < n_pix; ++p) {
        dotf_tile<1>(pixels + p, offsets, n, weights, out + p * kGroup);
    }
}

}  // namespace

const Kernels kAvx2 = {"avx2", impl::start, count<Xor>, count<And>, count_ones, dot8, impl::sum_codes, dotf,
                       impl::depthwise8, impl::depthwisef, impl::max_of,
                       impl::max_of_codes, impl::add_rows, impl::quantize_narrow,
                       impl::run_steps};

}  // namespace foveate
