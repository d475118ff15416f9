// Native tests of the executor's parts that Python cannot reach alone: JSON, checksum, file, thread
// pool, plain operations, planner. Meant to be built with -fsanitize=address,undefined (and, for the
// pool, thread); whole graphs are compared with the reference from Python.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "crc32.hpp"
#include "json.hpp"
#include "model.hpp"
#include "model_file.hpp"
#include "ops.hpp"
#include "plan.hpp"
#include "pool.hpp"
#include "sample_model.hpp"

using namespace foveate;

namespace {

void check(bool holds, const char* what, int line) {
    if (!holds) {
        std::fprintf(stderr, "line %d: %s\n", line, what);
        std::abort();
    }
}
#define CHECK(condition) check(condition, #condition, __LINE__)

template <class Action>
std::string error_of(Action action) {
    try {
        action();
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// ---------------------------------------------------------------- JSON and checksum

void test_json() {
    const Json json = Json::parse(
        " {\"b\": [1, -2, 0.5, 1e3, true, false, null, {}], \"a\": \"x\\n\\u00e4\\ud83d\\ude00/\"} ");
    const Json::Array& items = *json.find("b")->array();
    CHECK(items.size() == 8);
    CHECK(*items[0].integer() == 1 && *items[1].integer() == -2);
    CHECK(*items[2].real() == 0.5 && *items[3].real() == 1000.0);
    CHECK(*items[4].boolean() && !*items[5].boolean() && items[6].is_null());
    CHECK(items[7].object()->empty() && items[7].array() == nullptr);
    CHECK(*json.find("a")->string() == "x\n\xC3\xA4\xF0\x9F\x98\x80/");
    CHECK(json.find("c") == nullptr && items[0].find("a") == nullptr);
    CHECK(*Json::parse("123456789012345678").integer() == 123456789012345678);
    CHECK(*Json::parse("12345678901234567890").real() == 12345678901234567890.0);
    CHECK(*Json::parse("-0").integer() == 0);
    CHECK(*Json::parse("0.1").real() == 0.1);
    CHECK(*Json::parse("3.4028234663852886e+38").real() == std::numeric_limits<float>::max());
    CHECK(*Json::parse("\"\xED\x9F\xBF\"").string() == "\xED\x9F\xBF");

    const auto nested = [](int depth) {
        return std::string(static_cast<std::size_t>(depth), '[') +
               std::string(static_cast<std::size_t>(depth), ']');
    };
    CHECK(Json::parse(nested(Json::kMaxDepth + 1)).array() != nullptr);
    CHECK(contains(error_of([&] { Json::parse(nested(Json::kMaxDepth + 2)); }), "deeper"));
    std::string many = "[0";
    for (std::size_t i = 0; i < Json::kMaxValues; ++i) {
        many += ",0";
    }
    CHECK(contains(error_of([&] { Json::parse(many + "]"); }), "more than"));
    CHECK(contains(error_of([&] { Json::parse(std::string(Json::kMaxSize + 1, ' ')); }), "64 MiB"));

    for (const char* bad :
         {"", " ", "[", "]", "{", "[1,]", "[1 2]", "[,1]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}",
          "{a:1}", "{\"a\":1 \"b\":2}", "{\"a\":1,\"a\":2}", "tru", "nul", "True", "NaN", "Infinity",
          "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "0x1", "1e999", "--1", "\"", "\"\\\"",
          "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\\udc00\"",
          "\"\n\"", "\"\x80\"", "\"\xC0\x80\"", "\"\xC3\"", "\"\xE0\x80\x80\"", "\"\xED\xA0\x80\"",
          "\"\xF4\x90\x80\x80\"", "\"\xF8\x88\x80\x80\x80\"", "1 1", "[] []", "// x", "[1]x"}) {
        CHECK(contains(error_of([&] { Json::parse(bad); }), "JSON"));
    }
    CHECK(contains(error_of([] { Json::parse(std::string(65, '1')); }), "too long"));
}

void test_crc32() {
    CHECK(crc32("", 0) == 0);
    CHECK(crc32("123456789", 9) == 0xCBF43926U);  // the check value of every catalogue
    std::mt19937 random(1);
    std::string text;
    for (int length = 0; length < 70; ++length, text += static_cast<char>(random())) {
        std::uint32_t slow = 0xFFFFFFFFU;
        for (const char c : text) {
            slow ^= static_cast<unsigned char>(c);
            for (int bit = 0; bit < 8; ++bit) {
                slow = (slow >> 1) ^ ((slow & 1U) != 0 ? 0xEDB88320U : 0U);
            }
        }
        CHECK(crc32(text.data(), text.size()) == ~slow);
    }
}

// ---------------------------------------------------------------- file

void test_file() {
    const std::string file = testing::sample_file();
    const ModelFile sound = ModelFile::from_bytes(file.data(), file.size());
    CHECK(sound.blobs().size() == testing::sample_blobs().size() + 1);
    CHECK(sound.blobs()[1].type == BlobType::f32);
    CHECK((sound.blobs()[1].shape == std::vector<std::int64_t>{4, 3, 3, 3}));
    CHECK(reinterpret_cast<std::uintptr_t>(sound.blobs()[3].data) % 64 == 0);
    CHECK(sound.blobs()[4].as<std::int32_t>()[7] == 9);
    CHECK(sound.document().find("modes") != nullptr);
    for (std::size_t length = 0; length < file.size(); length += length < 700 ? 1 : 97) {
        CHECK(contains(error_of([&] { ModelFile::from_bytes(file.data(), length); }),
                       "model file"));
    }
    CHECK(contains(error_of([] { ModelFile::open("/nowhere/at.fvt"); }), "cannot be opened"));
    CHECK(contains(error_of([] { ModelFile::open("/dev/zero"); }), "not a regular file"));

    // A file that is cut short or written to while it is in use.
    const std::string path = std::filesystem::temp_directory_path() / "foveate_test_native.fvt";
    std::ofstream(path, std::ios::binary) << file;
    const ModelFile read = ModelFile::open(path);
    std::filesystem::resize_file(path, 0);
    CHECK(read.blobs()[4].as<std::int32_t>()[7] == 9);
    CHECK(contains(error_of([&] { ModelFile::open(path); }), "too short"));
    std::filesystem::resize_file(path, std::uintmax_t{9} << 30);  // a hole, no space taken
    CHECK(contains(error_of([&] { ModelFile::open(path); }), "8 GiB"));
    std::filesystem::remove(path);
}

// ---------------------------------------------------------------- pool

void test_pool() {
    ThreadPool pool;
    for (const int threads : {1, 2, 5}) {
        for (const int tasks : {0, 1, 3, 200}) {
            std::vector<std::atomic<int>> done(static_cast<std::size_t>(tasks));
            std::vector<std::atomic<int>> inside(static_cast<std::size_t>(threads));
            pool.run(threads, tasks, [&](int task, int worker) {
                CHECK(worker >= 0 && worker < threads);
                CHECK(inside[static_cast<std::size_t>(worker)]++ == 0);
                ++done[static_cast<std::size_t>(task)];
                if (task % 16 == 0) {
                    std::this_thread::yield();
                }
                --inside[static_cast<std::size_t>(worker)];
            });
            for (const std::atomic<int>& count : done) {
                CHECK(count == 1);
            }
        }
    }
    for (int round = 0; round < 20; ++round) {
        for (const int threads : {1, 3}) {
            std::atomic<int> begun{0};
            CHECK(error_of([&] {
                      pool.run(threads, 1000, [&](int task, int) {
                          ++begun;
                          if (task == 5) {
                              throw std::runtime_error("task 5");
                          }
                      });
                  }) == "task 5");
            CHECK(threads > 1 || begun == 6);
        }
        int sum = 0;
        std::mutex mutex;
        pool.run(4, 50, [&](int task, int) {
            const std::lock_guard lock(mutex);
            sum += task;
        });
        CHECK(sum == 50 * 49 / 2);
    }
    CHECK(contains(error_of([&] { pool.run(0, 1, [](int, int) {}); }), "threads"));
    CHECK(contains(error_of([&] { pool.run(kMaxThreads + 1, 1, [](int, int) {}); }), "threads"));
}

// ---------------------------------------------------------------- operations

// A picture with its memory, in all forms.
struct Picture {
    Picture(int channels, int height, int width, int planes, int border) {
        view.channels = channels;
        view.height = height;
        view.width = width;
        view.border = border;
        view.planes = planes;
        const std::size_t pixels =
            static_cast<std::size_t>((height + 2 * border) * view.row_pixels());
        const std::ptrdiff_t origin = view.at(border, border);
        f32.assign(pixels * static_cast<std::size_t>(channels), 7.0F);
        bytes.assign(pixels * static_cast<std::size_t>(view.byte_stride()), 0xEE);
        bits.assign(pixels * static_cast<std::size_t>(view.pixel_words()), ~std::uint64_t{0});
        view.f32 = f32.data() + origin * channels;
        view.bytes = bytes.data() + origin * view.byte_stride();
        view.bits = bits.data() + origin * view.pixel_words();
    }

    void set(int y, int x, int c, int code) {
        view.f32[view.at(y, x) * view.channels + c] = static_cast<float>(code);
        view.bytes[view.at(y, x) * view.byte_stride() + c] = static_cast<std::uint8_t>(code);
        for (int plane = 0; plane < view.planes; ++plane) {
            std::uint64_t& word = view.bits[view.at(y, x) * view.pixel_words() +
                                            std::ptrdiff_t{plane} * view.words() + (c >> 6)];
            const std::uint64_t bit = std::uint64_t{1} << (c & 63);
            word = ((code >> plane) & 1) != 0 ? word | bit : word & ~bit;
        }
    }

    void clear_fillers() {
        std::fill(bits.begin(), bits.end(), 0);
        std::fill(bytes.begin(), bytes.end(), std::uint8_t{0});
    }

    // The code of an element, which all forms must agree on, fillers included.
    int get(int y, int x, int c) const {
        const int code = view.bytes[view.at(y, x) * view.byte_stride() + c];
        int from_bits = 0;
        for (int plane = 0; plane < view.planes; ++plane) {
            const std::uint64_t word = view.bits[view.at(y, x) * view.pixel_words() +
                                                 std::ptrdiff_t{plane} * view.words() + (c >> 6)];
            from_bits |= static_cast<int>((word >> (c & 63)) & 1U) << plane;
            if (c == view.channels - 1 && view.channels % 64 != 0) {
                CHECK(word >> (view.channels % 64) == 0);
            }
        }
        for (std::ptrdiff_t filler = view.channels; filler < view.byte_stride(); ++filler) {
            CHECK(view.bytes[view.at(y, x) * view.byte_stride() + filler] == 0);
        }
        CHECK(code == from_bits);
        CHECK(view.f32[view.at(y, x) * view.channels + c] == static_cast<float>(code));
        return code;
    }

    View view;
    std::vector<float> f32;
    std::vector<std::uint8_t> bytes;
    std::vector<std::uint64_t> bits;
};

Picture random_picture(std::mt19937& random, int channels, int height, int width, int planes) {
    Picture picture(channels, height, width, planes, static_cast<int>(random() % 3));
    picture.clear_fillers();
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
            for (int c = 0; c < channels; ++c) {
                picture.set(y, x, c, static_cast<int>(random() % (1U << planes)));
            }
        }
    }
    return picture;
}

// Compares every element with what `expected(y, x, c)` says.
template <class Expected>
void check_all(const Picture& picture, Expected expected) {
    for (int y = 0; y < picture.view.height; ++y) {
        for (int x = 0; x < picture.view.width; ++x) {
            for (int c = 0; c < picture.view.channels; ++c) {
                CHECK(picture.get(y, x, c) == expected(y, x, c));
            }
        }
    }
}

void test_ops() {
    std::mt19937 random(7);
    for (const int channels : {1, 6, 63, 64, 66, 130}) {
        for (const int planes : {1, 2, 5, 8}) {
            const Picture in = random_picture(random, channels, 5, 4, planes);
            const Picture other = random_picture(random, 37, 5, 4, planes);
            const int border = static_cast<int>(random() % 3);

            Picture joined(2 * channels + 37, 5, 4, planes, border);
            concat({&in.view, &other.view, &in.view}, joined.view, 0, 3);
            concat({&in.view, &other.view, &in.view}, joined.view, 3, 5);
            check_all(joined, [&](int y, int x, int c) {
                return c < channels        ? in.get(y, x, c)
                       : c < channels + 37 ? other.get(y, x, c - channels)
                                           : in.get(y, x, c - channels - 37);
            });

            const int start = channels / 3;
            Picture part(channels - start, 5, 4, planes, border);
            slice(in.view, start, part.view, 0, 5);
            check_all(part, [&](int y, int x, int c) { return in.get(y, x, c + start); });

            if (channels % 2 == 0) {
                Picture mixed(channels, 5, 4, planes, border);
                shuffle(in.view, 2, mixed.view, 0, 5);
                check_all(mixed, [&](int y, int x, int c) {
                    return in.get(y, x, c % 2 * (channels / 2) + c / 2);
                });
            }

            Picture flat(channels * 20, 1, 1, planes, 0);
            flatten(in.view, flat.view);
            check_all(flat, [&](int, int, int c) { return in.get(c % 20 / 4, c % 4, c / 20); });

            Picture large(channels, 15, 12, planes, border);
            upsample_nearest(in.view, 3, large.view, 0, 15);
            check_all(large, [&](int y, int x, int c) { return in.get(y / 3, x / 3, c); });

            PoolSpec pool;
            pool.kernel_h = 3;
            pool.kernel_w = 2;
            pool.stride_h = 2;
            pool.stride_w = 1;
            pool.pad_h = 1;
            pool.pad_w = 1;
            Picture pooled(channels, 3, 5, planes, border);
            max_pool(pool, in.view, pooled.view, 0, 3);
            check_all(pooled, [&](int y, int x, int c) {
                int best = -1;
                for (int v = std::max(0, 2 * y - 1); v < std::min(5, 2 * y + 2); ++v) {
                    for (int u = std::max(0, x - 1); u < std::min(4, x + 1); ++u) {
                        best = std::max(best, in.get(v, u, c));
                    }
                }
                return best;
            });
        }
    }
}

void test_border() {
    for (const int channels : {3, 64, 70}) {
        for (const bool high : {false, true}) {
            Picture picture(channels, 2, 3, 3, 2);
            picture.clear_fillers();
            for (int y = 0; y < 2; ++y) {
                for (int x = 0; x < 3; ++x) {
                    for (int c = 0; c < channels; ++c) {
                        picture.set(y, x, c, 5);
                    }
                }
            }
            fill_border(picture.view, high);
            for (int y = -2; y < 4; ++y) {
                for (int x = -2; x < 5; ++x) {
                    const bool interior = y >= 0 && y < 2 && x >= 0 && x < 3;
                    for (int c = 0; c < channels; ++c) {
                        if (!interior) {  // floats are 0 around either way
                            float& f = picture.view.f32[picture.view.at(y, x) * channels + c];
                            CHECK(f == 0.0F);
                            f = high ? 7.0F : 0.0F;
                        }
                        CHECK(picture.get(y, x, c) == (interior ? 5 : high ? 7 : 0));
                    }
                }
            }
        }
    }
}

void test_float_ops() {
    Picture in(1, 2, 2, 1, 0);
    in.f32 = {1.0F, 2.0F, 3.0F, 5.0F};
    Picture out(1, 1, 1, 1, 0);
    PoolSpec pool;
    pool.max = false;
    pool.kernel_h = pool.kernel_w = 3;
    pool.pad_h = pool.pad_w = 1;
    avg_pool(pool, in.view, out.view, 0, 1);
    CHECK(out.f32[0] == 11.0F / 9.0F);
    pool.count_include_pad = false;
    avg_pool(pool, in.view, out.view, 0, 1);
    CHECK(out.f32[0] == 11.0F / 4.0F);
    global_avg(in.view, Format{}, 1.0F, out.view);
    CHECK(out.f32[0] == 2.75F);
    in.bytes = {0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0};
    global_avg(in.view, Format{Kind::bipolar, 1}, 0.25F, out.view);
    CHECK(out.f32[0] == 0.5F);
    Picture twice(1, 4, 4, 1, 0);
    upsample_bilinear(in.view, 2, twice.view, 0, 4);
    CHECK(twice.f32[0] == 1.0F && twice.f32[1] == 1.25F && twice.f32[15] == 5.0F);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    in.f32 = {nan, 2.0F, 3.0F, 5.0F};
    pool.max = true;
    View floats = out.view;
    floats.bytes = nullptr;
    floats.bits = nullptr;
    max_pool(pool, in.view, floats, 0, 1);
    CHECK(std::isnan(out.f32[0]));
    in.f32 = {2.0F, nan, 3.0F, 5.0F};
    max_pool(pool, in.view, floats, 0, 1);
    CHECK(std::isnan(out.f32[0]));
}

// ---------------------------------------------------------------- planner and model

struct Span {
    std::size_t begin, end;
};

std::vector<Span> spans_of(const PlannedTensor& tensor) {
    const std::size_t pixels = static_cast<std::size_t>(
        (tensor.spec.height + 2 * tensor.border) * (tensor.spec.width + 2 * tensor.border));
    const auto channels = static_cast<std::size_t>(tensor.spec.channels);
    std::vector<Span> spans;
    if (tensor.f32 != PlannedTensor::kAbsent) {
        spans.push_back({tensor.f32, tensor.f32 + pixels * channels * 4});
    }
    if (tensor.bits != PlannedTensor::kAbsent) {
        spans.push_back({tensor.bits, tensor.bits + pixels * ((channels + 63) / 64) * 8 *
                                                       static_cast<std::size_t>(
                                                           tensor.spec.format.bits)});
    }
    if (tensor.bytes != PlannedTensor::kAbsent) {
        spans.push_back({tensor.bytes, tensor.bytes + pixels * ((channels + 3) / 4 * 4)});
    }
    return spans;
}

// Tensors that are alive at the same time share no byte, with the slack behind them.
void check_memory(const Plan& plan) {
    const std::size_t count = plan.tensors.size();
    std::vector<int> first(count, -1);
    std::vector<int> last(count, -1);
    const int end = static_cast<int>(plan.nodes.size());
    for (int i = 0; i < end; ++i) {
        for (const int input : plan.nodes[static_cast<std::size_t>(i)].spec.inputs) {
            last[static_cast<std::size_t>(input)] = i;
        }
        for (const int output : plan.nodes[static_cast<std::size_t>(i)].spec.outputs) {
            first[static_cast<std::size_t>(output)] = i;
            last[static_cast<std::size_t>(output)] = i;
        }
    }
    for (const int output : plan.outputs) {
        last[static_cast<std::size_t>(output)] = end;
    }
    for (std::size_t a = 0; a < count; ++a) {
        const std::vector<Span> mine = spans_of(plan.tensors[a]);
        for (std::size_t k = 0; k < mine.size(); ++k) {
            CHECK(mine[k].begin % 64 == 0);
            CHECK(mine[k].end + kSlack <= plan.arena_bytes);
        }
        for (std::size_t b = 0; b < count; ++b) {
            if (a == b || first[a] > last[b] || first[b] > last[a]) {
                continue;
            }
            for (const Span& one : mine) {
                for (const Span& other : spans_of(plan.tensors[b])) {
                    CHECK(one.end + kSlack <= other.begin || other.end + kSlack <= one.begin);
                }
            }
        }
    }
}

void test_plan() {
    const std::string file = testing::sample_file();
    const ModelFile sound = ModelFile::from_bytes(file.data(), file.size());
    const Limits limits;
    Budget budget(limits.prepared_bytes);
    std::vector<GraphSpec> graphs = read_modes(sound, budget);
    CHECK(graphs.size() == 2 && graphs[0].mode == "full");
    const Plan plan = make_plan(std::move(graphs[0]), limits, budget);
    check_memory(plan);
    CHECK(plan.tensors[0].border == 1 && plan.tensors[1].border == 0);
    // Codes are written in the forms that are read: by bits, by int8, by both sorts of consumers.
    CHECK(plan.tensors[2].bits != PlannedTensor::kAbsent);
    CHECK(plan.tensors[2].bytes == PlannedTensor::kAbsent);
    CHECK(plan.tensors[3].bits == PlannedTensor::kAbsent);
    CHECK(plan.tensors[3].bytes != PlannedTensor::kAbsent);
    CHECK(plan.nodes.back().fills.size() == 1 && plan.nodes.back().fills[0].high);

    // Random graphs of sums: many tensors alive at once, of many sizes.
    std::mt19937 random(3);
    for (int round = 0; round < 30; ++round) {
        GraphSpec graph;
        graph.mode = "sums";
        for (int i = 0; i < 40; ++i) {
            TensorSpec spec;
            spec.id = i;
            spec.channels = 1 + static_cast<int>(random() % 100);
            spec.height = spec.width = 1 + static_cast<int>(random() % 9);
            graph.tensors.push_back(spec);
            if (i == 0) {
                continue;
            }
            NodeSpec node;
            node.inputs = {static_cast<int>(random() % static_cast<unsigned>(i))};
            node.outputs = {i};
            node.op = Op::slice;  // never run
            graph.nodes.push_back(node);
        }
        graph.outputs = {39, 20};
        Limits tight;
        Budget rest(tight.prepared_bytes);
        GraphSpec copy = graph;
        const Plan sums = make_plan(std::move(graph), tight, rest);
        check_memory(sums);
        tight.arena_bytes = sums.arena_bytes;
        CHECK(make_plan(copy, tight, rest).arena_bytes == sums.arena_bytes);
        tight.arena_bytes = sums.arena_bytes - 1;
        CHECK(contains(error_of([&] { make_plan(copy, tight, rest); }), "memory"));
    }
    Budget small(100);
    small.charge(10, 10, "x");
    CHECK(contains(error_of([&] { small.charge(1, 1, "x"); }), "x: the model needs more memory"));
    Budget huge(std::size_t{1} << 40);
    CHECK(!error_of([&] { huge.charge(std::uint64_t{1} << 63, 4, "x"); }).empty());
    CHECK(contains(error_of([&] { Budget none(0); read_modes(sound, none); }), "memory"));
}

// The budget is charged with at least what loading allocates, rows of few channels included.
void test_budget() {
    const std::string file = testing::sample_file();
    const ModelFile sound = ModelFile::from_bytes(file.data(), file.size());
    std::size_t low = 0;
    std::size_t high = std::size_t{1} << 24;
    while (high - low > 1) {
        Budget budget((low + high) / 2);
        (error_of([&] { read_modes(sound, budget); }).empty() ? high : low) = (low + high) / 2;
    }
    Budget enough(high);
    std::size_t bytes = 0;
    for (const GraphSpec& graph : read_modes(sound, enough)) {
        for (const NodeSpec& node : graph.nodes) {
            for (const Step& step : node.steps) {
                for (const std::size_t values : {step.a.size(), step.b.size(),
                                                 step.table_int.size(), step.table_float.size()}) {
                    const std::size_t rows = step.levels > 0 ? static_cast<std::size_t>(step.levels)
                                                             : 1;
                    const std::size_t padded = (values / rows + kGroup - 1) / kGroup * kGroup;
                    bytes += (values + rows * padded) * 4;
                }
            }
        }
    }
    CHECK(bytes > 0 && high >= bytes);

    // A convolution of one weight on a picture of many rows: what is kept for every row.
    const float weight = 1;
    const std::vector<std::byte> raw(sizeof weight);
    const Blob blob{raw.data(), raw.size(), BlobType::f32, {1, 1, 1, 1}};
    GraphSpec graph;
    graph.tensors.resize(2);
    for (TensorSpec& tensor : graph.tensors) {
        tensor.channels = tensor.width = 1;
        tensor.height = kMaxExtent;
    }
    NodeSpec node;
    node.op = Op::conv;
    node.inputs = {0};
    node.outputs = node.slots = {1};
    node.conv.in_channels = node.conv.out_channels = 1;
    node.conv.in_height = kMaxExtent;
    node.weight = &blob;
    Step store;
    store.slot = 0;
    node.steps = {store};
    graph.nodes = {node};
    graph.outputs = {1};
    Budget small(8 * kMaxExtent);
    CHECK(contains(error_of([&] { make_plan(graph, Limits{}, small); }), "memory"));
}

// Zero padding under bipolar codes: what a sum starts from may pass 32 bits, the sum does not.
void test_long_sums() {
    ConvSpec spec;
    spec.in_channels = 11008;
    spec.out_channels = 1;
    spec.kernel_h = 3;
    spec.pad_h = 1;
    spec.in = spec.weight = {Kind::bipolar, 8};
    for (const Path path : {Path::bits, Path::int8}) {
        spec.path = path;
        const std::vector<std::uint64_t> ones(static_cast<std::size_t>(spec.packed_words()),
                                              ~std::uint64_t{0});
        Step keep;
        keep.op = StepOp::store_sums;
        keep.slot = 0;
        const Conv conv(spec, ones.data(), nullptr, Program(1, {keep}));
        View in;
        in.channels = spec.in_channels;
        in.height = in.width = in.border = 1;
        in.planes = 8;
        std::vector<std::uint64_t> bits(static_cast<std::size_t>(9 * in.pixel_words()) + kSlack, 0);
        std::vector<std::uint8_t> bytes(static_cast<std::size_t>(9 * in.byte_stride()) + kSlack, 0);
        in.bits = bits.data() + 4 * in.pixel_words();
        in.bytes = bytes.data() + 4 * in.byte_stride();
        std::fill_n(in.bits, in.pixel_words(), ~std::uint64_t{0});
        std::fill_n(in.bytes, in.byte_stride(), std::uint8_t{255});
        std::int32_t sum = 0;
        View out;
        out.channels = out.height = out.width = 1;
        out.f32 = reinterpret_cast<float*>(&sum);
        conv.run_task(0, 1, in, &out);
        CHECK(sum == 255 * 255 * spec.in_channels);
    }
}

// What the measured cost of a word (0.5 to 64 quads of int8) cannot change.
void test_path() {
    ConvSpec conv;
    conv.in = {Kind::bipolar, 1};
    conv.weight = {Kind::bipolar, 1};
    conv.kernel_h = conv.kernel_w = 8;
    conv.in_channels = conv.out_channels = 1;
    CHECK(choose_path(conv, PathWish::bits) == Path::bits);
    CHECK(choose_path(conv, PathWish::int8) == Path::int8);
    conv.in_channels = conv.out_channels = 3;
    conv.kernel_h = conv.kernel_w = 1;
    conv.in.bits = conv.weight.bits = 2;
    CHECK(choose_path(conv, PathWish::automatic) == Path::int8);  // one quad in four words
    CHECK(choose_path(conv, PathWish::bits) == Path::bits);
    conv.kernel_h = conv.kernel_w = 8;
    conv.in.bits = conv.weight.bits = 1;
    conv.in_channels = conv.out_channels = conv.groups = 64;
    CHECK(choose_path(conv, PathWish::automatic) == Path::int8);  // depthwise
    bool refused = false;
    try {
        choose_path(conv, PathWish::bits);
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    CHECK(refused);
    conv.in = conv.weight = Format{};
    CHECK(choose_path(conv, PathWish::automatic) == Path::f32);
}

void test_model() {
    const std::string file = testing::sample_file();
    Model model(ModelFile::from_bytes(file.data(), file.size()));
    CHECK((model.modes() == std::vector<std::string>{"full", "least"}));
    const Shape shape = model.input_shape();
    std::vector<float> x(static_cast<std::size_t>(5 * shape.elements()));
    for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 16.0F;
    }
    const std::vector<Pictures> wanted = model.run(x.data(), 5, shape, 1);
    for (const int threads : {2, 3, 8}) {
        for (const std::int64_t count : {1, 3, 5}) {
            const std::vector<Pictures> ours = model.run(x.data(), count, shape, threads);
            for (std::size_t k = 0; k < wanted.size(); ++k) {
                const std::ptrdiff_t size = wanted[k].shape.elements() * count;
                CHECK(std::equal(ours[k].values.get(), ours[k].values.get() + size,
                                 wanted[k].values.get()));
            }
        }
    }
    CHECK(model.dump(x.data(), shape).size() == 15);
    CHECK(model.profile(x.data(), 2, shape, 2, 2).size() == 12);
    model.set_mode(1);
    const std::vector<Pictures> doubled = model.run(x.data(), 5, shape, 2);
    for (std::size_t i = 0; i < x.size(); ++i) {
        CHECK(doubled[0].values[i] == x[i] + x[i]);
    }
    CHECK(contains(error_of([&] { model.set_mode(2); }), "mode"));
    CHECK(contains(error_of([&] { model.run(x.data(), 1, {3, 5, 6}, 1); }), "shape"));
}

}  // namespace

int main() {
    test_json();
    test_crc32();
    test_file();
    test_pool();
    test_ops();
    test_border();
    test_float_ops();
    test_plan();
    test_budget();
    test_long_sums();
    test_path();
    test_model();
    std::puts("native tests passed");
    return 0;
}
