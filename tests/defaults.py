"""What is built under other defaults of Keras, as a program: saves it.

Its argument is the file to save to. Keras reads its defaults, of the file
keras.json in the folder KERAS_HOME, when it is imported.
"""

import pathlib
import sys
import tempfile

import keras
import numpy as np
from catch import Catch

from reuse_tf.benchmark import layer
from reuse_tf.learning import training
from reuse_tf.learning.settings import OPTIMIZERS, Settings
from reuse_tf.policies import networks, policy
from reuse_tf.policies.run_directory import newest_policy


def built():
    """Returns arrays, by name, that no default may change."""
    arrays = {}
    frames = np.random.default_rng(0).integers(0, 255, (2, 9, 7, 3), np.uint8)
    for incremental in (False, True):
        keras.utils.set_random_seed(3)
        model = policy.build_policy(
            (9, 7, 3), 4, (5, 6), incremental=incremental
        )
        arrays[f"logits{incremental}"] = np.asarray(model(frames))
        for i, weights in enumerate(model.get_weights()):
            arrays[f"weights{incremental}{i}"] = weights
    for network in networks.NETWORKS:
        keras.utils.set_random_seed(3)
        model = networks.build_network(
            network, (36, 36, 3), 4, filters=(2, 3, 4), value=True
        )
        frames = np.repeat(np.repeat(frames, 6, 1), 6, 2)[:, :36, :36]
        for name, output in model(frames).items():
            arrays[f"{network}_{name}"] = np.asarray(output)
        for i, weights in enumerate(model.get_weights()):
            arrays[f"{network}_weights{i}"] = weights
    for optimizer in OPTIMIZERS:
        settings = Settings(
            episodes=2, optimizer=optimizer, filters=(2,), learning_rate=0.01
        )
        with tempfile.TemporaryDirectory() as folder:
            model, _ = training.train(settings, folder, Catch)
            path = newest_policy(folder)
            with np.load(path.parent / "optimizer.npz") as store:
                for name, array in store.items():
                    arrays[f"{optimizer}{name}"] = array
        for i, weights in enumerate(model.get_weights()):
            arrays[f"trained_{optimizer}{i}"] = weights
    return arrays


def main():
    layer.measure(
        **{"height": 5, "width": 4, "channels": 2, "filters": 3},
        **{"kernel_size": 3, "change": "noise", "target": 0.1},
        **{"rounds": 1, "seed": 0},
    )
    np.savez(
        pathlib.Path(sys.argv[1]),
        defaults=[keras.config.floatx(), keras.config.image_data_format()],
        **built(),
    )


if __name__ == "__main__":
    main()
