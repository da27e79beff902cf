// src/cpu/kernels.cpp - compiled once per instruction set (EXACTILE_CPU_ISA, and its flags).
//
// No header of the standard library with code in it, and nothing but kernel_table() is exported: a
// weak symbol compiled for a new processor could be chosen for all (.ci/check_isa_symbols.py
// looks).
#include "cpu/kernels.hpp"

#include <exactile/cpu/append.hpp>
#include <exactile/cpu/kernel.hpp>
#include <exactile/cpu/merge.hpp>
#include <exactile/support.def>

#define EXACTILE_STRING2(x) #x
#define EXACTILE_STRING(x) EXACTILE_STRING2(x)

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

template <class Element, class Scheduler>
static void work_group(const PrefillParams& params, const void* schedule, int32_t index,
                       void* buffer) {
  prefill_kernel<Traits<Element>, Scheduler>(
      params, *static_cast<const typename Scheduler::Params*>(schedule), index, buffer);
}

#define EXACTILE_COLUMN(Policy, packs) work_group<Element, typename OnCpu<Policy>::Type>,

/// All that is built for an element, its work-groups in the order of SchedulerKind.
template <class Element>
static constexpr ElementKernels kernels_of() {
  return {.work_group = {EXACTILE_POLICIES(EXACTILE_COLUMN)},
          .scratch_bytes = Scratch<Traits<Element>>::bytes,
          .merge_tokens = merge_tokens<Element>,
          .append_tokens = {append_tokens<Element, float>, append_tokens<Element, Fp16>,
                            append_tokens<Element, Bf16>}};
}

/// What head dims are multiples of, in the order of Dtype.
template <class... Elements>
struct Steps {
  static constexpr int kHeadDim[kNumDtypes] = {Scratch<Traits<Elements>>::kHeadDimStep...};
  static constexpr int kHeadDimV[kNumDtypes] = {Scratch<Traits<Elements>>::kHeadDimVStep...};
};
using AllSteps = Steps<float, Fp16, Bf16>;

// A row whose head dims are none would be read and written past its end.
#define EXACTILE_CHECK_ROW(backend, dtype, kQk, kV)                                         \
  static_assert(Backend::backend != Backend::kCpu ||                                        \
                    kQk % AllSteps::kHeadDim[static_cast<int>(Dtype::dtype)] == 0,          \
                "support.def: the row " #backend ", " #dtype ", " #kQk ", " #kV             \
                ": head_dim is no multiple of what the CPU kernels for " EXACTILE_STRING(   \
                    EXACTILE_CPU_ISA) " load at a time (Scratch::kHeadDimStep)");           \
  static_assert(Backend::backend != Backend::kCpu ||                                        \
                    kV % AllSteps::kHeadDimV[static_cast<int>(Dtype::dtype)] == 0,          \
                "support.def: the row " #backend ", " #dtype ", " #kQk ", " #kV             \
                ": head_dim_v is no multiple of what the CPU kernels for " EXACTILE_STRING( \
                    EXACTILE_CPU_ISA) " store at a time (Scratch::kHeadDimVStep)");
EXACTILE_SUPPORT(EXACTILE_CHECK_ROW)

extern const KernelTable kKernelTable;
const KernelTable kKernelTable = {
    .isa = EXACTILE_STRING(EXACTILE_CPU_ISA),
    .of = {kernels_of<float>(), kernels_of<Fp16>(), kernels_of<Bf16>()},  // in the order of Dtype
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
