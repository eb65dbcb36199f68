"""The smallest configuration of a run that is one."""

MINIMAL = {
    "run": {"steps": 10},
    "model": {"teacher": "teacher", "t_star": 440, "input": "sigma"},
    "data": {"prompts": "prompts.parquet", "batch_size": 24, "micro_batches": 12},
    "generator_optim": {"lr": 1e-4},
    "score_optim": {"lr": 2e-4},
}
REWARD = "reward.terms=[{name: clip, model: clip, folder: reward}]"
