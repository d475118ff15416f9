// Anything may be in a file. Whatever it is, reading it must end in a model that runs or in one
// std::runtime_error, without a bad access, an overflow or more memory than the limits say.
//
//   clang++ -fsanitize=fuzzer,address,undefined ... fuzz_model_file.cpp     with libFuzzer
//   g++ -fsanitize=address,undefined ... fuzz_model_file.cpp fuzz_replay.cpp   files, or own changes
//
// An input is tried three times: as a file; as a file whose checksums are put right, so that damage
// gets past them; and as a JSON document in a sound file, so that the meaning is reached at once.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "crc32.hpp"
#include "model.hpp"
#include "model_file.hpp"
#include "sample_model.hpp"

namespace {

constexpr foveate::Limits kLimits{std::size_t{32} << 20, std::size_t{32} << 20};
constexpr std::int64_t kMaxMacs = 2'000'000;
constexpr std::int64_t kMaxBytes = 8 << 20;  // touched by all nodes

void try_file(const std::string& bytes) {
    try {
        foveate::Model model(foveate::ModelFile::from_bytes(bytes.data(), bytes.size()), kLimits);
        const int modes = static_cast<int>(model.modes().size());
        for (int mode = 0; mode < std::min(modes, 3); ++mode) {
            model.set_mode(mode);
            if (model.macs() > kMaxMacs || model.bytes() > kMaxBytes) {
                continue;
            }
            const foveate::Shape shape = model.input_shape();
            std::vector<float> x(static_cast<std::size_t>(2 * shape.elements()));
            for (std::size_t i = 0; i < x.size(); ++i) {
                x[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 16.0F;
            }
            const auto outputs = model.run(x.data(), 2, shape, 1);
            const auto again = model.run(x.data(), 1, shape, 2);
            for (std::size_t k = 0; k < outputs.size(); ++k) {
                const std::size_t size = static_cast<std::size_t>(again[k].shape.elements());
                // The bytes, so that not-a-number equals itself.
                if (std::memcmp(outputs[k].values.get(), again[k].values.get(),
                                size * sizeof(float)) != 0) {
                    __builtin_trap();
                }
            }
            model.dump(x.data(), shape);
        }
    } catch (const std::runtime_error&) {
    }
}

template <class T>
T number_at(const std::string& file, std::uint64_t at) {
    T value;
    std::memcpy(&value, file.data() + at, sizeof value);
    return value;
}

// Puts the size and every checksum right that can be found.
std::string repaired(std::string file) {
    using foveate::testing::put_number;
    if (file.size() < 64) {
        return file;
    }
    std::memcpy(file.data(), "FOVEATE\0", 8);
    put_number<std::uint32_t>(file, 8, 1);
    put_number<std::uint32_t>(file, 12, 0x01020304);
    put_number<std::uint64_t>(file, 48, file.size());
    const auto table = number_at<std::uint64_t>(file, 32);
    const auto count = number_at<std::uint64_t>(file, 40);
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(count, 4096); ++i) {
        const std::uint64_t entry = table + 64 * i;
        if (table > file.size() || entry + 64 > file.size()) {
            break;
        }
        const auto offset = number_at<std::uint64_t>(file, entry);
        const auto size = number_at<std::uint64_t>(file, entry + 8);
        if (offset <= file.size() && size <= file.size() - offset) {
            put_number(file, entry + 48, foveate::crc32(file.data() + offset, size));
        }
    }
    put_number(file, 56, foveate::crc32(file.data(), 56));
    put_number<std::uint32_t>(file, 60, 0);
    return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string input(reinterpret_cast<const char*>(data), size);
    try_file(input);
    try_file(repaired(input));
    try_file(foveate::testing::make_file(input, foveate::testing::sample_blobs()));
    return 0;
}
