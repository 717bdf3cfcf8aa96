"""Keras models in PyTorch, on one thread, to compare steps with."""

import keras
from keras import layers

from reuse_tf import internals
from reuse_tf.benchmark import timing
from reuse_tf.extras import extra

with extra("benchmark"):
    import torch
    from torch.nn import functional


class Network:
    """A functional or Sequential Keras model of one input, in PyTorch.

    It has copies of the weights, and knows the few layers of networks that
    play games.

    Args:
        model: The Keras model.
        channels_last: Whether maps lie in memory as those of Keras do.

    Raises:
        ValueError: If it has another layer.
    """

    def __init__(self, model, channels_last):
        self._channels_last = channels_last
        self._format = (
            torch.channels_last if channels_last else torch.contiguous_format
        )
        # Functions, with the places of the values that they are given, and of
        # those that nobody is given after them.
        self._steps = []
        places = {}

        def place(tensor):
            if id(tensor) not in places:
                call = internals.call_of(tensor)
                sources = [place(source) for source in call.inputs]
                if sources:
                    self._steps.append((self._function(call), sources, []))
                places[id(tensor)] = len(self._steps)
            return places[id(tensor)]

        self._outputs = keras.tree.map_structure(
            place, internals.outputs_of(model)
        )
        kept = set(keras.tree.flatten(self._outputs))
        for _, sources, done in reversed(self._steps):
            done += set(sources) - kept
            kept.update(sources)

    def frames(self, frames):
        """What the network is called with, of uint8 `[N, H, W, C]`."""
        frames = torch.tensor(frames, dtype=torch.float32)
        frames = frames.permute(0, 3, 1, 2)
        return frames.contiguous(memory_format=self._format)

    @torch.inference_mode()
    def __call__(self, frames):
        """The outputs, NumPy arrays in the form in which Keras gives them."""
        values = [frames]
        for function, sources, done in self._steps:
            values.append(function(*[values[i] for i in sources]))
            for i in done:
                values[i] = None
        return keras.tree.map_structure(
            lambda i: values[i].numpy(), self._outputs
        )

    def _function(self, call):
        """What a layer does, as a function of tensors [N, C, H, W]."""
        match layer := call.layer:
            case layers.Rescaling():
                return lambda x: x * layer.scale + layer.offset
            case layers.Conv2D():
                kernel = _tensor(layer.kernel).permute(3, 2, 0, 1)
                kernel = kernel.contiguous(memory_format=self._format)
                bias, activation = _tensor(layer.bias), _activation(layer)
                return lambda x: activation(
                    functional.conv2d(
                        x, kernel, bias, layer.strides, layer.padding
                    )
                )
            case layers.MaxPooling2D(
                pool_size=(3, 3), strides=(2, 2), padding="same"
            ):
                # Of maps of an even size Keras pads the end alone, and the
                # last window is cut off.
                return lambda x: functional.max_pool2d(
                    x, 3, 2, [size % 2 for size in x.shape[2:]], ceil_mode=True
                )
            case layers.ReLU():
                return torch.relu
            case layers.Add():
                return torch.add
            case layers.Flatten():
                if self._channels_last:
                    return lambda x: x.permute(0, 2, 3, 1).flatten(1)
                return lambda x: x.flatten(1)
            case layers.Dense():
                kernel = self._dense_kernel(call).T.contiguous()
                bias, activation = _tensor(layer.bias), _activation(layer)
                return lambda x: activation(functional.linear(x, kernel, bias))
        raise ValueError(
            f"Expected layers of a network of games. Received: {layer}"
        )

    def _dense_kernel(self, call):
        """The weights of a dense layer, in the order of its inputs."""
        kernel = _tensor(call.layer.kernel)
        before = internals.call_of(call.inputs[0])
        if self._channels_last or not isinstance(before.layer, layers.Flatten):
            return kernel
        shape = before.inputs[0].shape[1:]
        return kernel.reshape(*shape, -1).movedim(2, 0).reshape(kernel.shape)


def _tensor(weight):
    return None if weight is None else torch.tensor(weight.numpy())


def _activation(layer):
    if layer.activation is keras.activations.relu:
        return torch.relu_  # of what the layer just made
    if layer.activation is keras.activations.linear:
        return lambda x: x
    raise ValueError(f"Expected ReLU. Received: {layer.activation}")


def fastest(model, frames):
    """Makes a network of a model, in the faster one of two layouts of memory.

    From here on PyTorch uses one thread, the caller's. So it is not disturbed
    in a process of TensorFlow, whose threads sleep meanwhile.

    Args:
        model: A Keras model, as of `Network`.
        frames: A list of uint8 `[N, H, W, C]`.

    Returns:
        A function of a number `i` that gives the outputs for `frames[i]`.
    """
    torch.set_num_threads(1)

    def stepper(channels_last):
        network = Network(model, channels_last)
        tensors = [network.frames(batch) for batch in frames]
        return lambda i: network(tensors[i])

    steppers = {layout: stepper(layout) for layout in (False, True)}
    turns = timing.alternate(steppers, min(5, len(frames)))
    medians = timing.medians(turns.seconds)
    return steppers[min(medians, key=medians.get)]
