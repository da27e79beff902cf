// src/cpu/append.cpp - appends to a cache, in ranges of tokens that threads take.
#include "cpu/append.hpp"

#include "cpu/kernels.hpp"
#include "cpu/token_turns.hpp"

namespace exactile::cpu {

void append(const AppendArgs& args) {
  const AppendParams params = append_params(args, args.host_slots->data());
  const AppendFn append_tokens = kernel_table()
                                     .of[static_cast<int>(args.k_new.dtype)]
                                     .append_tokens[static_cast<int>(args.k_cache.dtype)];
  for_tokens(params.num_tokens, args.threads, args.check,
             [&](int64_t begin, int64_t end) { append_tokens(params, begin, end); });
}

}  // namespace exactile::cpu
