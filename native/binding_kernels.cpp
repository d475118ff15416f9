// The low level of the engine for tests and tools: one integer convolution at a time.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "bindings.hpp"
#include "conv.hpp"
#include "isa.hpp"

namespace nb = nanobind;

namespace foveate {
namespace {

using Codes = nb::ndarray<const std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using WeightCodes = nb::ndarray<const std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

Format format_of(const std::string& kind, int bits) {
    Format format;
    format.bits = bits;
    if (kind == "bipolar") {
        format.kind = Kind::bipolar;
    } else if (kind == "unipolar") {
        format.kind = Kind::unipolar;
    } else if (kind == "twos") {
        format.kind = Kind::twos;
    } else {
        throw std::invalid_argument("kind '" + kind + "' is not bipolar, unipolar or twos");
    }
    if (bits < 1 || bits > 8) {
        throw std::invalid_argument("codes have 1 to 8 bits");
    }
    return format;
}

int between(std::size_t value, int limit, const char* what) {
    if (value < 1 || value > static_cast<std::size_t>(limit)) {
        throw std::invalid_argument(std::string(what) + " is out of range");
    }
    return static_cast<int>(value);
}

// Integer convolution of codes (H, W, C) with weight codes (Co, C / groups, kh, kw).
nb::ndarray<nb::numpy, std::int32_t> conv2d(const Codes& codes, const std::string& in_kind,
                                            int in_bits, const WeightCodes& weight,
                                            const std::string& weight_kind, int weight_bits,
                                            std::array<int, 2> stride, std::array<int, 2> padding,
                                            std::array<int, 2> dilation, int groups,
                                            const std::string& pad, const std::string& path,
                                            int threads) {
    ConvSpec spec;
    spec.in_height = between(codes.shape(0), 1 << 14, "the height");
    spec.in_width = between(codes.shape(1), 1 << 14, "the width");
    spec.in_channels = between(codes.shape(2), 1 << 16, "the number of channels");
    spec.out_channels = between(weight.shape(0), 1 << 16, "the number of filters");
    spec.kernel_h = between(weight.shape(2), 64, "the kernel");
    spec.kernel_w = between(weight.shape(3), 64, "the kernel");
    spec.stride_h = stride[0];
    spec.stride_w = stride[1];
    spec.pad_h = padding[0];
    spec.pad_w = padding[1];
    spec.dilation_h = dilation[0];
    spec.dilation_w = dilation[1];
    spec.groups = groups;
    if (pad != "zero" && pad != "low" && pad != "high") {
        throw std::invalid_argument("pad '" + pad + "' is not zero, low or high");
    }
    if (path != "bits" && path != "int8") {
        throw std::invalid_argument("path '" + path + "' is not bits or int8");
    }
    spec.pad = pad == "zero" ? Pad::zero : pad == "low" ? Pad::low : Pad::high;
    spec.in = format_of(in_kind, in_bits);
    spec.weight = format_of(weight_kind, weight_bits);
    spec.path = path == "bits" ? Path::bits : Path::int8;
    if (groups < 1 || groups > spec.in_channels || threads < 1 || threads > 256 ||
        padding[0] < 0 || padding[1] < 0 || padding[0] > 4096 || padding[1] > 4096 ||
        static_cast<int>(weight.shape(1)) * groups != spec.in_channels) {
        throw std::invalid_argument("weights, groups, padding or threads do not fit the input");
    }
    const int top = spec.in.levels();
    const std::uint8_t* in_codes = codes.data();
    if (std::any_of(in_codes, in_codes + codes.size(), [top](std::uint8_t u) { return u > top; })) {
        throw std::invalid_argument("an input code has more bits than its format");
    }

    // Weights to the layout of the file: [out][plane, most significant first][tap][word].
    const int words = (spec.group_in() + 63) / 64;
    std::vector<std::uint64_t> packed(static_cast<std::size_t>(spec.packed_words()) *
                                      static_cast<std::size_t>(spec.out_channels));
    for (int o = 0; o < spec.out_channels; ++o) {
        for (int c = 0; c < spec.group_in(); ++c) {
            for (int tap = 0; tap < spec.taps(); ++tap) {
                const int code = weight.data()[(std::int64_t{o} * spec.group_in() + c) * spec.taps() + tap];
                if (code > spec.weight.levels()) {
                    throw std::invalid_argument("a weight code has more bits than its format");
                }
                for (int plane = 0; plane < spec.weight.bits; ++plane) {
                    const int row = spec.weight.bits - 1 - plane;
                    packed[static_cast<std::size_t>(
                        o * spec.packed_words() +
                        (std::int64_t{row} * spec.taps() + tap) * words + (c >> 6))] |=
                        static_cast<std::uint64_t>((code >> plane) & 1) << (c & 63);
                }
            }
        }
    }

    Step step;
    step.op = StepOp::store_sums;
    step.slot = 0;
    const Conv conv(spec, packed.data(), nullptr, Program(spec.out_channels, {step}));

    View in;
    in.channels = spec.in_channels;
    in.height = spec.in_height;
    in.width = spec.in_width;
    in.border = std::max(spec.pad_h, spec.pad_w);
    in.planes = spec.in.bits;
    const std::ptrdiff_t rows = in.height + 2 * std::ptrdiff_t{in.border};
    const auto pixels = static_cast<std::size_t>(rows * in.row_pixels());
    const std::size_t stride_bytes = static_cast<std::size_t>(in.byte_stride());
    if (pixels * stride_bytes >= std::size_t{1} << 31) {  // operands are addressed in 32 bits
        throw std::invalid_argument("the padded input has 2^31 or more codes");
    }
    std::vector<std::uint8_t> bytes(pixels * stride_bytes + kSlack, 0);
    std::vector<std::uint64_t> bits(pixels * static_cast<std::size_t>(in.pixel_words()) +
                                    kSlack / 8);
    if (spec.pad == Pad::high) {
        for (std::size_t p = 0; p < pixels; ++p) {
            std::fill_n(bytes.data() + p * stride_bytes, spec.in_channels,
                        static_cast<std::uint8_t>(top));
        }
    }
    const std::ptrdiff_t origin = std::ptrdiff_t{in.border} * in.row_pixels() + in.border;
    for (int y = 0; y < in.height; ++y) {
        for (int x = 0; x < in.width; ++x) {
            std::memcpy(bytes.data() + (origin + in.at(y, x)) * in.byte_stride(),
                        in_codes + (std::ptrdiff_t{y} * in.width + x) * in.channels,
                        static_cast<std::size_t>(in.channels));
        }
    }
    pack_pixels(bytes.data(), in.byte_stride(), in.channels, static_cast<int>(pixels), in.planes,
                bits.data());
    in.bytes = bytes.data() + origin * in.byte_stride();
    in.bits = bits.data() + origin * in.pixel_words();

    const auto height = static_cast<std::size_t>(spec.out_height());
    const auto width = static_cast<std::size_t>(spec.out_width());
    const auto channels = static_cast<std::size_t>(spec.out_channels);
    auto* sums = new float[height * width * channels]();
    nb::capsule owner(sums, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    View out;
    out.channels = spec.out_channels;
    out.height = spec.out_height();
    out.width = spec.out_width();
    out.f32 = sums;
    for (int task = 0; task < conv.tasks(threads); ++task) {
        conv.run_task(task, threads, in, &out);
    }
    return nb::ndarray<nb::numpy, std::int32_t>(reinterpret_cast<std::int32_t*>(sums),
                                                {height, width, channels}, owner);
}

}  // namespace

void bind_kernels(nb::module_& module) {
    module.def("isa", [] { return std::string(kernels().name); },
               "Name of the instruction set in use: avx512, avx2 or portable.");
    module.def("available_isas", &available_isas, "Instruction sets that work here, best first.");
    module.def("force_isa", &force_isa, nb::arg("name"),
               "Use one instruction set; an empty name goes back to the best.");
    module.def(
        "conv2d",
        [](const Codes& codes, const std::string& in_kind, int in_bits, const WeightCodes& weight,
           const std::string& weight_kind, int weight_bits, nb::tuple stride, nb::tuple padding,
           nb::tuple dilation, int groups, const std::string& pad, const std::string& path,
           int threads) {
            const auto two = [](const nb::tuple& t) {
                return std::array<int, 2>{nb::cast<int>(t[0]), nb::cast<int>(t[1])};
            };
            return conv2d(codes, in_kind, in_bits, weight, weight_kind, weight_bits, two(stride),
                          two(padding), two(dilation), groups, pad, path, threads);
        },
        nb::arg("codes"), nb::arg("in_kind"), nb::arg("in_bits"), nb::arg("weight"),
        nb::arg("weight_kind"), nb::arg("weight_bits"), nb::arg("stride") = nb::make_tuple(1, 1),
        nb::arg("padding") = nb::make_tuple(0, 0), nb::arg("dilation") = nb::make_tuple(1, 1),
        nb::arg("groups") = 1, nb::arg("pad") = "zero", nb::arg("path") = "bits",
        nb::arg("threads") = 1,
        "Integer sums (Ho, Wo, Co) of codes (H, W, C) with weight codes (Co, C / groups, kh, kw).");
}

}  // namespace foveate
