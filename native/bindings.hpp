// What the parts of the Python module are called.
#pragma once

#include <nanobind/nanobind.h>

namespace foveate {

void bind_kernels(nanobind::module_& module);
void bind_model(nanobind::module_& module);

}  // namespace foveate
