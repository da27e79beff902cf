// src/python/torch_arrays.hpp - tensors of torch, and torch's modes. Never imports torch.
#pragma once

#include <initializer_list>
#include <optional>

#include "python/arrays.hpp"

namespace exactile {

/// What is asked of torch, looked up once.
class Torch {
 public:
  /// Null until the process has imported torch.
  static const Torch* loaded();

  bool owns(nanobind::handle x) const {
    return PyObject_TypeCheck(x.ptr(), reinterpret_cast<PyTypeObject*>(tensor_type_.ptr()));
  }

  /// As read_array, for a tensor; a third of the time that DLPack takes.
  ArrayRef read(nanobind::handle tensor, const ArrayRequest& request) const;

  /// Refuses a call inside torch.jit.trace, whose graph would hold nothing of it.
  void refuse_tracing(const char* function) const;

  /// Refuses tensors with a tangent (forward-mode differentiation), which the result would lack.
  void refuse_tangents(std::initializer_list<nanobind::handle> tensors,
                       const char* function = "varlen_prefill") const;

  /// Handle of torch's current stream on a GPU; empty where DLPack's functions do not say.
  std::optional<uint64_t> current_stream(int device) const;

  /// Tells autograd that `tensor` is about to be written.
  void will_write(nanobind::handle tensor) const;

 private:
  explicit Torch(nanobind::handle torch);
  ArrayRef read_view(nanobind::handle tensor, const ArrayRequest& request) const;
  ArrayRef read_attributes(nanobind::handle tensor, const ArrayRequest& request) const;
  std::string kind_of(nanobind::handle tensor, const std::string& error) const;
  bool is_true(nanobind::handle tensor, const nanobind::object& method) const;

  nanobind::object tensor_type_, is_tracing_, is_grad_enabled_, forward_ad_, increment_version_;
  nanobind::object dtypes_[kNumArrayDtypes];       // by Dtype
  nanobind::object is_wrapped_;                    // by functorch
  bool increments_many_ = false;                   // increment_version_ takes tensors, not one
  const dlpack::ExchangeApi* exchange_ = nullptr;  // of torch 2.10 and newer
};

/// Refuses a tensor inside torch.jit.trace; other arrays pass.
inline void refuse_traced(nanobind::handle x, const char* function) {
  const Torch* const torch = Torch::loaded();
  if (torch && torch->owns(x)) torch->refuse_tracing(function);
}

/// Where torch.compile's hook is set: takes it off and returns it, else None. Frames that are
/// called before `resume_compiler` puts it back are not compiled.
nanobind::object suspend_compiler();
void resume_compiler(nanobind::handle hook);

}  // namespace exactile
