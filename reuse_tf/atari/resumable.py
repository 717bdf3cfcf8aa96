"""Several Atari games to learn from, whose state can be saved."""

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from reuse_tf.atari.games import short_name
from reuse_tf.atari.vector import REPEAT, check_number, make_vector


class Episode(NamedTuple):
    """A game that has ended.

    Attributes:
        environment: Which environment it was of, from 0.
        total_reward: The sum of its rewards, a float.
        length: Its steps.
        last_frame: What its last action led to, uint8 `[height, width,
            channels]`. The emulator takes no picture of the frame that a game
            ends in, so that the newest may still be that of the step before.
    """

    environment: int
    total_reward: float
    length: int
    last_frame: np.ndarray


class Step(NamedTuple):
    """What a step of N environments led to.

    Attributes:
        frames: What to act on next, uint8 `[N, height, width, channels]`,
            contiguous. Where a game has ended, the first frame of the next.
        rewards: The game's own, float32 `[N]`.
        life_lost: Whether a life was lost and the game goes on, bool `[N]`.
        terminated: Whether the game is over, bool `[N]`.
        truncated: Whether the game was cut off, bool `[N]`.
        episodes: A tuple of an `Episode` for each game that has ended, in the
            order of the environments.
    """

    frames: np.ndarray
    rewards: np.ndarray
    life_lost: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    episodes: tuple[Episode, ...]


class ResumableGames:
    """Several environments of a game whose state can be saved and restored.

    They are those of `make_vector`: rewards are not clipped, the loss of a life
    ends no game, and games that end begin anew in the same step.

    The emulators' state cannot be read. But it follows from the seed of an
    environment and its actions since, over however many games. So these are
    what is saved, and they are played again to restore it. To bound that, an
    environment begins from another seed after the game in which its actions
    have become `max_log` or more. This builds its emulator anew, which takes as
    long as some 300 steps.

    Examples:
        >>> games = atari.ResumableGames("Breakout", 8)
        >>> frames = games.reset(seed=0)
        >>> step = games.step(actions)
        >>> saved = json.dumps(games.state())
        >>> frames = games.restore(json.loads(saved))  # step.frames

    Args:
        game: See `make`.
        num_envs: See `make_vector`.
        preprocessing: See `make`.
        downsample: See `make`.
        repeat_action_probability: See `make`.
        max_steps: See `make_vector`.
        num_threads: See `make_vector`.
        max_log: A positive integer, see above. A state holds fewer than
            `max_log + max_steps` actions for each environment.
        first: The number of the first environment, if they are a part of more,
            of which each gets the games that it has among all.

    Attributes:
        num_envs: Number of environments.
        num_actions: Number of actions.
        frame_shape: `(height, width, channels)`.

    Raises:
        ValueError: If there is no such game (the message names the closest),
            or another argument is not as above.
    """

    def __init__(
        self,
        game: str = "Pong",
        num_envs: int = 8,
        *,
        preprocessing: str = "standard",
        downsample: int = 2,
        repeat_action_probability: float = REPEAT,
        max_steps: int = 27_000,
        num_threads: int = 0,
        max_log: int = 2**14,
        first: int = 0,
    ) -> None:
        # What decides the games, besides seeds and actions.
        self._settings: dict[str, Any] = {
            "game": short_name(game),
            "num_envs": check_number("num_envs", num_envs, 1),
            "preprocessing": preprocessing,
            "downsample": downsample,
            "repeat_action_probability": repeat_action_probability,
            "max_steps": check_number("max_steps", max_steps, 1),
            "max_log": check_number("max_log", max_log, 1),
        }
        self._env = make_vector(
            game,
            num_envs,
            preprocessing=preprocessing,
            downsample=downsample,
            repeat_action_probability=repeat_action_probability,
            max_steps=max_steps,
            num_threads=num_threads,
        )
        self.num_envs = self._env.num_envs
        self.num_actions = int(self._env.single_action_space.n)
        self.frame_shape = self._env.single_observation_space.shape
        self._first = check_number("first", first, 0)
        self._total_rewards = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._lives = np.zeros(num_envs, np.int32)
        self._begun = False
        # The actions of a step that was begun.
        self._sent: np.ndarray | None = None

    def reset(self, seed: int) -> np.ndarray:
        """Begins new games, which do not depend on those before.

        Args:
            seed: An integer of at least 0, that decides them and all that
                follow, each environment's by itself.

        Returns:
            The first frames, as `Step.frames`.

        Raises:
            ValueError: If `seed` is not as above.
        """
        return self._replay(
            check_number("seed", seed, 0),
            [0] * self.num_envs,
            [b""] * self.num_envs,
        )

    def begin(self) -> np.ndarray:
        """Leaves all games where they are, and begins others.

        Returns:
            Their first frames, as `Step.frames`.

        Raises:
            RuntimeError: As `step`.
        """
        self._check_between_steps()
        return self._begin_anew(np.ones(self.num_envs, bool))

    def step(self, actions: ArrayLike) -> Step:
        """Takes a step in every environment.

        Args:
            actions: Integers `[N]`.

        Returns:
            A `Step`.

        Raises:
            ValueError: If `actions` are not, each below `num_actions`.
            RuntimeError: If nothing was reset or restored yet, or `send` has
                begun a step.
        """
        self.send(actions)
        return self.recv()

    def send(self, actions: ArrayLike) -> None:
        """Begins a `step`, which goes on until `recv` asks what it led to.

        So the policy can act for one `ResumableGames` while another one's
        emulators run.
        """
        self._check_between_steps()
        self._env.send(actions)
        self._sent = np.array(actions)

    def recv(self) -> Step:
        """Returns the `Step` that the last `send` has begun.

        Raises:
            RuntimeError: If none has.
        """
        if self._sent is None:
            raise RuntimeError("`recv` was called before `send`")
        step = self._recv()
        for log, action in zip(self._logs, self._sent.tolist(), strict=True):
            log.append(action)
        self._sent = None
        full = np.zeros(self.num_envs, bool)
        for environment, *_ in step.episodes:
            full[environment] = (
                len(self._logs[environment]) >= self._settings["max_log"]
            )
        if full.any():
            step = step._replace(frames=self._begin_anew(full))
        return step

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs, of values that JSON can hold.

        Raises:
            RuntimeError: As `step`.
        """
        self._check_between_steps()
        return {
            **self._settings,
            "seed": self._seed,
            "restarts": list(self._restarts),
            "actions": [base64.b64encode(log).decode() for log in self._logs],
            **self._outcome(),
        }

    def restore(
        self,
        state: dict[str, Any],
        watch: Callable[[int, np.ndarray, int, float], object] | None = None,
    ) -> np.ndarray:
        """Goes back to a state: all is as if nothing had come between.

        The actions that it holds are played again, which takes about as long
        as it took the emulators at first.

        Args:
            state: What `state` has returned, of any `ResumableGames` that was
                made with the same arguments; the number of threads may differ.
            watch: A function that is told of each step of the games that go on
                from here, those of an environment in their order: its number,
                the frame that was acted on, the action, and the reward.

        Returns:
            The frames to act on next, as `Step.frames`.

        Raises:
            ValueError: If it is no such state, or its actions lead elsewhere,
                as they may with another version of ale-py.
        """
        seed, restarts, logs, lengths = self._parse(state)
        frames = self._replay(seed, restarts, logs, lengths, watch)
        expected = {name: state.get(name) for name in self._outcome()}
        if self._outcome() != expected:
            self._begun = False
            raise ValueError(
                f"Expected the actions in `state` to lead to {expected}, as "
                f"when it was saved. Received: {self._outcome()}"
            )
        return frames

    def close(self) -> None:
        """Ends the threads and the emulators."""
        self._env.close()

    def _check_between_steps(self):
        if not self._begun:
            raise RuntimeError("`reset` or `restore` must be called first")
        if self._sent is not None:
            raise RuntimeError("`recv` must be called after `send`")

    def _replay(self, seed, restarts, logs, lengths=0, watch=None):
        """Plays logs from their seeds on. Returns the frames that follow.

        The last `lengths` steps of the environments are watched.
        """
        if self._sent is not None:
            self._env.recv()
        # Should this be interrupted, a reset is due.
        self._begun, self._sent = False, None
        self._seed, self._restarts = seed, restarts
        self._logs = [bytearray(log) for log in logs]
        logged = np.array([len(log) for log in logs])
        longest = logged.max()
        # All end at the same time. What an environment does before its seed
        # makes no difference.
        actions = np.zeros((longest, self.num_envs), np.int64)
        for environment, log in enumerate(logs):
            first = longest - len(log)
            actions[first:, environment] = np.frombuffer(log, np.uint8)
        frames = self._begin(np.ones(self.num_envs, bool))
        for step, left in enumerate(range(longest, -1, -1)):
            begins = logged == left
            if step > 0 and begins.any():
                frames = self._begin(begins)
            if left > 0:
                self._env.send(actions[step])
                acted, (frames, rewards, *_) = frames, self._recv()
                for i in np.flatnonzero(left <= lengths) if watch else ():
                    watch(int(i), acted[i], int(actions[step, i]), rewards[i])
        self._begun = True
        return frames

    def _begin_anew(self, mask):
        """Begins games of some environments from their next seeds."""
        for environment in np.flatnonzero(mask):
            self._restarts[environment] += 1
            self._logs[environment].clear()
        return self._begin(mask)

    def _begin(self, mask):
        """Begins games of some environments from seeds of their own."""
        seeds = [
            np.random.SeedSequence(
                self._seed, spawn_key=(self._first + i, self._restarts[i])
            ).generate_state(1)[0]
            % 2**31
            for i in np.flatnonzero(mask).tolist()
        ]
        frames, info = self._env.reset(
            seed=np.array(seeds), options={"reset_mask": mask}
        )
        self._lives = info["lives"]
        self._total_rewards[mask] = 0
        self._lengths[mask] = 0
        return frames

    def _recv(self):
        frames, rewards, terminated, truncated, info = self._env.recv()
        ended = terminated | truncated
        lives = info["lives"]
        life_lost = (lives < self._lives) & ~ended
        self._lives = lives
        self._total_rewards += rewards
        self._lengths += 1
        episodes = tuple(
            Episode(
                int(i),
                float(self._total_rewards[i]),
                int(self._lengths[i]),
                info["final_obs"][i].copy(),
            )
            for i in np.flatnonzero(ended)
        )
        self._total_rewards[ended] = 0
        self._lengths[ended] = 0
        return Step(
            frames,
            rewards.astype(np.float32),
            life_lost,
            terminated,
            truncated,
            episodes,
        )

    def _outcome(self):
        """What seeds and actions have led to in the present games."""
        return {
            "lengths": self._lengths.tolist(),
            "total_rewards": self._total_rewards.tolist(),
            "lives": self._lives.tolist(),
        }

    def _parse(self, state):
        """Returns the parts of a state, or raises a `ValueError`."""
        try:
            settings = {name: state[name] for name in self._settings}
            seed, restarts = state["seed"], state["restarts"]
            lengths = np.array(state["lengths"], np.int64)
            logs = [
                base64.b64decode(log, validate=True) for log in state["actions"]
            ]
            check_number("seed", seed, 0)
            for number in restarts:
                check_number("restarts", number, 0)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "Expected `state` to be what `ResumableGames.state` returns. "
                f"Received: {type(error).__name__}: {error}"
            ) from error
        if settings != self._settings:
            raise ValueError(
                f"Expected `state` to be one of games of {self._settings}. "
                f"Received: one of {settings}"
            )
        longest = self._settings["max_log"] + self._settings["max_steps"]
        if not (
            len(restarts) == len(logs) == self.num_envs
            and lengths.shape == (self.num_envs,)
            and all(len(log) < longest for log in logs)
            and all(max(log, default=0) < self.num_actions for log in logs)
        ):
            raise ValueError(
                f"Expected `state` to hold fewer than {longest} actions below "
                f"{self.num_actions} for each of {self.num_envs} environments. "
                f"Received: {[len(log) for log in logs]} actions, the greatest "
                f"{max(b''.join(logs), default=None)}"
            )
        return seed, list(restarts), logs, lengths
