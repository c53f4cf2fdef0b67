// C++ exceptions → Python exceptions, and weights that a Python object hands over.
#pragma once

#include <Python.h>

#include <new>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/weights.h"

namespace gptoss::bindings {

// gptoss.Error; set when the module is imported, never released.
inline PyObject* error_class = nullptr;

// A callback has already set a Python exception: it only has to pass through.
class PythonRaised : public std::exception {};

// Called by Cython in a catch block, with the GIL.
inline void translate_exception() {
  try {
    throw;
  } catch (const PythonRaised&) {
    if (PyErr_Occurred() == nullptr) {
      PyErr_SetString(PyExc_SystemError, "a callback failed without an exception");
    }
  } catch (const Error& error) {
    PyErr_SetString(error_class, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, "out of memory in the compiled core");
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

class CallbackSource final : public WeightSource {
public:
  using Fetch = int (*)(void* owner, const char* name, Tensor* out);
  using Release = int (*)(void* owner, const char* name);

  CallbackSource(void* owner, Fetch fetch, Release release, bool mxfp4,
                 std::optional<DenseWeights> panels, std::set<std::string> q8_0)
      : owner_(owner),
        fetch_(fetch),
        release_(release),
        mxfp4_(mxfp4),
        panels_(panels),
        q8_0_(std::move(q8_0)) {}

  Tensor tensor(const std::string& name) override {
    Tensor tensor;
    if (fetch_(owner_, name.c_str(), &tensor) < 0) {
      throw PythonRaised();
    }
    return tensor;
  }
  void release(const std::string& name) override {
    if (release_(owner_, name.c_str()) < 0) {
      throw PythonRaised();
    }
  }
  bool experts_are_mxfp4() const override { return mxfp4_; }
  std::optional<DenseWeights> panels() const override { return panels_; }
  bool is_q8_0(const std::string& name) const override { return q8_0_.count(name) > 0; }

private:
  void* owner_;
  Fetch fetch_;
  Release release_;
  bool mxfp4_;
  std::optional<DenseWeights> panels_;
  std::set<std::string> q8_0_;
};

}  // namespace gptoss::bindings
