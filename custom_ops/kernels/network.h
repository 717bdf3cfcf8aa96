// A whole network over N streams: structure, rows and the dense sum.
#ifndef REUSE_TF_KERNELS_NETWORK_H_
#define REUSE_TF_KERNELS_NETWORK_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "custom_ops/kernels/dense_sum.h"
#include "custom_ops/kernels/episode.h"
#include "custom_ops/kernels/matmul.h"
#include "custom_ops/kernels/parallel.h"
#include "custom_ops/kernels/row_ops.h"
#include "custom_ops/kernels/structure.h"

namespace reuse_tf {

// What a network is made of. Weights come in the order in which they are
// mentioned here.
struct NetworkSpec {
  // A function of one row. Batch normalization is an affine one whose scale
  // and offset follow from four weights: gamma and beta, if it has them, the
  // moving mean and variance.
  struct Op {
    RowOp op;
    bool batch_norm = false, has_gamma = false, has_beta = false;
    float epsilon = 0;
  };
  struct Stage {
    enum Kind { kConv, kMaxPool, kAveragePool };
    Kind kind = kConv;
    Window window;
    int64_t channels = 0, filters = 0, groups = 1;
    bool use_bias = false;  // weights: kernel, bias
    std::vector<Op> ops;
  };
  struct Dense {
    int64_t units = 0;
    bool use_bias = false;  // weights: kernel, bias
    std::vector<Op> ops;
  };

  FrameShape frame;
  std::vector<Op> pixel_ops;
  std::vector<Stage> stages;
  bool average = false;  // global average pooling, or else a flattening,
  std::vector<Op> average_ops;
  std::vector<Dense> dense;  // whose first layer is the incremental one

  int64_t channels() const {
    return stages.empty() ? frame.channels : stages.back().filters;
  }
  int64_t units() const {
    return dense.empty() ? channels() : dense.back().units;
  }
  // The number of values of each weight.
  std::vector<int64_t> WeightSizes() const;
};

// What was done since the last reset.
struct NetworkStats {
  struct Map {
    int64_t positions = 0, changed = 0, new_rows = 0;
    int64_t multiply_adds = 0, dense_multiply_adds = 0;
  };
  int64_t frames = 0, clears = 0, switches = 0;
  double structure_seconds = 0, rows_seconds = 0, dense_seconds = 0;
  std::vector<Map> maps;  // one for each stage and one for the dense sum
};

class Network {
 public:
  struct Options {
    Reuse reuse = Reuse::kContent;
    int64_t max_rows = 0;  // of each table; 0: about 400 MB in all
    uint64_t hash_mask = ~uint64_t{};
    int64_t tile_bytes = 96 << 20;  // that sums of tiles may take
  };

  Network(const NetworkSpec& spec, const Options& options);

  // Goes on with these weights, [spec.WeightSizes()]. They must stay where they
  // are, and as they are, until the next call. Unless `changed`, they have the
  // values of the last call, and only lie elsewhere. Has to be called again, as
  // changed, if it throws.
  void SetWeights(const std::vector<const float*>& weights, bool changed);

  // outputs[streams, units] for one frame of each stream, frames[streams,
  // height, width, channels] of the type that the spec says. The result for a
  // frame has the same bits whatever was stepped before or beside it, and
  // whichever kind of reuse computed it. Whatever throws (std::bad_alloc, if it
  // is not a body of `parallel`), the next step is right again: all that was
  // known is forgotten.
  void Step(const void* frames, int64_t streams, const ParallelFor& parallel,
            float* outputs);

  // Forgets one stream, or everything.
  void Reset(int64_t stream) { structure_.Reset(stream); }
  void Reset();

  // Records the structure of all steps from the next one on. Clears the tables
  // then, so that the recording holds only what follows. A recording under way
  // is dropped.
  void Record() {
    recording_ = Recording::kAsked;
    recorder_.reset();
  }
  // What was recorded, for once: null if nothing was asked for or nothing was
  // stepped since; if the tables were cleared in between, because one was full,
  // weights changed, or content reuse did not pay; or if it became too large.
  std::unique_ptr<EpisodeRecorder> TakeRecording();
  const Structure& structure() const { return structure_; }
  // Forgets all that was computed, weights too, and gives its memory back.
  // SetWeights has to be called before the next step.
  void Release();

  // Temporal, if content reuse was asked for but does not pay at present.
  Reuse reuse() const { return structure_.reuse(); }
  const NetworkStats& stats() const { return stats_; }
  // Rows in use, by map, and the bound of each.
  std::vector<int64_t> Rows() const;
  const std::vector<int64_t>& max_rows() const { return max_rows_; }

 private:
  struct Ops {  // spec ops, and the ops made of them and the weights
    const std::vector<NetworkSpec::Op>* spec = nullptr;
    RowOps ops;
  };

  void Restart(Reuse reuse);
  void TryStep(const uint8_t* frames, int64_t streams,
               const ParallelFor& parallel, float* outputs);
  void UpdateTiles();
  void ComputePixels();
  void ComputeRows(size_t stage, const ParallelFor& parallel);
  void ComputeOutputs(const ParallelFor& parallel, float* outputs);
  void CountStep();
  void AdaptReuse();
  float* rows(size_t map) {
    return reuse() == Reuse::kContent ? content_rows_[map].data()
                                      : temporal_rows_[map].data();
  }
  int64_t channels(size_t map) const {
    return map == 0 ? spec_.frame.channels : spec_.stages[map - 1].filters;
  }

  const NetworkSpec spec_;
  const Options options_;
  const InstructionSet& set_;
  std::vector<int64_t> max_rows_;
  Structure structure_;
  bool whole_ = false;  // if not, Restart was left, or a step
  // Rows of each map, by the kind of reuse.
  std::vector<LazyBuffer<float>> content_rows_;
  std::vector<std::vector<float>> temporal_rows_;
  bool pixels_known_ = false;  // the rows of all byte values

  Ops pixel_ops_, average_ops_;
  std::vector<Ops> stage_ops_, dense_ops_;
  std::vector<PackedKernel> kernels_;  // by stage
  std::vector<const float*> dense_kernels_, dense_biases_;

  // Leaves are numbered tile by tile: a node above the leaves is a tile's sum.
  DenseSum sum_;
  std::vector<float> trees_;  // [streams, nodes, units]
  std::vector<LeafChange> changes_;
  // Content reuse: the sums of tiles, by the number of what they show.
  LazyBuffer<float> tile_sums_;
  std::vector<uint64_t> changed_tiles_;  // bits of [streams, tiles]

  enum class Recording { kNone, kAsked, kRunning };
  Recording recording_ = Recording::kNone;
  std::unique_ptr<EpisodeRecorder> recorder_;  // null if it was cut short

  NetworkStats stats_;
  // Of late, to see whether content reuse pays: multiply-adds at changed
  // positions and those of new rows.
  int64_t recent_frames_ = 0, recent_changed_ = 0, recent_new_ = 0;
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_NETWORK_H_
