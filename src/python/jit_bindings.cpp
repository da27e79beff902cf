// src/python/jit_bindings.cpp - bindings: paths in; the compiler, the cache directory and what is
// wrong with it out. Paths cross as os.fsencode and os.fsdecode have them.
#include "python/jit_bindings.hpp"

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "jit/cache.hpp"
#include "jit/warnings.hpp"

namespace nb = nanobind;

namespace exactile::jit {
namespace {

namespace fs = std::filesystem;

nb::str fsdecode(const std::string& text) {
  return nb::steal<nb::str>(PyUnicode_DecodeFSDefaultAndSize(text.data(), text.size()));
}

void configure_paths(const fs::path& include_dir, const fs::path& cubin_dir,
                     const std::vector<fs::path>& library_roots) {
  configure({.include_dir = include_dir, .cubin_dir = cubin_dir, .library_roots = library_roots});
}

/// (path, version). Raises RuntimeError where there is no compiler.
nb::tuple nvrtc_info() {
  const Nvrtc& compiler = nvrtc();
  return nb::make_tuple(fsdecode(compiler.path()), compiler.version());
}

}  // namespace

void warn_of_cache() {
  for (std::string text; !(text = take_warning()).empty();) {
    constexpr int kCaller = 2;  // of the function in Python that got here
    nb::module_::import_("warnings")
        .attr("warn")(fsdecode(text), nb::handle(PyExc_RuntimeWarning), kCaller);
  }
}

void bind(nb::module_& m) {
  using namespace nb::literals;
  m.def("configure", &configure_paths, "include_dir"_a, "cubin_dir"_a, "library_roots"_a);
  m.def("nvrtc_info", &nvrtc_info);
  m.def("cache_directory", [] { return fsdecode(cache_directory()); });
  m.def("cache_problem", [] { return fsdecode(cache_problem()); });
}

}  // namespace exactile::jit
