// src/python/run_options.cpp - the options of a run: their names, types and defaults. An option is
// a row here and a field of RunOptions; api/prefill.cpp checks values.
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
constexpr NumberOption kNumbers[] = {{"softmax_scale", &RunOptions::softmax_scale},
                                     {"softcap", &RunOptions::softcap}};

/// None: there is none.
struct ArrayOption {
  ArrayRequest request;
  std::optional<ArrayRef> RunOptions::* field;
};
constexpr ArrayOption kArrays[] = {
    {{.name = "sinks", .planned = Dtype::kFloat32, .rank = 1, .dims = "(num_heads_q,)"},
     &RunOptions::sinks},
    {{.name = "alibi_slopes",
      .planned = Dtype::kFloat32,
      .rank = 1,
      .or_rank = 2,
      .dims = "(num_heads_q,), or 2 (batch, num_heads_q)"},
     &RunOptions::alibi_slopes},
    {{.name = "block_table", .planned = Dtype::kInt32, .rank = 2, .dims = "(batch, max_pages)"},
     &RunOptions::block_table}};

void read_option(ReadOptions& read, nb::handle name, nb::handle value) {
  const auto is = [&](const char* known) {
    return PyUnicode_CompareWithASCIIString(name.ptr(), known) == 0;
  };
  for (const NumberOption& option : kNumbers) {
    if (!is(option.name)) continue;
    if (!value.is_none()) read.options.*option.field = number(value, option.name);
    return;
  }
  for (const ArrayOption& option : kArrays) {
    if (!is(option.request.name)) continue;
    if (value.is_none()) return;
    Array array = read_array(value, option.request);
    read.options.*option.field = array.ref;
    read.keep.push_back(nb::borrow(value));
    if (array.keep.is_valid()) read.keep.push_back(std::move(array.keep));
    return;
  }
  throw nb::type_error(("varlen_prefill() got an unexpected keyword argument '" +
                        std::string(nb::str(name).c_str()) + "'")
                           .c_str());
}

}  // namespace

ReadOptions read_options(const Plan& plan, nb::handle options) {
  ReadOptions read{.options = {.softmax_scale = std::pow(plan.head_dim, -0.5)}};
  if (!PyDict_Check(options.ptr())) throw nb::type_error("run: expected options by name");
  PyObject *name = nullptr, *value = nullptr;
  for (Py_ssize_t i = 0; PyDict_Next(options.ptr(), &i, &name, &value);) {
    read_option(read, name, value);
  }
  return read;
}

}  // namespace exactile
