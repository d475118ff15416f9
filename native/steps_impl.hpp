// The epilogue and the depthwise kernels, compiled once for every instruction set by the file that
// includes this: plain loops of 32 channels that compilers turn into vectors, intrinsics only where
// a comparison becomes bits. No function of another header may be called that is not always inlined.
#pragma once

#include <cmath>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "isa.hpp"
#include "steps.hpp"

namespace foveate {
namespace {
namespace impl {

FOVEATE_INLINE int smaller(int a, int b) { return a < b ? a : b; }

// Walks over the pixels of a block.
struct Walk {
    int y, x, width;
    FOVEATE_INLINE Walk(int first, int columns)
        : y(first / columns), x(first % columns), width(columns) {}
    FOVEATE_INLINE void next() {
        if (++x == width) {
            x = 0;
            ++y;
        }
    }
};

// Calls each(p, address) for the pixels of a block: where the first channel of pixel p lies in a
// tensor of floats.
template <class Each>
FOVEATE_INLINE void each_pixel(const View& view, const Block& block, const Each& each) {
    float* const first = view.f32 + block.channel;
    const std::ptrdiff_t channels = view.channels;
    const std::ptrdiff_t row = view.row_pixels();
    const int count = block.count;
    const int width = block.width;
    int x = block.first % width;
    std::ptrdiff_t y = block.first / width;
    for (int p = 0; p < count; ++y, x = 0) {
        float* at = first + (y * row + x) * channels;
        for (const int end = smaller(count, p + width - x); p < end; ++p, at += channels) {
            each(p, at);
        }
    }
}

// ---------------------------------------------------------------- codes to memory

// Bit `plane` of 32 codes.
FOVEATE_INLINE std::uint32_t plane_of(const std::uint8_t* codes, int plane) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    return _mm256_test_epi8_mask(v, _mm256_set1_epi8(static_cast<char>(1 << plane)));
#elif defined(__AVX2__)
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    return static_cast<std::uint32_t>(
        _mm256_movemask_epi8(_mm256_sll_epi16(v, _mm_cvtsi32_si128(7 - plane))));
#else
    std::uint32_t mask = 0;
    for (int c = 0; c < kGroup; ++c) {
        mask |= static_cast<std::uint32_t>((codes[c] >> plane) & 1) << c;
    }
    return mask;
#endif
}

// 32 bits of one plane; the upper half of a word that no block owns becomes 0.
FOVEATE_INLINE void put_bits(std::uint64_t* plane, int channel, int channels, std::uint32_t mask) {
    const int left = channels - channel;
    if (left < kGroup) {
        mask &= (std::uint32_t{1} << left) - 1;
    }
    std::uint64_t* word = plane + (channel >> 6);
    if ((channel & 32) == 0 && left <= kGroup) {
        *word = mask;
    } else {
        std::memcpy(reinterpret_cast<char*>(word) + ((channel & 32) >> 3), &mask, 4);
    }
}

FOVEATE_INLINE void put_codes(const View& view, std::ptrdiff_t pixel, int channel, int channels,
                              const std::uint8_t* codes) {
    if (view.bits != nullptr) {
        std::uint64_t* to = view.bits + pixel * view.pixel_words();
        for (int plane = 0; plane < view.planes; ++plane) {
            put_bits(to + std::ptrdiff_t{plane} * view.words(), channel, channels,
                     plane_of(codes, plane));
        }
    }
    if (view.bytes != nullptr) {
        std::uint8_t* to = view.bytes + pixel * view.byte_stride() + channel;
        const int left = channels - channel;
        if (left >= kGroup) {
            std::memcpy(to, codes, kGroup);
        } else {
            for (int c = 0; c < left; ++c) {
                to[c] = codes[c];
            }
            for (int c = left; c < static_cast<int>(view.byte_stride()) - channel; ++c) {
                to[c] = 0;
            }
        }
    }
}

// ---------------------------------------------------------------- thresholds

#if defined(__AVX512F__)
struct MaskOf {
    static FOVEATE_INLINE std::uint32_t at_least(const std::int32_t* v, const std::int32_t* t,
                                                 const std::int32_t*) {
        std::uint32_t mask = 0;
        for (int half = 0; half < 2; ++half) {
            const __m512i x = _mm512_loadu_si512(v + 16 * half);
            const __mmask16 m = _mm512_cmpge_epi32_mask(x, _mm512_loadu_si512(t + 16 * half));
            mask |= static_cast<std::uint32_t>(m) << (16 * half);
        }
        return mask;
    }
    static FOVEATE_INLINE std::uint32_t at_least(const float* v, const float* t,
                                                 const std::int32_t* flip) {
        std::uint32_t mask = 0;
        for (int half = 0; half < 2; ++half) {
            __m512 x = _mm512_loadu_ps(v + 16 * half);
            if (flip != nullptr) {
                x = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x),
                                                         _mm512_loadu_si512(flip + 16 * half)));
            }
            const __mmask16 m = _mm512_cmp_ps_mask(x, _mm512_loadu_ps(t + 16 * half), _CMP_GE_OQ);
            mask |= static_cast<std::uint32_t>(m) << (16 * half);
        }
        return mask;
    }
};
#elif defined(__AVX2__)
struct MaskOf {
    static FOVEATE_INLINE std::uint32_t at_least(const std::int32_t* v, const std::int32_t* t,
                                                 const std::int32_t*) {
        std::uint32_t below = 0;
        for (int c = 0; c < kGroup; c += 8) {
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + c));
            const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t + c));
            below |= static_cast<std::uint32_t>(_mm256_movemask_ps(
                         _mm256_castsi256_ps(_mm256_cmpgt_epi32(y, x))))
                     << c;
        }
        return ~below;
    }
    static FOVEATE_INLINE std::uint32_t at_least(const float* v, const float* t,
                                                 const std::int32_t* flip) {
        std::uint32_t mask = 0;
        for (int c = 0; c < kGroup; c += 8) {
            __m256 x = _mm256_loadu_ps(v + c);
            if (flip != nullptr) {
                x = _mm256_xor_ps(x, _mm256_loadu_ps(reinterpret_cast<const float*>(flip + c)));
            }
            mask |= static_cast<std::uint32_t>(
                        _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_loadu_ps(t + c), _CMP_GE_OQ)))
                    << c;
        }
        return mask;
    }
};
#else
struct MaskOf {
    static FOVEATE_INLINE std::uint32_t at_least(const std::int32_t* v, const std::int32_t* t,
                                                 const std::int32_t*) {
        std::uint32_t mask = 0;
        for (int c = 0; c < kGroup; ++c) {
            mask |= static_cast<std::uint32_t>(v[c] >= t[c]) << c;
        }
        return mask;
    }
    static FOVEATE_INLINE std::uint32_t at_least(const float* v, const float* t,
                                                 const std::int32_t* flip) {
        std::uint32_t mask = 0;
        for (int c = 0; c < kGroup; ++c) {
            const float x = flip != nullptr && flip[c] != 0 ? -v[c] : v[c];
            mask |= static_cast<std::uint32_t>(x >= t[c]) << c;
        }
        return mask;
    }
};
#endif

// 32 codes out of their planes.
FOVEATE_INLINE void codes_of(const std::uint32_t* planes, int bits, std::uint8_t* codes) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __m256i sum = _mm256_setzero_si256();
    for (int b = 0; b < bits; ++b) {
        sum = _mm256_mask_add_epi8(sum, planes[b], sum, _mm256_set1_epi8(static_cast<char>(1 << b)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), sum);
#else
    for (int c = 0; c < kGroup; ++c) {
        unsigned code = 0;
        for (int b = 0; b < bits; ++b) {
            code |= ((planes[b] >> c) & 1U) << b;
        }
        codes[c] = static_cast<std::uint8_t>(code);
    }
#endif
}

#if defined(__AVX512F__)
FOVEATE_INLINE __mmask16 at_least(const std::int32_t* v, const std::int32_t* t, __m512i) {
    return _mm512_cmpge_epi32_mask(_mm512_loadu_si512(v), _mm512_loadu_si512(t));
}

FOVEATE_INLINE __mmask16 at_least(const float* v, const float* t, __m512i flip) {
    const __m512 x = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_loadu_si512(v), flip));
    return _mm512_cmp_ps_mask(x, _mm512_loadu_ps(t), _CMP_GE_OQ);
}

// The codes of L channels, one a byte and nothing else.
template <int L, class Value>
void count_thresholds(const StepData& said, const Block& block, const Value* values,
                      const Value* level, const std::int32_t* flips, std::uint32_t invert) {
    const View view = block.views[said.slot];
    const int levels = said.levels;
    const std::ptrdiff_t padded = block.padded;
    const std::ptrdiff_t stride = view.byte_stride();
    const int count = block.count;
    const __m512i one = _mm512_set1_epi32(1);
    for (int half = 0; half < L; half += 16) {
        const __m512i flip =
            flips != nullptr ? _mm512_loadu_si512(flips + half) : _mm512_setzero_si512();
        const auto inverted = static_cast<__mmask16>(invert >> half);
        std::uint8_t* const first = view.bytes + block.channel + half;
        Walk at(block.first, block.width);
        for (int p = 0; p < count; ++p, at.next()) {
            const Value* v = values + p * kGroup + half;
            const Value* t = level + half;
            __m512i code = _mm512_setzero_si512();
            for (int j = 0; j < levels; ++j, t += padded) {
                code = _mm512_mask_add_epi32(code, at_least(v, t, flip) ^ inverted, code, one);
            }
            _mm_storeu_si128(reinterpret_cast<__m128i*>(first + view.at(at.y, at.x) * stride),
                             _mm512_cvtepi32_epi8(code));
        }
    }
}
#endif

// Codes count the thresholds that a value reaches. The masks of ascending thresholds are nested, so
// bit b of the count is the parity of every 2^b-th mask.
template <int L, class Value>
void thresholds(const StepData& step, const Block& block, const Value* values, const Value* table) {
    View view = block.views[step.slot];
    const std::int32_t* flip = step.flip != nullptr ? step.flip + block.channel : nullptr;
    const std::uint32_t invert =
        step.inverted != nullptr ? step.inverted[block.channel / kGroup] : 0;
    const Value* level = table + block.channel;
    const int left = block.channels - block.channel;
    const std::ptrdiff_t pixel_words = view.pixel_words();
    if (step.levels == 1 && view.bytes == nullptr && left >= kGroup &&
        ((block.channel & 32) != 0 || left > kGroup)) {
        // The commonest case: one bit, 32 channels, half a word each.
        int x = block.first % block.width;
        int y = block.first / block.width;
        for (int p = 0; p < block.count; ++y, x = 0) {
            auto* to = reinterpret_cast<char*>(view.bits + view.at(y, x) * pixel_words +
                                               (block.channel >> 6)) +
                       ((block.channel & 32) >> 3);
            const int end = smaller(block.count, p + block.width - x);
            for (; p < end; ++p, to += 8 * pixel_words) {
                const std::uint32_t mask =
                    MaskOf::at_least(values + p * kGroup, level, flip) ^ invert;
                std::memcpy(to, &mask, 4);
            }
        }
        return;
    }
#if defined(__AVX512F__)
    if (view.bits == nullptr && left >= L) {
        count_thresholds<L>(step, block, values, level, flip, invert);
        return;
    }
#endif
    Walk at(block.first, block.width);
    for (int p = 0; p < block.count; ++p, at.next()) {
        const Value* v = values + p * kGroup;
        std::uint32_t planes[8] = {};
        for (int j = 1; j <= step.levels; ++j) {
            const std::uint32_t mask =
                MaskOf::at_least(v, level + std::ptrdiff_t{j - 1} * block.padded, flip) ^ invert;
            for (int b = 0; (j & ((1 << b) - 1)) == 0 && b < step.bits; ++b) {
                planes[b] ^= mask;
            }
        }
        const std::ptrdiff_t pixel = view.at(at.y, at.x);
        if (view.bits != nullptr) {
            std::uint64_t* to = view.bits + pixel * pixel_words;
            for (int b = 0; b < step.bits; ++b) {
                put_bits(to + std::ptrdiff_t{b} * view.words(), block.channel, block.channels,
                         planes[b]);
            }
        }
        if (view.bytes != nullptr) {
            std::uint8_t codes[kGroup];
            codes_of(planes, step.bits, codes);
            View only = view;
            only.bits = nullptr;
            put_codes(only, pixel, block.channel, block.channels, codes);
        }
    }
}

// ---------------------------------------------------------------- rounding

FOVEATE_INLINE float rounded(float v, Rounding how) {
    switch (how) {
        case Rounding::half_even:
            return __builtin_nearbyintf(v);
        case Rounding::floor:
            return __builtin_floorf(v);
        default:
            return __builtin_floorf(v + 0.5F);
    }
}

// Codes of values, by one rounding. What it needs is worked out once.
template <Rounding how, bool kBipolar>
class Rounder {
  public:
    explicit FOVEATE_INLINE Rounder(const StepData& step)
        : by_(kBipolar ? step.range : step.step), top_(static_cast<float>((1 << step.bits) - 1)) {
#if defined(__AVX512F__)
        reciprocal_ = by_ > 0x1p-100F && by_ < 0x1p100F ? 1.0F / by_ : kAbsent;
#endif
    }

    FOVEATE_INLINE void operator()(const float* y, int n, std::uint8_t* codes) const {
        int c = 0;
#if defined(__AVX512F__)
        for (; c + 16 <= n; c += 16) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + c), sixteen(_mm512_loadu_ps(y + c)));
        }
#endif
        for (; c < n; ++c) {
            float t = y[c] / by_;
            if (kBipolar) {
                t = t + 1.0F;
                t = t * (top_ / 2);
            }
            t = rounded(t, how);
            t = t > 0.0F ? t : 0.0F;  // not-a-number becomes 0
            t = t < top_ ? t : top_;
            codes[c] = static_cast<std::uint8_t>(static_cast<std::int32_t>(t));
        }
    }

  private:
#if defined(__AVX512F__)
    static constexpr float kAbsent = 0.0F;
    static constexpr float kNear = 1e-3F;
    static constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    static constexpr int kRound =
        how == Rounding::half_even ? kNearest : _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;

    FOVEATE_INLINE __m512 levels(__m512 t) const {
        if constexpr (kBipolar) {
            t = _mm512_add_ps(t, _mm512_set1_ps(1.0F));
            t = _mm512_mul_ps(t, _mm512_set1_ps(top_ / 2));
        }
        return how == Rounding::half_up ? _mm512_add_ps(t, _mm512_set1_ps(0.5F)) : t;
    }

    // Division is slow. The product with the reciprocal is off by less than 1e-4 of a level wherever
    // the code is not the first or the last one anyway; so unless it comes near to where the
    // rounding changes, it gives the code of the quotient. Else the quotient is taken.
    FOVEATE_INLINE __m128i sixteen(__m512 v) const {
        __m512 t = levels(_mm512_mul_ps(v, _mm512_set1_ps(reciprocal_)));
        const __m512 off = _mm512_abs_ps(_mm512_sub_ps(t, _mm512_roundscale_ps(t, kNearest)));
        const __mmask16 near = how == Rounding::half_even
                                   ? _mm512_cmp_ps_mask(off, _mm512_set1_ps(0.5F - kNear), _CMP_GT_OQ)
                                   : _mm512_cmp_ps_mask(off, _mm512_set1_ps(kNear), _CMP_LT_OQ);
        if (__builtin_expect(near != 0 || reciprocal_ == kAbsent, 0)) {
            t = levels(_mm512_div_ps(v, _mm512_set1_ps(by_)));
        }
        t = _mm512_roundscale_ps(t, kRound);
        t = _mm512_max_ps(t, _mm512_setzero_ps());  // not-a-number becomes 0
        t = _mm512_min_ps(t, _mm512_set1_ps(top_));
        return _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(t));
    }

    float reciprocal_;
#endif
    float by_;
    float top_;
};

struct SignCodes {
    FOVEATE_INLINE void operator()(const float* y, int n, std::uint8_t* codes) const {
        for (int c = 0; c < n; ++c) {
            codes[c] = static_cast<std::uint8_t>(y[c] >= 0.0F);
        }
    }
};

// Calls work(codes_of) with what makes codes of n values.
template <class Work>
FOVEATE_INLINE void with_rounder(const StepData& step, const Work& work) {
    const auto by_kind = [&]<Rounding how>() {
        if (step.kind == Kind::bipolar) {
            work(Rounder<how, true>(step));
        } else {
            work(Rounder<how, false>(step));
        }
    };
    if (step.kind == Kind::bipolar && step.bits == 1) {
        work(SignCodes());
    } else if (step.rounding == Rounding::half_even) {
        by_kind.template operator()<Rounding::half_even>();
    } else if (step.rounding == Rounding::floor) {
        by_kind.template operator()<Rounding::floor>();
    } else {
        by_kind.template operator()<Rounding::half_up>();
    }
}

inline void quantize_narrow(const StepData& step, const float* values, int pixels, int channels,
                            std::uint8_t* out, std::ptrdiff_t stride) {
    constexpr int kAtOnce = 64;
    std::uint8_t codes[kAtOnce * kGroup + 1] = {};
    with_rounder(step, [&](const auto& codes_of_values) {
        for (int first = 0; first < pixels; first += kAtOnce) {
            const int count = smaller(kAtOnce, pixels - first);
            codes_of_values(values + std::ptrdiff_t{first} * channels, count * channels, codes);
            const std::uint8_t* from = codes;
            std::uint8_t* to = out + first * stride;
            if (channels == 3) {  // colour pictures; the last pixel must not read beyond the codes
                for (int p = 0; p < count; ++p, to += 4, from += 3) {
                    std::uint32_t word;
                    std::memcpy(&word, from, 4);
                    word &= 0xffffffU;
                    std::memcpy(to, &word, 4);
                }
                continue;
            }
            for (int p = 0; p < count; ++p, to += stride, from += channels) {
                for (int c = 0; c < channels; ++c) {
                    to[c] = from[c];
                }
                for (int c = channels; c < stride; ++c) {
                    to[c] = 0;
                }
            }
        }
    });
}

template <int L>
void quantize(const StepData& step, const Block& block, const float* values) {
    const View view = block.views[step.slot];
    const int first = block.first;
    const int count = block.count;
    const int width = block.width;
    const int channel = block.channel;
    const int channels = block.channels;
    const bool plain = view.bits == nullptr && channels - channel >= L;
    with_rounder(step, [&](const auto& codes_of_values) {
        Walk at(first, width);
        if (plain) {
            const std::ptrdiff_t stride = view.byte_stride();
            for (int p = 0; p < count; ++p, at.next()) {
                codes_of_values(values + p * kGroup, L,
                                view.bytes + view.at(at.y, at.x) * stride + channel);
            }
            return;
        }
        for (int p = 0; p < count; ++p, at.next()) {
            std::uint8_t codes[kGroup] = {};
            codes_of_values(values + p * kGroup, L, codes);
            put_codes(view, view.at(at.y, at.x), channel, channels, codes);
        }
    });
}

// ---------------------------------------------------------------- everything in order

FOVEATE_INLINE bool is_linear(const StepData& step) {
    return step.op == StepOp::affine || step.op == StepOp::gate;
}

// Factors and summands of an affine step or a gate, absent ones as 1 and -0 (x + -0 is x).
FOVEATE_INLINE void linear_rows(const StepData& step, const Block& block, float* a, float* b) {
    const int inside = smaller(kGroup, block.channels - block.channel);
    const float* factors = step.op == StepOp::gate ? block.views[step.slot].f32 : step.a;
    for (int c = 0; c < kGroup; ++c) {
        a[c] = factors != nullptr && c < inside ? factors[block.channel + c] : 1.0F;
        b[c] = step.b != nullptr ? step.b[block.channel + c] : -0.0F;
    }
}

// L channels of a block are wanted: 32, or 16 where there are no more.
template <int L>
void run_steps_of(const Block& block) {
    float* y = block.values;
    const int total = block.count * kGroup;
    const int inside = smaller(L, block.channels - block.channel);
    bool converted = block.sums == nullptr;
    for (int s = 0; s < block.n_steps; ++s) {
        const StepData& step = block.steps[s];
        if (step.op == StepOp::thresholds_int) {
            thresholds<L>(step, block, block.sums, step.table_int);
            continue;
        }
        if (step.op == StepOp::store_sums) {
            const std::int32_t* sums = block.sums;
            each_pixel(block.views[step.slot], block, [=](int p, float* to) {
                std::memcpy(to, sums + p * kGroup,
                            sizeof(std::int32_t) * static_cast<std::size_t>(inside));
            });
            continue;
        }
        if (!converted && !is_linear(step)) {
            for (int i = 0; i < total; ++i) {
                y[i] = static_cast<float>(block.sums[i]);
            }
            converted = true;
        }
        switch (step.op) {
            case StepOp::affine:
            case StepOp::gate: {
                // One pass: the sums become floats on the way, and a second step of the kind (scale,
                // then batch norm or gate) goes along. Multiplication and addition are rounded one by one (the
                // file is compiled without contraction).
                const bool two = s + 1 < block.n_steps && is_linear(block.steps[s + 1]);
                float a[kGroup];
                float b[kGroup];
                float a2[kGroup];
                float b2[kGroup];
                linear_rows(step, block, a, b);
                if (two) {
                    linear_rows(block.steps[s + 1], block, a2, b2);
                    ++s;
                }
                const auto pass = [&](const auto* from) {
                    for (int p = 0; p < block.count; ++p) {
                        for (int c = 0; c < L; ++c) {
                            const float scaled = static_cast<float>(from[p * kGroup + c]) * a[c];
                            y[p * kGroup + c] = scaled + b[c];
                        }
                    }
                };
                const auto double_pass = [&](const auto* from) {
                    for (int p = 0; p < block.count; ++p) {
                        for (int c = 0; c < L; ++c) {
                            const float scaled = static_cast<float>(from[p * kGroup + c]) * a[c];
                            const float moved = scaled + b[c];
                            const float again = moved * a2[c];
                            y[p * kGroup + c] = again + b2[c];
                        }
                    }
                };
                if (converted && two) {
                    double_pass(y);
                } else if (converted) {
                    pass(y);
                } else if (two) {
                    double_pass(block.sums);
                } else {
                    pass(block.sums);
                }
                converted = true;
                break;
            }
            case StepOp::add:
                if (inside == L) {
                    each_pixel(block.views[step.slot], block, [=](int p, const float* r) {
                        float* to = y + p * kGroup;
                        for (int c = 0; c < L; ++c) {
                            to[c] = to[c] + r[c];
                        }
                    });
                } else {
                    each_pixel(block.views[step.slot], block, [=](int p, const float* r) {
                        float* to = y + p * kGroup;
                        for (int c = 0; c < inside; ++c) {
                            to[c] = to[c] + r[c];
                        }
                    });
                }
                break;
            case StepOp::relu:
                for (int i = 0; i < total; ++i) {
                    y[i] = y[i] < 0.0F ? 0.0F : y[i];  // keeps not-a-number, as torch does
                }
                break;
            case StepOp::clip:
                for (int i = 0; i < total; ++i) {
                    const float v = y[i] < step.low ? step.low : y[i];
                    y[i] = v > step.high ? step.high : v;
                }
                break;
            case StepOp::prelu: {
                float a[kGroup];
                std::memcpy(a, step.a + block.channel, sizeof a);
                for (int p = 0; p < block.count; ++p) {
                    for (int c = 0; c < L; ++c) {
                        const float v = y[p * kGroup + c];
                        const float scaled = v * a[c];
                        y[p * kGroup + c] = v > 0.0F ? v : scaled;
                    }
                }
                break;
            }
            case StepOp::sigmoid:
                for (int i = 0; i < total; ++i) {
                    y[i] = 1.0F / (1.0F + ::expf(-y[i]));
                }
                break;
            case StepOp::silu:
                for (int i = 0; i < total; ++i) {
                    y[i] = y[i] / (1.0F + ::expf(-y[i]));
                }
                break;
            case StepOp::hswish:
                for (int i = 0; i < total; ++i) {
                    float v = y[i] + 3.0F;
                    v = v < 0.0F ? 0.0F : v;
                    v = v > 6.0F ? 6.0F : v;
                    y[i] = y[i] * v / 6.0F;
                }
                break;
            case StepOp::store:
                if (inside == L) {
                    each_pixel(block.views[step.slot], block, [=](int p, float* to) {
                        std::memcpy(to, y + p * kGroup, L * sizeof(float));
                    });
                } else {
                    each_pixel(block.views[step.slot], block, [=](int p, float* to) {
                        std::memcpy(to, y + p * kGroup,
                                    sizeof(float) * static_cast<std::size_t>(inside));
                    });
                }
                break;
            case StepOp::quantize:
                quantize<L>(step, block, y);
                break;
            case StepOp::thresholds_float:
                thresholds<L>(step, block, y, step.table_float);
                break;
            case StepOp::thresholds_int:
            case StepOp::store_sums:
                break;
        }
    }
}

inline void run_steps(const Block& block) {
    if (block.channels - block.channel <= 16) {
        run_steps_of<16>(block);
    } else {
        run_steps_of<32>(block);
    }
}

// ---------------------------------------------------------------- sums

// to += factor * sum, modulo 2^32
FOVEATE_INLINE void add_scaled(const std::int32_t* sum, std::int32_t factor, std::int32_t* to) {
    for (int c = 0; c < kGroup; ++c) {
        to[c] = static_cast<std::int32_t>(static_cast<std::uint32_t>(to[c]) +
                                          static_cast<std::uint32_t>(sum[c]) *
                                              static_cast<std::uint32_t>(factor));
    }
}

inline void start(const std::int32_t* const* rows, const std::int32_t* scalars, std::int32_t factor,
                  int n_pix, std::int32_t* out) {
    for (int p = 0; p < n_pix; ++p) {
        std::memcpy(out + p * kGroup, rows[p], kGroup * sizeof(std::int32_t));
    }
    if (scalars == nullptr) {
        return;
    }
    for (int p = 0; p < n_pix; ++p) {
        const std::uint32_t add =
            static_cast<std::uint32_t>(factor) * static_cast<std::uint32_t>(scalars[p]);
        for (int c = 0; c < kGroup; ++c) {
            out[p * kGroup + c] =
                static_cast<std::int32_t>(static_cast<std::uint32_t>(out[p * kGroup + c]) + add);
        }
    }
}

// ---------------------------------------------------------------- rows

inline void sum_codes(const std::uint8_t* const* pixels, int n_pix, const std::ptrdiff_t* taps,
                      int n, std::ptrdiff_t stride, int channels, std::int32_t* out) {
    for (int p = 0; p < n_pix; ++p) {
        std::int32_t sum = 0;
#if defined(__AVX2__)
        __m256i sums = _mm256_setzero_si256();
#endif
        for (int t = 0; t < n; ++t) {
            const std::uint8_t* at = pixels[p] + taps[t] * stride;
            int c = 0;
#if defined(__AVX2__)
            for (; c + 32 <= channels; c += 32) {
                const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + c));
                sums = _mm256_add_epi64(sums, _mm256_sad_epu8(codes, _mm256_setzero_si256()));
            }
#endif
            for (; c < channels; ++c) {
                sum += at[c];
            }
        }
#if defined(__AVX2__)
        std::uint64_t four[4];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(four), sums);
        sum += static_cast<std::int32_t>(four[0] + four[1] + four[2] + four[3]);
#endif
        out[p] = sum;
    }
}

inline void max_of_codes(const std::uint8_t* const* rows, int n, int bytes, std::uint8_t* out) {
    int c = 0;
#if defined(__AVX2__)
    for (; c + 32 <= bytes; c += 32) {
        __m256i best = _mm256_setzero_si256();
        for (int r = 0; r < n; ++r) {
            best = _mm256_max_epu8(
                best, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r] + c)));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c), best);
    }
#endif
    for (; c < bytes; ++c) {
        std::uint8_t best = 0;
        for (int r = 0; r < n; ++r) {
            best = rows[r][c] > best ? rows[r][c] : best;
        }
        out[c] = best;
    }
}

inline void max_of(const float* const* rows, int n, int channels, float* out) {
    // The largest stays in registers over all rows. max(x, best) gives best where the two are equal
    // or one is not a number; a row that is not a number is put in by hand.
    int c = 0;
#if defined(__AVX512F__)
    for (; c + 16 <= channels; c += 16) {
        __m512 best = _mm512_set1_ps(-__builtin_inff());
        for (int r = 0; r < n; ++r) {
            const __m512 x = _mm512_loadu_ps(rows[r] + c);
            best = _mm512_mask_mov_ps(_mm512_max_ps(x, best),
                                      _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
        }
        _mm512_storeu_ps(out + c, best);
    }
#elif defined(__AVX2__)
    for (; c + 8 <= channels; c += 8) {
        __m256 best = _mm256_set1_ps(-__builtin_inff());
        for (int r = 0; r < n; ++r) {
            const __m256 x = _mm256_loadu_ps(rows[r] + c);
            best = _mm256_blendv_ps(_mm256_max_ps(x, best), x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        }
        _mm256_storeu_ps(out + c, best);
    }
#endif
    for (; c < channels; ++c) {
        float best = -__builtin_inff();
        for (int r = 0; r < n; ++r) {
            const float from = rows[r][c];
            best = best >= from || best != best ? best : from;
        }
        out[c] = best;
    }
}

inline void add_rows(const float* rows, int n, std::ptrdiff_t stride, int channels, float* out) {
    constexpr int kLanes = 64;
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        float sum[kLanes];
        std::memcpy(sum, out + c, sizeof sum);
        for (int r = 0; r < n; ++r) {
            const float* from = rows + r * stride + c;
            for (int i = 0; i < kLanes; ++i) {
                sum[i] = sum[i] + from[i];
            }
        }
        std::memcpy(out + c, sum, sizeof sum);
    }
    for (; c < channels; ++c) {
        float sum = out[c];
        for (int r = 0; r < n; ++r) {
            sum = sum + rows[r * stride + c];
        }
        out[c] = sum;
    }
}

// ---------------------------------------------------------------- depthwise

inline void depthwise8(const std::uint8_t* const* pixels, int n_pix, const std::int32_t* offsets,
                       int n, const std::int16_t* weights, std::int32_t factor, std::int32_t* out) {
    for (int p = 0; p < n_pix; ++p) {
        std::int32_t sum[kGroup] = {};
        for (int t = 0; t < n; ++t) {
            const std::uint8_t* a = pixels[p] + offsets[t];
            const std::int16_t* w = weights + std::ptrdiff_t{t} * kGroup;
            for (int c = 0; c < kGroup; ++c) {
                sum[c] += static_cast<std::int32_t>(a[c]) * w[c];
            }
        }
        add_scaled(sum, factor, out + p * kGroup);
    }
}

inline void depthwisef(const float* const* pixels, int n_pix, const std::int32_t* offsets, int n,
                       const float* weights, float* out) {
    for (int p = 0; p < n_pix; ++p) {
        float sum[kGroup] = {};
        for (int t = 0; t < n; ++t) {
            const float* a = pixels[p] + offsets[t];
            const float* w = weights + std::ptrdiff_t{t} * kGroup;
            for (int c = 0; c < kGroup; ++c) {
                sum[c] = __builtin_fmaf(a[c], w[c], sum[c]);
            }
        }
        std::memcpy(out + p * kGroup, sum, sizeof sum);
    }
}

}  // namespace impl
}  // namespace
}  // namespace foveate
