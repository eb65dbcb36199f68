"""An error that nobody foresaw: one sentence for a person, and the whole account in a file, without colours."""

from ray.exceptions import RayTaskError
from torch import OutOfMemoryError

from dipp_ray.errors import NonFiniteError, RewardUnavailableError, RoleFailure, UserError
from dipp_ray.training.faults import GOES_ON, MORE_MEMORY, broke, plain, resumable

ACCOUNT = (
    "\x1b[36mray::GeneratorRank.backward()\x1b[39m (pid=7, repr=<generator.GeneratorRank object at 0x7f93dfe2fd90>)\n"
    "torch.OutOfMemoryError: CUDA out of memory"
)


def met(tmp_path, log="error.txt"):
    cause = MemoryError("CUDA out of memory. Tried <T object at 0x7f93dfe2fd90>\nand a paragraph more")
    error = RayTaskError("backward", ACCOUNT, cause).as_instanceof_cause()
    error.add_note("raised by generator rank 0 in step 3, 'backward' of micro-batch 1")
    return broke(error, cause, tmp_path / log)


def test_a_person_is_told_in_one_sentence_and_the_rest_is_in_a_file(tmp_path):
    failure = met(tmp_path)
    assert isinstance(failure, RoleFailure)
    assert str(failure) == (
        "MemoryError: CUDA out of memory. Tried <T object> (raised by generator rank 0 in step 3, 'backward' of "
        f"micro-batch 1; its traceback is in {tmp_path}/error.txt); the same command goes on from the last checkpoint"
    )
    account = (tmp_path / "error.txt").read_text()
    assert "ray::GeneratorRank.backward()" in account and "object>" in account
    assert "\x1b" not in account and "0x" not in account


def test_memory_of_a_gpu_that_runs_out_is_told_with_the_remedy(tmp_path):
    error = OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    error.add_note("raised by score model rank 1 in step 3, 'train' of micro-batch 0")
    said = str(broke(error, error, tmp_path / "e"))
    assert f"in step 3, 'train' of micro-batch 0; {MORE_MEMORY}; its traceback is in" in said and GOES_ON in said
    assert MORE_MEMORY not in str(met(tmp_path))


def test_without_a_folder_it_is_told_all_the_same(tmp_path):
    assert "its traceback" not in str(met(tmp_path, "gone/error.txt"))
    assert plain("\x1b[1;31mred\x1b[0m at 0xab12") == "red"


def test_what_ends_a_run_says_how_it_goes_on():
    said = resumable(NonFiniteError("the loss is not finite at step 7"), 5)
    assert isinstance(said, NonFiniteError)
    assert str(said) == "the loss is not finite at step 7; the same command goes on from step 5"
    said = resumable(RewardUnavailableError("no answer"), None)
    assert str(said) == "no answer; nothing is saved yet: the same command begins again"
    said = resumable(UserError("no room: add nodes\nits table\nof nodes"), 5)
    assert str(said) == "no room: add nodes; the same command goes on from step 5\nits table\nof nodes"
    already = RewardUnavailableError(f"no answer; {GOES_ON}")
    assert resumable(already, 5) is already


def test_an_error_of_the_drivers_is_said_to_be_its(tmp_path):
    assert str(broke(KeyError("x"), KeyError("x"), tmp_path / "e")).startswith(
        "KeyError: 'x' (raised by the driver; its"
    )
