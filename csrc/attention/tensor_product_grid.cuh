// The tiles of a product (product.h) on tensor cores: their sizes, the grid of blocks, what a block holds. No torch.
#pragma once

#include "launch.h"
#include "row_gradient.cuh"
#include "tensor_spans.cuh"

namespace artent::attention::tensor {

// kRowTiles · 16 own rows a warp against kOther at once, kColumns of x.
//
// A thread's registers hold kRowTiles · kOther / 2 logits, as many products of grad_out and value in a gradient, and
// kRowTiles · kColumns / 2 sums, of 255 in all; see ForwardTile. Wider outputs are made kColumns at a time.
template <class Element, class XElement, bool kGradient, int kColumns_>
struct ProductTile {
  static constexpr bool kHalf = sizeof(Element) == 2, kHalfX = sizeof(XElement) == 2;
  static constexpr int kColumns = kColumns_;
  static constexpr int kRowTiles = kHalf && kHalfX ? 2 : 1;
  static constexpr int kOther = kColumns <= 64 && !(kGradient && kHalf) ? 64 : 32;
  static constexpr int kOwn = 16 * kRowTiles * kWarps;
};

struct ProductParams {
  Product p;
  Shares shares;     // of a tile: the workspace holds the output of every share in turn
  const int* hulls;  // hull_kernel's, of tiles of kOther queries: where there is a key range and blocks own keys
};

// The slope of a cap is read off the capped logit, which an added mask hides: such gradients take the other kernels.
inline bool softcap_under_mask(const Product& p) {
  return p.gradient && p.a.softcap != 0 && p.a.visibility.mask_kind == MaskKind::additive;
}

// What a block works on. Pairs are the tiles that stream past: of keys, or of the queries of all heads that are summed.
struct ProductGrid {
  int own_rows, own_tiles, column_blocks, pairs, heads_each;

  template <class Tile>
  __host__ __device__ static ProductGrid of(const Product& p) {
    const Shape& n = p.a.shape;
    ProductGrid g;
    g.own_rows = int(p.owns_keys ? n.keys : n.queries);
    g.own_tiles = divide_up(g.own_rows, Tile::kOwn);
    g.column_blocks = int(divide_up(p.x.columns, Tile::kColumns));
    g.heads_each = int(n.heads / p.out_heads);
    g.pairs = int(p.owns_keys ? g.heads_each * divide_up(n.queries, Tile::kOther) : divide_up(n.keys, Tile::kOther));
    return g;
  }
  __host__ __device__ int64_t blocks(const Product& p) const {
    return p.a.shape.batch * p.out_heads * own_tiles * column_blocks;
  }
};

// A block's own rows of value are those of one head: where the summed heads have values of their own, they are shared
// out.
inline int least_shares(const Product& p) {
  const bool heads_differ = p.owns_keys && p.gradient && p.own_value.data != nullptr && p.own_value.group == 1;
  return heads_differ ? int(p.a.shape.heads / p.out_heads) : 1;
}
template <class Tile>
int product_shares(const Product& p, int multiprocessors) {
  const ProductGrid grid = ProductGrid::of<Tile>(p);
  const int least = least_shares(p);
  return least * shares_for(grid.blocks(p) * least, grid.pairs / least, multiprocessors);
}
inline int64_t product_elements(const Product& p) {
  return p.a.shape.batch * p.out_heads * (p.owns_keys ? p.a.shape.keys : p.a.shape.queries) * p.x.columns;
}

// Spans and weights of the queries: all of them where a block owns queries, two tiles where they stream past.
template <class Tile, bool kOwnsKeys>
struct ProductRows {
  static constexpr int kRows = kOwnsKeys ? 2 * Tile::kOther : Tile::kOwn;
  using Weights = simt::SharedTile<float, RowWeights<float>::kFields, kRows>;
};

template <class Element, class Tile, bool kOwnsKeys>
Launch product_launch(const Product& p, int shares) {
  using Rows = ProductRows<Tile, kOwnsKeys>;
  const int pitch = own_pitch<Element>(p.a.shape.dim);
  const int other_pitch = p.own_value.data == nullptr ? 0 : own_pitch<Element>(p.own_value.columns);
  return {ProductGrid::of<Tile>(p).blocks(p) * shares, kThreads,
          16 * (Tile::kOwn * (pitch + other_pitch) + kRing * Tile::kOther * kSlicePitch) + Rows::Weights::kBytes +
              Spans<Rows::kRows>::kBytes};
}

}  // namespace artent::attention::tensor
