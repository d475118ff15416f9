#include "conv.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>

namespace foveate {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Code of one weight, gathered from the planes of the file layout (most significant plane first).
int code_at(const ConvSpec& s, const std::uint64_t* packed, int out, int tap, int c) {
    const int words = ceil_div(s.group_in(), 64);
    const std::uint64_t* w = packed + out * s.packed_words();
    int code = 0;
    for (int plane = 0; plane < s.weight.bits; ++plane) {
        const std::uint64_t word =
            w[(std::int64_t{plane} * s.taps() + tap) * words + (c >> 6)];
        code = 2 * code + static_cast<int>((word >> (c & 63)) & 1U);
    }
    return code;
}

int integer_of(const Format& f, int code) {
    switch (f.kind) {
        case Kind::bipolar:
            return 2 * code - f.levels();
        case Kind::twos:
            return (code >> (f.bits - 1)) != 0 ? code - (1 << f.bits) : code;
        default:
            return code;
    }
}

// Appends the low `count` (<= 64) bits of `field` to a bit string.
inline void append(std::uint64_t* to, int position, std::uint64_t field, int count) {
    if (count < 64) {
        field &= (std::uint64_t{1} << count) - 1;
    }
    const int word = position >> 6;
    const int shift = position & 63;
    to[word] |= field << shift;
    if (shift + count > 64) {
        to[word + 1] |= field >> (64 - shift);
    }
}

// 64 bits of `row` from bit `from` on.
inline std::uint64_t bits_from(const std::uint64_t* row, int from, int count) {
    const int word = from >> 6;
    const int shift = from & 63;
    std::uint64_t field = row[word] >> shift;
    if (shift != 0 && shift + count > 64) {
        field |= row[word + 1] << (64 - shift);
    }
    return field;
}

constexpr std::size_t kMaxBorder = std::size_t{1} << 24;  // entries of a correction table

}  // namespace

struct Conv::Scratch {
    std::vector<std::int32_t> offsets;
    std::vector<std::ptrdiff_t> taps;
    std::vector<std::uint64_t> dense;  // [planes][kBlock][run_words]
    std::ptrdiff_t starts[kBlock];     // windows, in pixels
    const std::uint64_t* words[8][kBlock];
    const std::uint8_t* bytes[kBlock];
    const float* reals[kBlock];
    const std::int32_t* first_rows[kBlock];  // starts of the sums: of channel 0,
    const std::int32_t* rows[kBlock];        // and of the block's first channel
    std::int32_t window_sums[kBlock];        // A
    alignas(64) std::int32_t sums[kBlock * kGroup];
    alignas(64) std::int32_t part_sums[kBlock * kGroup];
    alignas(64) float values[kBlock * kGroup];
    alignas(64) float part[kBlock * kGroup];
};

Conv::Conv(const ConvSpec& spec, const std::uint64_t* packed, const float* real, Program program)
    : spec_(spec), program_(std::move(program)) {
    const ConvSpec& s = spec_;
    const auto positive = [](int v, int limit) { return v >= 1 && v <= limit; };
    if (!positive(s.in_channels, 1 << 16) || !positive(s.out_channels, 1 << 16) ||
        !positive(s.groups, s.in_channels) || s.in_channels % s.groups != 0 ||
        s.out_channels % s.groups != 0) {
        refuse("a convolution's channels do not divide into its groups");
    }
    if (!positive(s.kernel_h, 64) || !positive(s.kernel_w, 64) || !positive(s.stride_h, 64) ||
        !positive(s.stride_w, 64) || !positive(s.dilation_h, 64) || !positive(s.dilation_w, 64) ||
        s.pad_h < 0 || s.pad_w < 0 || s.pad_h > 4096 || s.pad_w > 4096) {
        refuse("kernel, stride, dilation or padding of a convolution is out of range");
    }
    if (!positive(s.in_height, 1 << 14) || !positive(s.in_width, 1 << 14) ||
        s.in_height + 2 * s.pad_h <= s.dilation_h * (s.kernel_h - 1) ||
        s.in_width + 2 * s.pad_w <= s.dilation_w * (s.kernel_w - 1)) {
        refuse("a convolution's window is larger than its padded input");
    }
    if (program_.channels != s.out_channels) {
        refuse("the steps behind a convolution have another number of channels");
    }
    const bool real_weights = s.weight.is_float();
    if (real_weights != s.in.is_float() || real_weights != (s.path == Path::f32) ||
        (real_weights ? real == nullptr : packed == nullptr)) {
        refuse("input, weights and path of a convolution must all be float32 or all codes");
    }
    if (!real_weights && (s.in.bits > 8 || s.weight.bits > 8 || s.in.kind == Kind::twos)) {
        refuse("codes have 1 to 8 bits, and those of activations are bipolar or unipolar");
    }
    if (!real_weights) {
        // |S| stays inside 32 bits; intermediate terms may double and wrap.
        const std::int64_t reach = std::int64_t{s.in.levels()} * s.weight.levels();
        if (reach * s.taps() * s.group_in() >= (std::int64_t{1} << 31)) {
            refuse("a window of a convolution is too long for 32-bit sums at these bits");
        }
    }
    depthwise_ = s.groups > 1 && s.group_in() == 1 && s.group_out() == 1;
    if (depthwise_ && s.path == Path::bits) {
        refuse("a depthwise convolution has no bit path; use int8");
    }
    blocks_ = ceil_div(s.out_channels, kGroup);
    make_segments();
    if (s.path == Path::f32) {
        prepare_float(real);
    } else if (s.path == Path::int8) {
        prepare_int8(packed);
    } else {
        prepare_bits(packed);
    }
}

void Conv::make_segments() {
    const int size = spec_.group_out();
    first_segment_.assign(1, 0);
    for (int block = 0; block < blocks_; ++block) {
        const int begin = block * kGroup;
        const int end = std::min(begin + kGroup, spec_.out_channels);
        if (depthwise_) {
            segments_.push_back({block, 0, 0, end - begin, 0});
        } else {
            for (int g = begin / size; g * size < end; ++g) {
                segments_.push_back({block, g, std::max(begin, g * size) - begin,
                                     std::min(end, (g + 1) * size) - begin, 0});
            }
        }
        first_segment_.push_back(static_cast<int>(segments_.size()));
    }
}

void Conv::prepare_float(const float* real) {
    const ConvSpec& s = spec_;
    const int depth = depthwise_ ? s.taps() : s.taps() * s.group_in();
    for (Segment& segment : segments_) {
        segment.weights = floats_.size();
        floats_.resize(floats_.size() + static_cast<std::size_t>(depth) * kGroup, 0.0F);
        float* to = floats_.data() + segment.weights;
        for (int lane = segment.lo; lane < segment.hi; ++lane) {
            const int out = segment.block * kGroup + lane;
            for (int c = 0; c < s.group_in(); ++c) {
                for (int tap = 0; tap < s.taps(); ++tap) {
                    const float w = real[(std::int64_t{out} * s.group_in() + c) * s.taps() + tap];
                    const int t = tap * s.group_in() + c;  // depthwise: group_in is 1
                    to[std::int64_t{t} * kGroup + lane] = w;
                }
            }
        }
    }
}

void Conv::prepare_int8(const std::uint64_t* packed) {
    const ConvSpec& s = spec_;
    const int quads = ceil_div(s.group_in(), 4);
    const int top = s.in.levels();
    const bool wide = s.weight.bits == 8 && s.weight.kind != Kind::twos;
    // Depthwise weights have 16 bits; others 8, where 8-bit codes are moved to [-128, 127]:
    // s_w = scale * w + shift.
    const int scale = wide && !depthwise_ && s.weight.kind == Kind::bipolar ? 2 : 1;
    const int shift = !wide || depthwise_ ? 0 : s.weight.kind == Kind::bipolar ? 1 : 128;
    const bool bipolar = s.in.kind == Kind::bipolar;
    // Bipolar: s_a = 2 u - top, so S = 2 sum(u s_w) - top sum(s_w); unipolar: S = sum(u s_w).
    // sum(u s_w) = scale * sum(u w) + shift * A.
    const int doubled = bipolar ? 2 : 1;
    multiply_ = doubled * scale;
    per_sum_ = doubled * shift;
    std::vector<std::int32_t> constant(static_cast<std::size_t>(blocks_) * kGroup, 0);
    std::vector<std::int32_t> sums;
    if (bipolar) {
        sums.assign(static_cast<std::size_t>(s.out_channels) * static_cast<std::size_t>(s.taps()),
                    0);
    }
    for (Segment& segment : segments_) {
        segment.weights = depthwise_ ? thin_.size() : bytes_.size();
        if (depthwise_) {
            thin_.resize(thin_.size() + static_cast<std::size_t>(s.taps()) * kGroup, 0);
        } else {
            bytes_.resize(bytes_.size() + static_cast<std::size_t>(s.taps()) *
                                              static_cast<std::size_t>(quads) * kGroup * 4,
                          0);
        }
        for (int lane = segment.lo; lane < segment.hi; ++lane) {
            const int out = segment.block * kGroup + lane;
            for (int tap = 0; tap < s.taps(); ++tap) {
                for (int c = 0; c < s.group_in(); ++c) {
                    const int value = integer_of(s.weight, code_at(s, packed, out, tap, c));
                    if (bipolar) {
                        sums[static_cast<std::size_t>(out) * static_cast<std::size_t>(s.taps()) +
                             static_cast<std::size_t>(tap)] += value;
                        constant[static_cast<std::size_t>(out)] -= top * value;
                    }
                    if (depthwise_) {
                        thin_[segment.weights + static_cast<std::size_t>(tap * kGroup + lane)] =
                            static_cast<std::int16_t>(value);
                    } else {
                        const std::int64_t t = std::int64_t{tap} * quads + c / 4;
                        bytes_[segment.weights +
                               static_cast<std::size_t>((t * kGroup + lane) * 4 + c % 4)] =
                            static_cast<std::int8_t>((value - shift) / scale);
                    }
                }
            }
        }
    }
    prepare_starts(constant, sums);
}

void Conv::prepare_bits(const std::uint64_t* packed) {
    const ConvSpec& s = spec_;
    const int words = ceil_div(s.group_in(), 64);
    const int dense_words = ceil_div(s.taps() * s.group_in(), 64);
    const bool aligned = s.groups == 1 || s.group_in() % 64 == 0;
    // Re-packing a window costs about as much as two channel blocks.
    dense_ = !aligned || 4 * dense_words <= 3 * s.taps() * words;
    run_words_ = dense_ ? dense_words : s.taps() * words;

    const bool bipolar_in = s.in.kind == Kind::bipolar;
    const int top_a = s.in.levels();
    const int top_w = s.weight.levels();
    const bool crossed = bipolar_in && s.weight.kind == Kind::bipolar;
    const std::int32_t window = s.taps() * s.group_in();
    std::vector<std::int32_t> constant(static_cast<std::size_t>(blocks_) * kGroup, 0);
    multiply_ = 1;  // the factors of the planes hold the rest
    per_sum_ = !bipolar_in && s.weight.kind == Kind::bipolar ? -top_w : 0;
    std::vector<std::int32_t> sums;
    if (bipolar_in) {
        sums.assign(static_cast<std::size_t>(s.out_channels) * static_cast<std::size_t>(s.taps()),
                    0);
    }
    for (Segment& segment : segments_) {
        segment.weights = bits_.size();
        bits_.resize(bits_.size() + static_cast<std::size_t>(s.weight.bits) *
                                        static_cast<std::size_t>(run_words_) * kGroup,
                     0);
        std::uint64_t* to = bits_.data() + segment.weights;
        std::vector<std::uint64_t> run(static_cast<std::size_t>(run_words_) + 1);
        for (int lane = segment.lo; lane < segment.hi; ++lane) {
            const int out = segment.block * kGroup + lane;
            const std::uint64_t* master = packed + out * s.packed_words();
            for (int plane = 0; plane < s.weight.bits; ++plane) {
                const std::uint64_t* from =
                    master + std::int64_t{s.weight.bits - 1 - plane} * s.taps() * words;
                std::fill(run.begin(), run.end(), 0);
                for (int tap = 0; tap < s.taps(); ++tap) {
                    for (int w = 0; w < words; ++w) {
                        // Bits beyond the last channel may be anything in the file.
                        const int left = std::min(64, s.group_in() - 64 * w);
                        const int position =
                            tap * (dense_ ? s.group_in() : 64 * words) + 64 * w;
                        append(run.data(), position, from[std::int64_t{tap} * words + w], left);
                    }
                }
                for (int t = 0; t < run_words_; ++t) {
                    to[(std::int64_t{plane} * run_words_ + t) * kGroup + lane] =
                        run[static_cast<std::size_t>(t)];
                }
            }
            if (bipolar_in) {
                std::int32_t total = 0;
                for (int tap = 0; tap < s.taps(); ++tap) {
                    std::int32_t sum = 0;
                    for (int c = 0; c < s.group_in(); ++c) {
                        sum += integer_of(s.weight, code_at(s, packed, out, tap, c));
                    }
                    sums[static_cast<std::size_t>(out) * static_cast<std::size_t>(s.taps()) +
                         static_cast<std::size_t>(tap)] = sum;
                    total += sum;
                }
                constant[static_cast<std::size_t>(out)] =
                    crossed ? top_a * top_w * window : -top_a * total;
            }
        }
    }
    prepare_starts(constant, sums);
}

// Under zero padding, pixels outside the picture are read as code 0, which is the integer -top and
// not 0: add top * (sum of the weights of every tap that lies outside).
void Conv::prepare_starts(const std::vector<std::int32_t>& constant,
                          const std::vector<std::int32_t>& sums) {
    const ConvSpec& s = spec_;
    if (sums.empty() || s.pad != Pad::zero || (s.pad_h == 0 && s.pad_w == 0)) {
        start_ = constant;
        row_start_.assign(static_cast<std::size_t>(s.out_height()), 0);
        column_start_.assign(static_cast<std::size_t>(s.out_width()), 0);
        return;
    }
    const auto classify = [](int count, int stride, int pad, int dilation, int kernel, int size,
                             std::vector<std::size_t>& classes) {
        std::map<std::uint64_t, std::size_t> seen;
        std::vector<std::uint64_t> masks;
        for (int o = 0; o < count; ++o) {
            std::uint64_t outside = 0;
            for (int k = 0; k < kernel; ++k) {
                const int at = o * stride - pad + k * dilation;
                if (at < 0 || at >= size) {
                    outside |= std::uint64_t{1} << k;
                }
            }
            const auto [found, fresh] =
                seen.emplace(outside, masks.size());
            if (fresh) {
                masks.push_back(outside);
            }
            classes.push_back(found->second);
        }
        return masks;
    };
    const std::vector<std::uint64_t> rows = classify(s.out_height(), s.stride_h, s.pad_h,
                                                     s.dilation_h, s.kernel_h, s.in_height,
                                                     row_start_);
    const std::vector<std::uint64_t> columns = classify(s.out_width(), s.stride_w, s.pad_w,
                                                        s.dilation_w, s.kernel_w, s.in_width,
                                                        column_start_);
    const std::size_t width = static_cast<std::size_t>(blocks_) * kGroup;
    if (rows.size() * columns.size() * width > kMaxBorder) {
        refuse("the border of a convolution has too many different corrections");
    }
    start_.reserve(rows.size() * columns.size() * width);
    for (std::size_t i = 0; i < rows.size() * columns.size(); ++i) {
        start_.insert(start_.end(), constant.begin(), constant.end());
    }
    for (std::size_t& r : row_start_) {
        r *= columns.size() * width;
    }
    for (std::size_t& k : column_start_) {
        k *= width;
    }
    const std::int32_t top = s.in.levels();
    for (std::size_t r = 0; r < rows.size(); ++r) {
        for (std::size_t k = 0; k < columns.size(); ++k) {
            std::int32_t* to = start_.data() + (r * columns.size() + k) * width;
            for (int ky = 0; ky < s.kernel_h; ++ky) {
                for (int kx = 0; kx < s.kernel_w; ++kx) {
                    if (((rows[r] >> ky) & 1U) == 0 && ((columns[k] >> kx) & 1U) == 0) {
                        continue;
                    }
                    const std::size_t tap = static_cast<std::size_t>(ky * s.kernel_w + kx);
                    for (int out = 0; out < s.out_channels; ++out) {
                        // Modulo 2^32: the popcounts that come later bring it back into range.
                        const std::int32_t more = top * sums[static_cast<std::size_t>(out) *
                                                                 static_cast<std::size_t>(s.taps()) +
                                                             tap];
                        to[out] = static_cast<std::int32_t>(static_cast<std::uint32_t>(to[out]) +
                                                            static_cast<std::uint32_t>(more));
                    }
                }
            }
        }
    }
}

std::int64_t Conv::macs() const {
    return std::int64_t{spec_.out_height()} * spec_.out_width() * spec_.out_channels * spec_.taps() *
           spec_.group_in();
}

namespace {

// How the work is cut: runs of pixels x ranges of channel blocks.
struct Cut {
    int pixel_parts = 1;
    int channel_parts = 1;
};

Cut cut_of(int pixels, int blocks, int threads) {
    Cut cut;
    if (threads > 1) {
        const int wanted = 4 * threads;
        cut.pixel_parts = std::min(ceil_div(pixels, kBlock), wanted);
        if (cut.pixel_parts < wanted) {
            cut.channel_parts = std::min(blocks, ceil_div(wanted, cut.pixel_parts));
        }
    }
    return cut;
}

// Part `i` of `n` parts of 0 .. total, in multiples of 8: no tile of one pixel where it can be
// helped.
int cut_at(int total, int i, int n) {
    return std::min(total, 8 * static_cast<int>(std::int64_t{ceil_div(total, 8)} * i / n));
}

}  // namespace

int Conv::tasks(int threads) const {
    const Cut cut = cut_of(spec_.out_height() * spec_.out_width(), blocks_, threads);
    return cut.pixel_parts * cut.channel_parts;
}

void Conv::run_task(int task, int threads, const View& in, const View* views) const {
    const int pixels = spec_.out_height() * spec_.out_width();
    const Cut cut = cut_of(pixels, blocks_, threads);
    const int part = task / cut.channel_parts;
    const int slice = task % cut.channel_parts;
    const int first = cut_at(pixels, part, cut.pixel_parts);
    const int count = cut_at(pixels, part + 1, cut.pixel_parts) - first;
    const int begin = static_cast<int>(std::int64_t{blocks_} * slice / cut.channel_parts);
    const int end = static_cast<int>(std::int64_t{blocks_} * (slice + 1) / cut.channel_parts);
    if (count <= 0 || begin == end) {
        return;
    }
    static thread_local Scratch scratch;
    find_offsets(scratch, in);
    const int pieces = ceil_div(count, kBlock);
    for (int i = 0; i < pieces; ++i) {
        const int from = cut_at(count, i, pieces);
        const int to = cut_at(count, i + 1, pieces);
        if (from < to) {
            run_block(scratch, first + from, to - from, begin, end, in, views);
        }
    }
}

// Where the operands of a window lie, relative to its first pixel.
void Conv::find_offsets(Scratch& scratch, const View& in) const {
    const ConvSpec& s = spec_;
    const int quads = depthwise_ ? 1 : ceil_div(s.group_in(), 4);
    const int words = ceil_div(s.group_in(), 64);
    scratch.offsets.clear();
    scratch.taps.clear();
    for (int tap = 0; tap < s.taps(); ++tap) {
        const std::ptrdiff_t at =
            in.at(tap / s.kernel_w * s.dilation_h, tap % s.kernel_w * s.dilation_w);
        scratch.taps.push_back(at);
        if (s.path == Path::f32) {
            for (int c = 0; c < s.group_in(); ++c) {
                scratch.offsets.push_back(static_cast<std::int32_t>(at * in.channels + c));
            }
        } else if (s.path == Path::int8) {
            for (int q = 0; q < quads; ++q) {
                scratch.offsets.push_back(static_cast<std::int32_t>(at * in.byte_stride() + 4 * q));
            }
        } else if (!dense_) {
            for (int w = 0; w < words; ++w) {
                scratch.offsets.push_back(static_cast<std::int32_t>(at * in.pixel_words() + w));
            }
        }
    }
    if (dense_) {
        for (int t = 0; t < run_words_; ++t) {
            scratch.offsets.push_back(t);
        }
        scratch.dense.resize(static_cast<std::size_t>(s.in.bits) * kBlock *
                                 static_cast<std::size_t>(run_words_) +
                             1);
    }
}

// Pointers to the windows of one convolution group, re-packed bits where the path wants them, and A.
void Conv::set_up_group(Scratch& scratch, int count, int group, const View& in) const {
    const ConvSpec& s = spec_;
    const Kernels& k = kernels();
    if (s.path == Path::int8) {
        for (int p = 0; p < count; ++p) {
            scratch.bytes[p] =
                in.bytes + scratch.starts[p] * in.byte_stride() + group * s.group_in();
        }
        if (per_sum_ != 0) {
            k.sum_codes(scratch.bytes, count, scratch.taps.data(), s.taps(), in.byte_stride(),
                        s.group_in(), scratch.window_sums);
        }
        return;
    }
    const int words = ceil_div(s.group_in(), 64);
    if (dense_) {
        std::fill(scratch.dense.begin(), scratch.dense.end(), 0);
    }
    for (int plane = 0; plane < s.in.bits; ++plane) {
        for (int p = 0; p < count; ++p) {
            const std::uint64_t* from = in.bits + scratch.starts[p] * in.pixel_words() +
                                        std::ptrdiff_t{plane} * in.words();
            if (!dense_) {
                scratch.words[plane][p] = from + group * words;
                continue;
            }
            std::uint64_t* to =
                scratch.dense.data() + (std::ptrdiff_t{plane} * kBlock + p) * run_words_;
            scratch.words[plane][p] = to;
            int position = 0;
            for (const std::ptrdiff_t tap : scratch.taps) {
                const std::uint64_t* row = from + tap * in.pixel_words();
                for (int c = 0; c < s.group_in(); c += 64) {
                    const int left = std::min(64, s.group_in() - c);
                    append(to, position, bits_from(row, group * s.group_in() + c, left), left);
                    position += left;
                }
            }
        }
    }
    if (per_sum_ != 0) {
        std::fill(scratch.window_sums, scratch.window_sums + count, 0);
        for (int plane = 0; plane < s.in.bits; ++plane) {
            k.count_ones(scratch.words[plane], count, scratch.offsets.data(), run_words_,
                         std::int32_t{1} << plane, scratch.window_sums);
        }
    }
}

void Conv::run_block(Scratch& scratch, int first, int count, int block_begin, int block_end,
                     const View& in, const View* views) const {
    const ConvSpec& s = spec_;
    const Kernels& k = kernels();
    const int width = s.out_width();
    const int n_offsets = static_cast<int>(scratch.offsets.size());
    int x = first % width;
    for (int y = first / width, p = 0; p < count; ++y, x = 0) {
        std::ptrdiff_t at = in.at(y * s.stride_h - s.pad_h, x * s.stride_w - s.pad_w);
        const int end = std::min(count, p + width - x);
        if (s.path == Path::f32) {
            for (; p < end; ++p, at += s.stride_w) {
                scratch.starts[p] = at;
            }
        } else {
            const std::int32_t* row = start_.data() + row_start_[static_cast<std::size_t>(y)];
            const std::size_t* columns = column_start_.data() + x;
            for (; p < end; ++p, at += s.stride_w) {
                scratch.starts[p] = at;
                scratch.first_rows[p] = row + *columns++;
            }
        }
    }
    Block work;
    work.steps = program_.steps();
    work.n_steps = program_.count();
    work.views = views;
    work.channels = s.out_channels;
    work.padded = program_.padded;
    work.width = width;
    work.first = first;
    work.count = count;
    work.values = scratch.values;
    int ready = -1;  // the convolution group that is set up
    for (int block = block_begin; block < block_end; ++block) {
        const int begin = first_segment_[static_cast<std::size_t>(block)];
        const int end = first_segment_[static_cast<std::size_t>(block) + 1];
        for (int i = begin; i < end; ++i) {
            const Segment& segment = segments_[static_cast<std::size_t>(i)];
            const bool whole = end - begin == 1;
            const int skip = depthwise_ ? block * kGroup : segment.group * s.group_in();
            if (s.path == Path::f32) {
                for (int p = 0; p < count; ++p) {
                    scratch.reals[p] = in.f32 + scratch.starts[p] * in.channels + skip;
                }
                float* to = whole ? scratch.values : scratch.part;
                (depthwise_ ? k.depthwisef : k.dotf)(scratch.reals, count, scratch.offsets.data(),
                                                     n_offsets, floats_.data() + segment.weights,
                                                     to);
                for (int p = 0; !whole && p < count; ++p) {
                    std::copy(to + p * kGroup + segment.lo, to + p * kGroup + segment.hi,
                              scratch.values + p * kGroup + segment.lo);
                }
                continue;
            }
            if (depthwise_) {
                for (int p = 0; p < count; ++p) {
                    scratch.bytes[p] = in.bytes + scratch.starts[p] * in.byte_stride() + skip;
                }
            } else if (ready != segment.group) {
                set_up_group(scratch, count, segment.group, in);
                ready = segment.group;
            }
            for (int p = 0; p < count; ++p) {
                scratch.rows[p] = scratch.first_rows[p] + std::ptrdiff_t{block} * kGroup;
            }
            std::int32_t* to = whole ? scratch.sums : scratch.part_sums;
            if (s.path == Path::bits) {
                sum_integers(scratch, count, segment, to);
            } else {
                k.start(scratch.rows, per_sum_ != 0 ? scratch.window_sums : nullptr, per_sum_,
                        count, to);
                if (depthwise_) {
                    k.depthwise8(scratch.bytes, count, scratch.offsets.data(), n_offsets,
                                 thin_.data() + segment.weights, multiply_, to);
                } else {
                    k.dot8(scratch.bytes, count, scratch.offsets.data(), n_offsets,
                           bytes_.data() + segment.weights, segment.hi, multiply_, to);
                }
            }
            for (int p = 0; !whole && p < count; ++p) {
                std::copy(to + p * kGroup + segment.lo, to + p * kGroup + segment.hi,
                          scratch.sums + p * kGroup + segment.lo);
            }
        }
        work.channel = block * kGroup;
        work.sums = s.path == Path::f32 ? nullptr : scratch.sums;
        k.run_steps(work);
    }
}

// Adds the products of all pairs of planes, with their powers of two and signs.
void Conv::sum_integers(Scratch& scratch, int count, const Segment& segment,
                        std::int32_t* out) const {
    const ConvSpec& s = spec_;
    const Kernels& k = kernels();
    const bool bipolar_in = s.in.kind == Kind::bipolar;
    const bool crossed = bipolar_in && s.weight.kind == Kind::bipolar;
    // xor: S = levels - 2 sum; one of them bipolar: 2 sum; else sum.
    const std::int32_t base = crossed ? -2 : bipolar_in || s.weight.kind == Kind::bipolar ? 2 : 1;
    CountArgs args;
    args.n_pix = count;
    args.offsets = scratch.offsets.data();
    args.n = run_words_;
    args.rows = scratch.rows;
    args.out = out;
    const auto add_to_out = [&] {
        for (int p = 0; p < count; ++p) {
            scratch.rows[p] = out + p * kGroup;
        }
    };
    if (per_sum_ != 0) {
        k.start(scratch.rows, scratch.window_sums, per_sum_, count, out);
        add_to_out();
    }
    const int pairs = s.in.bits * s.weight.bits;
    for (int m = 0; m < s.in.bits; ++m) {
        args.pixels = scratch.words[m];
        for (int plane = 0; plane < s.weight.bits; ++plane) {
            const bool negative = s.weight.kind == Kind::twos && plane == s.weight.bits - 1;
            args.factor = (negative ? -base : base) * (1 << (m + plane));
            args.weights = bits_.data() + segment.weights +
                           static_cast<std::ptrdiff_t>(plane) * run_words_ * kGroup;
            (crossed ? k.count_xor : k.count_and)(args);
            if (m == 0 && plane == 0 && per_sum_ == 0 && pairs > 1) {
                add_to_out();
            }
        }
    }
}

void pack_pixels(const std::uint8_t* codes, std::ptrdiff_t stride, int channels, int pixels,
                 int planes, std::uint64_t* out) {
    const int words = ceil_div(channels, 64);
    for (int p = 0; p < pixels; ++p) {
        for (int plane = 0; plane < planes; ++plane) {
            for (int w = 0; w < words; ++w) {
                std::uint64_t word = 0;
                for (int c = 64 * w; c < std::min(channels, 64 * (w + 1)); ++c) {
                    word |= static_cast<std::uint64_t>((codes[p * stride + c] >> plane) & 1)
                            << (c & 63);
                }
                *out++ = word;
            }
        }
    }
}

}  // namespace foveate
