// The Python module: every registered kernel becomes a function of integers (addresses, sizes) and floats.
// The same file makes each of the CPU modules and the CUDA module; FASTLIP_MODULE is its name.
#include <pybind11/pybind11.h>

#include <string>
#include <string_view>

#include "common/parallel.h"
#include "common/registry.h"

namespace py = pybind11;

namespace fastlip {
namespace {

constexpr size_t kMaxArguments = 32;

Argument convert(PyObject* value, char kind) {
  Argument argument;
  switch (kind) {
    case 'p':
      argument.pointer = PyLong_AsVoidPtr(value);
      break;
    case 'i':
      argument.integer = PyLong_AsLongLong(value);
      break;
    default:
      argument.real = PyFloat_AsDouble(value);
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return argument;
}

void call(const Kernel& kernel, const py::args& values) {
  const std::string_view kinds = kernel.kinds;
  if (kinds.size() != values.size() || kinds.size() > kMaxArguments) {
    throw py::type_error(std::string(kernel.name) + ": got " + std::to_string(values.size()) +
                         " arguments, expected " + std::to_string(kinds.size()) + " (" + kernel.kinds + ")");
  }
  Argument arguments[kMaxArguments];
  for (size_t i = 0; i < kinds.size(); ++i) arguments[i] = convert(PyTuple_GET_ITEM(values.ptr(), i), kinds[i]);
  py::gil_scoped_release release;
  kernel.call(arguments);
}

void bind(py::module_& module) {
  py::list names;
  for (const Kernel& kernel : registry()) {
    module.def(kernel.name, [kernel](const py::args& values) { call(kernel, values); });
    names.append(kernel.name);
  }
  module.attr("kernels") = py::tuple(names);
  module.attr("instruction_set") = FASTLIP_INSTRUCTION_SET;
  module.attr("compiler") = FASTLIP_COMPILER;
  module.def("set_parallel_for", [](uintptr_t address) {
    set_parallel_for(reinterpret_cast<ParallelFor>(address));
  });
}

}  // namespace
}  // namespace fastlip

// Two steps, because PYBIND11_MODULE pastes its first argument before expanding it.
#define FASTLIP_PYBIND11_MODULE(name, variable) PYBIND11_MODULE(name, variable)

FASTLIP_PYBIND11_MODULE(FASTLIP_MODULE, module) { fastlip::bind(module); }
