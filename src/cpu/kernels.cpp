// src/cpu/kernels.cpp - compiled once per instruction set (EXACTILE_CPU_ISA, and its flags).
//
// No header of the standard library with code in it, and nothing but kernel_table() is exported: a
// weak symbol compiled for a new processor could be chosen for all (.ci/check_isa_symbols.py
// looks).
#include "kernels.hpp"

#include <exactile/cpu/kernel.hpp>

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

#define EXACTILE_ROW(Element)                                                 \
  {work_group<Element, Individual>, work_group<Element, ValidOnlyIndividual>, \
   work_group<Element, Resumable>}

/// Rows in the order of Dtype, columns in the order of SchedulerKind: Resumable is what
/// ValidOnlyPersistent is here.
extern const KernelTable kKernelTable;
const KernelTable kKernelTable = {
    .isa = EXACTILE_STRING(EXACTILE_CPU_ISA),
    .work_group = {EXACTILE_ROW(float), EXACTILE_ROW(Fp16), EXACTILE_ROW(Bf16)},
    .scratch_bytes = {Scratch<Traits<float>>::bytes, Scratch<Traits<Fp16>>::bytes,
                      Scratch<Traits<Bf16>>::bytes},
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
