// src/python/run_options.cpp - the options of a run that are no arrays: their names, types and
// defaults. An option is a row here and a field of RunOptions; api/prefill.cpp checks values.
#include "python/run_options.hpp"

#include <cmath>
#include <string>

#include "python/arrays.hpp"

namespace nb = nanobind;

namespace exactile {
namespace {

double number(nb::handle value, const char* name) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number != -1 || !PyErr_Occurred()) return number;
  const nb::python_error error;
  if (!error.matches(PyExc_TypeError)) throw error;
  throw nb::type_error((std::string("varlen_prefill: expected ") + name + " to be a number, got " +
                        class_name(value))
                           .c_str());
}

/// None is the default.
struct NumberOption {
  const char* name;
  double RunOptions::* field;
};
constexpr NumberOption kNumbers[] = {{"softmax_scale", &RunOptions::softmax_scale}};

void read_option(RunOptions& options, nb::handle name, nb::handle value) {
  for (const NumberOption& option : kNumbers) {
    if (PyUnicode_CompareWithASCIIString(name.ptr(), option.name) != 0) continue;
    if (!value.is_none()) options.*option.field = number(value, option.name);
    return;
  }
  throw nb::type_error(("varlen_prefill() got an unexpected keyword argument '" +
                        std::string(nb::str(name).c_str()) + "'")
                           .c_str());
}

}  // namespace

RunOptions read_options(const Plan& plan, nb::handle options) {
  RunOptions read{.softmax_scale = std::pow(plan.head_dim, -0.5)};
  if (!PyDict_Check(options.ptr())) throw nb::type_error("run: expected options by name");
  PyObject *name = nullptr, *value = nullptr;
  for (Py_ssize_t i = 0; PyDict_Next(options.ptr(), &i, &name, &value);) {
    read_option(read, name, value);
  }
  return read;
}

}  // namespace exactile
