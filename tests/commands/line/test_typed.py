"""What people type without reading the manual, and what is said when it cannot be meant."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import RunCli
from tests.support.paths import REPOSITORY
from unite.commands import COMMANDS
from unite.commands.line.short_help import short_help
from unite.commands.line.source import command_options, model_options, trainer_options
from unite.commands.line.typed import MODEL_COMMANDS, SHORT_OF_FIT, understood
from unite.commands.model.lightning_cli import SettingsCheck
from unite.errors import UserError
from unite.files.shipped import shipped_configs, shipped_models

QM9_SMALL = str(REPOSITORY / "configs" / "qm9_small.yaml")
QM9_MODEL = str(REPOSITORY / "docs" / "results" / "qm9_long" / "model")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("fit {config}", "fit --config {config}"),
        ("train {config}", "fit --config {config}"),
        ("fit qm9_small", "fit --config {config}"),
        ("fit --config qm9_small --max_steps 3", "fit --config {config} --trainer.max_steps 3"),
        ("fit -c qm9_small --max-steps=3", "fit -c {config} --trainer.max_steps=3"),
        ("fit --config=qm9_small --lr 1e-3", "fit --config={config} --model.optimizer.lr 1e-3"),
        ("fit qm9_small --batch-size 4", "fit --config {config} --data.init_args.batch_size 4"),
        ("fit {run}", "fit --ckpt_path {run}"),
        ("sample {run} -n 16", "sample --ckpt_path {run} --num_samples 16"),
        ("generate {run} --num-samples 16", "sample --ckpt_path {run} --num_samples 16"),
        ("sample qm9 -o out", "sample --ckpt_path {model} --output out"),
        ("test --checkpoint {run}", "test --ckpt_path {run}"),
        ("eval {run}", "test --ckpt_path {run}"),
        ("sample --config qm9_small --ckpt_path best", "sample --config {config} --ckpt_path best"),
        ("align {run} --num-samples 20", "align --ckpt_path {run} --num_samples 20"),
        ("latents {run}", "latents --ckpt_path {run}"),
        ("score {sdf}", "score molecules {sdf}"),
        ("score {pictures} --reference x", "score images {pictures} --reference x"),
        ("score molecules {sdf}", "score molecules {sdf}"),
        ("reconstruct {run} --data.init_args.root=a-b", "reconstruct --ckpt_path {run} --data.init_args.root=a-b"),
        ("sample {run} --trainer.callbacks+=x", "sample --ckpt_path {run} --trainer.callbacks+=x"),
        ("export {run} out", "export {run} out"),
        ("fit qm9_small --fast_dev_run", "fit --config {config} --trainer.fast_dev_run true"),
        ("fit qm9_small --fast_dev_run 2", "fit --config {config} --trainer.fast_dev_run 2"),
    ],
)
def test_guesses_are_understood(typed: str, meant: str, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures" / "cats"
    pictures.mkdir(parents=True)
    (pictures / "a.png").touch()
    (tmp_path / "a.sdf").touch()
    places = {"config": QM9_SMALL, "model": QM9_MODEL, "run": tmp_path, "sdf": tmp_path / "a.sdf", "pictures": pictures}
    assert understood(typed.format(**places).split()) == meant.format(**places).split()


def test_a_folder_that_is_no_run_does_not_hide_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "digits"
    run.mkdir()
    for typed in ("fit digits", "fit --config digits"):
        assert understood(typed.split()) == ["fit", "--config", str(REPOSITORY / "configs" / "digits.yaml")]
    (run / "last.ckpt").touch()
    assert understood(["fit", "digits"]) == ["fit", "--ckpt_path", "digits"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("fit qm9_smal", "--config qm9_smal does not exist; did you mean qm9_small?"),
        ("fit quite_another", "those of the package are cifar10, "),
        ("fit --config configs/qm9_smal.yaml", "did you mean configs/qm9_small.yaml?"),
        ("fit qm9_small --trainer.max_step 3", "unknown option: --trainer.max_step; did you mean --trainer.max_steps?"),
        ("fit qm9_small --max_stps 3", "unknown option: --max_stps; did you mean --trainer.max_steps?"),
        ("fit qm9_small --model.flow_step 3", "did you mean --model.flow_steps?"),
        ("sample qm9 --num_sampels 3", "unknown option: --num_sampels; did you mean --num_samples?"),
        ("sample qm9 --guidance 3", "unknown option: --guidance"),
        ("sample nowhere", "--ckpt_path nowhere: no such checkpoint"),
        ("align nowhere", "--ckpt_path nowhere: no such checkpoint"),
        ("info qm10", "or a run folder with one, or the name of a model that comes with the package: qm9"),
        ("sample QM9", "did you mean qm9?"),
        ("sample digits", "digits is a config, no trained model; train it with: unite fit digits"),
        ("fit", "unite fit needs --config FILE, or --ckpt_path of a run: unite fit qm9_small"),
        ("sample", "unite sample RUN, or unite sample qm9"),
        ("fit my.sdf", "to train on it: unite fit molecules_small --data.init_args.path my.sdf"),
        ("fit qm9_small --data my.smi.gz", "to train on it: unite fit molecules_small --data.init_args.path my.smi.gz"),
        ("sample qm9 n 16", "qm9 n: one config or model is expected, then options, which begin with --"),
        ("sample qm9 -n ten", "num_samples: expected int, got ten"),
        ("sample qm9 -n=0", "num_samples is 0; it must be at least 1"),
        ("sample qm9 --seed x", "seed: expected int, got x"),
        ("sample qm9 --steps 4", "did you mean --num_steps?"),
        ("eval qm9", "no data: model is an exported model, which has none; give --config CONFIG"),
        ("fit qm9_small --trainer.callbacks.1.init_args.num_samples 9", "num_samples: callbacks have no numbers; give"),
        ("sample --model qm9", "a trained model is --ckpt_path qm9"),
        ("fit qm9_small --gpus 2", "did you mean --device cuda for one GPU, --trainer.devices N for several?"),
        ("fit qm9_small --epochs 2", "did you mean --trainer.max_epochs?"),
        ("fit qm9_small --learning-rate 2", "did you mean --model.optimizer.lr?"),
        ("fit qm9_small --resume", "did you mean --ckpt_path last?"),
        ("sample qm9 --num 4", "did you mean --num_samples?"),
        ("Sample qm9", "no command 'Sample'; did you mean sample?"),
        ("list", "no command 'list'; did you mean: unite info"),
        ("tensorboard runs/x", "did you mean: tensorboard --logdir runs"),
    ],
)
def test_mistakes_are_told_before_anything_heavy_is_imported(typed: str, words: str) -> None:
    code = (
        "import sys; from unite.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'numpy', 'rdkit', 'jsonargparse'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *typed.split()], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_is_asked_for_as_a_word(run_cli: RunCli) -> None:
    assert run_cli("help", "sample").out == run_cli("sample", "--help").out
    assert "usage: unite COMMAND" in run_cli("help").out


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_options_read_from_the_source_are_those_of_the_parser(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a command makes the folder of its results, runs/qm9/samples
    check = SettingsCheck([command, "--config", QM9_SMALL, *(["--ckpt_path", QM9_MODEL] if command != "fit" else [])])
    known = {action.dest for action in check._subcommand_parsers[command]._actions}
    assert {f"trainer.{name}" for name in trainer_options()} == {
        ".".join(name.split(".")[:2]) for name in known if name.startswith("trainer.")
    }
    assert {f"model.{name}" for name in model_options()} == {
        ".".join(name.split(".")[:2]) for name in known if name.startswith("model.")
    }
    assert set(command_options(command).arguments) <= known
    assert {name for name in SHORT_OF_FIT.values() if name.startswith("--trainer.")} <= {f"--{name}" for name in known}


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_help_is_a_screen_and_help_all_is_everything(
    run_cli: RunCli, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = run_cli(command, "--help"), run_cli(command, "--help-all")
    assert short.code == whole.code == 0
    assert short.out == short_help(command)
    assert len(short.out.splitlines()) <= 25
    assert all(f"--{name}" in short.out for name in command_options(command).arguments)
    assert max(map(len, short.out.splitlines())) <= 80
    assert f"unite {command} --help-all" in short.out
    assert len(whole.out.splitlines()) > 300


def test_help_of_all_commands_fits_a_terminal(run_cli: RunCli) -> None:
    assert max(map(len, run_cli("--help").out.splitlines())) <= 80


def test_short_help_tells_values_and_defaults() -> None:
    text = short_help("sample")
    for line in (
        "  --num_samples N     Number of samples (default: 16)",
        "  --output PATH       Folder for the files",
        "  --labels N ...      Classes to generate, cycled",
        "  --overwrite         Replace files that the folder has already",
    ):
        assert line in text.splitlines()
    assert "  --split train|val|test  " in short_help("predict")


def test_info_names_what_comes_with_the_package(run_cli: RunCli) -> None:
    out = run_cli("info").out
    for name in (*shipped_models(), "qm9_small", "digits"):
        assert f"  {name} " in out


def test_info_of_a_model_says_what_it_is_and_what_to_type(run_cli: RunCli) -> None:
    result = run_cli("info", "qm9")
    assert result.code == 0, result.err
    for words in ("molecule (MoleculeAdapter: ", "14,000 steps", "match_rate", "unite sample qm9 -n 100", "total 1.0"):
        assert words in result.out
    assert run_cli("info", "nowhere").err.startswith("unite: error: --ckpt_path nowhere")


def test_the_best_checkpoint_of_a_run_is_found_by_its_name(tmp_path: Path) -> None:
    from unite.runs.folder import find_best_checkpoint

    with pytest.raises(UserError, match="has none"):
        find_best_checkpoint(tmp_path)
    (tmp_path / "best-validity.ckpt").touch()
    assert find_best_checkpoint(tmp_path).name == "best-validity.ckpt"
    (tmp_path / "best-loss.ckpt").touch()
    with pytest.raises(UserError, match=r"has best-loss.ckpt, best-validity.ckpt; name the file"):
        find_best_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sam", "sample"),
        ("fit qm9_s", "qm9_small"),
        ("fit --trainer.max_st", "--trainer.max_steps"),
        ("score im", "images"),
        ("score --bon", "--bonds"),
        ("sample q", "qm9"),
    ],
)
def test_the_shell_completes(run_cli: RunCli, word: str, expected: str) -> None:
    script = run_cli("completion", "bash").out
    words = ["unite", *word.split(" ")]
    array = " ".join(f'"{item}"' for item in words)
    typed = f'{script}\nCOMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _unite; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=True)
    assert expected in done.stdout.split()


def test_every_config_of_the_repository_is_shipped_by_its_name() -> None:
    folder = REPOSITORY / "configs"
    assert set(shipped_configs().values()) == set(folder.rglob("*.yaml"))


def test_info_of_a_run_names_commands_that_exist(run_cli: RunCli, tmp_path: Path) -> None:
    checkpoint = REPOSITORY / "tests" / "data" / "before_the_move" / "run"
    out = run_cli("info", checkpoint).out
    named = [line.split()[1] for line in out.splitlines() if line.startswith("  unite ")]
    assert named
    assert set(named) <= set(COMMANDS)
