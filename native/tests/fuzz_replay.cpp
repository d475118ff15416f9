// Runs the fuzz target without libFuzzer: over the files that are named, or, without any, over
// `FOVEATE_FUZZ_RUNS` (default 2000) random changes of a sound file. Ends well or not at all.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "sample_model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

void feed(const std::string& bytes) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
}

// Numbers, words and marks that a document is made of: where bytes are changed blindly, hardly
// anything behind the JSON reader is ever reached.
std::string changed_document(std::string text, std::mt19937_64& random) {
    const std::vector<std::string> numbers = {"0",  "1",     "2",    "3",          "5",    "7",
                                              "64", "-1",    "255",  "4096",       "1e30", "0.5",
                                              "65", "65536", "4095", "2147483647", "null", "true"};
    const std::vector<std::string> words = {
        "conv",   "pointwise", "pool",      "global_avg", "concat",   "flatten",    "softmax",
        "slice",  "upsample",  "shuffle",   "add",        "gate",     "relu",       "store",
        "affine", "quantize",  "thresholds", "zero",      "low",      "high",       "bits",
        "int8",   "auto",      "bipolar",   "unipolar",   "twos",     "nearest",    "bilinear",
        "max",    "avg",       "f32",       "weight",     "table",    "input",      "output"};
    const auto pick = [&](const std::vector<std::string>& from) {
        return from[random() % from.size()];
    };
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < changes; ++i) {
        const bool word = random() % 3 == 0;
        const std::string marks = word ? "\"" : "0123456789";
        std::size_t at = text.find_first_of(marks, random() % text.size());
        if (at == std::string::npos) {
            continue;
        }
        if (word) {
            const std::size_t end = text.find('"', at + 1);
            if (end != std::string::npos) {
                text.replace(at + 1, end - at - 1, pick(words));
            }
        } else {
            std::size_t end = text.find_first_not_of("0123456789", at);
            text.replace(at, std::min(end, text.size()) - at, pick(numbers));
        }
    }
    return text;
}

}  // namespace

int main(int count, char** names) {
    if (count > 1) {
        for (int i = 1; i < count; ++i) {
            std::ifstream file(names[i], std::ios::binary);
            feed({std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()});
        }
        return 0;
    }
    const char* wish = std::getenv("FOVEATE_FUZZ_RUNS");
    const long runs = wish != nullptr ? std::atol(wish) : 2000;
    const std::string file = foveate::testing::sample_file();
    const std::string document = foveate::testing::sample_document();
    feed(file);
    feed(document);
    std::mt19937_64 random(1);
    for (long run = 0; run < runs; ++run) {
        if (run % 4 != 0) {
            feed(changed_document(document, random));
            continue;
        }
        std::string bytes = file;
        const int changes = 1 + static_cast<int>(random() % 4);
        for (int i = 0; i < changes; ++i) {
            // Half of the changes hit the header and the table.
            const std::size_t reach = random() % 2 == 0 ? std::size_t{64 * 8} : bytes.size();
            bytes[random() % reach] = static_cast<char>(random());
        }
        if (random() % 8 == 0) {
            bytes.resize(random() % bytes.size());
        }
        feed(bytes);
    }
    std::printf("%ld changed inputs, nothing amiss\n", runs);
    return 0;
}
