// The packed model as Python sees it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "isa.hpp"
#include "model.hpp"
#include "model_file.hpp"

namespace nb = nanobind;

namespace foveate {
namespace {

using Batch = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

Shape picture_shape(const Batch& x) {
    const auto extent = [&](std::size_t axis) {
        const std::size_t n = x.shape(axis);
        return n > (std::size_t{1} << 30) ? -1 : static_cast<int>(n);  // -1 fits no model
    };
    return {extent(1), extent(2), extent(3)};
}

// Hands the memory of an array over to Python.
template <class T>
nb::ndarray<nb::numpy, T> to_numpy(std::unique_ptr<T[]> values,
                                   const std::vector<std::size_t>& shape) {
    T* data = values.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner);
}

std::vector<std::size_t> extents(const Shape& shape) {
    return {static_cast<std::size_t>(shape.channels), static_cast<std::size_t>(shape.height),
            static_cast<std::size_t>(shape.width)};
}

nb::list run(Model& model, const Batch& x, int threads) {
    std::vector<Pictures> results;
    {
        const nb::gil_scoped_release unlocked;
        results = model.run(x.data(), static_cast<std::int64_t>(x.shape(0)), picture_shape(x),
                            threads);
    }
    nb::list outputs;
    for (Pictures& one : results) {
        std::vector<std::size_t> shape = extents(one.shape);
        shape.insert(shape.begin(), static_cast<std::size_t>(one.count));
        outputs.append(to_numpy(std::move(one.values), shape));
    }
    return outputs;
}

nb::list profile(Model& model, const Batch& x, int threads, int repeats) {
    std::vector<NodeProfile> nodes;
    {
        const nb::gil_scoped_release unlocked;
        nodes = model.profile(x.data(), static_cast<std::int64_t>(x.shape(0)), picture_shape(x),
                              threads, repeats);
    }
    nb::list out;
    for (const NodeProfile& node : nodes) {
        nb::dict entry;
        entry["name"] = node.name;
        entry["op"] = node.op;
        entry["path"] = node.path;
        entry["seconds"] = node.seconds;
        entry["macs"] = node.macs;
        entry["bytes"] = node.bytes;
        out.append(entry);
    }
    return out;
}

nb::dict dump(Model& model, const Batch& x) {
    if (x.shape(0) != 1) {
        throw std::runtime_error("a dump takes one picture, got " + std::to_string(x.shape(0)));
    }
    std::vector<Dumped> tensors;
    {
        const nb::gil_scoped_release unlocked;
        tensors = model.dump(x.data(), picture_shape(x));
    }
    nb::dict out;
    for (Dumped& tensor : tensors) {
        const nb::int_ id(tensor.id);
        if (tensor.codes) {
            out[id] = to_numpy(std::move(tensor.codes), extents(tensor.shape));
        } else {
            out[id] = to_numpy(std::move(tensor.values), extents(tensor.shape));
        }
    }
    return out;
}

}  // namespace

void bind_model(nb::module_& module) {
    nb::class_<Model>(module, "Model",
                      "A packed model, ready to run. Calls from several threads take turns.")
        .def(
            "__init__",
            [](Model* self, const std::string& path) {
                const nb::gil_scoped_release unlocked;
                new (self) Model(ModelFile::open(path));
            },
            nb::arg("path"),
            "Read a model file. RuntimeError, in one sentence, when it cannot be used.")
        .def_static(
            "from_bytes",
            [](const nb::bytes& data) {
                const void* start = data.c_str();
                const std::size_t size = data.size();
                const nb::gil_scoped_release unlocked;
                return new Model(ModelFile::from_bytes(start, size));
            },
            nb::arg("data"), nb::rv_policy::take_ownership, "The same from a file's bytes.")
        .def_prop_ro("modes", &Model::modes, "Names of the modes.")
        .def_prop_ro("mode", &Model::mode, "Index of the mode that is set.")
        .def("set_mode", &Model::set_mode, nb::arg("index"),
             "Choose a mode for the runs that begin from now on; allocates nothing.")
        .def("run", &run, nb::arg("x").noconvert(), nb::arg("threads") = 1,
             "Float32 pictures (N, C, H, W) to one float32 array (N, C, H, W) for every output; "
             "the numbers do not depend on the number of threads.")
        .def("profile", &profile, nb::arg("x").noconvert(), nb::arg("threads") = 1,
             nb::arg("repeats") = 10,
             "For every node its name, op, path, least seconds, and macs and bytes of a picture.")
        .def("dump", &dump, nb::arg("x").noconvert(),
             "Every tensor of a run of one picture (1, C, H, W) by its id: float32 or codes uint8, "
             "(C, H, W).")
        .def_prop_ro(
            "input_shape",
            [](const Model& model) {
                const Shape shape = model.input_shape();
                return nb::make_tuple(shape.channels, shape.height, shape.width);
            },
            "(C, H, W) of the mode that is set.")
        .def_prop_ro("macs", &Model::macs, "Multiply-adds of one picture in the mode that is set.")
        .def_prop_ro("arena_bytes", &Model::arena_bytes,
                     "Memory of the activations of one picture; every mode uses the same.")
        .def_prop_ro(
            "isa", [](const Model&) { return std::string(kernels().name); },
            "Name of the instruction set in use.");
}

}  // namespace foveate
