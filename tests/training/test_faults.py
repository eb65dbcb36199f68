"""An error that nobody foresaw: one sentence for a person, and the whole account in a file, without colours."""

from ray.exceptions import RayTaskError

from dipp_ray.errors import RoleFailure
from dipp_ray.training.faults import broke, plain

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


def test_without_a_folder_it_is_told_all_the_same(tmp_path):
    assert "its traceback" not in str(met(tmp_path, "gone/error.txt"))
    assert plain("\x1b[1;31mred\x1b[0m at 0xab12") == "red"
