// src/cpu/kernels.hpp - the kernels of one instruction set, as a table that the launch looks up.
#pragma once

#include <exactile/cpu/params.hpp>
#include <exactile/scheduler.hpp>

#include "base/types.hpp"
#include "cpu/resumable.hpp"

namespace exactile::cpu {

/// One work-group of one (element, scheduler) instantiation. `schedule` is its Scheduler::Params.
using WorkGroupFn = void (*)(const PrefillParams&, const void* schedule, int32_t work_group,
                             void* buffer);

struct ElementKernels {
  WorkGroupFn work_group[kNumSchedulers];
  int64_t (*scratch_bytes)(const PrefillParams&);
};

struct KernelTable {
  const char* isa;
  ElementKernels of[kNumDtypes];
};

}  // namespace exactile::cpu
