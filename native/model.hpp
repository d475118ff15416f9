// A packed model ready to run: all modes planned and prepared, one arena a worker.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "plan.hpp"
#include "pool.hpp"

namespace foveate {

struct Shape {
    int channels = 0;
    int height = 0;
    int width = 0;
    std::int64_t elements() const { return std::int64_t{channels} * height * width; }
};

// Pictures one behind the other, each channels x height x width.
struct Pictures {
    Shape shape;
    std::int64_t count = 0;
    std::unique_ptr<float[]> values;
};

// One tensor of one run, channels x height x width; either floats or codes.
struct Dumped {
    std::int64_t id = 0;
    Shape shape;
    std::unique_ptr<float[]> values;
    std::unique_ptr<std::uint8_t[]> codes;
};

struct NodeProfile {
    std::string name;
    std::string op;
    std::string path;       // "bits", "int8" or "f32" for a convolution, else ""
    double seconds = 0;     // the least of all runs
    std::int64_t macs = 0;  // of one picture, as `bytes`: tensors read and written, and weights
    std::int64_t bytes = 0;
};

// Any method may be called from any thread; runs take turns.
class Model {
  public:
    // Both throw std::runtime_error with one sentence. The file is not needed any longer after.
    explicit Model(const ModelFile& file, const Limits& limits = {});

    std::vector<std::string> modes() const;
    // O(1); a run that has begun keeps its mode.
    void set_mode(int index);
    int mode() const { return mode_.load(); }

    // Of the mode that is set.
    Shape input_shape() const;
    std::int64_t macs() const;   // of one picture
    std::int64_t bytes() const;  // read and written for one picture
    // Memory of the activations of one picture; one arena serves all modes.
    std::size_t arena_bytes() const { return arena_bytes_; }

    // Runs `count` pictures of `shape`, one behind the other at x; one result an output. With at
    // least as many pictures as threads every thread takes whole pictures, otherwise they share
    // the work of one; the numbers do not depend on it.
    std::vector<Pictures> run(const float* x, std::int64_t count, const Shape& shape, int threads);

    // Runs every picture `repeats` times, node by node.
    std::vector<NodeProfile> profile(const float* x, std::int64_t count, const Shape& shape,
                                     int threads, int repeats);

    // Every tensor of a run of one picture, in the order in which they are written.
    std::vector<Dumped> dump(const float* x, const Shape& shape);

  private:
    // Memory of one run, and the views into it of every mode.
    struct Workspace {
        std::unique_ptr<std::byte[], void (*)(std::byte*)> arena{nullptr, nullptr};
        struct Bound {
            std::vector<View> tensors;
            std::vector<std::vector<View>> slots;  // of every node's program
        };
        std::vector<Bound> modes;
    };
    using Observer = std::function<void(std::size_t node, double seconds)>;

    const Plan& checked(std::int64_t count, const Shape& shape, int threads, int mode) const;
    Workspace make_workspace() const;
    Workspace& workspace(std::size_t index);
    // One picture through one workspace; `threads` > 1 shares out the work of every node.
    void run_picture(const Plan& plan, const Workspace::Bound& bound, const float* x, int threads,
                     const Observer& observer);
    template <class Work>
    void by_rows(int height, int threads, const Work& work);
    void run_node(const PlannedNode& node, const Workspace::Bound& bound,
                  const std::vector<View>& slots, int threads);

    Limits limits_;
    std::vector<Plan> plans_;
    std::size_t arena_bytes_ = 0;
    std::atomic<int> mode_{0};
    std::mutex running_;
    ThreadPool pool_;
    std::vector<std::unique_ptr<Workspace>> workspaces_;
};

}  // namespace foveate
