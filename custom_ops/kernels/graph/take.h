// The structure of some frames of a video, out of that of all of them.
#ifndef REUSE_TF_KERNELS_GRAPH_TAKE_H_
#define REUSE_TF_KERNELS_GRAPH_TAKE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "custom_ops/kernels/graph/episode.h"
#include "custom_ops/kernels/graph/graph.h"

namespace reuse_tf {

// A run of values that lie elsewhere.
template <typename T>
struct View {
  const T* data = nullptr;
  int64_t count = 0;
};

// The structure of a video, as EpisodeRecorder and Structure leave it behind.
struct VideoView {
  View<int32_t> order;                 // by frame, its number in runs
  int64_t pixels = 0;                  // how many there are
  std::vector<View<int32_t>> patches;  // by node that has them: [rows, taps]
  struct Shown {
    View<Pair> pairs;
    View<int32_t> contents;  // [contents, Tiles::kPositions]
    View<Run> runs;
  };
  std::vector<Shown> shown;           // by shown map
  std::vector<View<int32_t>> states;  // by node of Graph::States, of each frame
};

// The same of some frames. Its rows are some of those of the whole video, in
// the same order.
struct TakenVideo {
  std::vector<int32_t> order;
  std::vector<int32_t> pixels;  // which of them are left
  std::vector<std::vector<int32_t>> patches;
  struct Shown {
    std::vector<Pair> pairs;
    std::vector<int32_t> contents;
    std::vector<Run> runs;
  };
  std::vector<Shown> shown;
  std::vector<std::vector<int32_t>> states;
};

// Takes frames, by their places in `order`, in any order and as often as
// wanted; what none of them shows is left out. Looks at integers only, once at
// each. Returns what is wrong with the video, if it is not one of the graph.
// Requires places that there are.
std::string TakeFrames(const Graph& graph, const VideoView& video,
                       const View<int32_t>& frames, TakenVideo* taken);

}  // namespace reuse_tf

#endif  // REUSE_TF_KERNELS_GRAPH_TAKE_H_
