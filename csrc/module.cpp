// The Python module: every registered kernel becomes a function of integers (addresses, sizes) and floats.
// The same file makes each of the CPU modules and the CUDA module; FASTLIP_MODULE is its name.
#include <pybind11/pybind11.h>

#include <deque>
#include <exception>
#include <new>
#include <string_view>

#include "common/parallel.h"
#include "common/registry.h"

namespace py = pybind11;

namespace fastlip {
namespace {

constexpr size_t kMaxArguments = 32;

// False with a Python exception set if the value is no number of that kind.
bool convert(PyObject* value, char kind, Argument* argument) {
  switch (kind) {
    case 'p':
      argument->pointer = PyLong_AsVoidPtr(value);
      break;
    case 'i':
      argument->integer = PyLong_AsLongLong(value);
      break;
    default:
      argument->real = PyFloat_AsDouble(value);
  }
  return PyErr_Occurred() == nullptr;
}

class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { PyEval_RestoreThread(state_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// The binding of every kernel, with CPython's fast calling convention: small kernels take no longer than a call does.
PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  const Kernel& kernel = *static_cast<const Kernel*>(PyCapsule_GetPointer(self, nullptr));
  const std::string_view kinds = kernel.kinds;
  if (kinds.size() != static_cast<size_t>(count) || kinds.size() > kMaxArguments) {
    return PyErr_Format(PyExc_TypeError, "%s: got %zd arguments, expected %zd (%s)", kernel.name, count,
                        static_cast<Py_ssize_t>(kinds.size()), kernel.kinds);
  }
  Argument arguments[kMaxArguments];
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (!convert(values[i], kinds[i], arguments + i)) return nullptr;
  }
  try {
    const WithoutGil without_gil;
    kernel.call(arguments);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

py::object make_function(const Kernel& kernel) {
  static std::deque<PyMethodDef> definitions;  // Python keeps pointers to them
  const auto function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call));
  PyMethodDef& definition = definitions.emplace_back(PyMethodDef{kernel.name, function, METH_FASTCALL, nullptr});
  const py::capsule self(&kernel);
  return py::reinterpret_steal<py::object>(PyCFunction_New(&definition, self.ptr()));
}

void bind(py::module_& module) {
  py::list names;
  for (const Kernel& kernel : registry()) {
    module.attr(kernel.name) = make_function(kernel);
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
