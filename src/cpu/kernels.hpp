// src/cpu/kernels.hpp - the kernels of one instruction set, as a table that the launch looks up.
#pragma once

#include <exactile/append.hpp>
#include <exactile/cpu/params.hpp>
#include <exactile/merge.hpp>
#include <exactile/scheduler.hpp>

#include "base/types.hpp"
#include "cpu/resumable.hpp"

namespace exactile::cpu {

/// One work-group of one (element, scheduler) instantiation. `schedule` is its Scheduler::Params.
using WorkGroupFn = void (*)(const PrefillParams&, const void* schedule, int32_t work_group,
                             void* buffer);

/// Merges the rows of the tokens from `begin`, before `end`.
using MergeFn = void (*)(const MergeParams&, int64_t begin, int64_t end);

/// Writes the rows of the tokens from `begin`, before `end`, into a cache.
using AppendFn = void (*)(const AppendParams&, int64_t begin, int64_t end);

struct ElementKernels {
  WorkGroupFn work_group[kNumSchedulers];
  int64_t (*scratch_bytes)(const PrefillParams&);
  MergeFn merge_tokens;
  AppendFn append_tokens[kNumDtypes];  ///< by the cache's dtype
};

struct KernelTable {
  const char* isa;
  ElementKernels of[kNumDtypes];
};

/// The best that runs here, or the one that EXACTILE_CPU_ISA names.
const KernelTable& kernel_table();

}  // namespace exactile::cpu
