// src/cpu/kernels.hpp - the kernels of one instruction set, as a table that the launch looks up.
#pragma once

#include <exactile/cpu/params.hpp>
#include <exactile/scheduler/individual.hpp>
#include <exactile/scheduler/valid_only.hpp>

#include "../types.hpp"
#include "resumable.hpp"

namespace exactile::cpu {

/// One work-group of one (element, scheduler) instantiation. `schedule` is its Scheduler::Params.
using WorkGroupFn = void (*)(const PrefillParams&, const void* schedule, int32_t work_group,
                             void* buffer);

struct KernelTable {
  const char* isa;
  WorkGroupFn work_group[kNumDtypes][kNumSchedulers];
  int64_t (*scratch_bytes[kNumDtypes])(const PrefillParams&);
};

}  // namespace exactile::cpu
