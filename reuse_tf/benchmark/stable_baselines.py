"""PPO of Stable-Baselines3, a program of its own, to compare learning with.

Its PyTorch and TensorFlow do not bear each other in one process, as both may
bring an LLVM along: nothing here imports this package. The program reads lines
of JSON. The first has the settings: see `serve`. At each further one it plays
the steps of an update, updates the weights, and writes a line: the number of
`steps`, the `returns` of the games that ended, and the `processor_seconds` of
the process so far.
"""

import json
import sys
import time


def serve(lines, out):
    """Learns as it is told to.

    Environments are played one after the other, as they are by default there.
    Frames are those of DQN, and so is the network.

    Args:
        lines: Lines of JSON, the first of them a dict: `env` is a name that
            gymnasium knows; `threads` are those that PyTorch computes with;
            all else is of the name that it has in this package's `Settings`.
        out: A file to write lines to.
    """
    # Here rather than above, as few install them.
    import ale_py
    import gymnasium
    import stable_baselines3
    import torch
    from stable_baselines3.common import env_util, vec_env

    lines = iter(lines)
    settings = json.loads(next(lines))
    torch.set_num_threads(settings["threads"])
    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    envs = env_util.make_atari_env(
        settings["env"],
        settings["num_envs"],
        seed=settings["seed"],
        # The wrapper skips frames itself, to take the maximum of two.
        env_kwargs={
            "frameskip": 1,
            "repeat_action_probability": settings["repeat_action_probability"],
        },
        wrapper_kwargs={"clip_reward": settings["clip_rewards"]},
    )
    steps = settings["num_steps"] * settings["num_envs"]
    model = stable_baselines3.PPO(
        "CnnPolicy",
        vec_env.VecFrameStack(envs, n_stack=4),
        learning_rate=settings["learning_rate"],
        n_steps=settings["num_steps"],
        batch_size=steps // settings["minibatches"],
        n_epochs=settings["epochs"],
        gamma=settings["discount"],
        gae_lambda=settings["gae_lambda"],
        clip_range=settings["clip"],
        clip_range_vf=settings["value_clip"],
        ent_coef=settings["entropy"],
        vf_coef=settings["value_weight"],
        max_grad_norm=settings["clip_norm"],
        seed=settings["seed"],
        device="cpu",
    )
    if settings["anneal"]:
        # It knows only of the steps until the next line.
        model.lr_schedule = lambda _: (
            settings["learning_rate"]
            * (1 - model.num_timesteps / settings["steps"])
        )
    for _ in lines:
        returns = []

        def collect(step, _, returns=returns):
            for info in step["infos"]:
                if "episode" in info:
                    returns.append(float(info["episode"]["r"]))
            return True

        model.learn(steps, callback=collect, reset_num_timesteps=False)
        reply = {
            "steps": steps,
            "returns": returns,
            "processor_seconds": time.process_time(),
        }
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
