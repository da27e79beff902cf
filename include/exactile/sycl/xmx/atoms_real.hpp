// exactile/sycl/xmx/atoms_real.hpp - the atoms as Intel GPU instructions, in vISA assembly.
// Included by atoms.hpp, which says what a fragment is.
//
// Written from what the graphics compiler makes of it (pvc, igc 1.0.12504):
//   - fragments that are values in C++ are copied at joins and when a part of one is taken: up to
//     430 of 700 instructions of the main loop. Registers that the assembly names are never copied.
//   - An asm has one output, never tied to an input; two outputs abort the compiler.
//   - 32-wide instructions do two registers at once, in this 16-wide kernel too (M1_NM).
//   - A 2D message through lsc_load_block2d writes its payload anew, 7 instructions; with a payload
//     of our own it is 2, or 1.
#pragma once

#include <exactile/sycl/xmx/atoms.hpp>
#include <exactile/sycl/xmx/text.hpp>

namespace exactile::sycl::xmx {

// ---- registers

/// An (8, 16) float fragment: 8 registers.
template <char kName, int kIndex>
struct Accumulator {
  static constexpr Text name() { return text("exactile_", kName, kIndex); }
};

template <char kName_, int kRows_, int kColumns_>
struct Accumulators {
  static constexpr char kName = kName_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;

  /// Once in a kernel, at its begin.
  EXACTILE_HOST_DEVICE static void declare() {
    unrolled<kRows * kColumns>([](auto i) {
      asm volatile((text(".decl ", Accumulator<kName, i>::name(),
                         " v_type=G type=F num_elts=128 align=GRF\n")));
    });
  }
  template <int kRow, int kColumn>
  static constexpr auto at(Constant<kRow>, Constant<kColumn>) {
    return Accumulator<kName, kRow * kColumns + kColumn>{};
  }
};

// ---- 2D block messages

/// lane(). The compiler would keep who is which lane for the whole kernel, and spill it.
EXACTILE_HOST_DEVICE int lane_anew() {
  int own;
  asm volatile("mov (M1_NM,16) %0(0,0)<1> %1(0,0)<1;1,0>" : "=rw"(own) : "rw"(lane()));
  return own;
}

/// A message's payload, a register: dwords base (2), width - 1, height - 1, pitch - 1, x, y, shape.
EXACTILE_HOST_DEVICE int payload(const Surface& surface, Position at, Block block) {
  const auto base = reinterpret_cast<unsigned long long>(surface.base);
  switch (lane_anew()) {
    case 0:
      return static_cast<int>(base);
    case 1:
      return static_cast<int>(base >> 32);
    case 2:
      return surface.width_bytes - 1;
    case 3:
      return surface.rows - 1;
    case 4:
      return surface.pitch_bytes - 1;
    case 5:
      return at.x;
    case 6:
      return at.y;
    case 7:
      return (block.count - 1) << 16 | (block.rows - 1) << 8 | (block.columns - 1);
    default:
      return 0;
  }
}

/// A place in a surface that moves down, and the messages that read around it: blocks to its right,
/// by kColumn elements, and kRowBlocks blocks below one another.
///
/// Xe2 takes both distances in the message (descriptor extension: x << 12, y << 22). Before it
/// every row of blocks has a payload of its own, whose x is written for each message: kTurns
/// payloads in turn, so that none waits until the message before has been sent. A surface of its
/// own takes a payload of its own on any.
template <class Arch, char kName, int kIndex, Block kBlock_, int kRowBlocks, int kMaxTurns,
          Surfaces kSurfaces = Surfaces::kOne>
struct Cursor {
  static constexpr Block kBlock = kBlock_;
  static constexpr bool kOffsetsInMessage = SameAs<Arch, Xe2>;
  static constexpr bool kOneSurface = kSurfaces == Surfaces::kOne;
  static constexpr int kTurns = kOffsetsInMessage ? 1 : kMaxTurns;
  static constexpr bool kOnePayload = kOffsetsInMessage && kOneSurface;
  static constexpr int kPayloads = kOnePayload ? 1 : kRowBlocks * kTurns;
  static constexpr Text name() { return text("exactile_", kName, kIndex); }

  EXACTILE_HOST_DEVICE static void declare() {
    asm volatile(
        (text(".decl ", name(), " v_type=G type=D num_elts=", 16 * kPayloads, " align=GRF\n")));
  }
  EXACTILE_HOST_DEVICE static void set(const Surface& surface, Position at) {
    unrolled<kPayloads>([&](auto p) {
      const int value = payload(surface, {at.x, at.y + p / kTurns * kBlock.rows}, kBlock);
      asm volatile(
          (text("mov (M1_NM,16) ", name(), "(", p, ",0)<1> %0(0,0)<1;1,0>\n"))::"rw"(value));
    });
  }
  /// The block's surface is now the run of a lane, of the width and pitch that were set.
  template <int kRowBlock, int kLane>
  EXACTILE_HOST_DEVICE static void place(const Run& run) {
    const auto base = reinterpret_cast<unsigned long long>(run.base);
    constexpr auto kLines = [] {
      constexpr int kFields[] = {0, 1, 3, 6};
      Text lines;
      for (int p = kRowBlock * kTurns; p < (kRowBlock + 1) * kTurns; ++p) {
        for (int i = 0; i < 4; ++i) {
          lines.append(text("mov (M1_NM,1) ", name(), "(", p, ",", kFields[i], ")<1> %", i, "(0,",
                            kLane, ")<0;1,0>\n"));
        }
      }
      return lines;
    };
    asm volatile((kLines())::"rw"(static_cast<int>(base)), "rw"(static_cast<int>(base >> 32)),
                 "rw"(run.rows - 1), "rw"(run.y));
  }
  template <int kRows>
  EXACTILE_HOST_DEVICE static void move_down() {
    static_assert(kOneSurface);
    unrolled<kPayloads>([](auto p) {
      asm volatile((text("add (M1_NM,1) ", name(), "(", p, ",6)<1> ", name(), "(", p, ",6)<0;1,0> ",
                         kRows, ":d")));
    });
  }
  /// The message that reads the block at a distance. The descriptor: payload registers << 25 |
  /// result registers << 20 | transposed << 15 | size of an element << 9 | VNNI << 7 | 3 for a 2D
  /// load; 31 stands for 32 result registers.
  static constexpr Text load(const char* descriptor, int registers, int column, int row) {
    Text lines;
    const int from =
        kOnePayload ? 0 : row / kBlock.rows * kTurns + column / kBlock.width() % kTurns;
    const int extension = !kOffsetsInMessage ? 0 : column << 12 | (kOneSurface ? row : 0) << 22;
    if (!kOffsetsInMessage) {
      lines.append(text("mov (M1_NM,1) ", name(), "(", from, ",5)<1> ", column, ":d\n"));
    }
    lines.append(text("raw_sends.15.1.0.", registers, " (M1_NM,1) ", extension, ":ud ", descriptor,
                      ":ud ", name(), ".", from * 64, " %%null.0 %0.0\n"));
    return lines;
  }
};

/// The 16 columns from kColumn on.
template <int kColumn, class C>
EXACTILE_HOST_DEVICE auto load_queries(C) {
  constexpr int kRowBlocks = C::kBlock.rows / 8;
  constexpr const char* kDescriptor = kRowBlocks == 2 ? "0x02800203" : "0x02400203";
  Queries<kRowBlocks> block;
  asm volatile((C::load(kDescriptor, kRowBlocks * 4, kColumn, 0)) : "=rw"(block));
  return block;
}

/// 16 keys as the B operand of q k^T: pairs of a key's elements in the lane of the key.
template <int kColumn, int kRow, class C>
EXACTILE_HOST_DEVICE BTile load_keys(C) {
  BTile block;
  asm volatile((C::load("0x02808403", 8, kColumn, kRow)) : "=rw"(block));
  return block;
}

/// 32 rows, or 16, of the 32 columns from kColumn on.
template <int kColumn, int kRow, class C>
EXACTILE_HOST_DEVICE auto load_values(C) {
  constexpr int kRows = C::kBlock.rows;
  static_assert(kRows == 32 || kRows == 16);
  constexpr const char* kDescriptor = kRows == 32 ? "0x03F00283" : "0x03000283";
  Values<kRows> block;
  asm volatile((C::load(kDescriptor, kRows, kColumn, kRow)) : "=rw"(block));
  return block;
}

/// The block at the cursor into L1 and L2.
template <class C>
EXACTILE_HOST_DEVICE void prefetch(C) {
  asm volatile((text("raw_sends.15.1.0.0 (M1_NM,1) 0x0:ud 0x02080203:ud ", C::name(),
                     ".0 %%null.0 %%null.0"))::);
}

/// One that is fetched once, and needs no cursor.
template <Block kBlock>
EXACTILE_HOST_DEVICE void prefetch(const Surface& surface, Position at) {
  asm volatile(
      (text("lsc_load_block2d.ugm.ca.ca (M1,1) %%null:d16.", kBlock.count, "x", kBlock.columns, "x",
            kBlock.rows, "nn flat[%0,%1,%2,%3,%4,%5]"))::"rw.u"(surface.base),
      "rw.u"(surface.width_bytes - 1), "rw.u"(surface.rows - 1), "rw.u"(surface.pitch_bytes - 1),
      "rw.u"(at.x), "rw.u"(at.y));
}

EXACTILE_HOST_DEVICE void store_rows(const Surface& surface, Position at, ATile rows) {
  asm volatile("lsc_store_block2d.ugm (M1,1) flat[%1,%2,%3,%4,%5,%6] %0:d16.16x8nn" ::"rw"(rows),
               "rw.u"(surface.base), "rw.u"(surface.width_bytes - 1), "rw.u"(surface.rows - 1),
               "rw.u"(surface.pitch_bytes - 1), "rw.u"(at.x), "rw.u"(at.y));
}

/// Nothing is moved across it, in either direction: the compiler would put a load beside its use.
EXACTILE_HOST_DEVICE void keep_order() { asm volatile("fence_sw" ::); }

// ---- matrix multiply

/// sum = a b, or sum += a b, with the kA'th ATile of `a` and the kB'th BTile of `b`.
template <class Element, bool kFirst, int kA, int kB, class Sum, class A, class B>
EXACTILE_HOST_DEVICE void multiply(Sum, const A& a, const B& b) {
  constexpr const char* kType = SameAs<Element, Bf16> ? "bf" : "hf";
  asm volatile((text("{\n.decl A v_type=G type=UD num_elts=64 alias=<%0,", kA * 256,
                     ">\n.decl B v_type=G type=UD num_elts=128 alias=<%1,", kB * 512, ">\ndpas.",
                     kType, ".", kType, ".8.8 (M1_NM,16) ", Sum::name(), ".0 ",
                     kFirst ? text("%%null") : Sum::name(), ".0 B.0 A(0,0)\n}\n"))::"rw"(a),
               "rw"(b));
}

// ---- arithmetic on fragments

/// a = 0.
template <class A>
EXACTILE_HOST_DEVICE void clear(A) {
  constexpr auto kLine = [](int r) {
    return text("mov (M1_NM,32) ", A::name(), "(", r, ",0)<1> 0x0:f\n");
  };
  asm volatile((text(kLine(0), kLine(2), kLine(4), kLine(6))));
}

/// a += b, per element.
template <class A, class B>
EXACTILE_HOST_DEVICE void add(A, B) {
  constexpr auto kLine = [](int r) {
    return text("add (M1_NM,32) ", A::name(), "(", r, ",0)<1> ", A::name(), "(", r, ",0)<1;1,0> ",
                B::name(), "(", r, ",0)<1;1,0>\n");
  };
  asm volatile((text(kLine(0), kLine(2), kLine(4), kLine(6))));
}

/// a = 2^a.
template <class A>
EXACTILE_HOST_DEVICE void exp2(A) {
  constexpr auto kLine = [](int r) {
    return text("exp (M1_NM,32) ", A::name(), "(", r, ",0)<1> ", A::name(), "(", r, ",0)<1;1,0>\n");
  };
  asm volatile((text(kLine(0), kLine(2), kLine(4), kLine(6))));
}

/// a = a * scale - offsets[row], for the kRowBlock'th 8 of the rows.
template <int kRowBlock, class A>
EXACTILE_HOST_DEVICE void scale_subtract(A, float scale, float offsets) {
  constexpr auto kLines = [] {
    Text lines;
    for (int r = 0; r < 8; ++r) {
      lines.append(text("mad (M1_NM,16) ", A::name(), "(", r, ",0)<1> ", A::name(), "(", r,
                        ",0)<1;1,0> %0(0,0)<0;1,0> (-)%1(0,", kRowBlock * 8 + r, ")<0;1,0>\n"));
    }
    return lines;
  };
  asm volatile((kLines())::"rw.u"(scale), "rw"(offsets));
}

/// a *= factors[row], for the kRowBlock'th 8 of the rows.
template <int kRowBlock, class A>
EXACTILE_HOST_DEVICE void scale_rows(A, float factors) {
  constexpr auto kLines = [] {
    Text lines;
    for (int r = 0; r < 8; ++r) {
      lines.append(text("mul (M1_NM,16) ", A::name(), "(", r, ",0)<1> ", A::name(), "(", r,
                        ",0)<1;1,0> %0(0,", kRowBlock * 8 + r, ")<0;1,0>\n"));
    }
    return lines;
  };
  asm volatile((kLines())::"rw"(factors));
}

/// a += b * factors[row], for the kRowBlock'th 8 of the rows.
template <int kRowBlock, class A>
EXACTILE_HOST_DEVICE void add_scaled(A, const Fragment& b, float factors) {
  constexpr auto kLines = [] {
    Text lines;
    for (int r = 0; r < 8; ++r) {
      lines.append(text("mad (M1_NM,16) ", A::name(), "(", r, ",0)<1> %0(", r, ",0)<1;1,0> %1(0,",
                        kRowBlock * 8 + r, ")<0;1,0> ", A::name(), "(", r, ",0)<1;1,0>\n"));
    }
    return lines;
  };
  asm volatile((kLines())::"rw"(b), "rw"(factors));
}

/// What a holds.
template <class A>
EXACTILE_HOST_DEVICE Fragment value_of(A) {
  constexpr auto kLine = [](int r) {
    return text("mov (M1_NM,32) %0(", r, ",0)<1> ", A::name(), "(", r, ",0)<1;1,0>\n");
  };
  Fragment value;
  asm volatile((text(kLine(0), kLine(2), kLine(4), kLine(6))) : "=rw"(value));
  return value;
}

/// a = f(a, offset), of a Fragment.
template <class A, class Function>
EXACTILE_HOST_DEVICE void transform(A a, float offset, const Function& f) {
  constexpr auto kLine = [](int r) {
    return text("mov (M1_NM,32) ", A::name(), "(", r, ",0)<1> %0(", r, ",0)<1;1,0>\n");
  };
  const Fragment value = f(value_of(a), offset);
  asm volatile((text(kLine(0), kLine(2), kLine(4), kLine(6)))::"rw"(value));
}

/// Keeps row r where above < r <= upto; -infinity elsewhere.
template <class A>
EXACTILE_HOST_DEVICE void hide(A, int above, int upto) {
  constexpr auto kLines = [] {
    Text lines;
    for (int r = 0; r < 8; ++r) {
      for (int upper = 0; upper < 2; ++upper) {
        lines.append(text(upper ? "cmp.ge" : "cmp.lt", " (M1_NM,16) P %", upper, "(0,0)<1;1,0> 0x",
                          r, ":d\n(P) sel (M1_NM,16) ", A::name(), "(", r, ",0)<1> ", A::name(),
                          "(", r, ",0)<1;1,0> 0xFF800000:f\n"));
      }
    }
    return lines;
  };
  asm volatile((text("{\n.decl P v_type=P num_elts=16\n", kLines(), "}\n"))::"rw"(above),
               "rw"(upto));
}

/// Some element is above the limit.
template <class As>
EXACTILE_HOST_DEVICE bool any_above(As, float limit) {
  constexpr auto kLines = [] {
    Text lines;
    unrolled<As::kRows * As::kColumns, 1>([&](auto f) {
      const auto from = Accumulator<As::kName, f>::name();
      for (int r = 0; r < 8; r += 2) {
        const Text so_far = f == 1 ? Accumulator<As::kName, 0>::name() : text("T");
        lines.append(text("max (M1_NM,32) T(", r, ",0)<1> ", so_far, "(", r, ",0)<1;1,0> ", from,
                          "(", r, ",0)<1;1,0>\n"));
      }
    });
    return lines;
  };
  int result;
  asm volatile(
      (text("{\n.decl T v_type=G type=F num_elts=128 align=GRF\n", ".decl P v_type=P num_elts=16\n",
            kLines(), "max (M1_NM,32) T(0,0)<1> T(0,0)<1;1,0> T(2,0)<1;1,0>\n",
            "max (M1_NM,32) T(4,0)<1> T(4,0)<1;1,0> T(6,0)<1;1,0>\n",
            "max (M1_NM,32) T(0,0)<1> T(0,0)<1;1,0> T(4,0)<1;1,0>\n",
            "max (M1_NM,16) T(0,0)<1> T(0,0)<1;1,0> T(1,0)<1;1,0>\n",
            "cmp.gt (M1_NM,16) P T(0,0)<1;1,0> %1(0,0)<0;1,0>\n",
            "mov (M1_NM,1) %0(0,0)<1> 0x0:d\n", "(P.any) mov (M1_NM,1) %0(0,0)<1> 0x1:d\n}\n"))
      : "=rw"(result)
      : "rw.u"(limit));
  return ::sycl::group_broadcast(::sycl::ext::oneapi::this_work_item::get_sub_group(), result, 0);
}

/// Per row: the reduction over all columns of fragments (key blocks, row blocks).
template <Reduction kReduction, class As>
EXACTILE_HOST_DEVICE float reduce_rows(As) {
  static constexpr const char* kOp = kReduction == Reduction::kMaximum ? "max" : "add";
  // Fold to 8 columns, with two rows side by side in a register; then to 4, 2, 1.
  static constexpr auto kFold = [](int to, int from, const char* region, int distance) {
    Text lines;
    for (int half = 0; half < 2; ++half) {
      lines.append(text(kOp, " (M1_NM,8) T(", to, ",", half * 8, ")<1> T(", from + half, ",0)",
                        region, " T(", from + half, ",", distance, ")", region, "\n"));
    }
    return lines;
  };
  constexpr auto kLines = [] {
    Text lines;
    unrolled<As::kColumns>([&](auto i) {
      unrolled<As::kRows>([&](auto j) {
        const auto from = Accumulator<As::kName, j * As::kColumns + i>::name();
        for (int r = 0; r < 8; r += 2) {
          const Text here = text("T(", r, ",0)<1");
          const Text source = text(from, "(", r, ",0)<1;1,0>\n");
          if (j == 0) {
            lines.append(text("mov (M1_NM,32) ", here, "> ", source));
          } else {
            lines.append(text(kOp, " (M1_NM,32) ", here, "> ", here, ";1,0> ", source));
          }
        }
      });
      for (int p = 0; p < 4; ++p) lines.append(kFold(p, 2 * p, "<1;1,0>", 8));
      for (int p = 0; p < 2; ++p) lines.append(kFold(p, 2 * p, "<8;4,1>", 4));
      lines.append(kFold(0, 0, "<4;2,1>", 2));
      lines.append(text(kOp, " (M1_NM,8) %0(0,", i * 8, ")<1> T(0,0)<2;1,0> T(0,1)<2;1,0>\n"));
    });
    return lines;
  };
  float result;
  asm volatile((text("{\n.decl T v_type=G type=F num_elts=128 align=GRF\n", kLines(), "}\n"))
               : "=rw"(result));
  return result;
}

/// Rounded to the nearest element.
template <class Element, class A>
EXACTILE_HOST_DEVICE ATile convert(A) {
  constexpr auto kLine = [](int r) {
    return text("mov (M1_NM,32) E(", r / 2, ",0)<1> ", A::name(), "(", r, ",0)<1;1,0>\n");
  };
  constexpr const char* kType = SameAs<Element, Bf16> ? "BF" : "HF";
  ATile result;
  asm volatile((text("{\n.decl E v_type=G type=", kType, " num_elts=128 alias=<%0,0>\n", kLine(0),
                     kLine(2), kLine(4), kLine(6), "}\n"))
               : "=rw"(result));
  return result;
}

}  // namespace exactile::sycl::xmx
