from dipp_ray.reporting.key_settings import key_settings


def test_sizes_that_follow_the_cluster_are_told_as_what_they_may_be():
    roles = {"generator": {"workers": {"min": 1, "max": 4}, "zero_stage": 3, "dtype": "bf16"}, "score": {"workers": 2}}
    rows = dict(key_settings({"roles": roles}))
    assert rows["Generator ranks"] == "1 to 4, ZeRO 3, bf16" and rows["Score ranks"].startswith("2, ZeRO 0")


def test_what_is_not_there_is_left_out():
    assert key_settings({}) == []
