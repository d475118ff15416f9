#include "ops.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "isa.hpp"

namespace foveate {
namespace {

std::size_t size(std::ptrdiff_t n) { return static_cast<std::size_t>(n); }

std::size_t index(int i) { return static_cast<std::size_t>(i); }

const float* f32_at(const View& v, int y, int x) { return v.f32 + v.at(y, x) * v.channels; }
float* f32_to(const View& v, int y, int x) { return v.f32 + v.at(y, x) * v.channels; }
std::uint8_t* bytes_at(const View& v, int y, int x) {
    return v.bytes + v.at(y, x) * v.byte_stride();
}
std::uint64_t* bits_at(const View& v, int y, int x) {
    return v.bits + v.at(y, x) * v.pixel_words();
}

void clear_filler(const View& v, std::uint8_t* pixel) {
    std::fill(pixel + v.channels, pixel + v.byte_stride(), std::uint8_t{0});
}

// The pixels of the picture that a window covers.
struct Window {
    int y0, y1, x0, x1;
    int area;  // that an average divides by
};

Window window_of(const PoolSpec& pool, const View& in, int y, int x) {
    Window w{};
    w.y0 = y * pool.stride_h - pool.pad_h;
    w.x0 = x * pool.stride_w - pool.pad_w;
    w.y1 = std::min(w.y0 + pool.kernel_h, in.height + pool.pad_h);
    w.x1 = std::min(w.x0 + pool.kernel_w, in.width + pool.pad_w);
    w.area = (w.y1 - w.y0) * (w.x1 - w.x0);
    w.y0 = std::max(w.y0, 0);
    w.x0 = std::max(w.x0, 0);
    w.y1 = std::min(w.y1, in.height);
    w.x1 = std::min(w.x1, in.width);
    if (!pool.count_include_pad) {
        w.area = (w.y1 - w.y0) * (w.x1 - w.x0);
    }
    return w;
}

// Codes in planes: the larger of two is found from the top plane down, 64 channels at once.
void max_words(const std::uint64_t* from, std::uint64_t* best, int planes, int words) {
    for (int w = 0; w < words; ++w) {
        std::uint64_t greater = 0;
        std::uint64_t equal = ~std::uint64_t{0};
        for (int plane = planes - 1; plane >= 0; --plane) {
            const std::uint64_t a = from[plane * words + w];
            const std::uint64_t b = best[plane * words + w];
            greater |= equal & a & ~b;
            equal &= ~(a ^ b);
        }
        for (int plane = 0; plane < planes; ++plane) {
            std::uint64_t& b = best[plane * words + w];
            b = (from[plane * words + w] & greater) | (b & ~greater);
        }
    }
}

// Sets bits to .. to + count of a row that is 0 there to bits from .. from + count of another.
void or_bits(const std::uint64_t* in, int from, std::uint64_t* out, int to, int count) {
    for (int done = 0; done < count;) {
        const int shift_in = (from + done) & 63;
        const int shift_out = (to + done) & 63;
        const int step = std::min({count - done, 64 - shift_in, 64 - shift_out});
        std::uint64_t field = in[(from + done) >> 6] >> shift_in;
        if (step < 64) {
            field &= (std::uint64_t{1} << step) - 1;
        }
        out[(to + done) >> 6] |= field << shift_out;
        done += step;
    }
}

// `count` channels of every pixel of a row, to a row that clear_row has been over.
void copy_channels(const View& in, int from, const View& out, int to, int count, int y) {
    for (int x = 0; x < out.width; ++x) {
        if (out.f32 != nullptr) {
            std::copy_n(f32_at(in, y, x) + from, count, f32_to(out, y, x) + to);
        }
        if (out.bytes != nullptr) {
            std::copy_n(bytes_at(in, y, x) + from, count, bytes_at(out, y, x) + to);
        }
        if (out.bits != nullptr) {
            for (int plane = 0; plane < out.planes; ++plane) {
                or_bits(bits_at(in, y, x) + std::ptrdiff_t{plane} * in.words(), from,
                        bits_at(out, y, x) + std::ptrdiff_t{plane} * out.words(), to, count);
            }
        }
    }
}

void clear_row(const View& out, int y) {
    for (int x = 0; x < out.width; ++x) {
        if (out.bytes != nullptr) {
            clear_filler(out, bytes_at(out, y, x));
        }
        if (out.bits != nullptr) {
            std::fill_n(bits_at(out, y, x), out.pixel_words(), std::uint64_t{0});
        }
    }
}

std::uint64_t bit_of(const std::uint64_t* row, int c) { return (row[c >> 6] >> (c & 63)) & 1U; }

}  // namespace

void max_pool(const PoolSpec& pool, const View& in, const View& out, int begin, int end) {
    const int words = out.words();
    const Kernels& k = kernels();
    std::vector<const float*> covered(index(pool.kernel_h * pool.kernel_w));
    std::vector<const std::uint8_t*> covered_codes(covered.size());
    for (int y = begin; y < end; ++y) {
        for (int x = 0; x < out.width; ++x) {
            const Window w = window_of(pool, in, y, x);
            int n = 0;
            if (out.bits != nullptr) {
                std::fill_n(bits_at(out, y, x), out.pixel_words(), std::uint64_t{0});
            }
            for (int v = w.y0; v < w.y1; ++v) {
                for (int u = w.x0; u < w.x1; ++u, ++n) {
                    covered[index(n)] = out.f32 != nullptr ? f32_at(in, v, u) : nullptr;
                    covered_codes[index(n)] = out.bytes != nullptr ? bytes_at(in, v, u) : nullptr;
                    if (out.bits != nullptr) {
                        max_words(bits_at(in, v, u), bits_at(out, y, x), out.planes, words);
                    }
                }
            }
            if (out.f32 != nullptr) {
                k.max_of(covered.data(), n, out.channels, f32_to(out, y, x));
            }
            if (out.bytes != nullptr) {
                k.max_of_codes(covered_codes.data(), n, static_cast<int>(out.byte_stride()),
                               bytes_at(out, y, x));
            }
        }
    }
}

void avg_pool(const PoolSpec& pool, const View& in, const View& out, int begin, int end) {
    for (int y = begin; y < end; ++y) {
        for (int x = 0; x < out.width; ++x) {
            const Window w = window_of(pool, in, y, x);
            float* to = f32_to(out, y, x);
            std::fill_n(to, out.channels, 0.0F);
            for (int v = w.y0; v < w.y1; ++v) {
                kernels().add_rows(f32_at(in, v, w.x0), w.x1 - w.x0, in.channels, out.channels, to);
            }
            const auto area = static_cast<float>(w.area);
            for (int c = 0; c < out.channels; ++c) {
                to[c] /= area;
            }
        }
    }
}

void global_avg(const View& in, const Format& format, float scale, const View& out) {
    const std::int64_t pixels = std::int64_t{in.height} * in.width;
    if (format.is_float()) {
        std::fill_n(out.f32, out.channels, 0.0F);
        for (int y = 0; y < in.height; ++y) {
            kernels().add_rows(f32_at(in, y, 0), in.width, in.channels, in.channels, out.f32);
        }
        const auto share = static_cast<float>(1.0 / static_cast<double>(pixels));
        for (int c = 0; c < in.channels; ++c) {
            out.f32[c] *= share;
        }
        return;
    }
    std::vector<std::int64_t> sums(size(in.channels), 0);
    for (int y = 0; y < in.height; ++y) {
        for (int x = 0; x < in.width; ++x) {
            const std::uint8_t* from = bytes_at(in, y, x);
            for (int c = 0; c < in.channels; ++c) {
                sums[size(c)] += from[c];
            }
        }
    }
    for (int c = 0; c < in.channels; ++c) {
        const std::int64_t sum = format.kind == Kind::bipolar
                                     ? 2 * sums[size(c)] - format.levels() * pixels
                                     : sums[size(c)];
        out.f32[c] = static_cast<float>(sum) * scale;
    }
}

void concat(const std::vector<const View*>& inputs, const View& out, int begin, int end) {
    for (int y = begin; y < end; ++y) {
        clear_row(out, y);
        int to = 0;
        for (const View* in : inputs) {
            copy_channels(*in, 0, out, to, in->channels, y);
            to += in->channels;
        }
    }
}

void slice(const View& in, int start, const View& out, int begin, int end) {
    for (int y = begin; y < end; ++y) {
        clear_row(out, y);
        copy_channels(in, start, out, 0, out.channels, y);
    }
}

void shuffle(const View& in, int groups, const View& out, int begin, int end) {
    const int depth = in.channels / groups;
    for (int y = begin; y < end; ++y) {
        clear_row(out, y);
        for (int x = 0; x < out.width; ++x) {
            for (int g = 0; g < groups; ++g) {
                for (int c = 0; c < depth; ++c) {
                    const int from = g * depth + c;
                    const int to = c * groups + g;
                    if (out.f32 != nullptr) {
                        f32_to(out, y, x)[to] = f32_at(in, y, x)[from];
                    }
                    if (out.bytes != nullptr) {
                        bytes_at(out, y, x)[to] = bytes_at(in, y, x)[from];
                    }
                    if (out.bits != nullptr) {
                        for (int plane = 0; plane < out.planes; ++plane) {
                            const std::ptrdiff_t at = std::ptrdiff_t{plane} * in.words();
                            bits_at(out, y, x)[at + (to >> 6)] |=
                                bit_of(bits_at(in, y, x) + at, from) << (to & 63);
                        }
                    }
                }
            }
        }
    }
}

void flatten(const View& in, const View& out) {
    clear_row(out, 0);
    int to = 0;
    for (int c = 0; c < in.channels; ++c) {
        for (int y = 0; y < in.height; ++y) {
            for (int x = 0; x < in.width; ++x, ++to) {
                if (out.f32 != nullptr) {
                    out.f32[to] = f32_at(in, y, x)[c];
                }
                if (out.bytes != nullptr) {
                    out.bytes[to] = bytes_at(in, y, x)[c];
                }
                if (out.bits != nullptr) {
                    for (int plane = 0; plane < out.planes; ++plane) {
                        out.bits[std::ptrdiff_t{plane} * out.words() + (to >> 6)] |=
                            bit_of(bits_at(in, y, x) + std::ptrdiff_t{plane} * in.words(), c)
                            << (to & 63);
                    }
                }
            }
        }
    }
}

void softmax(const View& in, const View& out, int begin, int end) {
    std::vector<double> powers(size(in.channels));
    for (int y = begin; y < end; ++y) {
        for (int x = 0; x < out.width; ++x) {
            const float* from = f32_at(in, y, x);
            float* to = f32_to(out, y, x);
            const double top = *std::max_element(from, from + in.channels);
            double sum = 0.0;
            for (int c = 0; c < in.channels; ++c) {
                powers[size(c)] = std::exp(from[c] - top);
                sum += powers[size(c)];
            }
            for (int c = 0; c < in.channels; ++c) {
                to[c] = static_cast<float>(powers[size(c)] / sum);
            }
        }
    }
}

void upsample_nearest(const View& in, int factor, const View& out, int begin, int end) {
    for (int y = begin; y < end; ++y) {
        for (int x = 0; x < out.width; ++x) {
            const int v = y / factor;
            const int u = x / factor;
            if (out.f32 != nullptr) {
                std::copy_n(f32_at(in, v, u), out.channels, f32_to(out, y, x));
            }
            if (out.bytes != nullptr) {
                std::copy_n(bytes_at(in, v, u), out.byte_stride(), bytes_at(out, y, x));
            }
            if (out.bits != nullptr) {
                std::copy_n(bits_at(in, v, u), out.pixel_words(), bits_at(out, y, x));
            }
        }
    }
}

namespace {

// The two rows (or columns) that an output lies between, and the weight of the second.
struct Between {
    int first, second;
    float weight;
};

Between between(int at, int factor, int extent) {
    const double source = std::max((at + 0.5) / factor - 0.5, 0.0);
    const int first = static_cast<int>(source);
    return {first, std::min(first + 1, extent - 1), static_cast<float>(source - first)};
}

}  // namespace

void upsample_bilinear(const View& in, int factor, const View& out, int begin, int end) {
    for (int y = begin; y < end; ++y) {
        const Between v = between(y, factor, in.height);
        for (int x = 0; x < out.width; ++x) {
            const Between u = between(x, factor, in.width);
            const float* a = f32_at(in, v.first, u.first);
            const float* b = f32_at(in, v.first, u.second);
            const float* c = f32_at(in, v.second, u.first);
            const float* d = f32_at(in, v.second, u.second);
            float* to = f32_to(out, y, x);
            const float left = 1.0F - u.weight;
            const float upper = 1.0F - v.weight;
            for (int i = 0; i < out.channels; ++i) {
                to[i] = upper * (left * a[i] + u.weight * b[i]) +
                        v.weight * (left * c[i] + u.weight * d[i]);
            }
        }
    }
}

void fill_border(const View& view, bool high) {
    const int b = view.border;
    const auto span = [&](int y, int x, int count) {
        if (view.f32 != nullptr) {
            std::fill_n(f32_to(view, y, x), std::ptrdiff_t{count} * view.channels, 0.0F);
        }
        if (view.bytes != nullptr) {
            std::uint8_t* to = bytes_at(view, y, x);
            std::fill_n(to, count * view.byte_stride(), std::uint8_t{0});
            for (int i = 0; high && i < count; ++i, to += view.byte_stride()) {
                std::fill_n(to, view.channels,
                            static_cast<std::uint8_t>((1 << view.planes) - 1));
            }
        }
        if (view.bits != nullptr) {
            std::uint64_t* to = bits_at(view, y, x);
            std::fill_n(to, count * view.pixel_words(), high ? ~std::uint64_t{0} : 0);
            const int used = view.channels % 64;
            const std::ptrdiff_t rows = std::ptrdiff_t{count} * view.planes;
            for (std::ptrdiff_t i = 0; high && used != 0 && i < rows; ++i) {
                to[i * view.words() + view.words() - 1] = (std::uint64_t{1} << used) - 1;
            }
        }
    };
    for (int y = -b; y < 0; ++y) {
        span(y, -b, view.width + 2 * b);
    }
    for (int y = 0; y < view.height; ++y) {
        span(y, -b, b);
        span(y, view.width, b);
    }
    for (int y = view.height; y < view.height + b; ++y) {
        span(y, -b, view.width + 2 * b);
    }
}

}  // namespace foveate
