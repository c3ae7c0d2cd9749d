import torch

from benchmarks.timing import paired_seconds, ratios, spread


def test_contestants_take_turns_after_a_warm_up():
    calls = []
    seconds = paired_seconds(
        {name: lambda name=name: calls.append(name) for name in "abc"}, 4, torch.device("cpu")
    )
    assert [len(seconds[name]) for name in "abc"] == [4, 4, 4]
    assert all(value >= 0 for values in seconds.values() for value in values)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 15, 3)]
    assert rounds == ["cab", "abc", "bca", "cab", "abc"]


def test_ratios_are_paired():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert spread([3.0, 1.0, 2.5]) == {"min": 1.0, "median": 2.5, "max": 3.0}
