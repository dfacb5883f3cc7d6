// Weights times rows (product.h) on tensor cores: A·x, Aᵀ·x and the gradients. Device code, no torch.
//
// A block owns a tile of queries or of keys, recomputes the logits against the other input's rows as they stream past,
// turns them into weights, and multiplies those with the rows of x. Every output element is written once: no atomics,
// the same bits each run. Pairs of tiles in which no query sees a key are not visited.
#pragma once

#include "tensor_product_grid.cuh"

namespace artent::attention::tensor {

// Masked logits → weights, in place; the queries' rows of the table begin at `table`. Without a cap its slope is 1.
template <class Element, bool kOwnsKeys, bool kGradient, int kRowTiles, int kTiles, int kValueTiles, class Table>
__device__ __forceinline__ void to_weights(const Logits& a, Table rows, int table,
                                           const float (&dP)[kRowTiles][kValueTiles][4],
                                           float (&s)[kRowTiles][kTiles][4]) {
  const float inverse_cap = a.softcap != 0 ? 1 / float(a.softcap) : 0;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = table + (kOwnsKeys ? product_column(t, e) : product_row<kRowTiles>(r, e));
        const float x = s[r][t][e], log_p = x - rows.load(0, i);
        float w = exponential<Element>(log_p);
        if constexpr (kGradient) {
          const float capped = x * inverse_cap, slope = 1 - capped * capped;
          const float change = rows.load(1, i) - rows.load(2, i) * log_p + rows.load(3, i) * w + dP[r][t][e];
          w = w == 0 ? 0 : w * change * slope;  // ln p may be infinite
        }
        s[r][t][e] = x == kHidden<float> ? 0 : w;  // lse may be −∞ too
      }
}

template <class Element, class XElement, bool kOwnsKeys, bool kGradient, int kColumns>
__global__ void __launch_bounds__(kThreads, 2) product_kernel(const ProductParams params) {
  using Tile = ProductTile<Element, XElement, kGradient, kColumns>;
  using RowTable = ProductRows<Tile, kOwnsKeys>;
  constexpr int kRowTiles = Tile::kRowTiles, kOther = Tile::kOther, kOwn = Tile::kOwn;
  constexpr Weights kWeights = kGradient ? Weights::wide_range : Weights::rounded;
  const Product& p = params.p;
  const Visibility& v = p.a.visibility;
  const Shape& n = p.a.shape;
  const ProductGrid grid = ProductGrid::of<Tile>(p);
  const bool through_value = kGradient && p.own_value.data != nullptr;

  simt::SharedArena arena;
  const auto own = arena.panel(kOwn, own_pitch<Element>(n.dim));
  const auto own_value = arena.panel(kOwn, through_value ? own_pitch<Element>(p.own_value.columns) : 0);
  const auto ring = arena.panel(kRing * kOther, kSlicePitch);
  const auto weights = arena.take<typename RowTable::Weights>();
  const auto spans = arena.take<Spans<RowTable::kRows>>();

  int64_t block = blockIdx.x;
  const int share = int(block % params.shares.count);
  block /= params.shares.count;
  const int tile = int(block % grid.own_tiles), own0 = (kOwnsKeys ? tile : grid.own_tiles - 1 - tile) * kOwn;
  block /= grid.own_tiles;
  const int column0 = int(block % grid.column_blocks) * kColumns;
  block /= grid.column_blocks;
  const int out_head = int(block % p.out_heads);
  const int64_t b = block / p.out_heads;
  const int columns = int(p.x.columns) - column0 < kColumns ? int(p.x.columns) - column0 : kColumns;
  const int query_tiles = int(divide_up(n.queries, kOther));  // that stream past a block of keys
  const auto head_of = [&](int pair) { return kOwnsKeys ? out_head * grid.heads_each + pair / query_tiles : out_head; };
  const auto first_row_of = [&](int pair) { return (kOwnsKeys ? pair % query_tiles : pair) * kOther; };

  const auto stage_rows = [&](int at, int count, int h, int i0) {
    stage_spans(spans, at, count, n, v, b, h, i0);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      RowWeights<float> row{0, 0, 0, 0};  // of a query past the last, whose x is zero besides
      if (i0 + i < n.queries) row = row_weights<float>(p, (b * n.heads + h) * n.queries + i0 + i);
      weights.store(0, at + i, row.lse);
      weights.store(1, at + i, row.offset);
      weights.store(2, at + i, row.g_entropy);
      weights.store(3, at + i, row.g_purity2);
    }
  };

  // Hulls of the queries that are being worked on, and of those whose slices are being copied.
  Hull hull{0, 0, 0, 0}, ahead_hull{0, 0, 0, 0};
  int first = 0, pairs = grid.pairs;
  if constexpr (!kOwnsKeys) {
    stage_rows(0, kOwn, out_head, own0);
    __syncthreads();
    hull = v.key_range == nullptr ? diagonal_hull(n, v, own0, kOwn) : staged_hull(spans, kOwn, n, own0);
    first = hull.begin / kOther;
    pairs = hull.end > hull.begin ? divide_up(hull.end, kOther) - first : 0;
  }
  const int begin = first + int(int64_t(pairs) * share / params.shares.count);
  const int end = first + int(int64_t(pairs) * (share + 1) / params.shares.count);

  // The first pair from `pair` on in which a query sees a key, its queries staged in half `half` of the row table.
  const auto sees_own = [&](const Hull& hull) { return hull.begin < own0 + kOwn && own0 < hull.end; };
  const auto visible_from = [&](int pair, int half) {
    if constexpr (kOwnsKeys) {
      if (v.key_range != nullptr) {
        const int64_t first_tile = (b * n.heads + out_head * grid.heads_each) * query_tiles;
        for (; pair < end; pair += 32) {  // a pair a lane; every warp for itself
          const int mine = pair + lane();
          int visible = mine < end && sees_own(load_hull(params.hulls, first_tile + mine)) ? mine : end;
#pragma unroll
          for (int lanes = 16; lanes > 0; lanes /= 2) {
            const int other = __shfl_xor_sync(0xffffffffu, visible, lanes);
            visible = other < visible ? other : visible;
          }
          if (visible == end) continue;
          pair = visible;
          break;
        }
        if (pair < end) ahead_hull = load_hull(params.hulls, first_tile + pair);
      } else if (pair < end) {
        if (v.has_diagonal) {  // queries before own0 − diagonal see none of these keys
          const int64_t from = own0 - v.diagonal;
          const int tile = from <= 0 ? 0 : from < n.queries ? int(from / kOther) : query_tiles;
          if (pair % query_tiles < tile) pair += tile - pair % query_tiles;
          if (tile == query_tiles) pair = end;
        }
        if (pair < end) ahead_hull = diagonal_hull(n, v, first_row_of(pair), kOther);
      }
      if (pair < end) stage_rows(half * kOther, kOther, head_of(pair), first_row_of(pair));
    }
    return pair;
  };

  // Slices of a pair: of other, of other_value, of x. The weights are due when the first two are through.
  const int steps = depth_steps<Element>(n.dim), depth_slices = divide_up(steps, kSliceSteps);
  const int value_steps = through_value ? depth_steps<Element>(p.own_value.columns) : 0;
  const int logit_slices = depth_slices + divide_up(value_steps, kSliceSteps);
  const int slices = logit_slices + divide_up(columns, kPerSlice<XElement>);
  const int other_rows = int(kOwnsKeys ? n.queries : n.keys);
  int ahead = begin - 1, ahead_slice = slices, half = 1;
  int copy_stage = 0, work_stage = 0;  // slices of the ring
  const auto copy_ahead = [&] {
    if (ahead_slice == slices) {
      ahead = visible_from(ahead + 1, half ^ 1);
      ahead_slice = 0;
    }
    if (ahead < end) {
      const simt::SharedPanel to = ring.from(copy_stage * kOther, kOther);
      const int h = head_of(ahead), row0 = first_row_of(ahead);
      if (ahead_slice < logit_slices) {
        const bool of_value = kGradient && ahead_slice >= depth_slices;
        const int slice = of_value ? ahead_slice - depth_slices : ahead_slice;
        const int left = kStepChunks * ((of_value ? value_steps : steps) - kSliceSteps * slice);
        load_slice<kOther>(to, 0, left < kSliceChunks ? left : kSliceChunks,
                           Rows<Element>(of_value ? p.other_value : p.other, b, h, other_rows), row0,
                           slice * kPerSlice<Element>);
      } else {
        const int column = (ahead_slice - logit_slices) * kPerSlice<XElement>;
        const int chunks = divide_up(columns - column, 16) * int(sizeof(XElement));
        load_slice<kOther>(to, 0, chunks < kSliceChunks ? chunks : kSliceChunks, Rows<XElement>(p.x, b, h, other_rows),
                           row0, column0 + column);
      }
      ++ahead_slice;
    }
    simt::copy_commit();  // an empty group where nothing is left
    copy_stage = copy_stage + 1 == kRing ? 0 : copy_stage + 1;
  };

  if (begin < end) {
    const int own_rows = grid.own_rows, h = head_of(begin);
    load_rows<kOwn>(own, Rows<Element>(p.own, b, h, own_rows), own0);
    if (through_value) load_rows<kOwn>(own_value, Rows<Element>(p.own_value, b, h, own_rows), own0);
  }
  float out[kRowTiles][kColumns / 8][4];
  Products<kRowTiles, kOther> s;
  Products<kRowTiles, kGradient ? kOther : 8> dP;
  clear(out);
  int pair = end, slice = 0;  // what is being worked on
  const auto start_pair = [&] {
    slice = 0;
    pair = ahead;  // the one after this: a pair has two slices or more, and kAhead = 2 of them are under way
    half ^= 1;
    if constexpr (kOwnsKeys) hull = ahead_hull;
    clear(s);
    clear(dP);
  };
  for (int under_way = 0;;) {
    copy_ahead();
    if (under_way < kAhead) {
      if (++under_way < kAhead) continue;
      start_pair();
    } else {
      const simt::SharedPanel here = ring.from(work_stage * kOther, kOther);
      if (slice < depth_slices) {
        multiply_rows<Element>(own, slice * kSliceChunks, here, steps - kSliceSteps * slice, s);
      } else if (kGradient && slice < logit_slices) {
        const int at = slice - depth_slices;
        if constexpr (kGradient)
          multiply_rows<Element>(own_value, at * kSliceChunks, here, value_steps - kSliceSteps * at, dP);
      } else {
        at_slice<XElement, kColumns>(slice - logit_slices, columns, [&](auto first_tile, int left) {
          multiply_weights<XElement, kWeights, first_tile>(s, here, left, out);
        });
      }
      if (slice == logit_slices - 1) {
        const int other0 = first_row_of(pair), table = kOwnsKeys ? half * kOther : 0;
        const int i0 = kOwnsKeys ? other0 : own0, j0 = kOwnsKeys ? own0 : other0;
        const int last_key = kOwnsKeys && j0 + kOwn > n.keys ? int(n.keys) : j0 + (kOwnsKeys ? kOwn : kOther);
        const bool plain = hull.all_begin <= j0 && last_key <= hull.all_end && v.mask_kind == MaskKind::none;
        mask_logits<kOwnsKeys>(p.a, spans, table, plain, b, head_of(pair), i0, j0, s);
        to_weights<Element, kOwnsKeys, kGradient>(p.a, weights, table, dP, s);
      }
      if (++slice == slices) start_pair();
      work_stage = work_stage + 1 == kRing ? 0 : work_stage + 1;
    }
    if (pair >= end) break;
    simt::copy_wait<kAhead - 1>();
    __syncthreads();
  }
  simt::copy_wait<0>();  // of own rows, where no pair was visible

  constexpr float kUnlift = 1 / kLift<XElement, kWeights>;
  const float factor = float(p.factor) * kUnlift;
  const int64_t rows = (b * p.out_heads + out_head) * grid.own_rows;
  float* const partial = params.shares.workspace + share * (n.batch * p.out_heads * grid.own_rows * p.x.columns);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int c = 0; c < kColumns / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = own0 + product_row<kRowTiles>(r, e), column = product_column(c, e);
        if (row >= grid.own_rows || column >= columns) continue;
        const int64_t at = (rows + row) * p.x.columns + column0 + column;
        const float x = out[r][c][e] * factor;
        if (params.shares.count == 1)
          simt::global_store(static_cast<XElement*>(p.out) + at, XElement(x));
        else
          simt::global_store(partial + at, x);
      }
}

// The shares of every output element added up in order.
template <class XElement>
__global__ void __launch_bounds__(kThreads) sum_kernel(const ProductParams params) {
  const Product& p = params.p;
  const int64_t rows = p.a.shape.batch * p.out_heads * (p.owns_keys ? p.a.shape.keys : p.a.shape.queries);
  const int64_t elements = rows * p.x.columns, at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= elements) return;
  float sum = 0;
  for (int share = 0; share < params.shares.count; ++share)
    sum += simt::global_load(params.shares.workspace + share * elements + at);
  simt::global_store(static_cast<XElement*>(p.out) + at, XElement(sum));
}
inline Launch sum_launch(const Product& p) {
  return {divide_up(product_elements(p), kThreads), kThreads, 0};
}

}  // namespace artent::attention::tensor
