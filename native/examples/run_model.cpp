// Classifies pictures with a file that `foveate shrink` wrote, without Python.
//
//   cmake -S native/examples -B build/examples && cmake --build build/examples -j
//   build/examples/run_model net-w2a2.fvt picture.ppm --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26
//
// Pictures are binary PPM or PGM files (P6, P5; most programs write them) of the size that the
// network takes. Mean and standard deviation are those of its training, per channel, pixels being
// 0 to 1. For every picture the five largest outputs are printed, and once the time of a run.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <fstream>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.hpp"
#include "model_file.hpp"

namespace {

struct Options {
    std::string model;
    std::vector<std::string> pictures;
    std::vector<float> mean{0.0F};
    std::vector<float> deviation{1.0F};
    int threads = 1;
};

std::vector<float> numbers(const std::string& text) {
    std::vector<float> found;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t comma = std::min(text.find(',', at), text.size());
        found.push_back(std::stof(text.substr(at, comma - at)));
        at = comma + 1;
    }
    return found;
}

Options read_options(int count, char** words) {
    Options options;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        if (word.rfind("--", 0) == 0) {
            if (i + 1 == count) {
                throw std::runtime_error(word + " wants a value");
            }
            const std::string value = words[++i];
            if (word == "--mean") {
                options.mean = numbers(value);
            } else if (word == "--std") {
                options.deviation = numbers(value);
            } else if (word == "--threads") {
                options.threads = std::stoi(value);
            } else {
                throw std::runtime_error("there is no option " + word);
            }
        } else if (options.model.empty()) {
            options.model = word;
        } else {
            options.pictures.push_back(word);
        }
    }
    if (options.pictures.empty()) {
        throw std::runtime_error("usage: run_model MODEL.fvt PICTURE.ppm ... "
                                 "[--mean R,G,B] [--std R,G,B] [--threads N]");
    }
    return options;
}

// One number of a header, in which comments begin with # and end with their line.
int header_number(std::istream& file) {
    while (file >> std::ws && file.peek() == '#') {
        file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
    int value = -1;
    file >> value;
    return value;
}

// Pixels of a PPM or PGM as the network takes them: planes, normalised.
std::vector<float> read_picture(const std::string& path, const foveate::Shape& shape,
                                const Options& options) {
    std::ifstream file(path, std::ios::binary);
    char kind[2] = {};
    file.read(kind, 2);
    const int channels = kind[1] == '6' ? 3 : kind[1] == '5' ? 1 : 0;
    const int width = header_number(file);
    const int height = header_number(file);
    const int top = header_number(file);
    if (!file || kind[0] != 'P' || channels == 0 || top != 255) {
        throw std::runtime_error(path + " is no binary PPM or PGM file of 8 bits");
    }
    if (channels != shape.channels || width != shape.width || height != shape.height) {
        throw std::runtime_error(path + " is " + std::to_string(width) + "x" +
                                 std::to_string(height) + " with " + std::to_string(channels) +
                                 " channel(s); the network takes " + std::to_string(shape.width) +
                                 "x" + std::to_string(shape.height) + " with " +
                                 std::to_string(shape.channels));
    }
    file.get();  // the one space behind the header
    const auto elements = static_cast<std::size_t>(shape.elements());
    std::vector<unsigned char> pixels(elements);
    file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(elements));
    if (!file) {
        throw std::runtime_error(path + " ends too early");
    }
    const auto planes = static_cast<std::size_t>(channels);
    const std::size_t area = elements / planes;
    std::vector<float> x(elements);
    for (std::size_t c = 0; c < planes; ++c) {
        const float mean = options.mean[std::min(c, options.mean.size() - 1)];
        const float deviation = options.deviation[std::min(c, options.deviation.size() - 1)];
        for (std::size_t i = 0; i < area; ++i) {
            const float value = static_cast<float>(pixels[i * planes + c]) / 255.0F;
            x[c * area + i] = (value - mean) / deviation;
        }
    }
    return x;
}

void print_largest(const std::string& path, const foveate::Pictures& output) {
    std::vector<int> order(static_cast<std::size_t>(output.shape.elements()));
    std::iota(order.begin(), order.end(), 0);
    const std::size_t shown = std::min<std::size_t>(5, order.size());
    const float* values = output.values.get();
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shown),
                      order.end(), [&](int a, int b) { return values[a] > values[b]; });
    std::printf("%s:", path.c_str());
    for (std::size_t i = 0; i < shown; ++i) {
        std::printf("  %d (%.3f)", order[i], static_cast<double>(values[order[i]]));
    }
    std::printf("\n");
}

}  // namespace

int main(int count, char** words) {
    try {
        const Options options = read_options(count, words);
        foveate::Model model(foveate::ModelFile::open(options.model));
        const foveate::Shape shape = model.input_shape();
        double least = std::numeric_limits<double>::infinity();
        for (const std::string& path : options.pictures) {
            const std::vector<float> x = read_picture(path, shape, options);
            for (int turn = 0; turn < 20; ++turn) {
                const auto before = std::chrono::steady_clock::now();
                const auto outputs = model.run(x.data(), 1, shape, options.threads);
                const std::chrono::duration<double> took =
                    std::chrono::steady_clock::now() - before;
                least = std::min(least, took.count());
                if (turn == 0) {
                    print_largest(path, outputs.front());
                }
            }
        }
        std::printf("%.3f ms a picture, %d thread(s)\n", 1e3 * least, options.threads);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "run_model: %s\n", error.what());
        return 2;
    }
}
