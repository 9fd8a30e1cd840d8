// The Python module: every registered kernel becomes a function of integers (addresses, sizes) and floats.
// The same file makes each of the CPU modules and the CUDA module; FASTLIP_MODULE is its name.
#include <Python.h>

#include <deque>
#include <exception>
#include <new>
#include <string_view>

#include "common/parallel.h"
#include "common/registry.h"

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

PyObject* take_parallel_for(PyObject*, PyObject* address) {
  void* loop = PyLong_AsVoidPtr(address);
  if (PyErr_Occurred() != nullptr) return nullptr;
  set_parallel_for(reinterpret_cast<ParallelFor>(loop));
  Py_RETURN_NONE;
}

// A reference that this scope owns; null after an error.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  ~Owned() { Py_XDECREF(object_); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

// Sets an attribute of the module; false with a Python exception set if the value is null or cannot be set.
bool set(PyObject* module, const char* name, const Owned& value) {
  return value.get() != nullptr && PyObject_SetAttrString(module, name, value.get()) == 0;
}

PyObject* make_function(Kernel& kernel) {
  static std::deque<PyMethodDef> definitions;  // Python keeps pointers to them
  const auto function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call));
  PyMethodDef& definition = definitions.emplace_back(PyMethodDef{kernel.name, function, METH_FASTCALL, nullptr});
  const Owned self(PyCapsule_New(&kernel, nullptr, nullptr));
  return self.get() == nullptr ? nullptr : PyCFunction_New(&definition, self.get());
}

bool bind_kernels(PyObject* module) {
  std::vector<Kernel>& kernels = registry();
  const Owned names(PyTuple_New(static_cast<Py_ssize_t>(kernels.size())));
  if (names.get() == nullptr) return false;
  Py_ssize_t index = 0;
  for (Kernel& kernel : kernels) {
    PyObject* name = PyUnicode_FromString(kernel.name);
    if (name == nullptr) return false;
    PyTuple_SET_ITEM(names.get(), index++, name);
    if (!set(module, kernel.name, Owned(make_function(kernel)))) return false;
  }
  return PyObject_SetAttrString(module, "kernels", names.get()) == 0;
}

// Whether the processor has the instruction set that this file is built for; ImportError is set otherwise.
bool runs_here() {
#if defined(__AVX512F__)
  const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#elif defined(__AVX2__)
  const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  const bool runs = true;
#endif
  if (!runs) PyErr_SetString(PyExc_ImportError, "this processor cannot run " FASTLIP_INSTRUCTION_SET " kernels");
  return runs;
}

// Not a part of its caller: the processor has been looked at before any of this runs.
[[gnu::noinline]] PyObject* make_module(const char* name) {
  static PyMethodDef methods[] = {{"set_parallel_for", take_parallel_for, METH_O, nullptr},
                                  {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, name, nullptr, -1, methods, nullptr, nullptr, nullptr,
                                   nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  if (bind_kernels(module) && set(module, "instruction_set", Owned(PyUnicode_FromString(FASTLIP_INSTRUCTION_SET))) &&
      set(module, "compiler", Owned(PyUnicode_FromString(FASTLIP_COMPILER)))) {
    return module;
  }
  Py_DECREF(module);
  return nullptr;
}

}  // namespace
}  // namespace fastlip

// Two steps each, because # and ## do not expand the macro that they are given.
#define FASTLIP_TEXT(name) #name
#define FASTLIP_TEXT_OF(name) FASTLIP_TEXT(name)
#define FASTLIP_INIT(name) PyMODINIT_FUNC PyInit_##name()
#define FASTLIP_INIT_OF(name) FASTLIP_INIT(name)

FASTLIP_INIT_OF(FASTLIP_MODULE) {
  return fastlip::runs_here() ? fastlip::make_module(FASTLIP_TEXT_OF(FASTLIP_MODULE)) : nullptr;
}
