import pickle

import pytest
import torch
from torch import nn

from dipp_ray.errors import UserError
from dipp_ray.rewards.weights import fill, read_checkpoint, refuse_keys, rename


class Code:
    def __reduce__(self):
        return (print, ("code of a checkpoint ran",))


def test_code_in_a_file_is_never_run(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Code()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Code(), protocol=2))
    (tmp_path / "c.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for name in "abc":
        with pytest.raises(UserError, match=rf"{name}\.pt does not load as weights alone"):
            read_checkpoint(tmp_path / f"{name}.pt", "state_dict")
    assert "ran" not in capsys.readouterr().out


def test_nested_or_not(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "flat.pt")
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(1)}}, tmp_path / "nested.pt")
    for name in ("flat", "nested"):
        assert read_checkpoint(tmp_path / f"{name}.pt", "state_dict") == {"a": torch.ones(1)}
    with pytest.raises(UserError, match="holds no state dict"):
        read_checkpoint(tmp_path / "nested.pt")


def test_filled_weights_are_copies_in_fp32_and_frozen():
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2, dtype=torch.float16)}
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    fill(model, weights, "here")
    weights["weight"].zero_()
    assert model(torch.ones(3)).tolist() == [4, 4]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_first_keys_are_named_and_the_others_counted():
    with pytest.raises(UserError) as error:
        refuse_keys("here", missing=[f"m{i}" for i in range(5)], unexpected=["u"], shapes=[])
    assert str(error.value).endswith("so give the original files: missing: m0, m1, m2 and 2 more; unexpected: u")
    refuse_keys("here", [], [], [])


def test_patterns_apply_one_after_the_other():
    assert rename("a.1.b", ((r"^a\.", "c."), (r"^c\.(\d)\.", r"d.\1."))) == "d.1.b"
