"""Options in a file: what is written is read back, every type is checked, and wrong names are put right."""

from dataclasses import fields
from pathlib import Path

import pytest

from unstir.train import TrainConfig, run_file

yaml = pytest.importorskip("yaml")


def test_every_option_is_documented_written_and_read_back(tmp_path):
    config = TrainConfig(
        "a b: [c", out=tmp_path / "run", size=32, lr=1e-5, ema_std=(0.05, 0.1), flip=True, conditional=False, weight="p2:1,1"
    )
    run_file.write(config, tmp_path / "run.yaml")
    text = (tmp_path / "run.yaml").read_text()
    names = [f.name for f in fields(TrainConfig) if f.name not in ("resume", "override")]
    assert set(run_file.documented()) >= set(names)
    assert list(yaml.safe_load(text)) == names
    assert isinstance(yaml.safe_load(text)["lr"], float)  # YAML 1.1 would read 1e-05 as a word
    assert TrainConfig(**run_file.read(tmp_path / "run.yaml")) == config
    assert max(map(len, text.splitlines())) <= 130


def read(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return run_file.read(tmp_path / "c.yaml")


def test_words_and_lists_take_the_types_of_the_options(tmp_path):
    found = read(
        tmp_path, "data: digits\nlr: 1e-3\nsteps: 1e4\nema-std: 0.1\nsize: null\nout: x/y\nlabels: 3\nlog_to: [wandb]\n"
    )
    assert found == {
        **{"data": "digits", "lr": 0.001, "steps": 10_000, "ema_std": (0.1,), "size": None},
        **{"out": Path("x/y"), "labels": "3", "log_to": ("wandb",)},
    }
    assert isinstance(found["steps"], int)
    assert read(tmp_path, '{"batch": 4, "pairs": ["a", "b"]}') == {"batch": 4, "pairs": ("a", "b")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "unknown option 'learning_rate'; did you mean lr?"),
        ("step: 1", "unknown option 'step'; did you mean steps?"),
        ("weight-decya: 1", "did you mean weight_decay?"),
        ("xyzzy: 1", "unknown option 'xyzzy'; known are data, pairs"),
        ("steps: many", "steps is 'many'; a whole number was expected"),
        ("steps: 1.5", "steps is 1.5; a whole number"),
        ("steps: true", "steps is True; a whole number"),
        ("lr: fast", "lr is 'fast'; a number was expected"),
        ("flip: 1", "flip is 1; true or false was expected"),
        ("data: [a]", r"data is \['a'\]; a text was expected"),
        ("schedule: cosin", "schedule is 'cosin'; one of cosine, linear, constant"),
        ("ema_std: [a]", "ema_std is 'a'; a number"),
        ("resume: true", "resume belongs on the command line"),
        ("", "holds nothing"),
        ("- 1", "holds list"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
    ids=lambda value: "" if " " in value and "option" in value else value[:20].replace("\n", " "),
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.yaml' is missing"):
        run_file.read(tmp_path / "nowhere.yaml")


def test_changes_are_those_the_numbers_depend_on(tmp_path):
    config = TrainConfig("digits", out=tmp_path, lr=0.1, keep=5, workers=3)
    assert run_file.changes({"data": "digits"}, config) == [("lr", 0.002, 0.1)]
