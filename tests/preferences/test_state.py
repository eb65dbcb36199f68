"""The state of an unfinished fit comes back to the bit, and a damaged one is passed over."""

import json
import shutil

import torch

from dipp_ray.preferences.state import MOMENTS, STATE, WEIGHTS, latest_state, load_state, save_state


def build(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model, optimiser, steps):
    for step in range(steps):
        optimiser.zero_grad()
        model(torch.full((2, 4), 1.0 + step)).square().sum().backward()
        optimiser.step()
    return [parameter.clone() for parameter in model.parameters()]


def test_training_goes_on_to_the_bit(tmp_path):
    model, optimiser = build(0)
    train(model, optimiser, 3)
    save_state(tmp_path, model, optimiser, {"step": 3, "loss_sum": 0.1 + 0.2})
    expected = train(model, optimiser, 4)
    again, optimiser = build(1)
    state = load_state(tmp_path, again, optimiser)
    assert state["step"] == 3 and state["loss_sum"] == 0.1 + 0.2
    assert all(torch.equal(a, b) for a, b in zip(train(again, optimiser, 4), expected, strict=True))


def test_the_newest_whole_state_is_found(tmp_path):
    model, optimiser = build(0)
    train(model, optimiser, 1)
    for session, step in (("session_000", 10), ("session_000", 20), ("session_001", 30), ("session_001", 40)):
        save_state(tmp_path / session / f"checkpoint_{step}", model, optimiser, {"step": step})
    folder = tmp_path / "session_001" / "checkpoint_40"
    assert latest_state(tmp_path)[0] == folder and latest_state(tmp_path)[1]["step"] == 40
    with open(folder / WEIGHTS, "r+b") as file:  # a bit turned, the size kept
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert latest_state(tmp_path)[1]["step"] == 30
    (tmp_path / "session_001" / "checkpoint_30" / MOMENTS).unlink()
    assert latest_state(tmp_path)[1]["step"] == 20
    note = tmp_path / "session_000" / "checkpoint_20" / STATE
    note.write_text(note.read_text()[:-9])
    assert latest_state(tmp_path)[1]["step"] == 10
    (tmp_path / "session_000" / "checkpoint_10" / STATE).write_text(json.dumps({"step": 10}))
    assert latest_state(tmp_path) is None
    shutil.rmtree(tmp_path)
    assert latest_state(tmp_path) is None
