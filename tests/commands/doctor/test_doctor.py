"""``unite doctor``, as typed, and what it makes of machines unlike this one."""

import hashlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.commands import RunCli
from tests.support.paths import REPOSITORY
from unite.commands.doctor import machine as machine_module
from unite.commands.doctor.machine import Machine, slow_here, this_machine
from unite.commands.doctor.software import EXTRAS
from unite.errors import _distribution
from unite.files.weights import INCEPTION, VGG16

GIB = 2**30
QUICK = Machine(
    processor="an EPYC",
    instructions="AVX512",
    cores=8,
    load=0.5,
    threads=8,
    omp_num_threads="",
    start_method="spawn",
    memory=64 * GIB,
    free_memory=60 * GIB,
    free_disk=100 * GIB,
    shared_memory=32 * GIB,
    devices=[("cuda:0 H200", 141 * GIB, 140 * GIB)],
    has_unused_gpu=False,
    bfloat16_ratio=0.5,
)


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for weights in (INCEPTION, VGG16):
        monkeypatch.delenv(weights.variable, raising=False)


def test_one_screen_says_what_is_there(run_cli: RunCli) -> None:
    result = run_cli("doctor")

    assert result.code == 0
    assert not result.err
    lines = result.out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 125  # an address is not broken
    assert f"torch {torch.__version__}" in result.out
    assert f"{torch.get_num_threads()} of PyTorch" in result.out
    assert INCEPTION.source in result.out
    assert "unite import-official" in result.out


def test_json_says_the_same(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.pth").write_bytes(b"other weights")
    monkeypatch.setenv(INCEPTION.variable, str(tmp_path / "some.pth"))
    monkeypatch.setenv(VGG16.variable, str(tmp_path / "none.pth"))

    found = json.loads(run_cli("doctor", "--json").out)

    assert found["packages"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["cores"] > 0
    assert found["weights"]["Inception"]["state"] == "other_checksum"
    assert found["weights"]["VGG16"]["state"] == "no_file"
    assert found["extras"]["qm9"]["missing"] == []
    assert all({"finding", "remedy"} == set(item) for item in found["slow"])


def test_weights_are_told_by_their_checksum(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.pth").write_bytes(b"the weights")
    monkeypatch.setenv(INCEPTION.variable, str(tmp_path / "some.pth"))
    published = INCEPTION._replace(checksum=hashlib.sha256(b"the weights").hexdigest()[:8])
    monkeypatch.setattr("unite.commands.doctor.software.INCEPTION", published)
    assert f"{tmp_path}/some.pth ({INCEPTION.variable}), as published" in " ".join(run_cli("doctor").out.split())


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"browser", "dev", "docs", "test"}
    for name, extra in EXTRAS.items():
        packages = {item.split(">")[0].split(";")[0].strip() for item in extras[name]}
        packages = {item for item in packages if not item.startswith("unite-lightning")}
        assert {_distribution(module).replace("_", "-") for module in extra.modules} == {
            item.replace("_", "-") for item in packages
        }, name


def test_nothing_is_slow_on_a_quick_machine() -> None:
    assert slow_here(QUICK) == []


@pytest.mark.parametrize(
    ("machine", "finding", "remedy"),
    [
        (replace(QUICK, cores=2), "8 threads on 2 cores", "OMP_NUM_THREADS=2"),
        (replace(QUICK, load=6.5), "6.5 of 8 cores busy: 8 threads", "OMP_NUM_THREADS=1"),
        (replace(QUICK, load=6.5, threads=1), "6.5 of 8 cores busy", "wait"),
        (replace(QUICK, devices=[]), "no GPU", "*_small"),
        (replace(QUICK, has_unused_gpu=True), "a build without CUDA", "pytorch.org"),
        (replace(QUICK, instructions="DEFAULT"), "no vector instructions", "AVX2"),
        (replace(QUICK, start_method="fork"), "forks after PyTorch", "spawn"),
        (replace(QUICK, shared_memory=2**26), "/dev/shm has 64 MiB", "--shm-size"),
    ],
)
def test_what_makes_work_slow_is_told_with_what_to_do(machine: Machine, finding: str, remedy: str) -> None:
    found = slow_here(machine)

    assert any(finding in words and remedy in advice for words, advice in found), found
    assert len(found) == 1 or not machine.devices


def test_slow_bfloat16_is_told_with_the_measured_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "multiplies_bfloat16", lambda: False)
    found = slow_here(replace(QUICK, devices=[], bfloat16_ratio=19.3))
    assert any("19 times as long" in words and "32-true" in advice for words, advice in found)


def test_this_machine_is_looked_at() -> None:
    machine = this_machine()
    assert 0 < machine.cores <= 10_000
    assert 0 < (machine.free_memory or 1) <= machine.memory
    assert machine.bfloat16_ratio > 0
