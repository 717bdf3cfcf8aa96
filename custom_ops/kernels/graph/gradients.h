// The differentiable path over distinct rows: its products and their
// gradients. Nothing here depends on how many threads there are, to the bit.
#ifndef REUSE_TF_KERNELS_GRAPH_GRADIENTS_H_
#define REUSE_TF_KERNELS_GRAPH_GRADIENTS_H_

#include <cstdint>
#include <vector>

#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/graph/episode.h"

namespace reuse_tf {

// The shapes of out = patches of rows * kernel: a convolution over rows.
struct PatchShape {
  int64_t rows = 0, channels = 0;  // rows [rows, channels]
  int64_t patches = 0, taps = 0;   // patches [patches, taps], -1: zeros
  int64_t filters = 0, groups = 1;

  int64_t depth() const { return taps * (channels / groups); }
};

// Adds the gradients of a convolution over rows, given that of its result,
// [patches, filters], to rows_gradient [rows, channels], kernel_gradient [taps,
// channels / groups, filters] and bias_gradient [filters], which hold zeros
// before. If relu_products is not null, it is the relu of the convolution, and
// it is the gradient of this that is given. Patches are gathered block by
// block. That of rows is left out if rows_gradient is null.
void PatchGradients(const PatchShape& shape, const float* rows,
                    const int32_t* patches, const float* kernel,
                    const float* relu_products, const float* gradient,
                    const ParallelFor& parallel, float* rows_gradient,
                    float* kernel_gradient, float* bias_gradient);

// out[i, :] = rows[pairs[i].row, :] * weights[pairs[i].position, :, :], for
// rows [*, channels], weights [positions, channels, units], out [count, units].
void PairProducts(const Pair* pairs, int64_t count, const float* rows,
                  int64_t channels, const float* weights, int64_t positions,
                  int64_t units, const ParallelFor& parallel, float* out);

// Which contents hold each pair: those at [starts[i], starts[i + 1]).
struct PairUses {
  // `contents` is [count, width], pairs in [-1, pairs).
  PairUses(const int32_t* contents, int64_t count, int64_t width,
           int64_t pairs);

  std::vector<int64_t> starts;
  std::vector<int32_t> contents;
};

// The gradients of sums over contents of the products of their pairs, given the
// one of the sums, [contents, units]. Adds that of rows to rows_gradient [*,
// channels], which holds zeros before, and sets weights_gradient [positions,
// channels, units]. Pairs must be in the order of their positions.
void PairGradients(const Pair* pairs, int64_t count, const float* rows,
                   int64_t channels, const float* weights, int64_t positions,
                   int64_t units, const PairUses& uses, const float* gradient,
                   const ParallelFor& parallel, float* rows_gradient,
                   float* weights_gradient);

// out[t, :] = the sum over tiles of values[content, :] of the content that each
// shows at frame t, for values [*, units] and out [frames, units]; tiles that
// show nothing add nothing. Of each frame it is the tree of sums of DenseSum,
// of which changed paths are computed anew: it has the same bits as there, and
// no frame has a part in another. False if runs of a tile overlap.
bool RunSums(const Run* runs, int64_t count, const float* values, int64_t units,
             int64_t frames, float* out);

// Adds the gradient of that to values_gradient [*, units], which holds zeros
// before: for each run the sum of gradient [frames, units] over its own frames,
// put together from those of a binary tree over time, in double precision.
void RunGradients(const Run* runs, int64_t count, const float* gradient,
                  int64_t units, int64_t frames, float* values_gradient);

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_GRAPH_GRADIENTS_H_
