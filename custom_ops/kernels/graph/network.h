// A whole network over N streams: structure, rows and the sums over maps.
#ifndef REUSE_TF_KERNELS_GRAPH_NETWORK_H_
#define REUSE_TF_KERNELS_GRAPH_NETWORK_H_

#include <cstdint>
#include <vector>

#include "custom_ops/kernels/arithmetic/dense_sum.h"
#include "custom_ops/kernels/arithmetic/matmul.h"
#include "custom_ops/kernels/arithmetic/row_ops.h"
#include "custom_ops/kernels/base/parallel.h"
#include "custom_ops/kernels/graph/episode.h"
#include "custom_ops/kernels/graph/graph.h"
#include "custom_ops/kernels/graph/structure.h"

namespace reuse_tf {

// What was done since the last reset.
struct NetworkStats {
  struct Map {
    int64_t positions = 0, changed = 0, new_rows = 0;
    int64_t multiply_adds = 0, dense_multiply_adds = 0;
  };
  int64_t frames = 0, clears = 0, switches = 0;
  // Spent on structure, on rows, and on nodes of a whole map.
  double structure_seconds = 0, rows_seconds = 0, dense_seconds = 0;
  std::vector<Map> maps;  // one for each node
};

class Network {
 public:
  // Which kind of reuse the maps start with, and whether it is changed, map by
  // map, where it does not pay.
  enum class Choice { kAuto, kContent, kTemporal };
  struct Options {
    Choice reuse = Choice::kAuto;
    int64_t max_rows = 0;  // of each table; 0: as many as table_bytes allow
    uint64_t hash_mask = ~uint64_t{};
    int64_t table_bytes = 400 << 20;  // that rows may take, with their keys
    int64_t tile_bytes = 96 << 20;    // that sums of tiles may take
  };

  Network(const Graph& graph, const Options& options);

  // Goes on with these weights, [graph.WeightSizes()]. They must stay where
  // they are, and as they are, until the next call. Unless `changed`, they have
  // the values of the last call, and only lie elsewhere. Has to be called
  // again, as changed, if it throws.
  void SetWeights(const std::vector<const float*>& weights, bool changed);

  // One frame of each stream, frames[streams, height, width, channels] of the
  // type that the graph says, to outputs[i][streams, height, width, channels]
  // of each output. If `kept`, the outputs are those of the last step, of as
  // many streams, and only what changed is written.
  //
  // The result for a frame has the same bits whatever was stepped before or
  // beside it, and whichever kinds of reuse computed it; but where nodes have
  // thresholds, all maps are of temporal reuse, and what the nodes compute is
  // off, value for value, by no more than these. Whatever throws
  // (std::bad_alloc, if it is not a body of `parallel`), the next step is right
  // again: all that was known is forgotten.
  void Step(const void* frames, int64_t streams, const ParallelFor& parallel,
            float* const* outputs, bool kept = false);

  // Forgets one stream, or everything.
  void Reset(int64_t stream) { structure_.Reset(stream); }
  void Reset();

  // Records the structure of all steps from the next one on. Clears the tables
  // then, so that the recording holds only what follows, and stays with content
  // reuse meanwhile. A recording under way is dropped.
  void Record() {
    recording_ = Recording::kAsked;
    recorders_.clear();
  }
  // What was recorded of each shown map, for once: nothing if nothing was asked
  // for or nothing was stepped since; if the tables were cleared in between,
  // because one was full or weights changed; if a map is never of content
  // reuse; or if it became too large.
  std::vector<EpisodeRecorder> TakeRecording();
  const Structure& structure() const { return structure_; }
  // Forgets all that was computed, weights too, and gives its memory back.
  // SetWeights has to be called before the next step.
  void Release();

  // At present.
  Reuse reuse(int64_t map) const { return structure_.maps()[map].reuse; }
  const NetworkStats& stats() const { return stats_; }
  // Rows in use, by map, and the bound of each. 0 where there is no table.
  std::vector<int64_t> Rows() const;
  const std::vector<int64_t>& max_rows() const {
    return structure_.bounds().rows;
  }

 private:
  // What a node computes with.
  struct Weights {
    PackedKernel kernel;            // a convolution's
    const float* matrix = nullptr;  // a dense layer's
    const float* bias = nullptr;
    RowOps ops;
  };
  // The sums over a map that make one node, kept up to date.
  struct Sum {
    Sum(const Graph& graph, int32_t node, const Tiles& tiles);

    const int32_t node, map;
    // Null if the map is one of a value a frame.
    const Structure::Shown* shown = nullptr;
    // Leaves are numbered tile by tile: a node above them is a tile's sum.
    DenseSum tree;
    std::vector<float> trees;  // [streams, nodes, units]
    // Content reuse: the sums of tiles, by the number of what they show.
    LazyBuffer<float> tiles;
    std::vector<LeafChange> changes;
  };

  // Forgets all that was computed and goes on with these kinds of reuse.
  void Restart(std::vector<Reuse> reuse);
  // Gives the memory of all tables back, before a Restart.
  void ReleaseRows();
  // Goes over to temporal reuse in one map, as Structure does, and keeps what
  // is known.
  void MakeTemporal(int64_t map);
  void StartRecording();
  void TryStep(const uint8_t* frames, int64_t streams,
               const ParallelFor& parallel, float* const* outputs, bool kept);
  void StepStructure(const uint8_t* frames, int64_t streams,
                     const ParallelFor& parallel);
  void ResizeRows(int64_t streams);
  // Of a node with a threshold: keeps the rows that are to be computed, and
  // takes those back that moved by no more than it.
  void KeepRows(size_t node);
  void HandOn(size_t node, const ParallelFor& parallel);
  void ComputePixels();
  void ComputeRows(size_t node, const ParallelFor& parallel);
  void ComputeMap(size_t node);
  void ComputeSum(Sum* sum, int64_t streams, const ParallelFor& parallel);
  void UpdateTiles(Sum* sum);
  void WriteOutput(int64_t node, int64_t streams, float* output, bool kept);
  void CountStep();
  void ForgetRecent();
  void AdaptReuse();
  float* rows(size_t map) {
    return structure_.maps()[map].content() ? content_rows_[map].data()
                                            : temporal_rows_[map].data();
  }
  const float* row(int64_t map, int64_t position) {
    return rows(map) +
           structure_.id(map, position) * graph_.nodes[map].channels;
  }
  // Multiply-adds for one row of a node.
  int64_t Cost(size_t node) const;

  const Graph graph_;
  const Options options_;
  const InstructionSet& set_;
  Structure structure_;
  // The kinds of reuse at the start, and now. Maps of one value a frame, and
  // those behind them, are of temporal reuse whatever is asked for.
  std::vector<Reuse> start_, reuse_;
  const bool in_turns_;  // if some nodes have a threshold
  bool whole_ = false;   // if not, Restart was left, or a step
  // Rows of each map, by the kind of reuse.
  std::vector<LazyBuffer<float>> content_rows_;
  std::vector<std::vector<float>> temporal_rows_;
  bool pixels_known_ = false;     // the rows of all byte values
  std::vector<Weights> weights_;  // by node
  std::vector<Sum> sums_;
  std::vector<uint64_t> changed_tiles_;  // bits of [streams, tiles]
  std::vector<float> kept_rows_;
  std::vector<uint8_t> moved_;  // see Structure::HandOn

  enum class Recording { kNone, kAsked, kRunning };
  Recording recording_ = Recording::kNone;
  std::vector<EpisodeRecorder> recorders_;  // none if it was cut short

  NetworkStats stats_;
  // Of late, to see where content reuse pays: rows at changed positions and new
  // ones, by node, and multiply-adds at changed and at all positions.
  struct Recent {
    int64_t changed = 0, made = 0;
  };
  std::vector<Recent> recent_;
  int64_t recent_frames_ = 0, recent_work_ = 0, recent_dense_work_ = 0;
  int64_t pause_frames_ = 0;  // since the last change of a kind of reuse
};

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_GRAPH_NETWORK_H_
