import os
import signal
from collections.abc import Iterator

import pytest

from unite.errors import UserError
from unite.modalities.physics import relax_first, require_physics, summary


def relax(item: int) -> dict[str, float] | None:
    if item == 3:
        raise ValueError("no solution")
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return None if item % 2 == 0 else {"strain": item / 10}


def test_those_that_fail_count_and_those_that_are_not_to_count_do_not() -> None:
    found = relax_first(relax, range(9), 10, "physics", "mol", num_workers=2)
    assert found == [{"strain": 0.1}, None, None, {"strain": 0.7}]


def test_no_more_is_read_than_is_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1, 10**9, 6):
            taken.append(item)
            yield item

    assert relax_first(relax, items(), 2, "physics", "mol", num_workers=1) == [{"strain": 0.1}, {"strain": 0.7}]
    assert len(taken) <= 4


def test_summary_leaves_failures_out_of_medians_and_counts_them_in_shares() -> None:
    found = [{"strain": value, "kept": 1.0} for value in (0.01, 0.02, 0.09, 0.5)] + [None]
    values = summary(
        found, "physics", medians=["strain"], upper=["strain"], means=["kept"], below={"strain": (0.05, 0.1)}
    )
    assert values == {
        "physics/num": 5,
        "physics/failed": pytest.approx(0.2),
        "physics/strain_median": pytest.approx(0.055),
        "physics/strain_90th": pytest.approx(0.09 + 0.7 * 0.41),  # between the third and the fourth of four
        "physics/kept": 1,
        "physics/strain_below_0.05": 0.4,
        "physics/strain_below_0.1": 0.6,
    }
    assert summary([None], "physics", medians=["strain"]) == {"physics/num": 1, "physics/failed": 1}
    assert summary([], "physics", medians=["strain"]) == {"physics/num": 0, "physics/failed": 0}


def test_what_is_missing_is_told_before_long_work() -> None:
    require_physics(None, ["no_such_package"])
    require_physics(1, ["numpy"])
    with pytest.raises(UserError, match=r"--physics needs no_such_package, which is not installed: pip install"):
        require_physics(1, ["numpy", "no_such_package"])
    with pytest.raises(UserError, match="--physics is 0; it must be at least 1"):
        require_physics(0, ["numpy"])
