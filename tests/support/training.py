"""Tiny training configs."""

from trainer.config import TrainConfig

TINY_RUN = """
model = "fast"
seed = 7
[data]
patch_size = 12
batch_size = 2
[pixel]
iterations = {iterations}
[run]
num_threads = 1
checkpoint_iterations = 10
"""


KNOB = """
sample_knob = true
[network]
flat = true
[degradation]
codecs = ["libx264"]
clips_per_picture = 1
frames_per_clip = 4
[data.augmentation]
"""


def config_of(num_iterations: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": "fast",
            "data": {"patch_size": 12, "batch_size": 2},
            "pixel": {"iterations": num_iterations},
            "run": {"num_threads": 1},
        }
    )


def generator_config(num_blocks: int, *, thin_tail: bool = False) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": "srgan",
            "network": {"num_blocks": num_blocks, "thin_tail": thin_tail},
            "data": {"patch_size": 12, "batch_size": 1},
            "pixel": {"iterations": 2},
            "run": {"num_threads": 1},
        }
    )
